"""Recordings with actions, and their frames encoded once for training."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor

from .checkpoint import read_weights
from .interfaces import ClipDataset, DiscreteCodec, LabelledClip, LatentCodec
from .references import resolve
from .video import read_video

Codec = LatentCodec | DiscreteCodec


@dataclass(frozen=True)
class RecordedClip:
    """One recording of a folder: ``STEM.mp4``, ``STEM.json`` and ``STEM.safetensors``.

    Its video is read when it is first looked at.
    """

    stem: Path
    about: Mapping[str, object]

    @cached_property
    def _video(self) -> tuple[UInt8[Tensor, "t 3 h w"], float]:
        return read_video(self.stem.with_suffix(".mp4"))

    @property
    def fps(self) -> float:
        fps = self.about.get("fps")
        return float(fps) if isinstance(fps, int | float) else self._video[1]

    @property
    def caption(self) -> str:
        return str(self.about.get("caption", ""))

    @property
    def attributes(self) -> Mapping[str, object]:
        return {k: v for k, v in self.about.items() if k not in ("caption", "fps")}

    def __len__(self) -> int:
        return len(self._video[0])

    def read(self, start: int, stop: int, /) -> UInt8[Tensor, "t 3 h w"]:
        return self._video[0][start:stop]

    def labels(self) -> Mapping[str, Tensor]:
        return read_weights(self.stem.with_suffix(".safetensors"))


class ClipFolder:
    """The recordings of a folder, such as ``wfm-posttrain simulate`` writes, by name.

    Raises:
        FileNotFoundError: no such folder, or no recording in it.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder of recordings")
        self.stems = sorted(
            p.with_suffix("")
            for p in folder.rglob("*.json")
            if p.with_suffix(".mp4").is_file() and p.with_suffix(".safetensors").is_file()
        )
        if not self.stems:
            raise FileNotFoundError(
                f"{folder}: no recording here (STEM.mp4, STEM.json and STEM.safetensors)"
            )

    def __len__(self) -> int:
        return len(self.stems)

    def __getitem__(self, index: int, /) -> RecordedClip:
        stem = self.stems[index]
        try:
            about = json.loads(stem.with_suffix(".json").read_text())
        except (json.JSONDecodeError, UnicodeDecodeError) as e:
            raise ValueError(f"{stem}.json: not JSON ({e})") from e
        return RecordedClip(stem, about)


class Part:
    """Some of a dataset's clips."""

    def __init__(self, clips: ClipDataset, numbers: Sequence[int]) -> None:
        self.clips, self.numbers = clips, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int, /) -> LabelledClip:
        return self.clips[self.numbers[index]]


def open_clips(reference: str, size: tuple[int, int] | None = None) -> ClipDataset:
    """Open a folder of recordings, or what a ``module:callable=ARGUMENT`` reference makes.

    A folder may also be a data set of LeRobot, Bridge, nuScenes or Replicator (``importers``),
    with options behind a ``?``. With ``size`` (h, w) all clips are brought to it.

    Raises:
        FileNotFoundError: no such folder, or nothing in it.
        ValueError: the reference cannot be resolved or is no ClipDataset.
    """
    from .importers import Resized, recognise

    if Path(reference.partition("?")[0]).expanduser().is_dir() or ":" not in reference:
        found = recognise(reference) or ClipFolder(reference)
    else:
        found = resolve(reference, "wfm.clips")
    if not isinstance(found, ClipDataset):
        raise ValueError(f"{reference}: gives a {type(found).__name__}, not a ClipDataset")
    return found if size is None else Resized(found, size)


def split(
    reference: str, held_out: str | int, size: tuple[int, int] | None = None
) -> tuple[ClipDataset, ClipDataset]:
    """Open the clips to train on, and those to check with.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: too few clips for as many to be held out.
    """
    clips = open_clips(reference, size)
    if isinstance(held_out, str):
        return clips, open_clips(held_out, size)
    cut = len(clips) - held_out
    if held_out < 2 or cut < 1:
        raise ValueError(
            f"{reference}: {len(clips)} clips, of which {held_out} are to be held out; "
            "hold out two or more and leave some to train on"
        )
    return Part(clips, range(cut)), Part(clips, range(cut, len(clips)))


def actions_of(clip: LabelledClip, what: str) -> Float[Tensor, "s a"]:
    """Return the actions between the frames of a clip.

    Raises:
        ValueError: there are none, or not one between every two frames.
    """
    labels = clip.labels()
    if "action" not in labels:
        raise ValueError(f"{what}: has no 'action' array (it has: {', '.join(sorted(labels))})")
    action = labels["action"].float()
    if action.ndim != 2 or len(action) != len(clip) - 1:
        raise ValueError(
            f"{what}: {tuple(action.shape)} actions for {len(clip)} frames; "
            f"need {len(clip) - 1} rows, one between every two frames"
        )
    if not action.isfinite().all():
        raise ValueError(f"{what}: its actions are not all finite numbers")
    return action


@dataclass(frozen=True)
class EncodedFrames:
    """The frames of all clips in one row, each encoded alone.

    ``codes`` are latents (float16) or tokens. ``action[i]`` led to frame i, and is zero for
    the first frame of a clip; ``first[i]`` is the number of that frame's clip's first frame,
    ``fps[i]`` that clip's rate in Hz.
    """

    codes: Shaped[Tensor, "n ..."]
    action: Float[Tensor, "n a"]
    first: Int64[Tensor, " n"]
    fps: Float[Tensor, " n"]

    def targets(self) -> Int64[Tensor, " m"]:
        """Return the numbers of the frames that have a frame before them."""
        return (self.first != torch.arange(len(self.first))).nonzero()[:, 0]

    def windows(self, targets: Int64[Tensor, " b"], past: int) -> Shaped[Tensor, "b t ..."]:
        """Return ``past`` frames and the target each; before a clip's start, its first frame."""
        numbers = targets[:, None] - torch.arange(past, -1, -1)
        return self.codes[torch.maximum(numbers, self.first[targets][:, None])]


@torch.no_grad()
def encode_frames(
    clips: ClipDataset,
    codec: Codec,
    *,
    progress: Callable[[int, int], None] | None = None,
    batch: int = 64,
    device: str = "cpu",
) -> EncodedFrames:
    """Encode every frame of every clip as an image.

    Raises:
        ValueError: a clip without actions, or of another size than the first.
    """
    codes: list[Tensor] = []
    actions: list[Tensor] = []
    first: list[Tensor] = []
    rates: list[Tensor] = []
    count, size = 0, None
    for i in range(len(clips)):
        clip = clips[i]
        what = f"clip {i} ({getattr(clip, 'stem', clip.caption)})"
        action = actions_of(clip, what)
        frames = clip.read(0, len(clip))
        size = size or frames.shape[2:]
        if frames.shape[2:] != size:
            raise ValueError(
                f"{what}: frames are {frames.shape[2]}x{frames.shape[3]}, "
                f"those before are {size[0]}x{size[1]}"
            )
        for part in frames.split(batch):
            video = rearrange(part, "b c h w -> b c 1 h w").to(device) / 127.5 - 1
            codes.append(_one_frame(codec.encode(video)).cpu())
        actions.append(torch.cat([torch.zeros_like(action[:1]), action]))
        first.append(torch.full((len(frames),), count))
        rates.append(torch.full((len(frames),), float(clip.fps)))
        count += len(frames)
        if progress:
            progress(i + 1, len(clips))
    return EncodedFrames(*(torch.cat(parts) for parts in (codes, actions, first, rates)))


def covered_by_objects(
    clips: ClipDataset, size: tuple[int, int], parts: Collection[str] = ()
) -> Float[Tensor, "n h w"]:
    """Return how much of each latent of every frame, 0 to 1, the clips' objects cover.

    Objects are the pixels of ``segmentation`` with numbers from 1 to as many as the clip's
    ``objects`` are, and those that its ``segments`` call by a name among ``parts``.

    Raises:
        ValueError: a clip without ``segmentation``, ``objects``, or one of the parts.
    """
    covered = []
    for i in range(len(clips)):
        clip = clips[i]
        masks, things = clip.labels().get("segmentation"), clip.attributes.get("objects")
        if masks is None or not isinstance(things, list):
            raise ValueError(f"clip {i}: has no label `segmentation` or no list of `objects`")
        names = clip.attributes.get("segments")
        names = names if isinstance(names, dict) else {}
        if missing := set(parts).difference(names.values()):
            raise ValueError(f"clip {i}: no segment {min(missing)!r} among {names}")
        keys = [*range(1, len(things) + 1), *(int(k) for k, name in names.items() if name in parts)]
        objects = torch.isin(masks, torch.tensor(keys, dtype=masks.dtype)).float()
        covered.append(F.adaptive_avg_pool2d(objects[:, None], size)[:, 0])
    return torch.cat(covered)


def _one_frame(codes: Tensor) -> Tensor:
    """Drop the time axis of encoded images; keep latents in half precision."""
    if codes.is_floating_point():
        return rearrange(codes, "b c 1 h w -> b c h w").half()
    return rearrange(codes, "b 1 h w -> b h w")
