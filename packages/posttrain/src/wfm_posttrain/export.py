"""Recordings in the formats of others: LeRobot 3.0 and 2.1, and WebDataset; with a card.

Folders appear whole or not at all. LeRobot needs ``pip install wfm-posttrain[lerobot]``.
"""

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checkpoint import replacing
from .interfaces import ClipDataset, LabelledClip
from .sim.episode import encode_mp4

Progress = Callable[[int, int], None]
FORMATS = ("lerobot-v3.0", "lerobot-v2.1", "webdataset")
NUMBERS = 64  # a label with more numbers a frame is left out of tables


@dataclass(frozen=True)
class Recorded:
    """One episode: what each camera saw (names to clips), and its labels by name.

    ``columns`` have one row of numbers for each frame.
    """

    name: str
    fps: float
    caption: str
    views: Mapping[str, LabelledClip]
    columns: Mapping[str, np.ndarray]

    @property
    def length(self) -> int:
        return len(next(iter(self.views.values())))


def export(
    clips: ClipDataset,
    folder: str | Path,
    form: str,
    *,
    robot: str = "simulated",
    progress: Progress | None = None,
) -> int:
    """Write recordings in one of ``FORMATS`` into a new folder; return the number of episodes.

    Raises:
        FileExistsError: the folder is there and not empty.
        ValueError: no such format, or recordings that do not go together.
        ImportError: LeRobot without pyarrow.
    """
    folder = Path(folder)
    if form not in FORMATS:
        raise ValueError(f"no format {form!r}; there are {', '.join(FORMATS)}")
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder}: holds something already; name a new folder")
    if form == "webdataset":
        return webdataset(clips, folder, progress=progress)
    return lerobot(clips, folder, version=form[-4:], robot=robot, progress=progress)


def lerobot(
    clips: ClipDataset,
    folder: str | Path,
    *,
    version: str = "v3.0",
    robot: str = "simulated",
    progress: Progress | None = None,
) -> int:
    """Write a LeRobot data set of version ``v3.0`` or ``v2.1``; return the number of episodes.

    A row is a frame: ``observation.state`` and other labels of few numbers, and the ``action``
    that follows it (the last frame repeats the one before; readers drop it). Cameras of a group
    become the videos of one episode.
    """
    from .export_lerobot import Writer

    with replacing(folder) as partial:
        partial.mkdir()
        writer = Writer(partial, version, robot)
        found = list(_groups(clips))
        for done, names in enumerate(found, start=1):
            writer.add(_recorded(clips, names))
            if progress:
                progress(done, len(found))
        writer.finish()
        card = dataset_card(f"lerobot-{version}", writer.facts())
        (partial / "README.md").write_text(card)
    return len(found)


def webdataset(
    clips: ClipDataset, folder: str | Path, *, shard: int = 500, progress: Progress | None = None
) -> int:
    """Write tars of ``KEY.mp4``, ``KEY.json`` and ``KEY.LABEL.npy``; return the number of clips."""
    count, kinds = len(clips), set()
    with replacing(folder) as partial:
        partial.mkdir()
        for first in range(0, count, shard):
            name = partial / f"shard-{first // shard:06d}.tar"
            with tarfile.open(name, "w", format=tarfile.USTAR_FORMAT) as tar:
                for i in range(first, min(first + shard, count)):
                    clip = clips[i]
                    members = _members(clip)
                    kinds |= set(members)
                    for kind, data in members.items():
                        _store(tar, f"{_key(clip, i)}.{kind}", data)
                    if progress:
                        progress(i + 1, count)
        facts = {"episodes": count, "files in a sample": ", ".join(sorted(kinds))}
        (partial / "README.md").write_text(dataset_card("webdataset", facts))
    return count


def dataset_card(form: str, facts: Mapping[str, object]) -> str:
    """Return a data set's card: front matter for hubs, and a table of facts."""
    head = ["---", "license: apache-2.0", "task_categories: [robotics]", f"tags: [{form}]", "---"]
    rows = [f"| {name} | {value} |" for name, value in facts.items()]
    text = [
        "", "# Recordings", "",
        "Written by `wfm-posttrain`. Simulated recordings come from procedural MuJoCo scenes: a "
        "seed is a recording, and the same seed gives the same bits on the same machine. Seeds "
        "from 1,000,000 on are held out; train on none of them. Recordings whose JSON says "
        '`"synthetic": true` were imagined by a world model that it names.',
        "", "| what | value |", "|---|---|", *rows,
    ]  # fmt: skip
    return "\n".join([*head, *text]) + "\n"


def _groups(clips: ClipDataset) -> Iterator[list[int]]:
    """Yield the numbers of the clips of each episode: the cameras of a group, or one clip."""
    groups: dict[str, list[int]] = {}
    for i in range(len(clips)):
        about = clips[i].attributes
        groups.setdefault(str(about.get("group", f"\0{i}")), []).append(i)
    yield from groups.values()


def _recorded(clips: ClipDataset, numbers: list[int]) -> Recorded:
    some = [clips[i] for i in numbers]
    views = {str(clip.attributes.get("camera", "front")): clip for clip in some}
    if len({len(clip) for clip in some}) > 1 or len(views) < len(some):
        raise ValueError(
            f"{_key(some[0], numbers[0])}: its cameras differ in length, or not in name"
        )
    first = some[0]
    name = str(first.attributes.get("group", _key(first, numbers[0])))
    return Recorded(name, float(first.fps), first.caption, views, _columns(first))


def _columns(clip: LabelledClip) -> dict[str, np.ndarray]:
    """Return the labels that make one row of few numbers for each frame."""
    found = {}
    for name, label in clip.labels().items():
        rows = (
            label.float().flatten(1).numpy() if label.ndim > 1 else label.float()[:, None].numpy()
        )
        if name == "action" and len(rows) == len(clip) - 1:
            rows = np.concatenate([rows, rows[-1:]])
        if len(rows) == len(clip) and rows.shape[1] <= NUMBERS:
            known = {"action": "action", "state": "observation.state"}
            found[known.get(name, f"observation.{name}")] = rows.astype(np.float32)
    return found


def _members(clip: LabelledClip) -> dict[str, bytes]:
    """Return the files of a clip by their kinds."""
    stem = getattr(clip, "stem", None)
    film = stem.with_suffix(".mp4") if isinstance(stem, Path) else None
    video = (
        film.read_bytes() if film is not None and film.is_file()
        else encode_mp4(clip.read(0, len(clip)).numpy(), float(clip.fps))
    )  # fmt: skip
    about = {"caption": clip.caption, "fps": clip.fps, **clip.attributes}
    members = {"mp4": video, "json": json.dumps(about, default=str).encode()}
    return members | {f"{name}.npy": _npy(label) for name, label in clip.labels().items()}


def _npy(label: Tensor) -> bytes:
    buffer = io.BytesIO()
    plain = label.float() if label.dtype == torch.bfloat16 else label
    np.save(buffer, plain.numpy())
    return buffer.getvalue()


def _store(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a file; the same data give the same tar."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _key(clip: Any, number: int) -> str:
    """Return a clip's name; a dot would end it, in a tar."""
    stem = getattr(clip, "stem", None)
    return (Path(stem).name if stem is not None else f"clip-{number:06d}").replace(".", "-")
