"""Training clips: decoded once, kept as bytes in memory, cropped at random."""

import logging
import random
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice
from operator import ge
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from .references import resolve
from .video import iterate_video

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".y4m")


class Source(BaseModel):
    """Where clips come from, and how often."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    clips: str = Field(
        description="a folder of videos, a video, or module:callable=ARGUMENT giving a dataset "
        "with len() and [i].read(start, stop) -> uint8 t 3 h w"
    )
    name: str = Field("", description="what reports call it; as a rule, that of `clips`")
    weight: float = Field(1.0, gt=0, description="share of the samples")
    short_side: int | None = Field(None, gt=0, description="shrink to it; None: as it is")
    max_frames: int = Field(600, gt=0, description="of each clip or file; the rest is not read")
    max_clips: int | None = Field(None, gt=0)

    @property
    def label(self) -> str:
        """What reports call the source."""
        return self.name or self.clips


class BatchShape(BaseModel):
    """One kind of batch; ``frames`` 1 is an image batch."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    frames: int = Field(gt=0)
    size: int = Field(gt=0, description="height of the crop, pixels")
    width: int | None = Field(None, gt=0, description="of the crop, pixels; None: a square")
    batch: int = Field(gt=0, description="clips, of all processes together")
    weight: float = Field(1.0, gt=0)

    @property
    def columns(self) -> int:
        """The crop's width."""
        return self.width or self.size


@runtime_checkable
class _Clip(Protocol):
    def __len__(self) -> int: ...

    def read(self, start: int, stop: int, /) -> UInt8[Tensor, "t 3 h w"]: ...


class ClipCache:
    """The clips of some sources, as bytes in memory."""

    def __init__(self, sources: Sequence[Source], clips: Sequence[list[Tensor]]) -> None:
        self.sources = tuple(sources)
        self.clips = [list(some) for some in clips]
        self._by_shape: dict[BatchShape, list[_Fitting]] = {}

    @classmethod
    def read(cls, sources: Sequence[Source]) -> "ClipCache":
        """Decode all clips of the sources.

        Raises:
            FileNotFoundError: there is no such folder.
            ValueError: a source holds no clip, or a damaged one.
        """
        clips = [list(read_source(source)) for source in sources]
        for source, some in zip(sources, clips, strict=True):
            if not some:
                raise ValueError(f"{source.clips}: no clip there")
        size = sum(clip.numel() for some in clips for clip in some)
        logger.info("%d clips in memory, %.0f MB", sum(map(len, clips)), size / 1e6)
        return cls(sources, clips)

    def hold_out(self, every: int) -> tuple["ClipCache", "ClipCache"]:
        """Split: all but every n-th clip of each source, and those, at least one of each."""
        for source, some in zip(self.sources, self.clips, strict=True):
            if len(some) < 2:
                raise ValueError(f"{source.clips}: one clip cannot be split; give held_out")
        kept = [[c for i, c in enumerate(some) if i % every] for some in self.clips]
        out = [some[::every] for some in self.clips]
        return ClipCache(self.sources, kept), ClipCache(self.sources, out)

    def batch(
        self, shape: BatchShape, dice: random.Random, part: slice = slice(None)
    ) -> Float[Tensor, "b 3 t h w"]:
        """Cut random clips, flipped left to right half of the time; return ``part`` of them."""
        sources = self._fitting(shape)
        weights = [source.weight for source in sources]
        samples = []
        for source in dice.choices(sources, weights, k=shape.batch):
            clip = dice.choices(source.clips, cum_weights=source.lengths)[0]
            samples.append(_cut(clip, shape, dice))
        return torch.stack(samples[part]) / 127.5 - 1

    def _fitting(self, shape: BatchShape) -> "list[_Fitting]":
        """For each source: the clips that are large enough, their running lengths, its weight."""
        if shape in self._by_shape:
            return self._by_shape[shape]
        fitting = []
        for source, clips in zip(self.sources, self.clips, strict=True):
            box = (shape.frames, 3, shape.size, shape.columns)
            enough = [c for c in clips if all(map(ge, c.shape, box))]
            if enough:
                lengths = list(accumulate(len(c) for c in enough))
                fitting.append(_Fitting(enough, lengths, source.weight))
        if not fitting:
            raise ValueError(f"no clip has {shape.frames} frames of {shape.size}x{shape.columns}")
        self._by_shape[shape] = fitting
        return fitting


class _Fitting(NamedTuple):
    clips: list[Tensor]
    lengths: list[int]
    weight: float


def _cut(clip: UInt8[Tensor, "t 3 h w"], shape: BatchShape, dice: random.Random) -> Tensor:
    """Cut a random box out of a clip, as ``3 t h w``."""
    t, _, h, w = clip.shape
    start = dice.randint(0, t - shape.frames)
    top, left = dice.randint(0, h - shape.size), dice.randint(0, w - shape.columns)
    rows, columns = slice(top, top + shape.size), slice(left, left + shape.columns)
    box = clip[start : start + shape.frames, :, rows, columns]
    return (box.flip(-1) if dice.random() < 0.5 else box).transpose(0, 1)


def read_source(source: Source) -> Iterator[UInt8[Tensor, "t 3 h w"]]:
    """Decode the clips of a source, shrunk if it says so."""
    path = Path(source.clips).expanduser()
    if path.exists():
        clips = (_read_file(file, source) for file in video_files(path))
    elif ":" in source.clips:
        clips = _read_dataset(source)
    else:
        raise FileNotFoundError(f"{source.clips}: no such folder, and not module:callable=ARGUMENT")
    yield from islice(clips, source.max_clips)


def video_files(path: Path) -> list[Path]:
    """List the videos in a folder and below, or the one file."""
    if path.is_file():
        return [path]
    return sorted(p for p in path.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES)


def _read_file(path: Path, source: Source) -> UInt8[Tensor, "t 3 h w"]:
    frames = islice(iterate_video(path), source.max_frames)
    return torch.stack([shrink(frame[None], source.short_side)[0] for frame in frames])


def _read_dataset(source: Source) -> Iterator[UInt8[Tensor, "t 3 h w"]]:
    dataset = resolve(source.clips, "wfm.clips")
    count = len(dataset)  # ty: ignore[invalid-argument-type]
    for i in range(count):
        clip = dataset[i]  # ty: ignore[not-subscriptable]
        if not isinstance(clip, _Clip):
            raise ValueError(f"{source.clips}: item {i} has no read(start, stop)")
        yield shrink(clip.read(0, min(len(clip), source.max_frames)), source.short_side)


def shrink(frames: UInt8[Tensor, "t 3 h w"], side: int | None) -> UInt8[Tensor, "t 3 h2 w2"]:
    """Shrink so that the shorter side is ``side`` pixels; smaller frames stay as they are."""
    h, w = frames.shape[2:]
    if side is None or min(h, w) <= side:
        return frames.clone()
    size = (round(h * side / min(h, w)), round(w * side / min(h, w)))
    small = F.interpolate(frames.float(), size, mode="bicubic", antialias=True)
    return small.round().clamp(0, 255).byte()
