"""What stays the same over the stretches of one call, and what is handed out to each."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .guidance import Guided
from .interfaces import ConditionEncoder
from .samplers import Progress, SamplerName


@dataclass
class Plan:
    """How the stretches of one call are sampled."""

    guided: Guided
    generator: torch.Generator
    steps: int | None = None
    sampler: SamplerName | None = None
    temperature: float | int | None = None
    progress: Progress | None = None


class Controls:
    """The controls of a rollout, handed out stretch by stretch."""

    def __init__(
        self, controls: Mapping[str, Tensor], frames: int, encoder: ConditionEncoder | None
    ) -> None:
        if encoder is None:
            raise ValueError("controls need a condition encoder, and this world model has none")
        self.controls, self.frames, self.encoder = controls, frames, encoder
        action = controls.get("action")
        if action is not None and (action.dim() != 3 or action.shape[1] % frames):
            raise ValueError(
                f"actions of shape {tuple(action.shape)} do not spread over {frames} frames"
            )

    def of(self, start: int, count: int) -> Mapping[str, Tensor]:
        """Return the network's conditions for the new frames ``start`` to ``start + count``."""
        inputs = {}
        for name, x in self.controls.items():
            rate, rest = divmod(x.shape[1], self.frames) if x.dim() > 1 else (0, 1)
            spread = rate and not rest
            inputs[name] = x[:, start * rate : (start + count) * rate] if spread else x
        return self.encoder.encode(inputs)
