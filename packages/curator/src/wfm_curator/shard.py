"""Write clips to WebDataset tars, by resolution, shape and length, and read where they lie.

Each clip is up to three members: ``KEY.mp4``, ``KEY.json`` and, if it has arrays,
``KEY.safetensors``. The same clips give the same bytes: no times or owners are stored.
"""

import io
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .config import ShardConfig

ASPECTS = ((0.65, "9x16"), (0.88, "3x4"), (1.16, "1x1"), (1.55, "4x3"), (float("inf"), "16x9"))

Member = tuple[str, bytes]


def bucket(height: int, width: int, seconds: float, config: ShardConfig) -> str:
    """Name the folder of a clip, such as ``720p_16x9_5-10s``."""
    side = max((s for s in config.sides if s <= min(height, width)), default=0)
    aspect = next(name for limit, name in ASPECTS if width / height <= limit)
    below = max((s for s in config.seconds if s <= seconds), default=0)
    above = min((s for s in config.seconds if s > seconds), default=None)
    length = f"{below:g}s-" if above is None else f"{below:g}-{above:g}s"
    return f"{side}p_{aspect}_{length}"


@dataclass(frozen=True)
class Planned:
    """A tar to be: its path below the output folder, and the numbers of its clips."""

    path: str
    clips: tuple[int, ...]


def plan(buckets: Sequence[str], sizes: Sequence[float], config: ShardConfig) -> list[Planned]:
    """Distribute clips, in their order, over tars of their bucket; ``sizes`` are in bytes."""
    groups: dict[str, list[list[int]]] = {}
    filled: dict[str, float] = {}
    for index, (name, size) in enumerate(zip(buckets, sizes, strict=True)):
        tars = groups.setdefault(name, [])
        full = tars and len(tars[-1]) >= config.clips
        if not tars or full or filled[name] + size > config.megabytes * 1e6:
            tars.append([])
            filled[name] = 0.0
        tars[-1].append(index)
        filled[name] += size
    planned = [
        Planned(_path(name, number), tuple(clips))
        for name, tars in groups.items()
        for number, clips in enumerate(tars)
    ]
    return sorted(planned, key=lambda tar: tar.path)


def _path(name: str, number: int) -> str:
    return f"shards/{name}/{number:05d}.tar"


def write_tar(path: Path, members: Iterable[Member]) -> dict[str, tuple[int, int]]:
    """Write a tar whole or not at all; return each member's offset and size in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    places = {}
    try:
        with (
            partial.open("wb") as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for name, data in members:
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(data), 0o644
                tar.addfile(entry, io.BytesIO(data))
                padded = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                places[name] = (tar.offset - padded, len(data))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return places


def read_places(path: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name, offset and size of each member of a tar.

    Raises:
        ValueError: it is no tar, or cut off.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            for entry in tar:
                if entry.isfile():
                    yield entry.name, entry.offset_data, entry.size
    except tarfile.TarError as e:
        raise ValueError(f"{path}: not a tar, or cut off ({e})") from e
