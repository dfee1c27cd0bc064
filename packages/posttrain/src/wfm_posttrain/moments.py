"""Clips as samples for the recipes: latents, texts and conditions, encoded once for training.

A sample is a stretch of frames of one clip, or of all the cameras that filmed the same moment.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from .clips import Codec
from .interfaces import ClipDataset, LabelledClip, LatentCodec, TextEncoder
from .steering import Condition, ConditionNet, Steering, batched
from .video import to_model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """Frames ``start`` to ``stop`` of clips that were filmed at the same time."""

    clips: tuple[LabelledClip, ...]
    start: int
    stop: int

    def inputs(self, steering: Steering, views: Sequence[str]) -> Condition:
        """Return what a user would pass as ``controls``, each with a batch axis of one."""
        found = steering.read(self.clips, self.start, self.stop)
        if steering.grouped:
            ids = [views.index(camera_of(clip)) for clip in self.clips]
            found = {**found, "view": torch.tensor(ids)}
        return batched(found)

    def video(self) -> Float[Tensor, "v 3 t h w"]:
        """Return the frames of each camera in [-1, 1].

        Raises:
            ValueError: cameras of different sizes.
        """
        shown = [to_model(clip.read(self.start, self.stop)) for clip in self.clips]
        if len({x.shape for x in shown}) != 1:
            sizes = {
                camera_of(c): tuple(x.shape[2:]) for c, x in zip(self.clips, shown, strict=True)
            }
            raise ValueError(f"cameras of one moment differ in frames or size: {sizes}")
        return torch.cat(shown)


def samples(
    clips: ClipDataset, frames: int, *, views: Sequence[str] | None, stride: int | None = None
) -> Iterator[Sample]:
    """Yield every stretch of so many frames; ``views`` asks for those cameras in that order.

    Raises:
        ValueError: a camera is missing from a moment, or no clip is long enough.
    """
    moments = ((clips[i],) for i in range(len(clips))) if views is None else grouped(clips, views)
    count = 0
    for moment in moments:
        length = min(len(clip) for clip in moment)
        for start in range(0, length - frames + 1, stride or frames):
            count += 1
            yield Sample(tuple(moment), start, start + frames)
    if not count:
        raise ValueError(f"none of {len(clips)} clips has {frames} frames")


def grouped(clips: ClipDataset, views: Sequence[str]) -> Iterator[tuple[LabelledClip, ...]]:
    """Yield the clips of each moment in the order of ``views``, by their ``group``.

    Raises:
        ValueError: a moment lacks one of the cameras.
    """
    together: dict[str, dict[str, LabelledClip]] = {}
    for i in range(len(clips)):
        clip = clips[i]
        together.setdefault(group_of(clip), {})[camera_of(clip)] = clip
    for group, cameras in together.items():
        if missing := [view for view in views if view not in cameras]:
            raise ValueError(
                f"{group}: no clip of camera {missing[0]}; there are {', '.join(sorted(cameras))}"
            )
        yield tuple(cameras[view] for view in views)


def cameras_of(clips: ClipDataset) -> tuple[str, ...]:
    """Return the cameras of the first moment, in the order that its clips note as ``views``."""
    first = clips[0]
    noted = first.attributes.get("views")
    if isinstance(noted, list) and noted:
        return tuple(str(name) for name in noted)
    found = [clips[i] for i in range(len(clips))]
    return tuple(dict.fromkeys(camera_of(c) for c in found if group_of(c) == group_of(first)))


def group_of(clip: LabelledClip) -> str:
    """Return the name of the moment that a clip shows; a clip without one stands alone."""
    return str(clip.attributes.get("group", id(clip)))


def camera_of(clip: LabelledClip) -> str:
    return str(clip.attributes.get("camera", ""))


@dataclass(frozen=True)
class EncodedClips:
    """Samples as a network takes them, n of them with v cameras each.

    ``codes`` are latents (float16) or tokens; ``text`` numbers the rows of ``embeddings``;
    ``digest`` are the conditions, after all that needs no training.
    """

    codes: Shaped[Tensor, "n v ..."]
    fps: Float[Tensor, " n"]
    text: Int64[Tensor, "n v"]
    embeddings: Shaped[Tensor, "m k d"]
    digest: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.codes)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors under the names that a file gives them."""
        own = {name: getattr(self, name) for name in ("codes", "fps", "text", "embeddings")}
        return own | {f"digest.{name}": value for name, value in self.digest.items()}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "EncodedClips":
        """Undo :meth:`tensors`."""
        own = {name: value for name, value in tensors.items() if "." not in name}
        digest = {k.partition(".")[2]: x for k, x in tensors.items() if k.startswith("digest.")}
        return cls(**own, digest=digest)


@torch.no_grad()
def encode_samples(  # noqa: PLR0913  all that a sample's tensors depend on
    chosen: Iterator[Sample],
    codec: Codec,
    text_encoder: TextEncoder | None,
    encoder: ConditionNet,
    steering: Steering,
    *,
    views: Sequence[str] | None,
    alone: bool = False,
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> EncodedClips:
    """Encode samples; ``alone`` encodes each frame as an image."""
    codes, fps, texts, digests = [], [], [], []
    captions: dict[str, int] = {}
    for sample in chosen:
        video = sample.video().to(device)
        codes.append(encode_video(codec, video, alone=alone).cpu())
        fps.append(float(sample.clips[0].fps))
        texts.append([captions.setdefault(c.caption, len(captions)) for c in sample.clips])
        inputs = {k: x.to(device) for k, x in sample.inputs(steering, views or ()).items()}
        digests.append({name: stored(x[0]) for name, x in encoder.digest(inputs).items()})
        if progress:
            progress(len(codes))
    return EncodedClips(
        codes=torch.stack([stored(x) for x in codes]),
        fps=torch.tensor(fps),
        text=torch.tensor(texts),
        embeddings=embed(text_encoder, list(captions)),
        digest={name: torch.stack([d[name] for d in digests]) for name in digests[0]},
    )


def encode_video(
    codec: Codec, video: Float[Tensor, "v 3 t h w"], *, alone: bool
) -> Shaped[Tensor, "v ..."]:
    """Encode videos whole, or frame by frame as images."""
    if not alone:
        return codec.encode(video)
    codes = codec.encode(rearrange(video, "v c t h w -> (v t) c 1 h w"))
    if isinstance(codec, LatentCodec):
        return rearrange(codes, "(v t) c 1 h w -> v c t h w", v=len(video))
    return rearrange(codes, "(v t) 1 h w -> v t h w", v=len(video))


def embed(encoder: TextEncoder | None, prompts: Sequence[str]) -> Shaped[Tensor, "m k d"]:
    """Embed prompts, 64 at a time; without an encoder there is nothing to attend to."""
    if encoder is None:
        return torch.zeros(len(prompts), 0, 0, dtype=torch.float16)
    parts = [encoder.encode(prompts[i : i + 64])[0] for i in range(0, len(prompts), 64)]
    return torch.cat(parts).half().cpu()


def stored(x: Tensor) -> Tensor:
    """Keep latents and conditions in half precision, and all else as it is."""
    return x.cpu().half() if x.is_floating_point() else x.cpu()
