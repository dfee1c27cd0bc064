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

from copy import deepcopy
from typing import TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from .config import TokenizerConfig
from .kernels import attend, linear, winograd, winograd_weight
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
    look_back,
    remember,
)
from .memory import Memory
from .network import Decoder, Encoder, Level, Middle

M = TypeVar("M", bound=nn.Module)

WINOGRAD_WIDTH = 192
"""Channels, geometric mean, from which Winograd's fewer products pay for its additions."""

PIXELS = 4096
"""Pixels of whole frames that go through a convolution in space at once."""

CELLS = 4096
"""Latent cells of whole frames that go through a network at once; more follow as in a stream."""


PAIRS = (((1, 0, 0), (0, 1, 1)), ((1, 1, 0), (0, 0, 1)))
"""Which of three taps fall on which of two pixels: seen from the first of a pair, the second."""


class Fixed(nn.Module):
    """Weights that are computed from others: not parameters, and not saved."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias.clone(), persistent=False)


class Dense(Fixed):
    """A matrix that acts on each pixel's channels."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__(weight.contiguous(), bias)

    def forward(self, x: Float[Tensor, "*n c"]) -> Float[Tensor, "*n k"]:
        return linear(x, self.weight, self.bias)


class Space(Fixed):
    """A 3x3 convolution of each frame, after norm and activation if there is a norm."""

    def __init__(self, weight: Tensor, bias: Tensor, norm: FrameNorm | None = None) -> None:
        super().__init__(weight.contiguous(memory_format=torch.channels_last), bias)
        self.norm = deepcopy(norm)
        self.fast = False

    def choose(self) -> None:
        """Take Winograd's way where it pays: in full precision, on a CPU, with wide layers."""
        k, c = self.weight.shape[:2]
        wide = c * k >= WINOGRAD_WIDTH**2
        if wide and self.weight.device.type == "cpu" and self.weight.dtype == torch.float32:
            self.weight, self.fast = winograd_weight(self.weight), True

    def forward(self, x: Frames) -> Float[Tensor, "b t h w c2"]:
        b, t, h, w, _ = x.shape
        out = x.new_empty(b * t, h, w, len(self.bias))
        count = max(1, PIXELS // (h * w))
        for frames, target in zip(x.flatten(0, 1).split(count), out.split(count), strict=True):
            if self.norm is not None:
                frames = F.silu(self.norm(frames[None])[0], inplace=True)
            if self.fast:
                winograd(frames, self.weight, self.bias, target)
            else:
                target.copy_(convolve(frames, self.weight, self.bias, padding=1))
        return out.unflatten(0, (b, t))


class SpaceDown(Fixed):
    """A 3x3 convolution of every second pixel, padded at the right and at the bottom."""

    def forward(self, x: Frames) -> Float[Tensor, "b t h2 w2 c2"]:
        frames = F.pad(x.flatten(0, 1), (0, 0, 0, 1, 0, 1))
        return convolve(frames, self.weight, self.bias, stride=2).unflatten(0, x.shape[:2])


class SpaceUp(Fixed):
    """A 3x3 convolution of pixels doubled 2x2: for each of the four, 2x2 taps of the small one."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        pairs = torch.tensor(PAIRS).to(weight)
        super().__init__(torch.einsum("yir, kcrs, xjs -> yxkcij", pairs, weight, pairs), bias)

    def forward(self, x: Frames) -> Float[Tensor, "b t h2 w2 c2"]:
        b, t, h, w, _ = x.shape
        out = x.new_empty(b * t, 2 * h, 2 * w, len(self.bias))
        for frame, target in zip(x.flatten(0, 1).split(1), out.split(1), strict=True):
            for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
                y = convolve(frame, self.weight[i, j], self.bias, padding=1)
                target[:, i::2, j::2] = y[:, i : i + h, j : j + w]
        return out.unflatten(0, (b, t))


class Time(Fixed):
    """Three taps in time, of every frame or of every second one."""

    first: Tensor
    second: Tensor
    last: Tensor

    def __init__(self, weight: Float[Tensor, "k c 3"], bias: Tensor, *, stride: int = 1) -> None:
        super().__init__(weight[..., None].contiguous(), bias)
        self.stride = stride
        self.register_buffer("first", weight.sum(-1).contiguous(), persistent=False)
        self.register_buffer("second", weight[..., :2].sum(-1).contiguous(), persistent=False)
        self.register_buffer("last", weight[..., 2].contiguous(), persistent=False)

    def forward(self, x: Frames, memory: Memory | None) -> Float[Tensor, "b t2 h w c2"]:
        t = x.shape[1]
        starts = memory is None or self not in memory
        past = look_back(self, x, 3 - self.stride, memory)
        if not starts:
            return self._slide(torch.cat((past, x), 1))
        parts = [linear(x[:, :1], self.first, self.bias)]
        if t > 1 and self.stride == 1:
            second = linear(x[:, 1:2], self.last, self.bias)
            parts.append(second.add_(linear(x[:, :1], self.second)))
        if t > 2:
            parts.append(self._slide(x))
        return torch.cat(parts, 1) if t > 1 else parts[0]

    def _slide(self, x: Frames) -> Float[Tensor, "b t2 h w c2"]:
        return slide(x, self.weight, self.bias, stride=self.stride)


class TimeUp(Fixed):
    """Three taps in time of frames repeated twice: for each of the two, two taps of the single."""

    first: Tensor

    def __init__(self, weight: Float[Tensor, "k c 3"], bias: Tensor) -> None:
        a, b, c = weight.unbind(-1)
        taps = torch.stack((torch.cat((a + b, a)), torch.cat((c, b + c))), -1)
        super().__init__(taps[..., None].contiguous(), bias.repeat(2))
        self.register_buffer("first", weight.sum(-1).contiguous(), persistent=False)

    def forward(self, x: Frames, memory: Memory | None) -> Float[Tensor, "b t2 h w c2"]:
        starts = memory is None or self not in memory
        past = look_back(self, x, 1, memory)
        parts = []
        if starts:
            parts.append(linear(x[:, :1], self.first, self.bias[: len(self.first)]))
        else:
            x = torch.cat((past, x), 1)
        if x.shape[1] > 1:
            pairs = slide(x, self.weight, self.bias)
            parts.append(rearrange(pairs, "b t h w (r c) -> b (t r) h w c", r=2))
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]


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

    def forward(self, x: Frames, memory: Memory | None) -> Float[Tensor, "b t h w c2"]:
        x = self.space(x)
        return x if self.time is None else self.time(x, memory)


class FusedBlock(nn.Module):
    def __init__(self, block: ResBlock) -> None:
        super().__init__()
        self.conv1 = FusedConv(block.conv1, block.norm1)
        self.conv2 = FusedConv(block.conv2, block.norm2)
        shortcut = block.shortcut
        self.shortcut = (
            Dense(shortcut.weight, shortcut.bias) if isinstance(shortcut, Mix) else nn.Identity()
        )

    def forward(self, x: Frames, memory: Memory | None) -> Float[Tensor, "b t h w c2"]:
        return self.conv2(self.conv1(x, memory), memory).add_(self.shortcut(x))


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
            seen, mask = remember(self, n, memory)
            n = F.scaled_dot_product_attention(self.time_query(n), seen, seen, mask)
        elif t > 1:
            n = F.scaled_dot_product_attention(self.time_query(n), n, n, is_causal=True)
        n = self.time_out(n.contiguous())
        return x.add_(rearrange(n, "(b h w) 1 t c -> b t h w c", b=b, h=h))


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


class FusedLevel(nn.Module):
    def __init__(self, level: Level) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(FusedBlock(block) for block in each(ResBlock, level.blocks))
        self.attentions = nn.ModuleList(
            FusedAttention(a) for a in each(Attention, level.attentions)
        )
        self.resample = FusedResample(level.resample)

    def forward(self, x: Frames, memory: Memory | None) -> Float[Tensor, "b t2 h2 w2 c2"]:
        for i, block in enumerate(self.blocks):
            x = block(x, memory)
            if self.attentions:
                x = self.attentions[i](x, memory)
        return self.resample(x, memory)


class FusedMiddle(nn.Module):
    def __init__(self, middle: Middle) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(FusedBlock(block) for block in each(ResBlock, middle.blocks))
        self.attention = FusedAttention(middle.attention)

    def forward(self, x: Frames, memory: Memory | None) -> Frames:
        return self.blocks[1](self.attention(self.blocks[0](x, memory), memory), memory)


class FusedEncoder(nn.Module):
    """Video -> features, ``to_latent`` included."""

    def __init__(self, encoder: Encoder, to_latent: Mix, config: TokenizerConfig) -> None:
        super().__init__()
        self.compression = config.compression
        self.patcher = encoder.patcher
        matrix = encoder.patcher.matrix(3).to(to_latent.weight)
        self.conv_in = FusedConv(encoder.conv_in, before=matrix)
        self.levels = nn.ModuleList(FusedLevel(level) for level in each(Level, encoder.levels))
        self.middle = FusedMiddle(encoder.middle)
        last = (to_latent.weight, to_latent.bias)
        self.conv_out = FusedConv(encoder.conv_out, encoder.norm_out, after=last)

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
        x = self.conv_in(self.patcher.cubes(video, memory), memory)
        for level in self.levels:
            x = level(x, memory)
        return self.conv_out(self.middle(x, memory), memory)


class FusedDecoder(nn.Module):
    """Features of ``z_channels`` per latent cell -> video."""

    def __init__(self, decoder: Decoder, config: TokenizerConfig) -> None:
        super().__init__()
        self.compression = config.compression
        self.unpatcher = decoder.unpatcher
        self.conv_in = FusedConv(decoder.conv_in)
        self.middle = FusedMiddle(decoder.middle)
        self.levels = nn.ModuleList(FusedLevel(level) for level in each(Level, decoder.levels))
        matrix = decoder.unpatcher.matrix(3).to(decoder.conv_out.space.weight)
        after = (matrix, matrix.new_zeros(len(matrix)))
        self.conv_out = FusedConv(decoder.conv_out, decoder.norm_out, after=after)

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
        x = self.middle(self.conv_in(z, memory), memory)
        for level in self.levels:
            x = level(x, memory)
        return self.unpatcher.pixels(self.conv_out(x, memory), memory)


def convolve(
    frames: Float[Tensor, "n h w c"], weight: Tensor, bias: Tensor, **options: int
) -> Float[Tensor, "n h2 w2 k"]:
    """Convolve channels-last frames in space."""
    y = F.conv2d(rearrange(frames, "n h w c -> n c h w"), weight, bias, **options)
    return rearrange(y, "n c h w -> n h w c")


def slide(
    x: Frames, weight: Float[Tensor, "k c taps 1"], bias: Tensor, *, stride: int = 1
) -> Float[Tensor, "b t2 h w k"]:
    """Convolve in time without padding."""
    h = x.shape[2]
    y = F.conv2d(rearrange(x, "b t h w c -> b c t (h w)"), weight, bias, stride=(stride, 1))
    return rearrange(y, "b c t (h w) -> b t h w c", h=h)


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
