"""Where a token is: 3D rotary angles, and embeddings added before every block."""

import math

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

Grid = tuple[int, int, int]


def axis_dims(dim: int) -> Grid:
    """Split ``dim`` features over t, h, w; the even remainder goes to t."""
    side = dim // 6 * 2
    return dim - 2 * side, side, side


def rope_angles(
    grid: Grid,
    head_dim: int,
    scale: tuple[float, float, float],
    fps: float | Tensor | None,
    base_fps: float = 24.0,
) -> Float[Tensor, "b n d"]:
    """Return the rotary angles of a t h w grid of tokens, t slowest.

    Time runs in units of ``1 / base_fps`` seconds, so that a clip's motion and not its frame
    rate sets the angles; ``fps`` is one number, one for each sample, or None for an image.
    ``scale`` stretches each axis by the NTK rule, ``theta = 10000 * scale ** (d / (d - 2))``.
    """
    device = fps.device if isinstance(fps, Tensor) else None
    t, h, w = (torch.arange(n, dtype=torch.float32, device=device) for n in grid)
    if fps is None:
        t = t[None]
    else:
        t = t / torch.as_tensor(fps, dtype=torch.float32).reshape(-1, 1) * base_fps
    angles = []
    for position, dim, ratio in zip((t, h[None], w[None]), axis_dims(head_dim), scale, strict=True):
        theta = 10_000.0 * ratio ** (dim / (dim - 2))
        exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim
        angles.append(position[..., None] * (1.0 / theta**exponents))
    full = (len(t), *grid)
    parts = [
        angles[0][:, :, None, None].expand(*full, -1),
        angles[1][:, None, :, None].expand(*full, -1),
        angles[2][:, None, None, :].expand(*full, -1),
    ]
    half = rearrange(torch.cat(parts, dim=-1), "b t h w d -> b (t h w) d")
    return torch.cat([half, half], dim=-1)


def rotate(
    x: Float[Tensor, "b n k d"], cos: Float[Tensor, "_ m 1 d"], sin: Float[Tensor, "_ m 1 d"]
) -> Float[Tensor, "b n k d"]:
    """Turn the feature pairs (i, i + d/2) by the angles, in float32."""
    low, high = x.float().chunk(2, dim=-1)
    turned = torch.cat([-high, low], dim=-1)
    return torch.addcmul(x.float() * cos, turned, sin).to(x.dtype)


def sincos_embedding(grid: Grid, width: int) -> Float[Tensor, "n d"]:
    """Return the fixed embedding of the multi-camera networks, [sin | cos] for each axis."""
    parts = []
    for axis, (count, dim) in enumerate(zip(grid, axis_dims(width), strict=True)):
        frequency = 10_000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))
        angle = torch.arange(count, dtype=torch.float64)[:, None] * frequency
        shape = [1, 1, 1, dim]
        shape[axis] = count
        parts.append(torch.cat([angle.sin(), angle.cos()], dim=-1).view(shape).expand(*grid, dim))
    return rearrange(torch.cat(parts, dim=-1), "t h w d -> (t h w) d").float()


class LearnedPosition(nn.Module):
    """One table for each axis, summed and brought to unit root mean square."""

    def __init__(self, max_grid: Grid, width: int) -> None:
        super().__init__()
        self.t, self.h, self.w = (nn.Parameter(torch.empty(n, width)) for n in max_grid)
        for table in self.parameters():
            nn.init.trunc_normal_(table, std=0.02)

    def forward(self, grid: Grid) -> Float[Tensor, "n d"]:
        t, h, w = (
            table[:n].float() for table, n in zip((self.t, self.h, self.w), grid, strict=True)
        )
        x = rearrange(t[:, None, None] + h[:, None] + w, "t h w d -> (t h w) d")
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x / (1e-6 + norm / math.sqrt(x.shape[-1]))


def tile_views(x: Float[Tensor, "b n d"], views: int) -> Float[Tensor, "b m d"]:
    """Repeat positions for each camera: the time axis is camera-major and starts over."""
    return x if views == 1 else repeat(x, "b n d -> b (v n) d", v=views)
