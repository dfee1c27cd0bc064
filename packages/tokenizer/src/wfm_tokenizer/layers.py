"""The layers of the networks: causal in time, per frame in space, channels last.

Everything takes and gives ``b t h w c``. Layers that look back in time take a ``memory``: with
one, a video may come in chunks, and the outputs are those of the whole video.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from .memory import Memory

SEEN = 2**14
"""Past vectors that temporal attention copies together at once."""

Frames = Float[Tensor, "b t h w c"]


class SpaceConv(nn.Conv2d):
    """A convolution of each frame."""

    def reset_parameters(self) -> None:
        """Start with weights that keep the variance."""
        nn.init.kaiming_normal_(self.weight, nonlinearity="linear")
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Frames) -> Float[Tensor, "b t h2 w2 c2"]:
        b = input.shape[0]
        x = super().forward(rearrange(input, "b t h w c -> (b t) c h w"))
        return rearrange(x, "(b t) c h w -> b t h w c", b=b)


class Mix(nn.Linear):
    """A 1x1x1 convolution: it mixes the channels of each pixel."""

    def reset_parameters(self) -> None:
        """Start as the identity where the sizes allow, else with weights that keep the variance."""
        if self.in_features == self.out_features:
            nn.init.eye_(self.weight)
        else:
            nn.init.orthogonal_(self.weight, max(1, self.in_features / self.out_features) ** 0.5)
        nn.init.zeros_(self.bias)


class TimeConv(nn.Module):
    """Three taps: this frame and the two before; before the first frame, that frame again."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, 3))
        self.bias = nn.Parameter(torch.zeros(channels))
        # Start by passing this frame on: a random mix of frames would only lose signal.
        nn.init.normal_(self.weight, std=0.1 * (3 * channels) ** -0.5)
        with torch.no_grad():
            self.weight[:, :, 2] += torch.eye(channels)

    def forward(self, x: Frames, memory: Memory | None = None) -> Frames:
        if memory is None and x.shape[1] == 1:  # an image: all taps see one frame
            return F.linear(x, self.weight.sum(-1), self.bias)
        return self.slide(torch.cat((look_back(self, x, 2, memory), x), 1))

    def slide(self, x: Frames, stride: int = 1) -> Float[Tensor, "b t2 h w c"]:
        """Apply the taps without padding. A 2-D convolution is the fastest way on a CPU."""
        h = x.shape[2]
        x = F.conv2d(
            rearrange(x, "b t h w c -> b c t (h w)"),
            self.weight[..., None],
            self.bias,
            stride=(stride, 1),
        )
        return rearrange(x, "b c t (h w) -> b t h w c", h=h)


def look_back(
    layer: nn.Module, x: Frames, count: int, memory: Memory | None
) -> Float[Tensor, "b past h w c"]:
    """Return the ``count`` frames before ``x``, and leave the last ones for the next chunk."""
    past = memory.get(layer) if memory is not None else None
    if past is None:
        past = x[:, :1].expand(-1, count, -1, -1, -1)
    if memory is not None:
        kept = x if x.shape[1] >= count else torch.cat((past, x), 1)
        memory[layer] = kept[:, -count:].clone()  # a view would keep the whole chunk alive
    return past


class Conv(nn.Module):
    """3x3 in space, then in causal networks 3 taps in time."""

    def __init__(self, c_in: int, c_out: int, *, causal: bool) -> None:
        super().__init__()
        self.space = SpaceConv(c_in, c_out, 3, padding=1)
        self.time = TimeConv(c_out) if causal else None

    def forward(self, x: Frames, memory: Memory | None = None) -> Float[Tensor, "b t h w c2"]:
        x = self.space(x)
        return x if self.time is None else self.time(x, memory)


class FrameNorm(nn.GroupNorm):
    """A group norm whose statistics are those of one frame."""

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__(groups, channels, eps=1e-6)

    def forward(self, input: Frames) -> Frames:
        b = input.shape[0]
        x = super().forward(rearrange(input, "b t h w c -> (b t) c h w"))
        return rearrange(x, "(b t) c h w -> b t h w c", b=b)


class ResBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, *, groups: int, causal: bool) -> None:
        super().__init__()
        self.norm1 = FrameNorm(groups, c_in)
        self.conv1 = Conv(c_in, c_out, causal=causal)
        self.norm2 = FrameNorm(groups, c_out)
        self.conv2 = Conv(c_out, c_out, causal=causal)
        self.shortcut = Mix(c_in, c_out) if c_in != c_out else nn.Identity()
        with torch.no_grad():  # start near the identity
            self.conv2.space.weight *= 0.2

    def forward(self, x: Frames, memory: Memory | None = None) -> Float[Tensor, "b t h w c2"]:
        h = self.conv1(F.silu(self.norm1(x)), memory)
        h = self.conv2(F.silu(self.norm2(h)), memory)
        return self.shortcut(x) + h


class SpaceAttention(nn.Module):
    """Each pixel looks at all pixels of its frame; one head."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = FrameNorm(groups, channels)
        self.q = nn.Linear(channels, channels)
        self.k = nn.Linear(channels, channels)
        self.v = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)
        with torch.no_grad():  # start near the identity
            self.out.weight *= 0.2

    def forward(self, x: Frames, memory: Memory | None = None) -> Frames:
        b, _, h, _, _ = x.shape
        n = rearrange(self.norm(x), "b t h w c -> (b t) 1 (h w) c")
        n = F.scaled_dot_product_attention(self.q(n), self.k(n), self.v(n))
        return x + rearrange(self.out(n), "(b t) 1 (h w) c -> b t h w c", b=b, h=h)


class TimeAttention(SpaceAttention):
    """Each pixel looks at its own place in this frame and in all earlier ones.

    This is the one layer whose memory grows: it keeps the normed past frames.
    """

    def forward(self, x: Frames, memory: Memory | None = None) -> Frames:
        b, t, h, _, _ = x.shape
        n = rearrange(self.norm(x), "b t h w c -> (b h w) 1 t c")
        if memory is not None:
            n = look_at_past(self, n, memory, self._look)
        elif t == 1:
            n = self.v(n)
        else:
            n = F.scaled_dot_product_attention(self.q(n), self.k(n), self.v(n), is_causal=True)
        return x + rearrange(self.out(n), "(b h w) 1 t c -> b t h w c", b=b, h=h)

    def _look(self, n: Tensor, seen: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(self.q(n), self.k(seen), self.v(seen), mask)


def look_at_past(
    layer: nn.Module,
    n: Float[Tensor, "p 1 t c"],
    memory: Memory,
    look: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Float[Tensor, "p 1 t c"]:
    """Return ``look(frames, frames they look at, mask)``, and keep the frames for later chunks.

    It goes through some places after the other: a copy of all the past would double it.
    """
    past = memory.past.setdefault(layer, [])
    past.append(n)
    t, length = n.shape[2], sum(part.shape[2] for part in past)
    mask = torch.ones(t, length, dtype=torch.bool, device=n.device).tril(length - t)
    if memory.max_context is not None:
        mask = mask.triu(length - t - memory.max_context + 1)
    some = max(1, SEEN // length)
    out = torch.empty_like(n)
    for i in range(0, len(n), some):
        seen = torch.cat([part[i : i + some] for part in past], 2)
        out[i : i + some] = look(n[i : i + some], seen, mask)
    if memory.max_context is not None:
        first = max(0, length - memory.max_context + 1)
        past[:] = [torch.cat(past, 2)[:, :, first:].clone()]
    return out


class Attention(nn.Module):
    """Attention in space, then in causal networks in time."""

    def __init__(self, channels: int, *, groups: int, causal: bool) -> None:
        super().__init__()
        self.space = SpaceAttention(channels, groups)
        self.time = TimeAttention(channels, groups) if causal else None

    def forward(self, x: Frames, memory: Memory | None = None) -> Frames:
        x = self.space(x)
        return x if self.time is None else self.time(x, memory)


class ImageDownsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.space = SpaceConv(channels, channels, 3, stride=2)

    def forward(self, x: Frames, memory: Memory | None = None) -> Float[Tensor, "b t h2 w2 c"]:
        return self.space(F.pad(x, (0, 0, 0, 1, 0, 1)))


class ImageUpsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.space = SpaceConv(channels, channels, 3, padding=1)

    def forward(self, x: Frames, memory: Memory | None = None) -> Float[Tensor, "b t h2 w2 c"]:
        return self.space(double_space(x))


class VideoDownsample(nn.Module):
    """Halve space, then time: at each step a strided convolution plus the mean."""

    def __init__(self, channels: int, *, space: bool, time: bool) -> None:
        super().__init__()
        self.space = SpaceConv(channels, channels, 3, stride=2) if space else None
        self.time = TimeConv(channels) if time else None
        self.mix = Mix(channels, channels)

    def forward(self, x: Frames, memory: Memory | None = None) -> Float[Tensor, "b t2 h2 w2 c"]:
        if self.space is not None:
            x = F.pad(x, (0, 0, 0, 1, 0, 1))
            x = self.space(x) + halve_space(x)
        if self.time is not None:
            x = self._halve_time(self.time, x, memory)
        return self.mix(x)

    def _halve_time(
        self, conv: TimeConv, x: Frames, memory: Memory | None
    ) -> Float[Tensor, "b t2 h w c"]:
        """Pair the frames off, the first one with a copy of itself."""
        if memory is None or conv not in memory:
            x = torch.cat((x[:, :1], x), 1)
        past = look_back(conv, x, 1, memory)
        return conv.slide(torch.cat((past, x), 1), stride=2) + (x[:, ::2] + x[:, 1::2]) / 2


class VideoUpsample(nn.Module):
    """Double time, then space: at each step repeat, and add a convolution of that."""

    def __init__(self, channels: int, *, space: bool, time: bool) -> None:
        super().__init__()
        self.time = TimeConv(channels) if time else None
        self.space = SpaceConv(channels, channels, 3, padding=1) if space else None
        self.mix = Mix(channels, channels)

    def forward(self, x: Frames, memory: Memory | None = None) -> Float[Tensor, "b t2 h2 w2 c"]:
        if self.time is not None:
            first = memory is None or self.time not in memory
            x = repeat(x, "b t h w c -> b (t 2) h w c")
            x = x[:, 1:] if first else x
            x = self.time(x, memory) + x
        if self.space is not None:
            x = double_space(x)
            x = self.space(x) + x
        return self.mix(x)


def halve_space(padded: Float[Tensor, "b t h1 w1 c"]) -> Float[Tensor, "b t h2 w2 c"]:
    """Average 2x2 pixels; an odd last row and column is padding and falls off.

    Plain additions: CPUs have no bfloat16 ``avg_pool``.
    """
    h, w = (side // 2 * 2 for side in padded.shape[2:4])
    even, odd = padded[:, :, 0:h:2], padded[:, :, 1:h:2]
    return (even[..., 0:w:2, :] + even[..., 1:w:2, :] + odd[..., 0:w:2, :] + odd[..., 1:w:2, :]) / 4


def double_space(x: Frames) -> Float[Tensor, "b t h2 w2 c"]:
    """Repeat every pixel 2x2."""
    return repeat(x, "b t h w c -> b t (h 2) (w 2) c")
