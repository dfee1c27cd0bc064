"""Generate tokens one after another: sampling, and decoding with and without a cache."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from .config import Grid
from .interfaces import NextTokenModel
from .model import ArTransformer

Progress = Callable[[int, int], None]


class Sampler:
    """Choose one token a row from scores.

    Temperature 0 takes the likeliest. Otherwise a token wins with its probability, drawn as
    ``argmax(p / e)`` with e ~ Exp(1). The noise is drawn on the CPU in float32: one seed, one
    answer on every device. The arithmetic is in the dtype of the scores.

    Args:
        temperature: divides the scores; 0 is greedy.
        top_p: keep the likeliest tokens whose predecessors sum to at most this.
        top_k: keep so many of the likeliest; not together with ``top_p``.
        generator: source of the noise; None is one seeded with 0.
    """

    def __init__(
        self,
        temperature: float | int = 0,
        *,
        top_p: float | None = None,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if temperature < 0:
            raise ValueError(f"temperature must not be negative, got {temperature}")
        if top_p is not None and top_k is not None:
            raise ValueError("top_p and top_k exclude each other")
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {top_p}")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be 1 or more, got {top_k}")
        self.temperature, self.top_p, self.top_k = temperature, top_p, top_k
        self.generator = generator or torch.Generator().manual_seed(0)

    def __call__(self, scores: Float[Tensor, "b v"]) -> Int64[Tensor, "b 1"]:
        if self.temperature == 0:
            return scores.argmax(-1, keepdim=True)
        if self.top_p is not None:
            # The noise belongs to the sorted order, as in the original.
            p, order = nucleus(scores, self.temperature, self.top_p)
            return order.gather(-1, self.draw(p))
        return self.draw(truncated(scores, self.temperature, self.top_k))

    def distribution(self, scores: Float[Tensor, "b v"]) -> Float[Tensor, "b v"]:
        """Return the probability of each token to be chosen; that of one is 1 when greedy."""
        if self.temperature == 0:
            best = scores.argmax(-1, keepdim=True)
            return torch.zeros_like(scores).scatter_(-1, best, 1)
        if self.top_p is not None:
            p, order = nucleus(scores, self.temperature, self.top_p)
            return torch.zeros_like(p).scatter_(-1, order, p)
        return truncated(scores, self.temperature, self.top_k)

    def uniform(self, like: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """Draw numbers in [0, 1) of the same shape; greedy choice uses up no noise."""
        if self.temperature == 0:
            return torch.zeros_like(like)
        device = self.generator.device
        return torch.rand(like.shape, generator=self.generator, device=device).to(like)

    def draw(self, p: Float[Tensor, "b v"]) -> Int64[Tensor, "b 1"]:
        """Draw a token a row; ``p`` need not sum to 1."""
        if self.temperature == 0:
            return p.argmax(-1, keepdim=True)
        noise = torch.empty(p.shape, device=self.generator.device)
        noise = noise.exponential_(1, generator=self.generator).to(p)
        return (p / noise).argmax(-1, keepdim=True)


def nucleus(
    scores: Float[Tensor, "b v"], temperature: float | int, top_p: float
) -> tuple[Float[Tensor, "b v"], Int64[Tensor, "b v"]]:
    """Return the kept probabilities, likeliest first, and the tokens that they belong to."""
    p, order = (scores / max(temperature, 1e-5)).softmax(-1).sort(-1, descending=True)
    p = p.masked_fill(p.cumsum(-1) - p > top_p, 0)
    return p / p.sum(-1, keepdim=True), order


def truncated(
    scores: Float[Tensor, "b v"], temperature: float | int, top_k: int | None
) -> Float[Tensor, "b v"]:
    """Return the probabilities of the ``top_k`` likeliest tokens (ties kept), 0 for others."""
    scores = scores / max(temperature, 1e-5)
    if top_k is not None:
        least = scores.topk(min(top_k, scores.shape[-1])).values[:, -1:]
        scores = scores.masked_fill(scores < least, -torch.inf)
    return scores.softmax(-1)


def generate(  # noqa: PLR0913
    lm: ArTransformer,
    prompt_tokens: Int64[Tensor, "b p"],
    max_new_tokens: int,
    temperature: float | int = 0,
    top_p: float | None = None,
    context: Float[Tensor, "c m e"] | None = None,
    grid: Grid | None = None,
    seed: int = 0,
    *,
    top_k: int | None = None,
    progress: Progress | None = None,
) -> Int64[Tensor, "b n"]:
    """Return the tokens that follow each prompt, the new ones only.

    Args:
        lm: the model.
        prompt_tokens: equally long beginnings; with ``lm.bov_token`` in front, if it has one.
        max_new_tokens: how many to add. Videos have no end token: so many come out.
        temperature: 0 is greedy.
        top_p: nucleus sampling.
        context: embedded prompts, one for each row or one for all.
        grid: t h w of the token grid; None is the model's own.
        seed: of the sampling noise.
        top_k: sampling from the k likeliest tokens.
        progress: called with tokens done and tokens in all.

    Raises:
        ValueError: an empty prompt, more tokens than the grid has, bad sampling settings.
    """
    generator = torch.Generator().manual_seed(seed)
    sampler = Sampler(temperature, top_p=top_p, top_k=top_k, generator=generator)
    return decode(
        lm, prompt_tokens, max_new_tokens, sampler, context=context, grid=grid, progress=progress
    )


@torch.no_grad()
def decode(
    lm: ArTransformer,
    prompt: Int64[Tensor, "b p"],
    n: int,
    sampler: Callable[[Tensor], Tensor],
    *,
    context: Float[Tensor, "c m e"] | None = None,
    grid: Grid | None = None,
    progress: Progress | None = None,
) -> Int64[Tensor, "b n"]:
    """Read the prompt once, then one token at a time; scores reach the sampler in float32."""
    b, p = prompt.shape
    if not p:
        raise ValueError("the prompt is empty; give at least one token")
    if n < 1:
        return prompt.new_empty(b, 0)
    if context is not None:
        context = context.expand(b, -1, -1)
    tokens = prompt.new_empty(b, n)
    with torch.inference_mode():
        cache = lm.new_cache(b, p + n - 1, context)
        latest = prompt
        for i in range(n):
            latest = sampler(lm.step(latest, cache, grid=grid).float())
            tokens[:, i : i + 1] = latest
            if progress is not None:
                progress(i + 1, n)
    return tokens


@torch.no_grad()
def decode_plainly(
    lm: NextTokenModel,
    prompt: Int64[Tensor, "b p"],
    n: int,
    sampler: Callable[[Tensor], Tensor],
    *,
    context: Float[Tensor, "b m e"] | None = None,
    grid: Grid | None = None,
) -> Int64[Tensor, "b n"]:
    """Do what :func:`decode` does without a cache: the whole sequence again for each token.

    Works with every NextTokenModel, and is what the cache is measured against.
    """
    tokens = prompt
    condition = {} if context is None else {"text": context}
    for _ in range(n):
        scores = lm.logits(tokens, condition, grid=grid)[:, -1]
        tokens = torch.cat([tokens, sampler(scores.float())], 1)
    return tokens[:, prompt.shape[1] :]
