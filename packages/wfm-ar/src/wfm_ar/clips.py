"""Clips to train on: a late-bound dataset, or a plain folder of video files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from .interfaces import ClipDataset
from .references import resolve
from .video import open_video, read_video

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi")


class FileClip:
    """One video file; its caption stands in ``STEM.json`` beside it, if anywhere."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._frames: UInt8[Tensor, "t 3 h w"] | None = None
        beside = path.with_suffix(".json")
        self.attributes: Mapping[str, object] = (
            json.loads(beside.read_text()) if beside.is_file() else {}
        )

    @property
    def caption(self) -> str:
        return str(self.attributes.get("caption", ""))

    @property
    def fps(self) -> float:
        with open_video(self.path) as container:
            return float(container.streams.video[0].average_rate or 24)

    def __len__(self) -> int:
        return len(self._all())

    def read(self, start: int, stop: int, /) -> UInt8[Tensor, "t 3 h w"]:
        return self._all()[start:stop]

    def labels(self) -> Mapping[str, Tensor]:
        return {}

    def _all(self) -> UInt8[Tensor, "t 3 h w"]:
        if self._frames is None:
            self._frames, _ = read_video(self.path)
        return self._frames


class FolderClips:
    """The video files of a folder, by name; each is read when it is asked for."""

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder of videos")
        self.paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not self.paths:
            raise ValueError(f"{folder}: holds no video file ({', '.join(SUFFIXES)})")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> FileClip:
        return FileClip(self.paths[index])


def find_clips(source: str) -> ClipDataset:
    """Return the dataset of a ``module:callable=ARGUMENT`` reference, or that of a folder.

    Raises:
        FileNotFoundError: neither a reference nor a folder.
        ValueError: the folder holds no video, or the reference is not a ClipDataset.
    """
    if ":" not in source or Path(source).is_dir():
        return FolderClips(source)
    found = resolve(source, "wfm.clips")
    if not isinstance(found, ClipDataset):
        raise ValueError(f"{source}: a {type(found).__name__}, not a dataset of clips")
    if not len(found):
        raise ValueError(f"{source}: holds no clip")
    return found


def fit(frames: UInt8[Tensor, "t 3 h w"], height: int, width: int) -> Float[Tensor, "t 3 y x"]:
    """Scale to [-1, 1] and, where the size differs, cover the target and cut its centre."""
    video = frames.float() / 127.5 - 1
    return _cover(video, height, width, mode="bilinear", antialias=True).clamp(-1, 1)


def fit_segments(segments: Int[Tensor, "t h w"], height: int, width: int) -> Int[Tensor, "t y x"]:
    """Bring numbers of objects to where :func:`fit` brings their pixels."""
    return _cover(segments[:, None].float(), height, width, mode="nearest-exact")[:, 0].long()


def _cover(
    video: Float[Tensor, "t c h w"], height: int, width: int, **how: Any
) -> Float[Tensor, "t c y x"]:
    _, _, h, w = video.shape
    if (h, w) == (height, width):
        return video
    scale = max(height / h, width / w)
    size = (max(height, round(h * scale)), max(width, round(w * scale)))
    video = interpolate(video, size=size, **how)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return video[..., top : top + height, left : left + width]


def every(frames: int, clip_fps: float, fps: float) -> Tensor:
    """Number the frames of a clip to keep for a rate of ``fps``; a slower clip keeps all."""
    step = max(clip_fps / fps, 1.0)
    return (torch.arange(int((frames - 1) / step + 1e-6) + 1) * step).round().long()
