"""EDM (Karras et al. 2022, arXiv 2206.00364): preconditioning, noise levels, the loss."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from .interfaces import TrainableDenoiser


class Scalings(NamedTuple):
    """D(x) = skip x + out F(into x; noise), one number for each sample, ``b 1 1 1 1``."""

    skip: Tensor
    out: Tensor
    into: Tensor


def scalings(sigma: Float[Tensor, " b"], sigma_data: float) -> Scalings:
    """Return c_skip, c_out and c_in of table 1."""
    sigma = sigma.float().view(-1, 1, 1, 1, 1)
    total = sigma**2 + sigma_data**2
    return Scalings(sigma_data**2 / total, sigma * sigma_data * total.rsqrt(), total.rsqrt())


def noise_label(sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Return c_noise, the "timestep" that the network is told: ``ln(sigma) / 4``."""
    return 0.25 * sigma.float().log()


def karras_sigmas(
    steps: int, low: float = 0.002, high: float = 80.0, rho: float = 7.0
) -> list[float]:
    """Return ``steps`` noise levels from ``high`` down to ``low`` (equation 5)."""
    first, last = high ** (1 / rho), low ** (1 / rho)
    return [(first + i / (steps - 1) * (last - first)) ** rho for i in range(steps)]


def draw_sigma(
    count: int, *, mean: float, std: float, frames: int, generator: torch.Generator
) -> Float[Tensor, " b"]:
    """Draw noise levels for training: ln sigma is normal.

    A video's are multiplied by the root of its ``frames``: the same signal in every frame
    hides noise that is independent (arXiv 2501.03575, section 5.1.3).
    """
    log_sigma = mean + std * torch.randn(count, generator=generator)
    return log_sigma.exp() * math.sqrt(frames)


def edm_error(
    net: TrainableDenoiser,
    clean: Float[Tensor, "b c t h w"],
    sigma: Float[Tensor, " b"],
    noise: Float[Tensor, "b c t h w"],
    condition: Mapping[str, Tensor],
    *,
    given_noise: Float[Tensor, "b c t h w"] | None = None,
) -> Float[Tensor, "b c t h w"]:
    """Return ``lambda(sigma) (D(clean + sigma noise) - clean)^2``, element by element.

    Where ``condition["given"]`` is 1 the network sees the clean frame, with
    ``condition["given_sigma"]`` times ``given_noise`` added, and the error is zero.
    """
    noisy = torch.addcmul(clean, sigma.view(-1, 1, 1, 1, 1), noise)
    given = condition.get("given")
    if given is not None:
        kept = clean
        if given_noise is not None:
            strength = condition["given_sigma"].view(-1, 1, 1, 1, 1)
            kept = torch.addcmul(clean, strength, given_noise)
        noisy = torch.where(given > 0, kept, noisy)
    error = (net.denoise(noisy, sigma, condition) - clean) ** 2
    if given is not None:
        error = error * (1 - given)
    weight = (sigma**2 + net.sigma_data**2) / (sigma * net.sigma_data) ** 2
    return weight.view(-1, 1, 1, 1, 1) * error


def uncertain(error: Float[Tensor, "b c t h w"], u: Float[Tensor, " b"]) -> Float[Tensor, ""]:
    """Weigh errors by their learned log-variance: the mean of ``error / e^u + u``."""
    u = u.view(-1, 1, 1, 1, 1)
    return (error * torch.exp(-u) + u).mean()
