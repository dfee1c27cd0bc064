"""Where a token stands: rotary angles and sin-cos tables (Cosmos, arXiv 2501.03575, 5.1.2)."""

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from .config import ArConfig, Grid, Yarn


def rotary_tables(
    config: ArConfig, grid: Grid | None = None
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]]:
    """Return the cosines and sines of every position, float32, one row a position.

    Rows beyond the grid, and the row of the begin-of-video token, do not turn.
    """
    if config.rope == "3d":
        angles = _grid_angles(config, grid)
        angles = torch.cat([angles, angles], 1)
    else:
        original = config.yarn.original_length if config.yarn else 0
        frequencies = _frequencies(config.head_dim, config.rope_theta, config.yarn, original)
        angles = torch.arange(config.max_positions).float()[:, None] * frequencies
        if config.rope == "1d":
            angles = torch.cat([angles, angles], 1)
        else:
            angles = angles.repeat_interleave(2, 1)
    cos, sin = angles.cos(), angles.sin()
    if config.rope == "1d-interleaved" and config.yarn:
        # Only this oldest variant scales by YaRN's temperature; the others leave it out.
        mscale = 0.1 * math.log(config.yarn.scale) + 1
        cos, sin = cos * mscale, sin * mscale
    return cos, sin


def absolute_table(config: ArConfig, grid: Grid | None = None) -> Float[Tensor, "n d"]:
    """Return the sin-cos table: computed in float64, kept in bfloat16 as in the originals."""
    t, h, w = shape = grid or config.grid or (1, 1, 1)
    spatial = config.dim // 6 * 2
    axes = [_sincos(d, n) for d, n in zip(_split(config.dim, spatial), shape, strict=True)]
    table = torch.cat(
        [
            axes[0][:, None, None].expand(t, h, w, -1),
            axes[1][None, :, None].expand(t, h, w, -1),
            axes[2][None, None, :].expand(t, h, w, -1),
        ],
        -1,
    )
    return _pad(rearrange(table, "t h w d -> (t h w) d"), config, grid).to(torch.bfloat16)


def frequencies_3d(config: ArConfig) -> tuple[Float[Tensor, " t"], Float[Tensor, " s"]]:
    """Return the rotary frequencies of time, and those shared by height and width."""
    spatial = config.head_dim // 6 * 2
    temporal, _, _ = _split(config.head_dim, spatial)
    original = (config.yarn.original_grid if config.yarn else None) or (0, 0, 0)
    return (
        _frequencies(temporal, config.rope_theta, config.yarn, original[0]),
        _frequencies(spatial, config.rope_theta, config.yarn, original[1]),
    )


def _grid_angles(config: ArConfig, grid: Grid | None) -> Float[Tensor, "n d"]:
    shape = grid or config.grid or (1, 1, 1)
    temporal, spatial = frequencies_3d(config)
    t, h, w = (
        rearrange(axis, "t h w -> (t h w) 1")
        for axis in torch.meshgrid(*(torch.arange(n).float() for n in shape), indexing="ij")
    )
    return _pad(torch.cat([t * temporal, h * spatial, w * spatial], 1), config, grid)


def _pad(table: Float[Tensor, "n d"], config: ArConfig, grid: Grid | None) -> Float[Tensor, "m d"]:
    """Put a zero row first for the begin-of-video token, zero rows last on the own grid."""
    if config.bov:
        table = torch.cat([torch.zeros_like(table[:1]), table])
    if grid is None or grid == config.grid:
        rest = config.max_positions - len(table)
        table = torch.cat([table, table.new_zeros(rest, table.shape[1])])
    return table


def _split(dim: int, spatial: int) -> tuple[int, int, int]:
    """Channels of time, height and width; what is left over goes to time."""
    return dim - 2 * spatial, spatial, spatial


def _frequencies(dim: int, theta: float, yarn: Yarn | None, original: int) -> Float[Tensor, " f"]:
    frequencies = 1.0 / theta ** (torch.arange(0, dim, 2).float()[: dim // 2] / dim)
    if yarn is None:
        return frequencies
    fast = 2 * math.pi * yarn.beta_fast / original
    slow = 2 * math.pi * yarn.beta_slow / original
    keep = ((frequencies - slow) / (fast - slow)).clamp(0, 1)
    return frequencies * ((1 - keep) / yarn.scale + keep)


def _sincos(dim: int, positions: int) -> Float[Tensor, "n d"]:
    omega = 1.0 / 10_000 ** (torch.arange(dim // 2, dtype=torch.float64) / (dim / 2.0))
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * omega
    return torch.cat([angles.sin(), angles.cos()], 1)
