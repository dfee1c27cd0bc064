"""Videos that say what a world should look like: depth, segments, edges, blur.

Each is uint8 RGB, ``t 3 h w``, as the tokenizer takes it. After Cosmos-Transfer1 (arXiv
2503.14492): what a hint leaves open, the control branch and the prompt decide.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from .geometry import opencv

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
    """Draw edges by Canny's method (1986), OpenCV's: white where the brightness jumps.

    Gradients are Sobel's of a picture smoothed by a Gaussian of 1.0 pixel, in grey levels; those
    over ``high`` start an edge, those over ``low`` go on with it.

    Raises:
        ImportError: OpenCV is not installed (extra ``geometry``).
    """
    cv2 = opencv()
    edges = []
    for picture in rearrange(frames, "t c h w -> t h w c").contiguous().numpy():
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        smooth = cv2.GaussianBlur(grey, (5, 5), 1.0, borderType=cv2.BORDER_REPLICATE)
        edges.append(torch.from_numpy(cv2.Canny(smooth, low, high, L2gradient=True)))
    return repeat(torch.stack(edges), "t h w -> t 3 h w")


def blur_picture(frames: UInt8[Tensor, "t 3 h w"], *, factor: int = 4) -> UInt8[Tensor, "t 3 h w"]:
    """Throw away detail: shrink by ``factor``, then enlarge again."""
    h, w = frames.shape[-2:]
    small = F.interpolate(frames.float(), (max(h // factor, 1), max(w // factor, 1)), mode="area")
    large = F.interpolate(small, (h, w), mode="bilinear", align_corners=False)
    return large.round().clamp(0, 255).byte()
