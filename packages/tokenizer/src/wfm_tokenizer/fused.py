"""The networks once more, for inference: the same function in fewer and larger operations.

What is algebra on weights is done once, when the mode is made:

- the wavelet goes into the first convolution, its inverse into the last one;
- a resampler's mean or copy, and the mixing after it, go into its convolutions; a convolution
  of pixels doubled 2x2 becomes four of 2x2 taps on the small picture;
- before the first frame the taps in time see that frame again: their sum acts on it once;
- attention scores need one product of the query's and the key's matrix, values one of the
  value's and the output's.

Equal to the reference up to rounding, and without gradients.
"""

from collections.abc import Iterator
from copy import deepcopy
from itertools import groupby
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from .config import TokenizerConfig
from .fused_layers import Dense, Space, SpaceDown, SpaceUp, Time, TimeUp
from .kernels import attend
from .layers import (
    Attention,
    Conv,
    FrameNorm,
    Frames,
    ImageDownsample,
    ImageUpsample,
    Mix,
    ResBlock,
    SpaceAttention,
    VideoDownsample,
    VideoUpsample,
    look_at_past,
)
from .memory import Memory
from .network import Decoder, Encoder, Keep, Level, Middle

M = TypeVar("M", bound=nn.Module)

CELLS = 4096
"""Latent cells of whole frames that go through a network at once; more follow as in a stream."""

COMPILER: dict[str, Any] = {"mode": "reduce-overhead"}
"""What torch.compile is asked for: on a GPU, CUDA graphs."""

GRAPHS = 128
"""How many are compiled; further sizes run as they are. Torch's own 8 do not do for one video."""


class FusedConv(nn.Module):
    """Taps in space, then in time; ``before`` and ``after`` are matrices to be merged."""

    def __init__(
        self,
        conv: Conv,
        norm: FrameNorm | None = None,
        *,
        before: Tensor | None = None,
        after: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        space, space_bias = conv.space.weight, bias_of(conv.space)
        if before is not None:
            space = torch.einsum("kc..., cp -> kp...", space, before)
        time = None
        if conv.time is not None:
            time = merge(conv.time.weight, conv.time.bias, after)
        else:
            space, space_bias = merge(space, space_bias, after)
        self.space = Space(space, space_bias, norm)
        self.time = Time(*time) if time is not None else None

    def forward(
        self, x: Frames, memory: Memory | None, out: Tensor | None = None
    ) -> Float[Tensor, "b t h w c2"]:
        x = self.space(x, out)
        return x if self.time is None else self.time(x, memory)


class FusedBlock(nn.Module):
    def __init__(self, block: ResBlock) -> None:
        super().__init__()
        self.conv1 = FusedConv(block.conv1, block.norm1)
        self.conv2 = FusedConv(block.conv2, block.norm2)
        mix = block.shortcut
        self.shortcut = Dense(mix.weight, mix.bias) if isinstance(mix, Mix) else None

    def forward(self, x: Frames, memory: Memory | None) -> Float[Tensor, "b t h w c2"]:
        out = self.conv1(x, memory)
        out = self.conv2(out, memory, out)
        if self.shortcut is None:
            return out.add_(x)
        self.shortcut.add_to(out, x)
        return out


class FusedAttention(nn.Module):
    """Attention in space, then in causal networks in time; keys and values are the input."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.space_norm, self.space_query, self.space_out = matrices(attention.space)
        self.time_norm = None
        if attention.time is not None:
            self.time_norm, self.time_query, self.time_out = matrices(attention.time)

    def forward(self, x: Frames, memory: Memory | None) -> Frames:
        b, t, h, _, _ = x.shape
        n = rearrange(self.space_norm(x), "b t h w c -> (b t) (h w) c")
        n = self.space_out(attend(self.space_query(n), n))
        x = x + n.view(x.shape)
        if self.time_norm is None:
            return x
        n = rearrange(self.time_norm(x), "b t h w c -> (b h w) 1 t c")
        if memory is not None:
            n = look_at_past(self, n, memory, self._look)
        elif t > 1:
            n = F.scaled_dot_product_attention(self.time_query(n), n, n, is_causal=True)
        n = self.time_out(n.contiguous())
        return x.add_(rearrange(n, "(b h w) 1 t c -> b t h w c", b=b, h=h))

    def _look(self, n: Tensor, seen: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(self.time_query(n), seen, seen, mask)


class FusedResample(nn.Module):
    """Space then time on the way down, time then space on the way up; or neither."""

    def __init__(self, resample: nn.Module) -> None:
        super().__init__()
        self.before: Time | TimeUp | None = None
        self.space: SpaceDown | SpaceUp | None = None
        self.after: Time | None = None
        if isinstance(resample, ImageDownsample):
            self.space = SpaceDown(resample.space.weight, bias_of(resample.space))
        elif isinstance(resample, ImageUpsample):
            self.space = SpaceUp(resample.space.weight, bias_of(resample.space))
        elif isinstance(resample, VideoDownsample):
            self._down(resample)
        elif isinstance(resample, VideoUpsample):
            self._up(resample)

    def _down(self, resample: VideoDownsample) -> None:
        mix = (resample.mix.weight, resample.mix.bias)
        if resample.space is not None:
            mean = torch.tensor([[1.0, 1, 0], [1, 1, 0], [0, 0, 0]]) / 4
            weight = with_identity(resample.space.weight, mean)
            last = resample.time is None
            self.space = SpaceDown(*merge(weight, bias_of(resample.space), mix if last else None))
        if resample.time is not None:
            weight = with_identity(resample.time.weight, torch.tensor([0.0, 0.5, 0.5]))
            self.after = Time(*merge(weight, resample.time.bias, mix), stride=2)

    def _up(self, resample: VideoUpsample) -> None:
        mix = (resample.mix.weight, resample.mix.bias)
        if resample.time is not None:
            weight = with_identity(resample.time.weight, torch.tensor([0.0, 0, 1]))
            last = resample.space is None
            self.before = TimeUp(*merge(weight, resample.time.bias, mix if last else None))
        if resample.space is not None:
            middle = torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]])
            weight = with_identity(resample.space.weight, middle)
            self.space = SpaceUp(*merge(weight, bias_of(resample.space), mix))

    def forward(self, x: Frames, memory: Memory | None) -> Float[Tensor, "b t2 h2 w2 c"]:
        if self.before is not None:
            x = self.before(x, memory)
        if self.space is not None:
            x = self.space(x)
        return x if self.after is None else self.after(x, memory)


class FusedEncoder(nn.Module):
    """Video -> features, ``to_latent`` included."""

    def __init__(self, encoder: Encoder, to_latent: Mix, config: TokenizerConfig) -> None:
        super().__init__()
        self.compression = config.compression
        self.patcher = encoder.patcher
        matrix = encoder.patcher.matrix(3).to(to_latent.weight)
        last = (to_latent.weight, to_latent.bias)
        self.layers = nn.ModuleList(
            [
                FusedConv(encoder.conv_in, before=matrix),
                *fuse_levels(encoder.levels),
                *fuse_middle(encoder.middle),
                FusedConv(encoder.conv_out, encoder.norm_out, after=last),
            ]
        )

    @torch.no_grad()
    def forward(
        self, video: Float[Tensor, "b 3 t h w"], memory: Memory | None = None
    ) -> Float[Tensor, "b tl hl wl c"]:
        b, _, t, h, w = video.shape
        time, high, wide = self.compression
        step = max(1, CELLS // (b * (h // high) * (w // wide)))
        if memory is not None or t <= 1 + time * (step - 1):
            return self._run(video, memory)
        memory = Memory()
        start = 1 + time * (step - 1)
        chunks = (video[:, :, :start], *video[:, :, start:].split(time * step, 2))
        return torch.cat([self._run(chunk, memory) for chunk in chunks], 1)

    def _run(
        self, video: Float[Tensor, "b 3 t h w"], memory: Memory | None
    ) -> Float[Tensor, "b tl hl wl c"]:
        x = self.patcher.cubes(video, memory)
        for layer in self.layers:
            x = layer(x, memory)
        return x


class FusedDecoder(nn.Module):
    """Features of ``z_channels`` per latent cell -> video."""

    def __init__(self, decoder: Decoder, config: TokenizerConfig) -> None:
        super().__init__()
        self.compression = config.compression
        self.unpatcher = decoder.unpatcher
        matrix = decoder.unpatcher.matrix(3).to(decoder.conv_out.space.weight)
        last = (matrix, matrix.new_zeros(len(matrix)))
        self.layers = nn.ModuleList(
            [
                FusedConv(decoder.conv_in),
                *fuse_middle(decoder.middle),
                *fuse_levels(decoder.levels),
                FusedConv(decoder.conv_out, decoder.norm_out, after=last),
            ]
        )

    @torch.no_grad()
    def forward(
        self, z: Float[Tensor, "b tl hl wl z"], memory: Memory | None = None
    ) -> Float[Tensor, "b 3 t h w"]:
        b, t, h, w, _ = z.shape
        time, high, wide = self.compression
        step = max(1, CELLS // (b * h * w))
        if memory is not None or t <= step:
            return self._run(z, memory)
        memory = Memory()
        video = z.new_empty(b, 3, 1 + time * (t - 1), h * high, w * wide)
        done = 0
        for chunk in z.split(step, 1):
            frames = self._run(chunk, memory)
            video[:, :, done : done + frames.shape[2]] = frames
            done += frames.shape[2]
        return video

    def _run(
        self, z: Float[Tensor, "b tl hl wl z"], memory: Memory | None
    ) -> Float[Tensor, "b 3 t h w"]:
        x = z
        for layer in self.layers:
            x = layer(x, memory)
        return self.unpatcher.pixels(x, memory)


class Compiled(nn.Module):
    """Layers as graphs of torch.compile, one for each size; what they remember goes through them.

    Copies leave it: a CUDA graph writes each chunk's results where those of the last one were.
    """

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.looking_back = [m for m in self.layers.modules() if isinstance(m, Time | TimeUp)]
        self.graph = torch.compile(self._run, dynamic=False, **COMPILER)

    def forward(self, x: Frames, memory: Memory | None) -> Float[Tensor, "b t2 h2 w2 c2"]:
        known = [memory[m] for m in self.looking_back if m in memory] if memory is not None else []
        with torch._dynamo.config.patch(cache_size_limit=GRAPHS):
            out, past = self.graph(x.contiguous(), known)
        if memory is not None:
            memory.update(zip(self.looking_back, [part.clone() for part in past], strict=True))
        return out.clone()

    def _run(self, x: Tensor, known: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Run the layers; ``known`` is empty before a video's first chunk."""
        memory = Memory()
        memory.update(zip(self.looking_back, known, strict=False))
        for layer in self.layers:
            x = layer(x, memory)
        return x, [memory[m] for m in self.looking_back]


def compiled(layers: nn.ModuleList) -> nn.ModuleList:
    """Compile what lies between the attentions, whose past grows from chunk to chunk."""
    torch._dynamo.allow_in_graph(rearrange)  # one operation: its own lines take minutes to trace
    parts: list[nn.Module] = []
    for attends, run in groupby(layers, lambda layer: isinstance(layer, FusedAttention)):
        between = list(run)
        parts += between if attends else [Compiled(between)]
    return nn.ModuleList(parts)


def fuse_levels(levels: nn.ModuleList) -> Iterator[nn.Module]:
    """Fuse what levels consist of, one layer after the other."""
    for level in each(Level, levels):
        attentions = each(Attention, level.attentions)
        for i, block in enumerate(each(ResBlock, level.blocks)):
            yield FusedBlock(block)
            if attentions:
                yield FusedAttention(attentions[i])
        if not isinstance(level.resample, Keep):
            yield FusedResample(level.resample)


def fuse_middle(middle: Middle) -> Iterator[nn.Module]:
    first, second = each(ResBlock, middle.blocks)
    yield from (FusedBlock(first), FusedAttention(middle.attention), FusedBlock(second))


def matrices(attention: SpaceAttention) -> tuple[FrameNorm, Dense, Dense]:
    """Merge the four matrices of an attention to two: of the query, and of what comes out."""
    q, k, v, out = attention.q, attention.k, attention.v, attention.out
    query = Dense(k.weight.T @ q.weight, k.weight.T @ q.bias)
    return deepcopy(attention.norm), query, Dense(*merge(v.weight, v.bias, (out.weight, out.bias)))


def merge(
    weight: Float[Tensor, "k c *taps"], bias: Tensor, after: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Multiply a matrix and its bias, which act on the outputs, into a weight and its bias."""
    if after is None:
        return weight, bias
    matrix, more = after
    return torch.einsum("mk, kc... -> mc...", matrix, weight), matrix @ bias + more


def with_identity(
    weight: Float[Tensor, "c c *taps"], taps: Float[Tensor, "*taps"]
) -> Float[Tensor, "c c *taps"]:
    """Add the identity, times a factor for each tap."""
    identity = torch.eye(len(weight)).to(weight)
    return weight + torch.einsum("kc, ... -> kc...", identity, taps.to(weight))


def each(kind: type[M], modules: nn.ModuleList) -> list[M]:
    """Return the modules of a list, all of one kind."""
    return [module for module in modules if isinstance(module, kind)]


def bias_of(conv: nn.Conv2d) -> Tensor:
    """Return the bias, which every convolution here has."""
    assert conv.bias is not None
    return conv.bias
