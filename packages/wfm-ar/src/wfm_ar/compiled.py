"""Decoding as one compiled function a token: torch.compile, and CUDA graphs where there is CUDA.

A graph wants the same shapes and addresses each time. So a token reads the cache to the end of a
stretch of slots, under a mask, and writes at a place that is itself a tensor: one graph serves
every token of a stretch. What reads more than one token (the prompt, a draft's guesses) is not
compiled.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from .config import Grid
from .layers import KeyValue, LayerCache
from .model import ArTransformer, Cache, Tables

# Slots of a stretch: more are fewer graphs, and more empty slots read.
STRETCH = 256


class SlotCache(LayerCache):
    """The cache of one layer as a graph sees it: the place of the token is data, not a number."""

    def __init__(
        self,
        keys: Float[Tensor, "b g n d"],
        values: Float[Tensor, "b g n d"],
        where: Int64[Tensor, "1"],
        mask: Bool[Tensor, "1 n"],
    ) -> None:
        super().__init__(keys, values)
        self.where, self.mask = where, mask

    def append(self, k: Float[Tensor, "b g 1 d"], v: Float[Tensor, "b g 1 d"]) -> KeyValue:
        """Store the new row; return the whole stretch, of which the mask hides what is empty."""
        self.keys.index_copy_(2, self.where, k)
        self.values.index_copy_(2, self.where, v)
        return self.keys, self.values


class CompiledTransformer(ArTransformer):
    """The same network; its steps of one token are compiled, at the first of each stretch.

    :func:`~wfm_ar.fast.for_decoding` makes one.
    """

    def compile_steps(self, **how: Any) -> None:
        """Say how :func:`torch.compile` is to do it."""
        self._compiled = torch.compile(self._token, fullgraph=True, dynamic=False, **how)

    def new_cache(
        self, batch: int, length: int, context: Float[Tensor, "b m e"] | None = None
    ) -> Cache:
        cache = super().new_cache(batch, length, context)
        for layer in cache.layers:
            for rows in (layer.keys, layer.values):
                rows.zero_()  # hidden slots weigh nothing, but nothing times NaN would be NaN
                torch._dynamo.mark_static_address(rows)  # graphs write into them where they lie
        return cache

    def step(
        self, tokens: Int64[Tensor, "b n"], cache: Cache, *, grid: Grid | None = None
    ) -> Float[Tensor, "b v"]:
        if tokens.shape[1] > 1:
            return super().step(tokens, cache, grid=grid)
        room = cache.layers[0].keys.shape[2]
        end = min((cache.used // STRETCH + 1) * STRETCH, room)
        where = torch.tensor([cache.used], device=tokens.device)
        mask = (torch.arange(end, device=tokens.device) <= where)[None]
        rows = [(layer.keys[:, :, :end], layer.values[:, :, :end]) for layer in cache.layers]
        tables = self._rows(grid, cache.used, cache.used + 1)
        scores = self._compiled(tokens, tables, where, mask, rows, cache.context)
        cache.forget(-1)
        # A graph's answer lies where its next one will.
        return scores.clone() if scores.is_cuda else scores

    def _token(
        self,
        tokens: Tensor,
        tables: Tables,
        where: Tensor,
        mask: Tensor,
        rows: list[KeyValue],
        context: list[KeyValue | None],
    ) -> Tensor:
        caches: list[LayerCache] = [SlotCache(*each, where, mask) for each in rows]
        return self.head(self.norm(self._run(tokens, context, tables, caches)))[:, -1]
