"""How near a reconstruction is, and how many tokens are in use."""

from math import log10

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Float, Int64
from torch import Tensor


def psnr(output: Tensor, target: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB of one clip, over all its frames together.

    Both are videos in [-1, 1]; the output is rounded to 8 bits first, as a file would be. (The
    mean of each frame's ratio, which some papers report, is higher.)
    """
    error, count = squared_error(output, target)
    return ratio(error / count)


def ratio(mse: float) -> float:
    """Return the signal-to-noise ratio in dB of a mean squared error in units of 1/255."""
    return 20 * log10(255 / max(mse**0.5, 1e-4))


def squared_error(
    output: Float[Tensor, "b 3 t h w"], target: Float[Tensor, "b 3 t h w"]
) -> tuple[float, int]:
    """Return the sum of squared differences in units of 1/255, and of how many values."""
    pixels = ((output.float() + 1) * 127.5).round().clamp(0, 255)
    error = pixels - (target.float() + 1) * 127.5
    return float(error.double().square().sum()), error.numel()


def ssim(
    output: Float[Tensor, "b 3 t h w"], target: Float[Tensor, "b 3 t h w"]
) -> Float[Tensor, "b t"]:
    """Return the structural similarity of each frame (Wang et al. 2004).

    As scikit-image computes it by default: windows of 7x7 pixels, unbiased variances, the mean
    over colours and over the windows that lie within the picture. Sides are 7 pixels or more.
    """
    b, _, t, h, w = target.shape
    if min(h, w) < 7:
        raise ValueError(f"frames are {h}x{w}; the structural similarity needs 7x7 pixels")
    frames = (rearrange(video, "b c t h w -> (b t) c h w") for video in (output, target))
    # One after the other: a long clip in float64 would take many times its memory.
    likeness = [_likeness(x, y) for x, y in zip(*frames, strict=True)]
    return rearrange(torch.stack(likeness), "(b t) -> b t", b=b, t=t).float()


def _likeness(output: Float[Tensor, "c h w"], target: Float[Tensor, "c h w"]) -> Float[Tensor, ""]:
    x, y = ((frame.double() + 1) * 127.5 for frame in (output, target))
    x = x.round().clamp(0, 255)

    def mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, 7, stride=1)

    unbias = 49 / 48
    mx, my = mean(x), mean(y)
    vx, vy = ((mean(v * v) - m * m) * unbias for v, m in ((x, mx), (y, my)))
    covariance = (mean(x * y) - mx * my) * unbias
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    likeness = (2 * mx * my + c1) * (2 * covariance + c2)
    return (likeness / ((mx * mx + my * my + c1) * (vx + vy + c2))).mean()


def frechet_distance(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> float:
    """Return the distance of two sets of features, each taken as a Gaussian (Heusel et al. 2017).

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`` in float64; the trace of the root is the sum of
    the singular values of ``R1 R2^T``, where ``C = R^T R``.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a Frechet distance needs 2 clips or more, got {len(a)} and {len(b)}")
    a, b = a.double(), b.double()
    x, y = (torch.linalg.qr((v - v.mean(0)) / (len(v) - 1) ** 0.5, "r").R for v in (a, b))
    root = torch.linalg.svdvals(x @ y.T).sum()
    distance = (a.mean(0) - b.mean(0)).square().sum()
    return float(distance + x.square().sum() + y.square().sum() - 2 * root)


def block_mean(
    video: Float[Tensor, "b 3 t h w"], compression: tuple[int, int, int]
) -> Float[Tensor, "b 3 t h w"]:
    """Replace each latent cell by its mean colour: what a codec must beat by far."""
    time, high, wide = compression
    start = video[:, :, :1].expand(-1, -1, time - 1, -1, -1)
    padded = torch.cat((start, video), 2)
    cells = reduce(padded, "b c (t i) (h j) (w k) -> b c t h w", "mean", i=time, j=high, k=wide)
    return F.interpolate(cells, padded.shape[2:])[:, :, time - 1 :]


def perplexity(tokens: Int64[Tensor, "..."], vocab_size: int) -> float:
    """Return the effective number of tokens in use: exp of the entropy of their histogram."""
    share = torch.bincount(tokens.flatten(), minlength=vocab_size).double()
    share = share / share.sum()
    return float(torch.special.entr(share).sum().exp())
