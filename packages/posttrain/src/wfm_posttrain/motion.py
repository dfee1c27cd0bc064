"""Physics-IQ scores: does the right thing move, where, when and how much (arXiv 2501.09038)?

Two takes of the same real event never agree fully, so scores are divided by theirs: 100 is as
near to what happened as a second take would be. Videos are RGB in [-1, 1].
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor

from .metrics import LUMA

THRESHOLD = 10.0  # grey levels of 255
LEAST_SIDE = 128  # pixels
MEMORY = 0.3  # share of the newest frame in the running average


@dataclass(frozen=True)
class MotionScores:
    """Agreement of what moves in two videos, per clip.

    ``spatial`` compares where anything ever moved, ``weighted`` how much of the time, ``temporal``
    every frame; the three are IoUs. ``mse`` is of pixels in [0, 1].
    """

    spatial: Float[Tensor, " b"]
    weighted: Float[Tensor, " b"]
    temporal: Float[Tensor, " b"]
    mse: Float[Tensor, " b"]


def motion_mask(video: Float[Tensor, "b 3 t h w"]) -> Bool[Tensor, "b t H W"]:
    """Find the pixels that differ from the running average of what was before.

    Pictures smaller than 128 pixels are enlarged, and so is the mask: the filters of 5 by 5 pixels
    are made for large pictures, and would remove what moves in small ones.
    """
    h, w = video.shape[3:]
    enlarge = max(1, -(-LEAST_SIDE // min(h, w)))
    luma = torch.tensor(LUMA, dtype=video.dtype, device=video.device)
    grey = torch.einsum("bcthw,c->bthw", (video.clamp(-1, 1) + 1) * 127.5, luma)
    if enlarge > 1:
        size = (enlarge * h, enlarge * w)
        grey = F.interpolate(grey, size, mode="bilinear", align_corners=False)
    grey = _blurred(grey)
    average, masks = grey[:, 0], []
    for frame in grey.unbind(dim=1):
        masks.append((frame - average).abs() > THRESHOLD)
        average = (1 - MEMORY) * average + MEMORY * frame
    mask = torch.stack(masks, dim=1).float()
    return _tidy(mask)


def motion_scores(
    video: Float[Tensor, "b 3 t h w"], real: Float[Tensor, "b 3 t h w"]
) -> MotionScores:
    """Compare what moves in a video and in the real one."""
    a, b = motion_mask(video), motion_mask(real)
    often_a, often_b = (reduce(m.float(), "b t h w -> b h w", "mean") for m in (a, b))
    least = torch.minimum(often_a, often_b).sum(dim=(1, 2))
    most = torch.maximum(often_a, often_b).sum(dim=(1, 2))
    return MotionScores(
        spatial=_iou(a.any(dim=1), b.any(dim=1)),
        weighted=torch.where(most > 0, least / most.clamp_min(1e-9), 1.0),
        temporal=_iou(rearrange(a, "b t h w -> (b t) h w"), rearrange(b, "b t h w -> (b t) h w"))
        .view(len(a), -1)
        .mean(dim=1),
        mse=reduce((video.clamp(-1, 1) - real) ** 2, "b c t h w -> b", "mean") / 4,
    )


def physics_iq(scores: MotionScores, takes: MotionScores) -> Float[Tensor, " b"]:
    """Return the score of each clip in [0, 100]; ``takes`` compare two real takes of the same.

    The mean of the three IoUs over those of the takes, less what the
    error exceeds theirs by.
    """
    ratios = [
        own / other.clamp_min(1e-6)
        for own, other in (
            (scores.temporal, takes.temporal),
            (scores.spatial, takes.spatial),
            (scores.weighted, takes.weighted),
        )
    ]
    mean = torch.stack(ratios).mean(dim=0)
    return 100 * (mean - (scores.mse - takes.mse)).clamp(0, 1)


def _iou(a: Bool[Tensor, "b h w"], b: Bool[Tensor, "b h w"]) -> Float[Tensor, " b"]:
    """Return intersections over unions; 1 where both are empty."""
    union = (a | b).sum(dim=(1, 2))
    return torch.where(union > 0, (a & b).sum(dim=(1, 2)) / union.clamp_min(1), 1.0)


def _blurred(grey: Float[Tensor, "b t h w"]) -> Float[Tensor, "b t h w"]:
    """Blur by a Gaussian of 5 by 5 pixels, sigma 1.1 (OpenCV's for that size)."""
    offsets = torch.arange(5, dtype=grey.dtype, device=grey.device) - 2
    line = torch.exp(-(offsets**2) / (2 * 1.1**2))
    window = torch.outer(line, line) / line.sum() ** 2
    frames = rearrange(grey, "b t h w -> (b t) 1 h w")
    padded = F.pad(frames, (2, 2, 2, 2), mode="reflect")
    return F.conv2d(padded, window[None, None]).view_as(grey)


def _grown(mask: Float[Tensor, "b t h w"]) -> Float[Tensor, "b t h w"]:
    return F.max_pool2d(mask, 5, stride=1, padding=2)


def _shrunk(mask: Float[Tensor, "b t h w"]) -> Float[Tensor, "b t h w"]:
    return 1 - _grown(1 - mask)


def _tidy(mask: Float[Tensor, "b t h w"]) -> Bool[Tensor, "b t h w"]:
    """Open, then close, 5 by 5: specks go and gaps are filled."""
    return _shrunk(_grown(_grown(_shrunk(mask)))) > 0.5
