"""Ways to save time that change the answer; each has a name, and none is on by itself."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .edm import scalings
from .quantised import Stored

Denoise = Callable[[Float[Tensor, "b c t h w"], Float[Tensor, " b"]], Float[Tensor, "b c t h w"]]


@dataclass(frozen=True)
class Shortcuts:
    """What to leave out. ``python benchmarks/bench.py shortcuts`` measures what each costs.

    ``guidance_interval``: noise levels between which guidance is applied; outside, the network
    sees one branch (Kynkaanniemi et al. 2024, arXiv 2404.07724). ``step_cache``: the network's
    last answer is used again until, changing as fast as it last did, it would be off by this
    much, relatively (after TeaCache, arXiv 2411.19108). ``weights``: the blocks' weights are
    stored as int8 or fp8.

    Raises:
        ValueError: an interval that is none, or a negative threshold.
    """

    guidance_interval: tuple[float, float] | None = None
    step_cache: float = 0.0
    weights: Stored | None = None

    def __post_init__(self) -> None:
        if self.guidance_interval is not None:
            low, high = self.guidance_interval
            if not 0 <= low < high:
                raise ValueError(f"guidance_interval {low} to {high}: wanted 0 <= low < high")
        if self.step_cache < 0:
            raise ValueError(f"step_cache is {self.step_cache}, below 0")

    def around(self, denoise: Denoise, sigma_data: float) -> Denoise:
        """Return the denoiser that a sampler is to call."""
        return StepCache(denoise, self.step_cache, sigma_data) if self.step_cache else denoise

    @classmethod
    def parse(cls, words: list[str]) -> "Shortcuts":
        """Read ``guidance-interval=0.3:10``, ``step-cache=0.1``, ``int8`` or ``fp8``.

        Raises:
            ValueError: something else.
        """
        found: dict[str, object] = {}
        for word in words:
            name, _, value = word.partition("=")
            try:
                if name == "guidance-interval":
                    low, high = map(float, value.split(":"))
                    found["guidance_interval"] = (low, high)
                elif name == "step-cache":
                    found["step_cache"] = float(value)
                elif name in ("int8", "fp8") and not value:
                    found["weights"] = name
                else:
                    raise ValueError
            except ValueError as e:
                known = "guidance-interval=LOW:HIGH, step-cache=X, int8, fp8"
                raise ValueError(f"--shortcut {word}: there are {known}") from e
        return cls(**found)  # ty: ignore[invalid-argument-type]


class StepCache:
    """A denoiser that skips calls whose answer would hardly be another.

    What is used again is F of ``D(x) = c_skip x + c_out F``, so that the answer follows the
    noise level even when the network is not asked. How fast F changes, relatively and for
    each unit of ln sigma, is known from the last two calls.
    """

    def __init__(self, denoise: Denoise, threshold: float, sigma_data: float) -> None:
        self.denoise, self.threshold, self.sigma_data = denoise, threshold, sigma_data
        self.last: Tensor | None = None
        self.level, self.speed, self.calls = 0.0, math.inf, 0

    def __call__(
        self, x: Float[Tensor, "b c t h w"], sigma: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c t h w"]:
        c, level = scalings(sigma, self.sigma_data), math.log(sigma[0].item())
        way = abs(level - self.level)
        if self.last is not None and way * self.speed < self.threshold:
            return torch.addcmul(c.skip * x, c.out, self.last)
        clean = self.denoise(x, sigma)
        answer = (clean - c.skip * x) / c.out
        if self.last is not None and way:
            change = (answer - self.last).abs().mean() / answer.abs().mean().clamp(min=1e-12)
            self.speed = change.item() / way
        self.last, self.level = answer, level
        self.calls += 1
        return clean
