"""Go on with a world one frame at a time, each under a control that is known only then."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from .decoding import Sampler
from .interfaces import WorldModel as AnyWorld
from .world import WorldModel


@runtime_checkable
class Steered(Protocol):
    """A future that grows by a frame a call."""

    def step(self, controls: Mapping[str, Tensor], /) -> Float[Tensor, "b 3 1 h w"]:
        """Return the next frame, [-1, 1]."""
        ...


class SteeredTokens:
    """Keeps the tokens of the frames so far: none is decoded and encoded again.

    A sequence of steps gives what one rollout under all controls together gives.
    """

    def __init__(
        self, world: WorldModel, past: Float[Tensor, "b 3 p h w"], generator: torch.Generator
    ) -> None:
        self.world = world
        self.tokens = world.encode_frames(past)
        self.sampler = Sampler(
            world.temperature, top_p=world.top_p if world.temperature else None, generator=generator
        )

    @torch.no_grad()
    def step(self, controls: Mapping[str, Tensor], /) -> Float[Tensor, "b 3 1 h w"]:
        context = self.world.context_of(controls)
        self.tokens, frame = self.world.next_frame(self.tokens, context, self.sampler)
        return frame


class SteeredFrames:
    """Rolls any world model out by one frame, from the last frames it gave."""

    def __init__(
        self, world: AnyWorld, past: Float[Tensor, "b 3 p h w"], generator: torch.Generator
    ) -> None:
        missing = world.past_frames - past.shape[2]
        if missing > 0:  # a single picture stands still before it moves
            past = torch.cat([past[:, :, :1].expand(-1, -1, missing, -1, -1), past], 2)
        self.world, self.past, self.generator = world, past, generator

    def step(self, controls: Mapping[str, Tensor], /) -> Float[Tensor, "b 3 1 h w"]:
        known = self.past[:, :, -self.world.past_frames :]
        frame = self.world.rollout(known, frames=1, controls=controls, generator=self.generator)
        self.past = torch.cat([known, frame], 2)
        return frame


def steer(
    world: AnyWorld, past: Float[Tensor, "b 3 p h w"], generator: torch.Generator | None = None
) -> Steered:
    """Begin a future of ``past`` that is steered frame by frame; without generator, seed 0."""
    generator = generator or torch.Generator().manual_seed(0)
    if isinstance(world, WorldModel) and world.settings.latents == "image":
        return SteeredTokens(world, past, generator)
    return SteeredFrames(world, past, generator)
