"""Encoder and decoder: a wavelet, levels of residual blocks, attention in the middle."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .config import TokenizerConfig
from .layers import (
    Attention,
    Conv,
    FrameNorm,
    Frames,
    ImageDownsample,
    ImageUpsample,
    ResBlock,
    VideoDownsample,
    VideoUpsample,
)
from .memory import Memory
from .wavelet import Patcher, Unpatcher


class Level(nn.Module):
    """Blocks at one resolution, each followed by attention if there is any; then a resampler."""

    def __init__(
        self, widths: list[int], config: TokenizerConfig, *, attention: bool, resample: nn.Module
    ) -> None:
        super().__init__()
        groups, causal = config.norm_groups, config.network == "video"
        self.blocks = nn.ModuleList(
            ResBlock(a, b, groups=groups, causal=causal) for a, b in pairwise(widths)
        )
        self.attentions = nn.ModuleList(
            Attention(width, groups=groups, causal=causal) for width in widths[1:] if attention
        )
        self.resample = resample

    def forward(self, x: Frames, memory: Memory | None = None) -> Float[Tensor, "b t2 h2 w2 c2"]:
        for i, block in enumerate(self.blocks):
            x = block(x, memory)
            if self.attentions:
                x = self.attentions[i](x, memory)
        return self.resample(x, memory)


class Keep(nn.Module):
    """The resampler of a level that keeps its size."""

    def forward(self, x: Frames, memory: Memory | None = None) -> Frames:
        return x


class Middle(nn.Module):
    def __init__(self, width: int, config: TokenizerConfig) -> None:
        super().__init__()
        groups, causal = config.norm_groups, config.network == "video"
        self.blocks = nn.ModuleList(
            ResBlock(width, width, groups=groups, causal=causal) for _ in range(2)
        )
        self.attention = Attention(width, groups=groups, causal=causal)

    def forward(self, x: Frames, memory: Memory | None = None) -> Frames:
        x = self.attention(self.blocks[0](x, memory), memory)
        return self.blocks[1](x, memory)


class Encoder(nn.Module):
    """Video -> features of ``z_channels`` per latent cell."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        image = config.network == "image"
        self.patcher = Patcher(config.patch_size, config.patch_method, image=image)
        widths = [config.channels * m for m in (1, *config.channels_mult)]
        bands = 3 * config.patch_size ** (2 if image else 3)
        self.conv_in = Conv(bands, widths[0], causal=not image)
        self.levels = nn.ModuleList(
            Level(
                [widths[i], *[widths[i + 1]] * config.num_res_blocks],
                config,
                attention=has_attention(config, i),
                resample=downsampler(config, i, widths[i + 1]),
            )
            for i in range(len(config.channels_mult))
        )
        self.middle = Middle(widths[-1], config)
        self.norm_out = FrameNorm(config.norm_groups, widths[-1])
        self.conv_out = Conv(widths[-1], config.z_channels, causal=not image)

    def forward(
        self, video: Float[Tensor, "b 3 t h w"], memory: Memory | None = None
    ) -> Float[Tensor, "b tl hl wl z"]:
        x = self.conv_in(self.patcher(video, memory), memory)
        for level in self.levels:
            x = level(x, memory)
        x = self.middle(x, memory)
        return self.conv_out(F.silu(self.norm_out(x)), memory)


class Decoder(nn.Module):
    """Features of ``z_channels`` per latent cell -> video."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        image = config.network == "image"
        count = len(config.decoder_mult)
        widths = [config.channels * m for m in reversed(config.decoder_mult)]
        widths = [widths[0], *widths]
        bands = 3 * config.patch_size ** (2 if image else 3)
        self.conv_in = Conv(config.z_channels, widths[0], causal=not image)
        self.middle = Middle(widths[0], config)
        self.levels = nn.ModuleList(
            Level(
                [widths[i], *[widths[i + 1]] * (config.num_res_blocks + 1)],
                config,
                attention=has_attention(config, count - 1 - i),
                resample=upsampler(config, i, widths[i + 1]),
            )
            for i in range(count)
        )
        self.norm_out = FrameNorm(config.norm_groups, widths[-1])
        self.conv_out = Conv(widths[-1], bands, causal=not image)
        self.unpatcher = Unpatcher(config.patch_size, config.patch_method, image=image)
        with torch.no_grad():  # start grey, not with noise in every band
            self.conv_out.space.weight *= 0.05

    def forward(
        self, z: Float[Tensor, "b tl hl wl z"], memory: Memory | None = None
    ) -> Float[Tensor, "b 3 t h w"]:
        x = self.middle(self.conv_in(z, memory), memory)
        for level in self.levels:
            x = level(x, memory)
        x = self.conv_out(F.silu(self.norm_out(x)), memory)
        return self.unpatcher(x, memory)


def has_attention(config: TokenizerConfig, level: int) -> bool:
    """Tell by the nominal resolution, which is halved at each level whatever the level does."""
    return config.resolution // config.patch_size >> level in config.attention_resolutions


def downsampler(config: TokenizerConfig, level: int, width: int) -> nn.Module:
    space, time = config.downsampling[level]
    if not (space or time):
        return Keep()
    if config.network == "image":
        return ImageDownsample(width)
    return VideoDownsample(width, space=space, time=time)


def upsampler(config: TokenizerConfig, level: int, width: int) -> nn.Module:
    space, time = config.upsampling[level]
    if not (space or time):
        return Keep()
    if config.network == "image":
        return ImageUpsample(width)
    return VideoUpsample(width, space=space, time=time)
