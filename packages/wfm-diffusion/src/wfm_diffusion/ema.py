"""Exponential moving averages of weights, plain or with EDM2's power profile."""

from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from .processes import local


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
        self.weights = dict(module.named_parameters())
        self.shadow = {name: p.detach().clone() for name, p in self.weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the weights after training step ``step``, counted from 0."""
        keep = self.decay
        if keep is None:
            keep = 0.0 if step == 0 else (1 - 1 / (step + 1)) ** (self.gamma + 1)
        shadow, weights = self._parts()
        torch._foreach_lerp_(shadow, weights, 1 - keep)

    @contextmanager
    def in_place(self) -> Generator[None]:
        """Let the module have the averages for its weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, weight in zip(*self._parts(), strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)

    def _parts(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return what this process holds of the averages, and of the weights."""
        averages = [local(x) for x in self.shadow.values()]
        return averages, [local(p.detach()) for p in self.weights.values()]
