"""The parts of the diffusion transformer: time, AdaLN-LoRA, attention, MLP, block."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import attention
from .config import DiffusionConfig
from .parallel import ContextParallel
from .position import rotate
from .steady import KeysValues, Words


class RMSNorm(nn.RMSNorm):
    """torch's, in the type of its input: under autocast that is not the type of its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


@dataclass(frozen=True)
class Context:
    """What every block sees beside its tokens. ``f`` is 1, or the frames of the clip.

    The rows of ``time``, ``shared``, ``cos`` and ``sin`` are the samples', or one for all.
    ``branches`` copies of the samples differ in nothing but text: they part at the first block's
    attention to it.
    """

    time: Float[Tensor, "_ f d"]
    shared: Float[Tensor, "_ f e"]
    words: Words
    cos: Float[Tensor, "_ n 1 k"]
    sin: Float[Tensor, "_ n 1 k"]
    position: Float[Tensor, "1 n d"] | None
    views: int
    branches: int = 1
    parallel: ContextParallel | None = None

    @property
    def rows(self) -> int:
        """Samples, each branch counted."""
        return len(self.words.slots) // self.views


def sinusoid(timestep: Float[Tensor, " b"], width: int) -> Float[Tensor, "b d"]:
    """Return [cos | sin] of ``width / 2`` frequencies from 1 down to almost 1/10000."""
    half = width // 2
    index = torch.arange(half, dtype=torch.float32, device=timestep.device)
    angle = timestep.float()[:, None] * torch.exp(-math.log(10_000) / half * index)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """The noise level -> its normalised sinusoid, and the AdaLN term shared by all blocks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.linear_1 = nn.Linear(width, width, bias=False)
        self.linear_2 = nn.Linear(width, 3 * width, bias=False)
        self.norm = RMSNorm(width, eps=1e-6)

    def forward(
        self, timestep: Float[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b e"]]:
        wave = sinusoid(timestep, self.width).to(self.linear_1.weight.dtype)
        return self.norm(wave), self.linear_2(F.silu(self.linear_1(wave)))


class Modulation(nn.Module):
    """AdaLN-LoRA: a low-rank projection of the time, plus the shared term."""

    def __init__(self, width: int, rank: int, chunks: int) -> None:
        super().__init__()
        self.chunks = chunks
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, chunks * width, bias=False)

    def forward(
        self, time: Float[Tensor, "_ f d"], shared: Float[Tensor, "_ g e"]
    ) -> tuple[Tensor, ...]:
        x = self.up(self.down(F.silu(time)))
        return (x + shared[..., : x.shape[-1]]).chunk(self.chunks, dim=-1)


def modulate(
    x: Float[Tensor, "b n d"], shift: Float[Tensor, "_ f d"], scale: Float[Tensor, "_ f d"]
) -> Float[Tensor, "b n d"]:
    """Normalise, then scale and shift the tokens of each frame by that frame's vectors."""
    frames, width = shift.shape[1:]
    x = rearrange(F.layer_norm(x, (width,), eps=1e-6), "b (f n) d -> b f n d", f=frames)
    x = torch.addcmul(shift[:, :, None], x, 1 + scale[:, :, None])
    return rearrange(x, "b f n d -> b (f n) d")


def add_gated(
    x: Float[Tensor, "b n d"], gate: Float[Tensor, "_ f d"], update: Float[Tensor, "b n d"]
) -> Float[Tensor, "b n d"]:
    """Add ``gate * update``, the gate being one vector for each frame."""
    x, update = (rearrange(y, "b (f n) d -> b f n d", f=gate.shape[1]) for y in (x, update))
    return rearrange(torch.addcmul(x, gate[:, :, None], update), "b f n d -> b (f n) d")


class Attention(nn.Module):
    """Multi-head attention with RMS-normalised queries and keys, no bias anywhere."""

    def __init__(self, width: int, source_dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(source_dim, width, bias=False)
        self.v = nn.Linear(source_dim, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.q_norm = RMSNorm(width // num_heads, eps=eps)
        self.k_norm = RMSNorm(width // num_heads, eps=eps)

    def heads(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n k c"]:
        return rearrange(x, "b n (k c) -> b n k c", k=self.num_heads)

    def queries(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n k c"]:
        return self.q_norm(self.heads(self.q(x)))

    def keys_values(self, source: Float[Tensor, "b m s"]) -> KeysValues:
        return self.k_norm(self.heads(self.k(source))), self.heads(self.v(source))

    def over_self(self, x: Float[Tensor, "b n d"], context: Context) -> Float[Tensor, "b n d"]:
        """Attend to all tokens, with rotary positions."""
        q, (k, v) = self.queries(x), self.keys_values(x)
        cos, sin = context.cos[: len(x)], context.sin[: len(x)]
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if context.parallel is None:
            y = attention(q, k, v)
        else:
            y = attention(*map(context.parallel.to_heads, (q, k, v)))
            y = context.parallel.to_tokens(y)
        return self.out(rearrange(y, "b n k d -> b n (k d)"))

    def over_text(self, x: Float[Tensor, "b n d"], context: Context) -> Float[Tensor, "b n d"]:
        """Attend to all text slots, padding included; each camera to its own text."""
        views, words = context.views, context.words
        q = self.queries(rearrange(x, "b (v n) d -> (b v) n d", v=views))
        k, v = words.keys_values(self, self.keys_values, len(q))
        y = attention(q, k, v, bias=words.bias)
        return self.out(rearrange(y, "(b v) n k d -> b (v n) (k d)", v=views))


class Mlp(nn.Module):
    """Two layers with exact GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    """Positions added, then self-attention, attention to the text, MLP."""

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        width, heads, eps = config.width, config.num_heads, config.qk_norm_eps
        self.self_modulation = Modulation(width, config.adaln_rank, 3)
        self.self_attention = Attention(width, width, heads, eps)
        self.text_modulation = Modulation(width, config.adaln_rank, 3)
        self.text_attention = Attention(width, config.text_dim, heads, eps)
        self.mlp_modulation = Modulation(width, config.adaln_rank, 3)
        self.mlp = Mlp(width, int(width * config.mlp_ratio))

    def forward(self, x: Float[Tensor, "b n d"], context: Context) -> Float[Tensor, "_ n d"]:
        """Return the tokens of all branches; ``x`` may still be that of all at once."""
        if context.position is not None:
            x = x + context.position
        time, shared = context.time, context.shared
        shift, scale, gate = self.self_modulation(time[: len(x)], shared[: len(x)])
        update = self.self_attention.over_self(modulate(x, shift, scale), context)
        x = add_gated(x, gate, update)
        if context.branches > 1 and len(x) * context.branches == context.rows:
            x = x.repeat(context.branches, 1, 1)
        x = self._hear(x, context)
        shift, scale, gate = self.mlp_modulation(time, shared)
        return add_gated(x, gate, self.mlp(modulate(x, shift, scale)))

    def _hear(self, x: Float[Tensor, "b n d"], context: Context) -> Float[Tensor, "b n d"]:
        """Attend to the text; samples without any stay as they are."""
        heard = context.words.heard
        if not heard:
            return x
        shift, scale, gate = self.text_modulation(context.time[:heard], context.shared[:heard])
        update = self.text_attention.over_text(modulate(x[:heard], shift, scale), context)
        told = add_gated(x[:heard], gate, update)
        return told if heard == len(x) else torch.cat([told, x[heard:]])


class FinalLayer(nn.Module):
    """AdaLN without a gate, then a projection to the pixels of a patch."""

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        self.modulation = Modulation(config.width, config.adaln_rank, 2)
        self.linear = nn.Linear(
            config.width, math.prod(config.patch) * config.latent_channels, bias=False
        )

    def forward(self, x: Float[Tensor, "b n d"], context: Context) -> Float[Tensor, "b n p"]:
        shift, scale = self.modulation(context.time, context.shared)
        return self.linear(modulate(x, shift, scale))


class Uncertainty(nn.Module):
    """The learned log-variance u of the loss at a noise level, from random Fourier features."""

    frequencies: Float[Tensor, " d"]
    phases: Float[Tensor, " d"]

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", 2 * math.pi * torch.randn(features))
        self.register_buffer("phases", 2 * math.pi * torch.rand(features))
        self.linear = nn.Linear(features, 1, bias=False)

    def forward(self, timestep: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        angle = timestep.float()[:, None] * self.frequencies.float() + self.phases.float()
        features = math.sqrt(2) * angle.cos()
        return rearrange(features.to(self.linear.weight.dtype) @ self.linear.weight.T, "b 1 -> b")


def add_ports(
    time: tuple[Float[Tensor, "_ d"], Float[Tensor, "_ e"]], ports: Mapping[str, Tensor]
) -> tuple[Float[Tensor, "_ f d"], Float[Tensor, "_ f e"]]:
    """Add ``adaln`` to the time embedding, ``adaln_shared`` to the term of all blocks.

    Either has one row for each sample, or one for each latent frame.
    """
    embedding, shared = (
        old[:, None] if new is None else old[:, None] + per_frame(new).to(old.dtype)
        for old, new in zip(time, map(ports.get, ("adaln", "adaln_shared")), strict=True)
    )
    frames = max(embedding.shape[1], shared.shape[1])
    rows = max(len(embedding), len(shared))
    return embedding.expand(rows, frames, -1), shared.expand(rows, frames, -1)


def token_planes(
    embedding: nn.Embedding,
    tokens: Int64[Tensor, "b tl hl wl"] | None,
    x: Float[Tensor, "b c t h w"],
) -> Float[Tensor, "b k t h w"]:
    """Look tokens up and enlarge them, frame by frame, to the size of the latents ``x``.

    Where a token frame stands for several latent frames each of these sees it: latents and
    tokens are causal, their first frame is that of an image.

    Raises:
        ValueError: no tokens, or a number of frames that does not go with that of the latents.
    """
    if tokens is None:
        raise ValueError("this network decodes tokens: give it the condition 'tokens'")
    t, tl = x.shape[2], tokens.shape[1]
    if (t - 1) % max(1, tl - 1) or (tl == 1) != (t == 1):
        raise ValueError(f"{tl} frames of tokens for {t} of latents; wanted 1 + n for 1 + k n")
    ratio = (t - 1) // max(1, tl - 1)
    frames = rearrange(embedding(tokens), "b t h w c -> (b t) c h w")
    frames = F.interpolate(frames.float(), size=x.shape[-2:], mode="bilinear").to(x.dtype)
    planes = rearrange(frames, "(b t) c h w -> b c t h w", b=len(x))
    later = planes[:, :, 1:].repeat_interleave(ratio, dim=2)
    return torch.cat([planes[:, :, :1], later], dim=2)


def per_frame(x: Tensor) -> Float[Tensor, "b f d"]:
    return x if x.dim() == 3 else x[:, None]


def each_branch(x: Tensor, branches: int) -> Tensor:
    """Repeat rows that belong to samples; a single one serves all."""
    if branches == 1 or len(x) == 1:
        return x
    return x.repeat(branches, *[1] * (x.dim() - 1))
