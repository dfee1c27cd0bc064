"""The parts of a layer: norms, attention over a growing cache, cross-attention, SwiGLU."""

from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from .config import ArConfig

Rotation = tuple[Tensor, Tensor]
KeyValue = tuple[Tensor, Tensor]


class RMSNorm(nn.Module):
    """Divide by the root mean square in float32, round to the input's dtype, then weigh."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))
        self.shared: Callable[[Tensor], Tensor] | None = None  # see sharding.py

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        return normalize(x, self.eps) * self.scale()

    def scale(self) -> Float[Tensor, " d"]:
        """Return the weights; where processes share the heads, they share these too."""
        return self.weight if self.shared is None else self.shared(self.weight)


class LayerCache:
    """Keys and values of one layer, room for all tokens made beforehand."""

    mask: Bool[Tensor, "1 m"] | None = None  # all rows that append returns are in use

    def __init__(self, keys: Float[Tensor, "b g n d"], values: Float[Tensor, "b g n d"]) -> None:
        self.keys, self.values, self.used = keys, values, 0

    def append(self, k: Float[Tensor, "b g n d"], v: Float[Tensor, "b g n d"]) -> KeyValue:
        """Store the new rows; return all rows in use, never the empty room behind them."""
        end = self.used + k.shape[2]
        self.keys[:, :, self.used : end] = k
        self.values[:, :, self.used : end] = v
        self.used = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class SelfAttention(nn.Module):
    """Causal attention in which a few key-value heads serve groups of query heads."""

    def __init__(self, config: ArConfig) -> None:
        super().__init__()
        heads, groups, dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.heads, self.groups, self.head_dim = heads, groups, dim
        self.eps = config.norm_eps
        self.interleaved = config.rope == "1d-interleaved"
        self.qkv = nn.Linear(config.dim, (heads + 2 * groups) * dim, bias=False)
        self.out = nn.Linear(heads * dim, config.dim, bias=False)
        self.q_norm = RMSNorm(dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.lean: tuple[Tensor, Tensor] | None = None  # of stacked norms; for decoding only

    def forward(
        self, x: Float[Tensor, "b n c"], rotation: Rotation, cache: LayerCache | None = None
    ) -> Float[Tensor, "b n c"]:
        heads, turned = apart(self.qkv(x), self.head_dim), self.heads + self.groups
        turning = self._norm(heads[:, :turned])
        qk = rotate(turning, rotation, interleaved=self.interleaved)
        k, v, mask = qk[:, self.heads :], heads[:, turned:], None
        if cache is not None:
            k, v = cache.append(k, v)
            mask = cache.mask
        return self.out(together(attend(qk[:, : self.heads], k, v, causal=True, mask=mask)))

    def _norm(self, x: Float[Tensor, "b h n d"]) -> Float[Tensor, "b h n d"]:
        """Norm the heads of queries and of keys in one go."""
        if self.lean is not None:
            return lean_norm(x, *self.lean)
        weights = self._stacked_norms()
        return x if weights is None else normalize(x, self.eps) * weights

    def stack_norms(self) -> None:
        """Put the norms' weights together once and for all, for decoding."""
        weights = self._stacked_norms()
        if weights is not None and weights.dtype == torch.float32:
            self.lean = leaned(weights.detach(), self.eps)

    def _stacked_norms(self) -> Float[Tensor, "h 1 d"] | None:
        """Return the norm weights of every head, queries before keys; None without norms."""
        if not (isinstance(self.q_norm, RMSNorm) and isinstance(self.k_norm, RMSNorm)):
            return None
        q, k = self.q_norm.scale(), self.k_norm.scale()
        return torch.cat([q.expand(self.heads, 1, -1), k.expand(self.groups, 1, -1)])


class CrossAttention(nn.Module):
    """Attention to the slots of a context; keys and values are projected once per prompt."""

    def __init__(self, config: ArConfig) -> None:
        super().__init__()
        heads, groups, dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.head_dim = dim
        self.q = nn.Linear(config.dim, heads * dim, bias=False)
        self.k = nn.Linear(config.context_dim, groups * dim, bias=False)
        self.v = nn.Linear(config.context_dim, groups * dim, bias=False)
        self.out = nn.Linear(heads * dim, config.dim, bias=False)
        self.q_norm = RMSNorm(dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(dim, config.norm_eps) if config.qk_norm else nn.Identity()

    def project(self, context: Float[Tensor, "b m e"]) -> KeyValue:
        """Return the keys and values of a context. A zero row has key 0 and value 0."""
        k, v = (apart(part(context), self.head_dim) for part in (self.k, self.v))
        return self.k_norm(k), v

    def forward(self, x: Float[Tensor, "b n c"], context: KeyValue) -> Float[Tensor, "b n c"]:
        q = self.q_norm(apart(self.q(x), self.head_dim))
        return self.out(together(attend(q, *context, causal=False)))


class FeedForward(nn.Module):
    """SwiGLU: half of the hidden channels gate the other half."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(silu(gate) * up)


class Block(nn.Module):
    """One layer: self-attention, cross-attention where the config has it, feed-forward."""

    def __init__(self, config: ArConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = SelfAttention(config)
        cross = config.has_cross_attention(layer)
        self.cross_norm = RMSNorm(config.dim, config.norm_eps) if cross else None
        self.cross = CrossAttention(config) if cross else None
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn = FeedForward(config.dim, config.ffn_dim)

    def forward(
        self,
        x: Float[Tensor, "b n c"],
        rotation: Rotation,
        context: KeyValue | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "b n c"]:
        x = x + self.attention(self.attention_norm(x), rotation, cache)
        if self.cross is not None and self.cross_norm is not None and context is not None:
            x = x + self.cross(self.cross_norm(x), context)
        return x + self.ffn(self.ffn_norm(x))


def apart(x: Float[Tensor, "b n c"], dim: int) -> Float[Tensor, "b h n d"]:
    """Return the heads, as ``b n (h d) -> b h n d`` of einops but in a third of the time."""
    b, n, _ = x.shape
    return x.view(b, n, -1, dim).transpose(1, 2)


def together(x: Float[Tensor, "b h n d"]) -> Float[Tensor, "b n c"]:
    """Undo :func:`apart`."""
    return x.transpose(1, 2).flatten(2)


def normalize(x: Float[Tensor, "*b d"], eps: float) -> Float[Tensor, "*b d"]:
    """Divide by the root mean square in float32; the result has the input's dtype."""
    if x.dtype == torch.float32:
        return rms_norm(x, x.shape[-1:], eps=eps)
    return rms_norm(x.float(), x.shape[-1:], eps=eps).type_as(x)


def leaned(weights: Float[Tensor, "*h d"], eps: float) -> tuple[Tensor, Tensor]:
    """Return what :func:`lean_norm` takes."""
    d = weights.shape[-1]
    return weights.detach() * d**0.5, weights.new_tensor((d * eps) ** 0.5)


def lean_norm(
    x: Float[Tensor, "*b d"], weights: Float[Tensor, "*h d"], least: Float[Tensor, ""]
) -> Float[Tensor, "*b d"]:
    """Norm and weigh in half the operations: beside one token's products each of them counts.

    ``sqrt(sum(x^2) + d eps)`` is the hypotenuse of the length and a constant.
    """
    return x / vector_norm(x, dim=-1, keepdim=True).hypot(least) * weights


def rotate(
    x: Float[Tensor, "*b d"], rotation: Rotation, *, interleaved: bool
) -> Float[Tensor, "*b d"]:
    """Turn pairs of channels by the angles of their position.

    Either channels 2i and 2i + 1 are a pair, or i and i + d/2. The sines of a pair's first
    channel come negated, see :func:`signed`.
    """
    cos, sin = rotation
    if interleaved:
        partner = rearrange(x, "... (d two) -> ... d two", two=2).flip(-1).flatten(-2)
    else:
        partner = x.roll(x.shape[-1] // 2, -1)
    return torch.addcmul(x * cos, partner, sin)


def signed(sin: Float[Tensor, "n d"], *, interleaved: bool) -> Float[Tensor, "n d"]:
    """Negate the sines of each pair's first channel, once instead of in every layer."""
    first = torch.ones_like(sin[0], dtype=torch.bool)
    if interleaved:
        first[1::2] = False
    else:
        first[len(first) // 2 :] = False
    return torch.where(first, -sin, sin)


def attend(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    v: Float[Tensor, "b g m d"],
    *,
    causal: bool,
    mask: Bool[Tensor, "1 m"] | None = None,
) -> Float[Tensor, "b h n d"]:
    """Softmax attention in which key head ``j`` serves the ``j``-th group of query heads.

    ``causal``: the n queries are the last n of the m positions. Beside a cache the heads of a
    group become further queries, so that keys and values are never repeated. ``mask``, of one
    query, says which positions there are.
    """
    heads, n = q.shape[1:3]
    groups, m = k.shape[1:3]
    if causal and n == m > 1:
        return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != groups)
    if causal and n > 1:
        mask = torch.ones(n, m, dtype=torch.bool, device=q.device).tril(m - n)
        mask = mask.repeat(heads // groups, 1)
    folded = q.reshape(len(q), groups, -1, q.shape[-1])  # b (g r) n d -> b g (r n) d
    return scaled_dot_product_attention(folded, k, v, attn_mask=mask).reshape(q.shape)
