"""What fine-tuning minimises: the error of the next frame, given past ones and an action."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Int64, Shaped
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from .interfaces import Denoiser, NextTokenModel

BASE = r"^[^:=]+:[^:=]+=.+$"
"""The same callable, with the saved folder for its argument, loads the network again."""


class Noise(BaseModel):
    """How much noise training puts on clips, in the units of latents times ``sigma_data``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    log_sigma_mean: float = Field(0.0, description="of the normal part of ln sigma")
    log_sigma_std: float = Field(1.3, gt=0)
    high_sigma_share: float = Field(
        0.3, ge=0, le=1, description="of noise levels drawn log-uniform from 1 to 85"
    )
    past_sigma: float = Field(
        0.1, ge=0, description="most noise on past frames: rollouts see their own mistakes"
    )


class Denoising(Noise):
    """A network that denoises latents, and the codec of these."""

    kind: Literal["diffusion"] = "diffusion"
    base: str = Field(
        "wfm_diffusion:load=builtin:pico", pattern=BASE, description="module:callable=SOURCE"
    )
    codec: str = Field("pico-cv4x8x8", description="name or module:callable=SOURCE")


class Predicting(BaseModel):
    """A network that predicts tokens, and the codec of these."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["ar"] = "ar"
    base: str = Field(
        "wfm_ar:load=builtin:pico-ar", pattern=BASE, description="module:callable=SOURCE"
    )
    codec: str = Field("pico-dv8x16x16", description="name or module:callable=SOURCE")
    past_noise: float = Field(
        0.05, ge=0, le=1, description="share of past tokens replaced by random ones"
    )


class DiffusionBackend(Denoising):
    """Denoise the latents of the next frame; the action goes into the noise level's embedding."""

    world: str = Field("wfm_diffusion:WorldModel", description="module:callable")
    options: dict[str, float | int | str] = Field({}, description="further keywords of the world")
    own_past: float = Field(
        0.0, ge=0, le=1, description="share of windows whose last past frames the model imagines"
        " itself, so that it learns to go on from its own mistakes"
    )  # fmt: skip
    own_past_frames: int = Field(3, gt=0, description="how many it imagines, at most")


class ArBackend(Predicting):
    """Predict the tokens of the next frame; the action is the context of cross-attention."""

    world: str = Field("wfm_ar:WorldModel", description="module:callable")
    options: dict[str, float | int | str] = Field(
        {"temperature": 0.0}, description="further keywords of the world; 0: the likeliest token"
    )
    context_width: int | None = Field(
        None, gt=0, description="features of the context; None: the network's config.context_dim"
    )


def next_frame_loss(
    model: nn.ModuleDict,
    window: Shaped[Tensor, "b t ..."],
    action: Float[Tensor, "b a"],
    fps: Float[Tensor, " b"],
    backend: DiffusionBackend | ArBackend,
    generator: torch.Generator,
    *,
    place_weights: Float[Tensor, "b h w"] | None = None,
) -> Float[Tensor, ""]:
    """Return the loss of the window's last frame, after those before it and the action.

    ``place_weights``, 0 or more, say how much each of its latents, or tokens, counts; None: all
    the same.
    """
    network: Any = model["network"]
    encoder: Any = model["encoder"]
    condition = encoder.encode({"action": rearrange(action, "b a -> b 1 a")})
    match backend:
        case DiffusionBackend():
            condition["fps"] = fps.to(condition["adaln"].device)
            clean = rearrange(window, "b t c h w -> b c t h w")
            given = torch.ones_like(clean[:, :1], dtype=torch.float32)
            given[:, :, -1] = 0
            return denoising_loss(
                network, clean, given, condition, backend, generator, place_weights=place_weights
            )
        case ArBackend():
            return token_loss(
                network,
                window,
                condition,
                backend.past_noise,
                generator,
                place_weights=place_weights,
            )


def denoising_loss(
    network: Denoiser,
    clean: Float[Tensor, "b c t h w"],
    given: Float[Tensor, "b 1 t h w"],
    condition: Mapping[str, Tensor],
    noise: Noise,
    generator: torch.Generator,
    *,
    place_weights: Float[Tensor, "b h w"] | None = None,
) -> Float[Tensor, ""]:
    """EDM's weighted squared error of the latent frames that are not ``given`` (1: given).

    ``clean`` has unit variance, as codecs give it. Noise is drawn on the CPU. ``place_weights``, 0
    or more, say how much each place counts; the error is their mean.
    """
    device = condition["fps"].device
    clean = clean.float().cpu() * network.sigma_data
    b = len(clean)
    sigma = draw_sigma(b, noise, generator)
    past_sigma = torch.rand(b, generator=generator) * noise.past_sigma * network.sigma_data
    old, new = (rearrange(s, "b -> b 1 1 1 1") for s in (past_sigma, sigma))
    level = torch.where(given > 0, old, new)
    noisy = clean + level * torch.randn(clean.shape, generator=generator)
    clean, noisy, sigma, given = (x.to(device) for x in (clean, noisy, sigma, given))
    guess = network.denoise(noisy, sigma, {**condition, "given": given})
    weight = (sigma**2 + network.sigma_data**2) / (sigma * network.sigma_data) ** 2
    new = (1 - given).expand_as(clean)
    if place_weights is not None:
        new = new * rearrange(place_weights.to(device), "b h w -> b 1 1 h w")
    error = ((guess - clean).float().square() * new).sum(dim=(1, 2, 3, 4))
    return (weight * error / new.sum(dim=(1, 2, 3, 4))).mean()


def draw_sigma(count: int, noise: Noise, generator: torch.Generator) -> Float[Tensor, " b"]:
    """Draw noise levels: log-normal, with a share of high ones, where the past decides all."""
    normal = torch.randn(count, generator=generator)
    low = (noise.log_sigma_mean + noise.log_sigma_std * normal).exp()
    high = (math.log(85) * torch.rand(count, generator=generator)).exp()
    is_high = torch.rand(count, generator=generator) < noise.high_sigma_share
    return torch.where(is_high, high, low).clamp(0.002, 85)


def token_loss(
    network: NextTokenModel,
    window: Int64[Tensor, "b t h w"],
    condition: Mapping[str, Tensor],
    past_noise: float,
    generator: torch.Generator,
    *,
    new: int = 1,
    place_weights: Float[Tensor, "b h w"] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of the tokens of the last ``new`` frames, some before them corrupted."""
    device = next(iter(condition.values())).device
    _, t, h, w = window.shape
    clean = rearrange(window, "b t h w -> b (t h w)")
    last = new * h * w
    wrong = torch.randint(network.vocab_size, clean.shape, generator=generator)
    broken = torch.rand(clean.shape, generator=generator) < past_noise
    broken[:, -last:] = False
    tokens = torch.where(broken, wrong, clean)
    begin = getattr(network, "bov_token", None)
    if begin is not None:
        tokens = F.pad(tokens, (1, 0), value=begin)
    # A window that fits on the model's own grid takes its first frames, as rollouts do.
    grid = None if tokens.shape[1] <= network.max_tokens else (t, h, w)
    scores = network.logits(tokens.to(device), condition, grid=grid)[:, -last - 1 : -1]
    target = clean[:, -last:].to(device)
    scores = rearrange(scores.float(), "b n v -> (b n) v")
    if place_weights is None:
        return F.cross_entropy(scores, target.flatten())
    weights = repeat(place_weights.to(device), "b h w -> (b new h w)", new=new)
    losses = F.cross_entropy(scores, target.flatten(), reduction="none")
    return (weights * losses).sum() / weights.sum()
