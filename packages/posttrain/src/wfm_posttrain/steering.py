"""What every recipe says of itself: its data, its condition encoder, where the condition enters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from .interfaces import LabelledClip, LatentCodec

Condition = dict[str, Tensor]


@dataclass(frozen=True)
class Place:
    """What a condition meets: the frames of a sample and their latents.

    ``compression`` is frames, rows and columns per latent (1 frame where each is encoded
    alone), ``size`` the pixels, ``latent_channels`` and ``width`` the features of a latent and
    of a token, ``views`` the names of all cameras.
    """

    compression: tuple[int, int, int]
    size: tuple[int, int]
    latent_channels: int
    width: int
    views: tuple[str, ...] = ()

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a latent frame."""
        return self.size[0] // self.compression[1], self.size[1] // self.compression[2]

    def latents(self, frames: int) -> int:
        """Return the number of latent frames of so many frames.

        Raises:
            ValueError: the codec cannot make them.
        """
        count, rest = divmod(frames - 1, self.compression[0])
        if rest or frames < 1:
            raise ValueError(f"{frames} frames; the codec takes 1 + {self.compression[0]} k")
        return 1 + count


class ConditionNet(nn.Module):
    """A ConditionEncoder in two steps, so that the first can be done once per clip.

    ``digest`` has no trained weights: it turns what a user gives into small tensors, each with
    the batch first. ``condition`` turns those into condition keys of the network.
    """

    def digest(self, inputs: Mapping[str, Tensor], /) -> Condition:
        return dict(inputs)

    def condition(self, digest: Mapping[str, Tensor], /) -> Condition:
        return dict(digest)

    def encode(self, inputs: Mapping[str, Tensor], /) -> Condition:
        return self.condition(self.digest(inputs))

    def fit(self, digest: Mapping[str, Tensor]) -> None:
        """Set what depends on the training data, such as the scale of its numbers."""


class Steering(BaseModel):
    """A recipe: what it reads from clips, and how that steers a network.

    ``inputs`` are the names of ``controls`` that it needs; ``framewise`` names the axis along
    which an input has a row for each frame, past ones included. ``channels`` asks for so many
    further input channels. A recipe that is ``grouped`` takes all cameras of a moment as one
    sample; one that ``freezes`` trains new layers only.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    inputs: ClassVar[tuple[str, ...]] = ()
    framewise: ClassVar[Mapping[str, int]] = {}
    grouped: ClassVar[bool] = False
    freezes: ClassVar[bool] = False
    steers_text: ClassVar[bool] = False

    @property
    def channels(self) -> int:
        return 0

    @property
    def whole_clips(self) -> bool:
        """Whether a rollout must imagine as many frames at once as a sample had."""
        return False

    def read(self, clips: Sequence[LabelledClip], start: int, stop: int) -> Condition:
        """Return the inputs of a sample, frames ``start`` to ``stop`` of each of its cameras.

        Raises:
            ValueError: names the label that a clip lacks.
        """
        return {}

    def encoder(self, place: Place, codec: LatentCodec | None = None) -> ConditionNet:
        """Return an untrained condition encoder."""
        return ConditionNet()


def label(clip: LabelledClip, name: str, what: str) -> Tensor:
    """Return one of a clip's arrays.

    Raises:
        ValueError: it has none of that name.
    """
    labels = clip.labels()
    if name not in labels:
        stem = getattr(clip, "stem", clip.caption)
        have = ", ".join(sorted(labels)) or "no arrays"
        raise ValueError(f"{stem}: {what} needs the array {name!r}; it has {have}")
    return labels[name]


def per_frame(
    clip: LabelledClip, name: str, what: str, start: int, stop: int
) -> Float[Tensor, "t ..."]:
    """Return the rows of an array that has one for each frame.

    Raises:
        ValueError: it has not, or holds something that is no finite number.
    """
    found = label(clip, name, what)
    if len(found) != len(clip):
        raise ValueError(
            f"{getattr(clip, 'stem', clip.caption)}: {len(found)} rows of {name} for "
            f"{len(clip)} frames"
        )
    rows = found[start:stop].float()
    if not rows.isfinite().all():
        raise ValueError(f"{getattr(clip, 'stem', clip.caption)}: {name} is not all finite numbers")
    return rows


def only(inputs: Mapping[str, Tensor], known: Sequence[str], needed: Sequence[str]) -> None:
    """Refuse inputs that an encoder does not know, or that lack one that it needs.

    Raises:
        KeyError: unknown ones.
        ValueError: missing ones.
    """
    if unknown := sorted(set(inputs) - set(known)):
        raise KeyError(f"unknown controls {', '.join(unknown)}; known are {', '.join(known)}")
    if missing := [name for name in needed if name not in inputs]:
        raise ValueError(f"controls lack {', '.join(missing)}")


def batched(inputs: Mapping[str, Tensor]) -> Condition:
    """Put a batch axis of one before each input of a sample."""
    return {name: torch.as_tensor(value)[None] for name, value in inputs.items()}
