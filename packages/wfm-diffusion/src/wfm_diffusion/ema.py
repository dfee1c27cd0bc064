"""Exponential moving averages of weights, plain or with EDM2's power profile."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn


def power_gamma(length: float) -> float:
    """Return gamma of the power function EMA whose width is ``length`` of the run so far.

    Karras et al. 2023, arXiv 2312.02696, equation 3 and appendix C: 0.1 gives 6.94.
    """
    width = length**-2
    return float(np.roots([1.0, 7.0, 16.0 - width, 12.0 - width]).real.max())


class Ema:
    """A shadow of a module's parameters. ``decay`` None: power profile of ``length``."""

    def __init__(self, module: nn.Module, *, length: float, decay: float | None) -> None:
        self.decay, self.gamma = decay, power_gamma(length)
        self.names = [name for name, _ in module.named_parameters()]
        self.shadow = [p.detach().clone() for p in module.parameters()]

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Follow the weights after training step ``step``, counted from 0."""
        keep = self.decay
        if keep is None:
            keep = 0.0 if step == 0 else (1 - 1 / (step + 1)) ** (self.gamma + 1)
        torch._foreach_lerp_(self.shadow, [p.detach() for p in module.parameters()], 1 - keep)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.shadow, strict=True))

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, shadow in zip(self.names, self.shadow, strict=True):
            shadow.copy_(state[name])
