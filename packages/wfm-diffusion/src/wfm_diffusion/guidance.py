"""Classifier-free guidance, and frames that are given: what a sampler sees as its denoiser."""

import copy
from collections.abc import Collection, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from .interfaces import Denoiser
from .steady import Steady
from .transformer import DiffusionTransformer

Condition = Mapping[str, Tensor]
TEXT = ("text", "text_mask")


class Guided:
    """The denoiser that a sampler calls: one network call for both branches.

    ``x0 = cond + guidance (cond - uncond)``; without an unconditional branch, or at guidance 0,
    the network sees one branch. On frames where ``given`` is 1 the network sees ``kept``
    with noise of ``given_sigma`` on it, and the answer there is ``kept`` itself. Outside the
    ``interval`` of noise levels, if there is one, guidance is left out.

    Our own network remembers what stays the same from call to call, so that one object serves
    one sampling and its continuations: weights and conditions must not change under it.
    """

    def __init__(
        self,
        net: Denoiser,
        condition: Condition,
        unconditional: Condition | None = None,
        *,
        guidance: float = 7.0,
        interval: tuple[float, float] | None = None,
    ) -> None:
        if unconditional is None:
            guidance = 0.0
        self.net, self.guidance = net, guidance
        self.batch = len(next(iter(condition.values()))) if condition else 0
        self.condition: Condition = condition
        self.branches = 2 if guidance and unconditional is not None else 1
        self.apart = False
        if guidance and unconditional is not None:
            ours = isinstance(net, DiffusionTransformer)
            self.apart = not ours or differ(condition, unconditional)
            self.condition = paired(condition, unconditional, () if self.apart else TEXT)
        self.interval = interval
        self.alone = None if interval is None else Guided(net, condition)
        self.steady = Steady()
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
        if self.alone is not None:
            self.alone.give(kept, given, noise, given_sigma)
        return self

    def __call__(
        self, x: Float[Tensor, "b c t h w"], sigma: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c t h w"]:
        if self.alone is not None and self.interval is not None:
            low, high = self.interval
            if not low <= sigma[0].item() <= high:
                return self.alone(x, sigma)
        condition = dict(self.condition)
        if self.kept is not None:
            x = torch.where(self.given > 0, self.shown, x)
            condition["given"] = self._each(self.given)
            condition["given_sigma"] = self._each(torch.full_like(sigma, self.given_sigma))
        if isinstance(self.net, DiffusionTransformer):
            clean = self.net.denoise_branches(self._each(x), sigma[:1], condition, self.steady)
        else:
            clean = self.net.denoise(self._each(x), self._each(sigma), condition)
        if self.branches == 2:
            cond, uncond = clean.chunk(2)
            clean = cond + self.guidance * (cond - uncond)
        if self.kept is not None:
            clean = torch.where(self.given > 0, self.kept, clean)
        return clean

    def with_ports(self, ports: Condition) -> "Guided":
        """Return a copy whose branches both have further conditions."""
        other = copy.copy(self)
        other.alone = None if self.alone is None else self.alone.with_ports(ports)
        other.condition = {**self.condition, **{k: self._each(x) for k, x in ports.items()}}
        return other

    def _each(self, x: Tensor) -> Tensor:
        """Give both branches a row of their own, where the network does not share them."""
        return torch.cat([x, x]) if self.apart else x


def differ(first: Condition, second: Condition) -> bool:
    """Tell whether two conditions differ in more than text."""
    return any(
        not torch.equal(second.get(key, value), value)
        for key, value in first.items()
        if key not in TEXT
    )


def paired(first: Condition, second: Condition, keys: Collection[str]) -> dict[str, Tensor]:
    """Stack two conditions along the batch, all or only some keys; the rest is the first's.

    What the second lacks is the first's, too.
    """
    return {
        key: torch.cat([value, second.get(key, value)]) if key in keys or not keys else value
        for key, value in first.items()
    }
