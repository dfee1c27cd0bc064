"""Read back what was sharded: any clip by its number, decoded when asked for.

Torch is imported when the first frames or labels are.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from .shard import read_places
from .video import read_frames

if TYPE_CHECKING:
    from jaxtyping import UInt8
    from torch import Tensor

INDEX = "index.json"


class ShardedDataset:
    """The clips of a curated folder, in an order that does not change.

    Takes the folder that ``curate`` wrote, or any folder of tars in its format. Costs no
    memory but the index, and may be passed to worker processes.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no clips in it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise FileNotFoundError(f"{self.path}: no such folder")
        index = self.path / INDEX
        if index.is_file():
            self._entries = json.loads(index.read_text())["clips"]
        else:
            self._entries = _scan_tars(self.path)
        if not self._entries:
            raise ValueError(f"{self.path}: no clips in here; wfm-curator run writes them")

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int, /) -> "ShardedClip":
        return ShardedClip(self.path, self._entries[index])

    def __iter__(self) -> Iterator["ShardedClip"]:
        return (self[i] for i in range(len(self)))

    def shuffled(
        self, seed: int = 0, *, worker: int = 0, workers: int = 1, start: int = 0
    ) -> Iterator["ShardedClip"]:
        """Yield every clip once, in an order that the seed alone decides.

        Of several workers each gets a share of its own; ``start`` leaves out what this one has
        had already, so that a pass that was stopped goes on.

        Raises:
            ValueError: no such worker.
        """
        if not 0 <= worker < workers:
            raise ValueError(f"worker {worker} of {workers}; they are numbered from 0")
        order = list(range(len(self)))
        Random(seed).shuffle(order)
        return (self[i] for i in order[worker::workers][start:])


class ShardedClip:
    """One clip: ``fps``, ``caption``, ``height`` and ``width`` at once, the rest from its tar."""

    def __init__(self, folder: Path, entry: Mapping[str, Any]) -> None:
        self._folder, self._entry = folder, entry

    @property
    def key(self) -> str:
        return self._entry["key"]

    @property
    def fps(self) -> float:
        return self._entry["fps"]

    @property
    def caption(self) -> str:
        return self._entry["caption"]

    @property
    def height(self) -> int:
        return self._entry["height"]

    @property
    def width(self) -> int:
        return self._entry["width"]

    @property
    def members(self) -> tuple[str, ...]:
        """What the clip has: ``mp4``, ``json`` and, with arrays, ``safetensors``."""
        return tuple(self._entry["members"])

    @property
    def views(self) -> tuple[str, ...]:
        """The other cameras of a synchronised recording, for `read_view`."""
        return tuple(
            s.removesuffix(".mp4") for s in self.members if s.endswith(".mp4") and s != "mp4"
        )

    @property
    def attributes(self) -> Mapping[str, object]:
        """The recording's side-car JSON, and under ``curation`` where the clip is from."""
        return json.loads(self.member("json"))

    def __len__(self) -> int:
        return self._entry["frames"]

    def __repr__(self) -> str:
        return f"<{self.key}: {len(self)} frames of {self.height}x{self.width}, {self.fps:g} fps>"

    def read(self, start: int, stop: int, /) -> "UInt8[Tensor, 't 3 h w']":
        """Decode frames ``start`` to ``stop``, not included.

        Raises:
            ValueError: the clip has no such frames.
        """
        return self._decode("mp4", start, stop)

    def read_view(self, view: str, start: int, stop: int, /) -> "UInt8[Tensor, 't 3 h w']":
        """Decode frames of another camera; frame n is of the same moment as that of `read`.

        Raises:
            ValueError: the clip has no such view or frames.
        """
        if view not in self.views:
            have = ", ".join(self.views) or "none"
            raise ValueError(f"{self.key} has no view {view!r}; it has {have}")
        return self._decode(f"{view}.mp4", start, stop)

    def _decode(self, suffix: str, start: int, stop: int) -> "UInt8[Tensor, 't 3 h w']":
        torch = _torch()
        if not 0 <= start < stop <= len(self):
            raise ValueError(f"{self.key} has {len(self)} frames; asked for {start} to {stop}")
        frames = read_frames(self.member(suffix), start, stop, len(self))
        return torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()

    def labels(self) -> "Mapping[str, Tensor]":
        """Return the arrays that came with the recording, cut to the clip."""
        _torch()
        from safetensors.torch import load

        return load(self.member("safetensors")) if "safetensors" in self._entry["members"] else {}

    def member(self, suffix: str) -> bytes:
        """Return the bytes of a member: ``mp4``, ``json`` or ``safetensors``."""
        offset, size = self._entry["members"][suffix]
        with (self._folder / self._entry["shard"]).open("rb") as file:
            file.seek(offset)
            data = file.read(size)
        if len(data) < size:
            raise ValueError(f"{self._folder / self._entry['shard']}: cut off; curate again")
        return data


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise ImportError('clips as tensors need: pip install "wfm-curator[torch]"') from None
    return torch


def _scan_tars(folder: Path) -> list[dict[str, Any]]:
    """Build the index from the tars themselves."""
    entries: dict[tuple[str, str], dict[str, Any]] = {}
    for tar in sorted(folder.rglob("*.tar")):
        shard = tar.relative_to(folder).as_posix()
        for name, offset, size in read_places(tar):
            key, _, suffix = name.partition(".")
            entry = entries.setdefault((shard, key), {"key": key, "shard": shard, "members": {}})
            entry["members"][suffix] = [offset, size]
    whole = [e for e in entries.values() if {"mp4", "json"} <= set(e["members"])]
    for entry in whole:
        meta = json.loads(ShardedClip(folder, entry).member("json"))
        facts = meta.get("curation")
        if not isinstance(facts, dict):
            raise ValueError(f"{folder / entry['shard']}: {entry['key']} was not written by curate")
        entry |= {k: facts[k] for k in ("frames", "height", "width")}
        entry |= {k: meta[k] for k in ("fps", "caption")}
    return whole
