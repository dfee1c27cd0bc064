"""How near a reconstruction is, and how many tokens are in use."""

import torch
import torch.nn.functional as F
from einops import reduce
from jaxtyping import Float, Int64
from torch import Tensor


def psnr(output: Tensor, target: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB of one clip, over all its frames together.

    Both are videos in [-1, 1]; the output is rounded to 8 bits first, as a file would be. (The
    mean of each frame's ratio, which some papers report, is higher.)
    """
    pixels = ((output.float() + 1) * 127.5).round().clamp(0, 255)
    mse = (pixels - (target.float() + 1) * 127.5).square().mean()
    return float(20 * torch.log10(255 / mse.sqrt().clamp(min=1e-4)))


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
