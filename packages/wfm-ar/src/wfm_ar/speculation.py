"""Decode several tokens a pass: a draft proposes, the model checks; the answer stays exact.

The drafts say one token each, so the rule of speculative sampling (Leviathan et al. 2023,
arXiv 2211.17192) becomes: keep a proposed token with its probability p, or else draw from p
without it. Greedy decoding is the case of p being 0 or 1.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from .config import Grid
from .decoding import Progress, Sampler
from .model import ArTransformer


@runtime_checkable
class Draft(Protocol):
    """Guesses what follows."""

    def propose(
        self, tokens: Int64[Tensor, "b n"], hidden: Float[Tensor, "b c"], /
    ) -> Int64[Tensor, "b k"]:
        """Return k >= 0 guesses of the tokens after ``tokens``.

        ``hidden`` is what the model's head made the last of ``tokens`` from.
        """
        ...


class PreviousFrame:
    """Guesses that nothing moves: the same place, one latent frame earlier.

    Args:
        cells: tokens of a latent frame.
        count: guesses a pass.
        begin: tokens before the grid: 1 with a begin-of-video token.
    """

    def __init__(self, cells: int, count: int, begin: int = 0) -> None:
        if not 0 < count <= cells:
            raise ValueError(f"a frame has {cells} tokens; cannot copy {count} at once")
        self.cells, self.count, self.begin = cells, count, begin

    def propose(
        self, tokens: Int64[Tensor, "b n"], hidden: Float[Tensor, "b c"], /
    ) -> Int64[Tensor, "b k"]:
        start = tokens.shape[1] - self.cells
        if start < self.begin:
            return tokens[:, :0]
        return tokens[:, start : start + self.count]


class Speculation(NamedTuple):
    """New tokens and how they came about."""

    tokens: Int64[Tensor, "b n"]
    passes: int
    """passes of the model after the one over the prompt"""

    @property
    def tokens_per_pass(self) -> float:
        """1 is plain decoding; the first token comes from the prompt's own pass."""
        return (self.tokens.shape[1] - 1) / max(self.passes, 1)


@torch.no_grad()
def speculate(
    lm: ArTransformer,
    prompt: Int64[Tensor, "b p"],
    n: int,
    sampler: Sampler,
    draft: Draft,
    *,
    context: Float[Tensor, "c m e"] | None = None,
    grid: Grid | None = None,
    progress: Progress | None = None,
) -> Speculation:
    """Return n new tokens, distributed as those of :func:`~wfm_ar.decoding.decode`.

    Greedy tokens are the same (up to ties within rounding); drawn ones have the same
    distribution, but a seed gives other ones. Rows of a batch advance together, by what the
    least lucky of them accepts.

    Raises:
        ValueError: an empty prompt, or more tokens than the grid has.
    """
    b, p = prompt.shape
    if not p:
        raise ValueError("the prompt is empty; give at least one token")
    if n < 1:
        return Speculation(prompt.new_empty(b, 0), 0)
    context = None if context is None else context.expand(b, -1, -1)
    cache = lm.new_cache(b, p + n - 1, context)
    hidden = lm.hidden(prompt, cache, grid=grid)[:, -1]
    tokens = torch.cat([prompt, sampler(lm.head(hidden).float())], 1)
    passes = 0
    while (missing := p + n - tokens.shape[1]) > 0:
        guesses = draft.propose(tokens, hidden)[:, : missing - 1]
        states = lm.hidden(torch.cat([tokens[:, -1:], guesses], 1), cache, grid=grid)
        new = check(sampler, lm.head(states).float(), guesses)
        hidden = states[:, new.shape[1] - 1]
        cache.forget(guesses.shape[1] + 1 - new.shape[1])
        tokens = torch.cat([tokens, new], 1)
        passes += 1
        if progress is not None:
            progress(tokens.shape[1] - p, n)
    return Speculation(tokens[:, p:], passes)


def check(
    sampler: Sampler, scores: Float[Tensor, "b m v"], guesses: Int64[Tensor, "b k"]
) -> Int64[Tensor, "b a"]:
    """Return the guesses that all rows accept, and one token more.

    ``scores`` has a row for every guess and one beyond the last: m = k + 1.
    """
    b, k = guesses.shape
    p = sampler.distribution(scores.flatten(0, 1)).unflatten(0, (b, k + 1))
    likely = p[:, :k].gather(-1, guesses[..., None])[..., 0]
    kept: Bool[Tensor, "b k"] = sampler.uniform(likely) < likely
    accepted = int(kept.long().cumprod(1).sum(1).min()) if k else 0
    last = p[:, accepted]
    if accepted == k:
        return torch.cat([guesses, sampler.draw(last)], 1)
    # Here at least one row refuses its guess: it draws from all other tokens.
    guess = guesses[:, accepted : accepted + 1]
    other = sampler.draw(last.scatter(1, guess, 0))
    chosen = torch.where(kept[:, accepted : accepted + 1], guess, other)
    return torch.cat([guesses[:, :accepted], chosen], 1)
