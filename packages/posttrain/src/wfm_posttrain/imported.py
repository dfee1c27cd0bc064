"""What all importers share: clips that are read when they are looked at, resized if asked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from .interfaces import ClipDataset, LabelledClip
from .video import iterate_video, open_video


@dataclass(frozen=True)
class ImportedClip:
    """A clip of a public data set; its frames and arrays come from functions, once each."""

    stem: str
    fps: float
    caption: str
    length: int
    film: Callable[[], UInt8[Tensor, "t 3 h w"]]
    arrays: Callable[[], Mapping[str, Tensor]]
    attributes: Mapping[str, object] = field(default_factory=dict)

    @cached_property
    def _frames(self) -> UInt8[Tensor, "t 3 h w"]:
        frames = self.film()
        if len(frames) != self.length:
            raise ValueError(f"{self.stem}: {len(frames)} frames, its labels say {self.length}")
        return frames

    @cached_property
    def _arrays(self) -> Mapping[str, Tensor]:
        return self.arrays()

    def __len__(self) -> int:
        return self.length

    def read(self, start: int, stop: int, /) -> UInt8[Tensor, "t 3 h w"]:
        return self._frames[start:stop]

    def labels(self) -> Mapping[str, Tensor]:
        return self._arrays


class ImportedClips:
    """A ClipDataset of imported clips; each look makes a new clip, so that none stays in memory."""

    def __init__(self, makers: Sequence[Callable[[], ImportedClip]], what: str) -> None:
        if not makers:
            raise ValueError(f"{what}: no clip in it")
        self._makers = makers

    def __len__(self) -> int:
        return len(self._makers)

    def __getitem__(self, index: int, /) -> ImportedClip:
        return self._makers[index]()


def options(argument: str, known: Mapping[str, Callable[[str], object]]) -> tuple[Path, dict]:
    """Split ``FOLDER?name=value&name=value``; ``known`` says what each value is.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: an unknown option, or a value that does not fit.
    """
    name, _, rest = argument.partition("?")
    folder, found = Path(name).expanduser(), {}
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    for part in filter(None, rest.split("&")):
        key, _, value = part.partition("=")
        if key not in known:
            raise ValueError(f"{argument}: no option {key!r}; there are {', '.join(known)}")
        try:
            found[key] = known[key](value)
        except ValueError as e:
            raise ValueError(f"{argument}: {key}={value} does not fit ({e})") from e
    return folder, found


def read_picture(path: str | Path) -> UInt8[Tensor, "3 h w"]:
    """Read a picture file (JPEG, PNG).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no picture.
    """
    return next(iterate_video(path))


def read_span(path: str | Path, start: float, count: int) -> UInt8[Tensor, "t 3 h w"]:
    """Read ``count`` frames of a video file from the time ``start`` in seconds on.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a video, or one that ends earlier.
    """
    frames: list[Tensor] = []
    with open_video(path) as container:
        stream = container.streams.video[0]
        rate, base = stream.average_rate, stream.time_base
        assert rate
        assert base
        container.seek(max(int((start - 1 / rate) / base), 0), stream=stream)
        for frame in container.decode(stream):
            if frame.time is None or frame.time < start - 0.5 / float(rate):
                continue
            picture = torch.from_numpy(frame.to_ndarray(format="rgb24"))
            frames.append(picture.permute(2, 0, 1).contiguous())
            if len(frames) == count:
                return torch.stack(frames)
    raise ValueError(f"{path}: {len(frames)} frames from {start:g} s on; {count} are needed")


@dataclass(frozen=True)
class ResizedClip:
    """A clip scaled to cover a size and cut to its middle, with all that depends on pixels."""

    clip: LabelledClip
    size: tuple[int, int]

    @property
    def fps(self) -> float:
        return self.clip.fps

    @property
    def caption(self) -> str:
        return self.clip.caption

    @property
    def attributes(self) -> Mapping[str, object]:
        return self.clip.attributes

    @property
    def stem(self) -> str:
        return str(getattr(self.clip, "stem", self.clip.caption))

    def __len__(self) -> int:
        return len(self.clip)

    def read(self, start: int, stop: int, /) -> UInt8[Tensor, "t 3 h w"]:
        frames = self.clip.read(start, stop)
        if frames.shape[2:] == self.size:
            return frames
        return _cover(frames.float(), self.size, "bilinear").round().clamp(0, 255).byte()

    def labels(self) -> Mapping[str, Tensor]:
        """Return the arrays, those of pixels moved along with the picture."""
        found, old = dict(self.clip.labels()), self.clip.read(0, 1).shape[2:]
        if old == self.size:
            return found
        scale, top, left = _cut(old, self.size)
        for name, x in found.items():
            if name == "intrinsics":
                move = x.new_tensor([[scale, 0, -left], [0, scale, -top], [0, 0, 1]])
                found[name] = move @ x
            elif name.endswith("_pixel"):
                found[name] = x * scale - x.new_tensor([left, top])
            elif x.ndim == 3 and x.shape[1:] == old:
                found[name] = _cover(x[:, None].float(), self.size, "nearest")[:, 0].to(x.dtype)
        return found


class Resized:
    """A dataset whose clips are brought to one size in pixels."""

    def __init__(self, clips: ClipDataset, size: tuple[int, int]) -> None:
        self.clips, self.size = clips, size

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int, /) -> LabelledClip:
        return ResizedClip(self.clips[index], self.size)


def _cut(old: Sequence[int], size: tuple[int, int]) -> tuple[float, int, int]:
    """Return the scale that covers a size, and how many rows and columns are then cut off."""
    scale = max(size[0] / old[0], size[1] / old[1])
    top, left = ((round(o * scale) - s) // 2 for o, s in zip(old, size, strict=True))
    return scale, top, left


def _cover(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Scale pictures to cover a size and cut out the middle."""
    scale, top, left = _cut(x.shape[-2:], size)
    whole = (round(x.shape[-2] * scale), round(x.shape[-1] * scale))
    smooth = {"antialias": True, "align_corners": False} if mode == "bilinear" else {}
    scaled = F.interpolate(x, whole, mode=mode, **smooth)
    return scaled[..., top : top + size[0], left : left + size[1]]
