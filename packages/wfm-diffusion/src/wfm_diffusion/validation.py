"""How good a network is during its training: errors at fixed noise, and pictures."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from .batches import WHOLE, Batch, conditions
from .config import TrainConfig
from .edm import edm_error
from .guidance import Guided
from .latents import Latents
from .samplers import SAMPLERS
from .transformer import DiffusionTransformer

BUCKETS = (0.1, 0.4, 1.6, 6.4, 25.6)
"""Noise levels at which the validation error is measured."""
VALIDATED_AT_MOST = 32
SHOWN = 4


def spread_evenly(pool: Tensor, most: int) -> Tensor:
    """Return at most so many samples of a pool."""
    return pool[:: max(1, len(pool) // most)][:most]


@torch.no_grad()
def validation_error(
    net: DiffusionTransformer,
    data: Latents,
    pool: Tensor,
    config: TrainConfig,
    share: slice = WHOLE,
) -> tuple[dict[str, float], int]:
    """Return the weighted error for each noise level, from text and after one given frame.

    The noise is the same at every call. With a ``share`` only some samples are looked at (one
    at least); the second answer is how many.
    """
    index = spread_evenly(pool, VALIDATED_AT_MOST)
    clean = data.latents[index].float() * net.sigma_data
    generator = torch.Generator().manual_seed(config.seed)
    mine = torch.arange(len(index))[share]
    mine = mine if len(mine) else torch.arange(1)
    found = {}
    for task, known in tasks(net).items():
        for sigma in BUCKETS:
            noise = torch.randn(clean.shape, generator=generator)[mine]
            sigmas = torch.full((len(mine),), sigma)
            batch = fixed_batch(data, index[mine], known, clean[mine], sigmas, noise)
            batch = batch.to(config.device)
            error = edm_error(net, batch.clean, batch.sigma, batch.noise, batch.condition)
            found[f"validation/{task}/sigma_{sigma:g}"] = float(error.mean())
    return found, len(mine)


def tasks(net: DiffusionTransformer) -> dict[str, int]:
    """Return how many latent frames are given in each of a network's tasks."""
    return {"text": 0, "given": 1} if net.config.condition_mask else {"text": 0}


def fixed_batch(
    data: Latents, index: Tensor, known: int, clean: Tensor, sigma: Tensor, noise: Tensor
) -> Batch:
    """Return a batch in which every sample has as many given frames, or none."""
    counts, quiet = torch.full((len(index),), known), torch.full((len(index),), 0.001)
    condition = conditions(data, index, counts, clean, quiet)
    if not known:
        del condition["given"], condition["given_sigma"]
    return Batch(clean, sigma, noise, noise, condition)


@torch.no_grad()
def sample_rows(
    net: DiffusionTransformer, data: Latents, pool: Tensor, config: TrainConfig
) -> Float[Tensor, "n c t h w"]:
    """Sample a few clips from their text, and after their first frame, at fixed noise.

    Returns latents in the codec's scale; of each clip first its own, then the samples.
    """
    index = spread_evenly(pool, SHOWN)
    clean = data.latents[index].float() * net.sigma_data
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(config.seed))
    rows = [clean]
    for known in tasks(net).values():
        sigma = torch.ones(len(index))
        batch = fixed_batch(data, index, known, clean, sigma, noise).to(config.device)
        given = batch.condition.pop("given", None)
        batch.condition.pop("given_sigma", None)
        denoise = Guided(net, batch.condition)
        if given is not None:
            denoise.give(batch.clean, given, batch.noise)
        sampled = SAMPLERS[config.sampler](denoise, batch.noise, config.sampling_steps)
        rows.append(sampled.float().cpu())
    return rearrange(torch.stack(rows), "r n c t h w -> (n r) c t h w") / net.sigma_data
