"""Classifier-free guidance, and frames that are given: what a sampler sees as its denoiser."""

import copy
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from .interfaces import Denoiser

Condition = Mapping[str, Tensor]


class Guided:
    """The denoiser that a sampler calls: one network call for both branches.

    ``x0 = cond + guidance (cond - uncond)``; without an unconditional branch, or at guidance 0,
    the network sees no batch of two. On frames where ``given`` is 1 the network sees ``kept``
    with noise of ``given_sigma`` on it, and the answer there is ``kept`` itself.
    """

    def __init__(
        self,
        net: Denoiser,
        condition: Condition,
        unconditional: Condition | None = None,
        *,
        guidance: float = 7.0,
    ) -> None:
        if unconditional is None:
            guidance = 0.0
        self.net, self.guidance = net, guidance
        self.condition = condition
        if guidance and unconditional is not None:
            self.condition = paired(condition, unconditional)
        self.kept: Tensor | None = None

    def give(
        self,
        kept: Float[Tensor, "b c t h w"],
        given: Float[Tensor, "b 1 t h w"],
        noise: Float[Tensor, "b c t h w"],
        given_sigma: float = 0.001,
    ) -> "Guided":
        """Give the frames of ``kept`` where ``given`` is 1; return self."""
        self.kept, self.given, self.given_sigma = kept, given, given_sigma
        self.shown = kept + given_sigma * noise
        return self

    def __call__(
        self, x: Float[Tensor, "b c t h w"], sigma: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c t h w"]:
        condition = dict(self.condition)
        if self.kept is not None:
            x = torch.where(self.given > 0, self.shown, x)
            condition["given"] = self._each_branch(self.given)
            condition["given_sigma"] = self._each_branch(torch.full_like(sigma, self.given_sigma))
        clean = self.net.denoise(self._each_branch(x), self._each_branch(sigma), condition)
        if self.guidance:
            cond, uncond = clean.chunk(2)
            clean = cond + self.guidance * (cond - uncond)
        if self.kept is not None:
            clean = torch.where(self.given > 0, self.kept, clean)
        return clean

    @property
    def batch(self) -> int:
        """Number of samples, one branch counted."""
        count = len(next(iter(self.condition.values())))
        return count // 2 if self.guidance else count

    def with_ports(self, ports: Condition) -> "Guided":
        """Return a copy whose branches both have further conditions."""
        other = copy.copy(self)
        other.condition = {**self.condition, **{k: self._each_branch(x) for k, x in ports.items()}}
        return other

    def _each_branch(self, x: Tensor) -> Tensor:
        return torch.cat([x, x]) if self.guidance else x


def paired(first: Condition, second: Condition) -> dict[str, Tensor]:
    """Stack two conditions along the batch; what the second lacks is the first's."""
    return {key: torch.cat([value, second.get(key, value)]) for key, value in first.items()}
