"""The operations of the fused mode: convolutions in space and in time, bounded in what they need.

They go through frames, or bands of rows, one after the other and write where the result stays,
so that beside input and output there is never more than a piece.
"""

from collections.abc import Iterator
from copy import deepcopy

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from .kernels import by_hand, linear, room, winograd, winograd_weight
from .layers import FrameNorm, Frames, look_back
from .memory import Memory

WINOGRAD_WIDTH = 192
"""Channels, geometric mean, from which Winograd's fewer products pay for its additions."""

PIXELS = 4096
"""Pixels that go through an operation at once on a CPU: whole frames in space, rows in time."""

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

    def add_to(self, out: Float[Tensor, "b t h w k"], x: Frames) -> None:
        """Add the product to ``out``."""
        for frames, target in pieces(x, out):
            target.add_(self(frames))


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

    def forward(self, x: Frames, out: Tensor | None = None) -> Float[Tensor, "b t h w c2"]:
        """``out`` may be ``x`` where there is a norm, whose result is read instead."""
        if out is None:
            out = room(x, *x.shape[:-1], len(self.bias))
        for frames, target in pieces(x, out):
            if self.norm is not None:
                frames = F.silu(self.norm(frames[None])[0], inplace=True)
            if self.fast:
                winograd(frames, self.weight, self.bias, target)
            else:
                target.copy_(convolve(frames, self.weight, self.bias, padding=1))
        return out


class SpaceDown(Fixed):
    """A 3x3 convolution of every second pixel, padded at the right and at the bottom."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__(weight.contiguous(memory_format=torch.channels_last), bias)

    def forward(self, x: Frames) -> Float[Tensor, "b t h2 w2 c2"]:
        b, t, h, w, _ = x.shape
        out = room(x, b, t, h // 2, w // 2, len(self.bias))
        for frames, target in pieces(x, out):
            padded = F.pad(frames, (0, 0, 0, 1, 0, 1))
            target.copy_(convolve(padded, self.weight, self.bias, stride=2))
        return out


class SpaceUp(Fixed):
    """A 3x3 convolution of pixels doubled 2x2: for each of the four, 2x2 taps of the small one."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        pairs = torch.tensor(PAIRS).to(weight)
        super().__init__(torch.einsum("yir, kcrs, xjs -> yxkcij", pairs, weight, pairs), bias)

    def forward(self, x: Frames) -> Float[Tensor, "b t h2 w2 c2"]:
        b, t, h, w, _ = x.shape
        out = room(x, b, t, 2 * h, 2 * w, len(self.bias))
        for frames, target in pieces(x, out):
            for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
                y = convolve(frames, self.weight[i, j], self.bias, padding=1)
                target[:, i::2, j::2] = y[:, i : i + h, j : j + w]
        return out


class Time(Fixed):
    """Three taps in time, of every frame or of every second one.

    Where nothing changes in size the result takes the input's place.
    """

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
        starts = memory is None or self not in memory
        past = look_back(self, x, 3 - self.stride, memory)
        b, t, h, w, c = x.shape
        k, count = len(self.bias), (t + starts) // self.stride if self.stride > 1 else t
        out = x if (k, count) == (c, t) else room(x, b, count, h, w, k)
        # Bands of equal size: each size has a kernel made for it.
        bands = -(-h * w * t // PIXELS) if by_hand(x) else 1
        rows = -(-h // min(h, bands))
        for top in range(0, h, rows):
            band = x[:, :, top : top + rows]
            target = out[:, :, top : top + rows]
            if starts:
                self._start(band, target)
            else:
                target.copy_(self._slide(torch.cat((past[:, :, top : top + rows], band), 1)))
        return out

    def _start(self, x: Frames, out: Float[Tensor, "b t2 h w c2"]) -> None:
        """Before the first frame the taps see that frame again. ``out`` may be ``x``."""
        rest = self._slide(x) if x.shape[1] > 2 else None
        head = x[:, 0].contiguous()
        if out.shape[1] > 1 and self.stride == 1:
            second = linear(x[:, 1].contiguous(), self.last, self.bias)
            out[:, 1] = second.add_(linear(head, self.second))
        out[:, 0] = linear(head, self.first, self.bias)
        if rest is not None:
            out[:, 3 - self.stride :] = rest

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
        b, t, h, w, _ = x.shape
        out = room(x, b, 2 * t - starts, h, w, len(self.first))
        if starts:
            out[:, 0] = linear(x[:, 0].contiguous(), self.first, self.bias[: len(self.first)])
        else:
            x = torch.cat((past, x), 1)
        if x.shape[1] > 1:
            pairs = slide(x, self.weight, self.bias)
            out[:, int(starts) :].unflatten(1, (-1, 2)).copy_(
                rearrange(pairs, "b t h w (r c) -> b t r h w c", r=2)
            )
        return out


def pieces(x: Frames, out: Float[Tensor, "b t h2 w2 c2"]) -> Iterator[tuple[Tensor, Tensor]]:
    """Pair some frames off with the place of what comes of them."""
    if not by_hand(x):
        return iter([(x.flatten(0, 1), out.flatten(0, 1))])
    largest = max(frames.shape[2] * frames.shape[3] for frames in (x, out))
    count = max(1, PIXELS // largest)
    return zip(x.flatten(0, 1).split(count), out.flatten(0, 1).split(count), strict=True)


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
