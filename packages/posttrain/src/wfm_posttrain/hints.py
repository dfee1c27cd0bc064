"""Videos that say what a world should look like: depth, segments, edges, blur.

Each is uint8 RGB, ``t 3 h w``, as the tokenizer takes it. After Cosmos-Transfer1 (arXiv
2503.14492): what a hint leaves open, the control branch and the prompt decide.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

GOLDEN = (math.sqrt(5) - 1) / 2


def depth_picture(
    depth: Float[Tensor, "t h w"], near: float | int, far: float | int
) -> UInt8[Tensor, "t 3 h w"]:
    """Draw inverse depth: white at ``near`` metres, black from ``far`` on and where it is 0."""
    depth = depth.float()
    inverse = (1 / depth.clamp_min(1e-3) - 1 / far) / (1 / near - 1 / far)
    inverse = torch.where((depth > 0) & depth.isfinite(), inverse, torch.zeros_like(inverse))
    return repeat((inverse.clamp(0, 1) * 255).round().byte(), "t h w -> t 3 h w")


def segment_picture(segments: Int[Tensor, "t h w"]) -> UInt8[Tensor, "t 3 h w"]:
    """Paint each segment in a colour of its own; 0 is black."""
    number = torch.arange(256)
    hue, value = (number * GOLDEN) % 1, 0.6 + 0.4 * ((number * 7) % 5) / 4
    # HSV to RGB with full saturation, channel by channel.
    offsets = torch.tensor([5.0, 3.0, 1.0])
    k = (offsets + hue[:, None] * 6) % 6
    rgb = value[:, None] * (1 - torch.minimum(k, 4 - k).clamp(0, 1))
    palette = (rgb * 255).round().byte()
    palette[0] = 0
    return rearrange(palette[segments.long() % 256], "t h w c -> t c h w")


def edge_picture(
    frames: UInt8[Tensor, "t 3 h w"], *, low: float | int = 40, high: float | int = 100
) -> UInt8[Tensor, "t 3 h w"]:
    """Draw edges by Canny's method (1986): white where the brightness jumps.

    Gradients are Sobel's of a picture smoothed by a Gaussian of 1.0 pixel, in grey levels; those
    over ``high`` start an edge, those over ``low`` go on with it.
    """
    x, y = _gradients(frames)
    strength = torch.hypot(x, y)
    ridge = _is_ridge(strength, x, y)
    strong, weak = ridge & (strength > high), ridge & (strength > low)
    return repeat(_grow(strong, weak).byte() * 255, "t h w -> t 3 h w")


def blur_picture(frames: UInt8[Tensor, "t 3 h w"], *, factor: int = 4) -> UInt8[Tensor, "t 3 h w"]:
    """Throw away detail: shrink by ``factor``, then enlarge again."""
    h, w = frames.shape[-2:]
    small = F.interpolate(frames.float(), (max(h // factor, 1), max(w // factor, 1)), mode="area")
    large = F.interpolate(small, (h, w), mode="bilinear", align_corners=False)
    return large.round().clamp(0, 255).byte()


def _gradients(frames: UInt8[Tensor, "t 3 h w"]) -> tuple[Tensor, Tensor]:
    """Return Sobel's derivatives along columns and rows of the smoothed brightness."""
    luma = torch.tensor([0.299, 0.587, 0.114])
    grey = torch.einsum("tchw,c->thw", frames.float(), luma)[:, None]
    axis = torch.arange(5.0) - 2
    bell = torch.exp(-(axis**2) / 2)
    bell = bell / bell.sum()
    grey = F.pad(grey, (2, 2, 2, 2), mode="replicate")
    grey = F.conv2d(F.conv2d(grey, bell.view(1, 1, 1, 5)), bell.view(1, 1, 5, 1))
    grey = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    both = F.conv2d(grey, torch.stack([sobel, sobel.T])[:, None])
    return both[:, 0], both[:, 1]


def _is_ridge(strength: Tensor, x: Tensor, y: Tensor) -> Bool[Tensor, "t h w"]:
    """Find the pixels that are strongest across the edge, in one of four directions."""
    angle = torch.atan2(y, x) % math.pi
    sector = (angle / (math.pi / 4)).round().long() % 4
    padded = F.pad(strength, (1, 1, 1, 1))
    h, w = strength.shape[-2:]

    def moved(dy: int, dx: int) -> Tensor:
        return padded[:, 1 + dy : 1 + dy + h, 1 + dx : 1 + dx + w]

    ridge = torch.zeros_like(strength, dtype=torch.bool)
    for i, (dy, dx) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        # On one side equality counts, so that a plateau two pixels wide gives one line.
        peak = (strength >= moved(dy, dx)) & (strength > moved(-dy, -dx))
        ridge |= (sector == i) & peak
    return ridge


def _grow(strong: Bool[Tensor, "t h w"], weak: Bool[Tensor, "t h w"]) -> Bool[Tensor, "t h w"]:
    """Add the weak pixels that hang together with strong ones."""
    found = strong
    while True:
        near = F.max_pool2d(found.float(), 3, stride=1, padding=1) > 0
        more = found | (near & weak)
        if torch.equal(more, found):
            return found
        found = more
