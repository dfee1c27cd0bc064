"""What a training step sees: clips, noise levels, noise, and which frames are given."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor

from .config import Shape, TrainConfig
from .edm import draw_sigma
from .latents import Latents

WHOLE = slice(None)


@dataclass(frozen=True)
class Batch:
    """What one step needs, in the network's units: latents of standard deviation sigma_data."""

    clean: Float[Tensor, "b c t h w"]
    sigma: Float[Tensor, " b"]
    noise: Float[Tensor, "b c t h w"]
    given_noise: Float[Tensor, "b c t h w"]
    condition: dict[str, Tensor]

    def to(self, device: str) -> "Batch":
        condition = {key: value.to(device) for key, value in self.condition.items()}
        tensors = (self.clean, self.sigma, self.noise, self.given_noise)
        return Batch(*(x.to(device) for x in tensors), condition)


class Batches:
    """The batches of a run; each follows from the seed and the step's number alone.

    There is one ``Latents`` for each of ``config.sizes``. A batch is of one size: of those of
    the step's stage, each as often as it has samples.
    """

    def __init__(self, config: TrainConfig, data: Sequence[Latents]) -> None:
        self.config, self.data = config, data
        clips = 1 + max(int(x.clip.max()) for x in data)
        splits = [x.split(config.held_out, clips) for x in data]
        self.pools = [trained for trained, _ in splits]
        self.held_out = [kept for _, kept in splits]

    def at(self, step: int, share: slice = WHOLE) -> Batch:
        """Draw the batch of a step, or some of its samples."""
        config = self.config
        generator = torch.Generator().manual_seed(config.seed * 2**32 + step)
        stage = stage_of(config.sizes, step)
        chosen = stage[0]
        if len(stage) > 1:
            counts = torch.tensor([float(len(self.pools[i])) for i in stage])
            chosen = stage[int(torch.multinomial(counts, 1, generator=generator))]
        size = config.sizes[chosen].batch or config.batch
        return draw_batch(
            self.data[chosen], self.pools[chosen], config, generator, count=size, share=share
        )


def stage_of(sizes: Sequence[Shape], step: int) -> list[int]:
    """Return the numbers of the sizes of the stage that a step is in."""
    start = max(size.start for size in sizes if size.start <= step)
    return [i for i, size in enumerate(sizes) if size.start == start]


def draw_batch(
    data: Latents,
    pool: Tensor,
    config: TrainConfig,
    generator: torch.Generator,
    *,
    count: int,
    share: slice = WHOLE,
) -> Batch:
    """Draw samples, noise levels, noise, and which frames are given.

    A batch is of videos or, by ``image_fraction``, of their first frames alone: the codec is
    causal, so the first latent frame is that of an image. With a ``share`` all is drawn that
    the whole batch needs, but the noise: each sample's has a seed of its own.
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    model = config.model
    index = pool[torch.randint(len(pool), (count,), generator=generator)]
    frames = 1 if uniform(1) < config.image_fraction else data.latents.shape[2]
    most = min(config.given_max, frames - 1) if model.condition_mask else 0
    known = draw_given(config, most, count, generator)
    mean, std = config.given_log_sigma
    given_sigma = (mean + std * torch.randn(count, generator=generator)).exp()
    silent, blind = uniform(2, count)
    sigma = draw_sigma(
        count,
        mean=config.log_sigma_mean,
        std=config.log_sigma_std,
        frames=frames if config.scale_noise_by_frames else 1,
        generator=generator,
    )
    seeds = torch.randint(2**62, (count,), generator=generator)[share].tolist()
    clean = data.latents[index[share], :, :frames].float() * model.sigma_data
    condition = conditions(data, index[share], known[share], clean, given_sigma[share])
    dropped = silent[share, None, None] < config.text_dropout
    condition["text"] = condition["text"].masked_fill(dropped, 0)
    if "tokens" in condition:
        dropped = blind[share, None, None, None] < config.token_dropout
        condition["tokens"] = condition["tokens"].masked_fill(dropped, 0)
    if not most:
        del condition["given"], condition["given_sigma"]
    noise = torch.stack(
        [torch.randn(2, *clean.shape[1:], generator=generator.manual_seed(s)) for s in seeds]
    )
    return Batch(clean, sigma[share], noise[:, 0], noise[:, 1], condition)


def draw_given(
    config: TrainConfig, most: int, count: int, generator: torch.Generator
) -> Int[Tensor, " b"]:
    """Draw how many latent frames each sample is given, at most ``most``."""
    if config.given_weights is None:
        return torch.randint(most + 1, (count,), generator=generator)
    weights = torch.tensor(config.given_weights)
    drawn = torch.multinomial(weights, count, replacement=True, generator=generator)
    return drawn.clamp(max=most)


def conditions(
    data: Latents,
    index: Tensor,
    known: Tensor,
    clean: Float[Tensor, "b c t h w"],
    given_sigma: Float[Tensor, " b"],
) -> dict[str, Tensor]:
    """Return the condition of some samples, the first ``known`` latent frames given."""
    t, h, w = clean.shape[2:]
    given = (torch.arange(t) < known[:, None]).float()
    tokens = {}
    if len(data.tokens):
        tokens["tokens"] = data.tokens[index][:, : None if t > 1 else 1].long()
    return {
        **tokens,
        "text": data.embeddings[data.text[index]].float(),
        "fps": data.fps[index],
        "given": repeat(given, "b t -> b 1 t h w", h=h, w=w),
        "given_sigma": given_sigma,
    }
