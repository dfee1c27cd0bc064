"""Three ways to integrate the probability-flow ODE from noise to latents.

All take ``denoise(x, sigma)``, the guided denoiser, with float32 ``x`` and ``sigma`` (b), and
unit-variance ``noise``; guidance, given frames and the text are the denoiser's business.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .edm import karras_sigmas

Denoise = Callable[[Float[Tensor, "b c t h w"], Float[Tensor, " b"]], Float[Tensor, "b c t h w"]]
SamplerName = Literal["res2ab", "euler", "nvidia"]
Progress = Callable[[int, int], None]


def res2ab(
    denoise: Denoise,
    noise: Float[Tensor, "b c t h w"],
    steps: int,
    *,
    sigma_max: float = 80.0,
    progress: Progress | None = None,
) -> Float[Tensor, "b c t h w"]:
    """Sample by the second-order exponential multistep rule, then one clean call.

    The sampler of the paper's training code: ``steps + 1`` network calls on ``steps + 1``
    levels, the state in float64. RES is Zhang et al. 2023, arXiv 2308.02157.
    """
    sigmas = karras_sigmas(steps + 1, high=sigma_max)
    x = noise.double() * sigma_max
    before: Tensor | None = None
    for i in range(steps):
        sigma, following = sigmas[i], sigmas[i + 1]
        clean = call(denoise, x, sigma).double()
        ratio = following / sigma
        if before is None:
            x = ratio * x + (1 - ratio) * clean
        else:
            h = -math.log(ratio)
            c2 = -math.log(sigmas[i - 1] / sigma) / h
            phi1 = math.expm1(-h) / -h
            phi2 = (phi1 - 1) / -h
            x = ratio * x + h * ((phi1 - phi2 / c2) * clean + phi2 / c2 * before)
        before = clean
        report(progress, i + 1, steps + 1)
    clean = call(denoise, x, sigmas[-1])
    report(progress, steps + 1, steps + 1)
    return clean


def euler(
    denoise: Denoise,
    noise: Float[Tensor, "b c t h w"],
    steps: int,
    *,
    sigma_max: float = 80.0,
    progress: Progress | None = None,
) -> Float[Tensor, "b c t h w"]:
    """Sample by Euler's rule as diffusers does, bit for bit but without its idle last step.

    Diffusers' final level equals the one before, so its last step moves nothing: ``steps``
    levels are ``steps - 1`` network calls here, and the result is at sigma 0.002.
    """
    sigmas = torch.tensor(karras_sigmas(steps, high=sigma_max), dtype=torch.float32)
    x = noise.float() * sigma_max
    for i in range(steps - 1):
        clean = call(denoise, x, sigmas[i].item())
        x = x + (x - clean) / sigmas[i].item() * (sigmas[i + 1] - sigmas[i]).item()
        report(progress, i + 1, steps - 1)
    return x


def nvidia(
    denoise: Denoise,
    noise: Float[Tensor, "b c t h w"],
    steps: int,
    *,
    sigma_max: float = 80.0,
    sigma_min: float = 0.0002,
    progress: Progress | None = None,
) -> Float[Tensor, "b c t h w"]:
    """Sample by Euler's rule as NVIDIA's released inference does: to ``sigma_min``, then to 0.

    The state stays float32; theirs is rounded to bfloat16 after every step.
    """
    sigmas = [*karras_sigmas(steps, low=sigma_min, high=sigma_max), 0.0]
    x = noise.float() * math.sqrt(sigma_max**2 + 1)
    for i in range(steps):
        clean = call(denoise, x, sigmas[i])
        x = x + (x - clean) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
        report(progress, i + 1, steps)
    return x


SAMPLERS: dict[str, Callable[..., Tensor]] = {"res2ab": res2ab, "euler": euler, "nvidia": nvidia}


def call(denoise: Denoise, x: Tensor, sigma: float) -> Tensor:
    """Call the denoiser at one noise level for all samples."""
    return denoise(x.float(), torch.full((len(x),), sigma, dtype=torch.float32, device=x.device))


def report(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total)
