"""Decoding as the published implementation does it, on our weights, to be measured against.

Each step attends to the whole cache under a mask, keys and values repeated for every query head;
queries, keys and values, and the two halves of the feed-forward, are separate products; keys and
values of the context are projected anew for every token.
"""

import statistics
from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import linear, silu

import wfm_ar as wa
from wfm_ar.bench import clock
from wfm_ar.model import Cache
from wfm_ar.positions import absolute_table, rotary_tables


class ReferenceLoop:
    """Holds the weights under their published names."""

    def __init__(self, lm: wa.ArTransformer) -> None:
        self.config = lm.config
        self.weights = {
            name: tensor.contiguous()
            for name, tensor in wa.convert.to_nvidia(lm.state_dict(), lm.config).items()
        }
        self.cos, self.sin = rotary_tables(lm.config)
        self.absolute = absolute_table(lm.config) if lm.config.absolute_positions else None

    def take_over(self, cache: Cache, room: int) -> None:
        """Begin behind what another loop has read, so that both go on from the same."""
        shape = (len(cache.layers), 1, self.config.num_kv_heads, room, self.config.head_dim)
        self.keys, self.values = torch.zeros(shape), torch.zeros(shape)
        for i, layer in enumerate(cache.layers):
            self.keys[i][:, :, : cache.used] = layer.keys[:, :, : cache.used]
            self.values[i][:, :, : cache.used] = layer.values[:, :, : cache.used]
        self.mask = torch.ones(room, room, dtype=torch.bool).tril()
        self.used = cache.used

    @torch.inference_mode()
    def decode(self, latest: Tensor, n: int, context: Tensor | None) -> tuple[Tensor, float]:
        """Return the n greedy tokens after ``latest`` and the median seconds of each."""
        found, times = [], [clock()]
        for i in range(n):
            at = torch.tensor([self.used + i])
            latest = self._step(latest, at, self.keys, self.values, self.mask[at], context)
            found.append(latest)
            times.append(clock())
        return torch.cat(found, 1), statistics.median(b - a for a, b in pairwise(times))

    def _step(
        self, tokens: Tensor, at: Tensor, keys: Tensor, values: Tensor, mask: Tensor,
        context: Tensor | None,
    ) -> Tensor:  # fmt: skip
        weights = self.weights
        x = weights["tok_embeddings.weight"][tokens]
        for i in range(self.config.num_layers):
            layer = f"layers.{i}."
            if self.absolute is not None:
                x = x + self.absolute[at]
            a = self._norm(x, f"{layer}attention_norm.weight")
            q = self._rotate(self._heads(a, f"{layer}attention.wq", f"{layer}attention.q_norm"), at)
            k = self._rotate(self._heads(a, f"{layer}attention.wk", f"{layer}attention.k_norm"), at)
            keys[i][:, :, at], values[i][:, :, at] = k, self._heads(a, f"{layer}attention.wv")
            x = x + self._attend(q, keys[i], values[i], mask, f"{layer}attention.wo.weight")
            if context is not None and f"{layer}cross_attention.wq.weight" in weights:
                name = f"{layer}cross_attention."
                c = self._norm(x, f"{name[:-1]}_norm.weight")
                q = self._heads(c, f"{name}wq", f"{name}q_norm")
                k = self._heads(context, f"{name}wk", f"{name}k_norm")
                v, all_ones = (
                    self._heads(context, f"{name}wv"),
                    torch.ones(1, k.shape[2], dtype=torch.bool),
                )
                x = x + self._attend(q, k, v, all_ones, f"{name}wo.weight")
            f = self._norm(x, f"{layer}ffn_norm.weight")
            gate = silu(linear(f, weights[f"{layer}feed_forward.w1.weight"]))
            up = linear(f, weights[f"{layer}feed_forward.w3.weight"])
            x = x + linear(gate * up, weights[f"{layer}feed_forward.w2.weight"])
        scores = linear(self._norm(x[:, -1:], "norm.weight"), weights["output.weight"])
        return scores[:, -1].argmax(-1, keepdim=True)

    def _heads(self, x: Tensor, matrix: str, norm: str = "") -> Tensor:
        split = rearrange(
            linear(x, self.weights[f"{matrix}.weight"]),
            "b n (h d) -> b h n d",
            d=self.config.head_dim,
        )
        return self._norm(split, f"{norm}.weight") if f"{norm}.weight" in self.weights else split

    def _norm(self, x: Tensor, weight: str) -> Tensor:
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.config.norm_eps)
        return x * scale * self.weights[weight]

    def _rotate(self, x: Tensor, at: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return x * self.cos[at] + torch.cat((-b, a), -1) * self.sin[at]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, out: str) -> Tensor:
        repeats = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        scores = q @ k.transpose(-1, -2) * self.config.head_dim**-0.5
        p = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        return linear(rearrange(p @ v, "b h n d -> b n (h d)"), self.weights[out])
