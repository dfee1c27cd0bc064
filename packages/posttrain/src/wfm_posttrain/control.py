"""Control by a hint video: depth, segmentation, edges or blur (Cosmos-Transfer1, 2503.14492).

The network stays as it is. Hints pass the same tokenizer as the video; a branch of copied
blocks reads their latents (``branch``).
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import UInt8
from pydantic import Field
from torch import Tensor

from .branch import BranchConfig
from .hints import blur_picture, depth_picture, edge_picture, segment_picture
from .interfaces import LabelledClip, LatentCodec
from .steering import Condition, ConditionNet, Place, Steering, only, per_frame

Hint = Literal["depth", "segmentation", "edge", "blur"]


class Control(Steering):
    """Show what a hint says, in the look that the past and the prompt have."""

    inputs: ClassVar[tuple[str, ...]] = ("hint",)
    framewise: ClassVar[Mapping[str, int]] = {"hint": 2, "hint_weight": 2}
    freezes: ClassVar[bool] = True

    kind: Literal["control"] = "control"
    hints: tuple[Hint, ...] = Field(("segmentation",), min_length=1, description="in this order")
    branch: BranchConfig = BranchConfig()
    near: float = Field(0.3, gt=0, description="metres that a depth hint shows white")
    far: float = Field(60.0, gt=0, description="metres that a depth hint shows black")
    edge: tuple[float, float] = Field((40.0, 100.0), description="Canny's two thresholds")
    blur: int = Field(4, gt=1, description="how many times smaller a blur hint was")

    def read(self, clips: Sequence[LabelledClip], start: int, stop: int) -> Condition:
        (clip,) = clips
        shown = [self.picture(hint, clip, start, stop) for hint in self.hints]
        return {"hint": rearrange(torch.stack(shown), "m t c h w -> (m c) t h w") / 127.5 - 1}

    def picture(
        self, hint: Hint, clip: LabelledClip, start: int, stop: int
    ) -> UInt8[Tensor, "t 3 h w"]:
        """Draw one hint of a clip, from its labels or from its frames."""
        match hint:
            case "depth":
                depth = per_frame(clip, "depth", "control by depth", start, stop)
                return depth_picture(depth, self.near, self.far)
            case "segmentation":
                found = per_frame(clip, "segmentation", "control by segmentation", start, stop)
                return segment_picture(found.long())
            case "edge":
                low, high = self.edge
                return edge_picture(clip.read(start, stop), low=low, high=high)
            case "blur":
                return blur_picture(clip.read(start, stop), factor=self.blur)

    def encoder(self, place: Place, codec: LatentCodec | None = None) -> ConditionNet:
        return HintEncoder(place, self, codec)


class HintEncoder(ConditionNet):
    """Hint videos -> ``hint``, their latents; it has no weights of its own.

    ``hint`` (b 3m t h w) holds the recipe's m hints in their order, RGB in [-1, 1].
    ``hint_weight`` (b 1 t h w, frames and pixels; optional) is how strongly it counts where.
    """

    def __init__(self, place: Place, settings: Control, codec: LatentCodec | None) -> None:
        super().__init__()
        self.place, self.count = place, len(settings.hints)
        self._codec = (codec,)  # no part of this module's state

    @torch.no_grad()
    def digest(self, inputs: Mapping[str, Tensor], /) -> Condition:
        """Encode the hints.

        Raises:
            KeyError: unknown inputs.
            ValueError: no hint, or of another shape.
        """
        only(inputs, (*Control.inputs, "hint_weight"), Control.inputs)
        hint, codec = inputs["hint"], self._codec[0]
        if hint.ndim != 5 or hint.shape[1] != 3 * self.count:
            raise ValueError(
                f"hint is {tuple(hint.shape)}; it must be b {3 * self.count} t h w, "
                f"RGB for each of {self.count} hints"
            )
        assert codec is not None
        t = self.place.latents(hint.shape[2])
        parts = [encode(codec, part, self.place.compression[0]) for part in hint.split(3, dim=1)]
        found = {"hint": torch.cat(parts, dim=1)}
        if "hint_weight" in inputs:
            weight = inputs["hint_weight"].float()
            found["hint_weight"] = F.interpolate(weight, (t, *self.place.grid), mode="area")
        return found


def encode(codec: LatentCodec, video: Tensor, stride: int) -> Tensor:
    """Encode a video whole, or, at a ``stride`` of one frame per latent, each frame alone."""
    if stride > 1:
        return codec.encode(video)
    frames = codec.encode(rearrange(video, "b c t h w -> (b t) c 1 h w"))
    return rearrange(frames, "(b t) c 1 h w -> b c t h w", b=len(video))
