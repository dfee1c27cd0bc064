"""How near an imagined video is to what happened; nothing here needs downloaded weights.

Videos are RGB in [-1, 1]. Per-frame scores keep the axis ``t``, so that a curve over the
horizon can be drawn: the mean alone hides how fast a model drifts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor

from .interfaces import LatentCodec

LUMA = (0.299, 0.587, 0.114)  # BT.601


@dataclass(frozen=True)
class Interval:
    """A mean with the bounds of its bootstrap confidence interval, from ``count`` values."""

    mean: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Horizon:
    """Means over clips, one number per frame of the horizon; PSNR in dB.

    ``gap`` is PSNR with the clip's own condition minus PSNR with another clip's.
    """

    clips: int
    psnr: list[float]
    psnr_shuffled: list[float]
    psnr_repeat: list[float]
    ssim: list[float]
    gap: list[Interval]

    def rows(self, condition: str) -> list[tuple[str, ...]]:
        """Put the scores in words: a header, then a row for each frame."""
        rows = [("frame", "PSNR", f"another's {condition}", "repeat last", "gap (95 %)", "SSIM")]
        for i, gap in enumerate(self.gap):
            scores = (self.psnr[i], self.psnr_shuffled[i], self.psnr_repeat[i])
            span = f"{gap.mean:+.2f} ({gap.low:+.2f} to {gap.high:+.2f})"
            rows.append((str(i + 1), *(f"{x:.2f}" for x in scores), span, f"{self.ssim[i]:.3f}"))
        return rows


def psnr(
    imagined: Float[Tensor, "b 3 t h w"], real: Float[Tensor, "b 3 t h w"]
) -> Float[Tensor, "b t"]:
    """Peak signal-to-noise ratio in dB per frame; at most 100, where frames are equal."""
    error = reduce((imagined.clamp(-1, 1) - real) ** 2, "b c t h w -> b t", "mean") / 4
    return -10 * error.clamp_min(1e-10).log10()


def ssim(
    imagined: Float[Tensor, "b 3 t h w"], real: Float[Tensor, "b 3 t h w"]
) -> Float[Tensor, "b t"]:
    """Structural similarity per frame (Wang et al. 2004), channels averaged.

    Gaussian window of 11 pixels and sigma 1.5, no padding, K1 = 0.01, K2 = 0.03. Frames must
    have 11 pixels a side.
    """
    count = len(real)
    x, y = ((v.clamp(-1, 1) + 1) / 2 for v in (imagined, real))
    x, y = (rearrange(v, "b c t h w -> (b t c) 1 h w") for v in (x, y))
    offsets = torch.arange(11, dtype=x.dtype, device=x.device) - 5
    line = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = torch.outer(line, line) / line.sum() ** 2

    def mean(v: Tensor) -> Tensor:
        return F.conv2d(v, window[None, None])

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    score = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return reduce(score, "(b t c) 1 h w -> b t", "mean", b=count, c=3)


def latent_l2(
    codec: LatentCodec, imagined: Float[Tensor, "b 3 t h w"], real: Float[Tensor, "b 3 t h w"]
) -> Float[Tensor, "b t"]:
    """Root-mean-square difference of the codec's latents, each frame encoded alone.

    Latents have unit variance, so two unrelated videos score about 1.4.
    """
    count = len(real)
    x, y = (
        codec.encode(rearrange(v, "b c t h w -> (b t) c 1 h w").clamp(-1, 1))
        for v in (imagined, real)
    )
    return reduce((x - y) ** 2, "(b t) c 1 h w -> b t", "mean", b=count).sqrt()


def colour_mask(
    video: Float[Tensor, "b 3 t h w"], colour: Float[Tensor, "b 3"], *, tolerance: float = 0.12
) -> Bool[Tensor, "b t h w"]:
    """Find the pixels of an object by its colour, whatever the light on it.

    ``colour`` is RGB in [-1, 1]. A pixel belongs when its chromaticity (RGB over their sum)
    lies within ``tolerance`` of the colour's and it is neither black nor much brighter.
    """
    rgb, own = (video + 1) / 2, (colour + 1) / 2
    total, own_total = rgb.sum(dim=1), own.sum(dim=1)
    chroma = rgb / total.clamp_min(1e-3)[:, None]
    own_chroma = own / own_total.clamp_min(1e-3)[:, None]
    distance = (chroma - own_chroma[:, :, None, None, None]).square().sum(dim=1).sqrt()
    light = total / own_total.clamp_min(1e-3)[:, None, None, None]
    return (distance < tolerance) & (light > 0.3) & (light < 2.5)


def mean_colour(
    frame: Float[Tensor, "b 3 h w"], mask: Bool[Tensor, "b h w"]
) -> Float[Tensor, "b 3"]:
    """Return the mean colour under a mask; NaN where the mask is empty."""
    return (frame * mask[:, None]).sum(dim=(2, 3)) / mask.sum(dim=(1, 2))[:, None]


def centroid(mask: Bool[Tensor, "b t h w"]) -> Float[Tensor, "b t 2"]:
    """Return a mask's centre as (column, row), pixel centres at halves; NaN where empty."""
    h, w = mask.shape[2:]
    weight = mask.float()
    rows = torch.arange(h, device=mask.device) + 0.5
    columns = torch.arange(w, device=mask.device) + 0.5
    total = weight.sum(dim=(2, 3))
    x = (weight * columns).sum(dim=(2, 3)) / total
    y = (weight * rows[:, None]).sum(dim=(2, 3)) / total
    return torch.stack([x, y], dim=-1)


def centroid_error(
    imagined: Bool[Tensor, "b t h w"], real: Bool[Tensor, "b t h w"]
) -> Float[Tensor, "b t"]:
    """Distance of two masks' centres in pixels.

    An object that is there but was not imagined is one picture diagonal off. NaN where it is
    not there in truth.
    """
    h, w = real.shape[2:]
    error = (centroid(imagined) - centroid(real)).norm(dim=-1)
    lost = real.any(dim=(2, 3)) & ~imagined.any(dim=(2, 3))
    return torch.where(lost, torch.full_like(error, (h**2 + w**2) ** 0.5), error)


def permanence(
    imagined: Bool[Tensor, "b t h w"], real: Bool[Tensor, "b t h w"]
) -> Float[Tensor, "b t"]:
    """Pixel area imagined over pixel area in truth: 1 kept, 0 vanished; NaN if not there."""
    area = reduce(imagined.float(), "b t h w -> b t", "sum")
    truth = reduce(real.float(), "b t h w -> b t", "sum")
    return torch.where(truth > 0, area / truth, torch.nan)


def mask_overlap(
    imagined: Bool[Tensor, "b t h w"], real: Bool[Tensor, "b t h w"]
) -> Float[Tensor, "b t"]:
    """Intersection over union of two masks; NaN where neither holds a pixel."""
    union = (imagined | real).sum(dim=(2, 3))
    inside = (imagined & real).sum(dim=(2, 3))
    return torch.where(union > 0, inside / union.clamp_min(1), torch.nan)


def bootstrap(
    values: Float[Tensor, " n"],
    *,
    confidence: float = 0.95,
    draws: int = 2000,
    generator: torch.Generator | None = None,
    statistic: Callable[[Float[Tensor, "k n"]], Float[Tensor, " k"]] | None = None,
) -> Interval:
    """Return the mean (or another ``statistic`` of rows) and its percentile interval.

    NaNs are left out; of nothing, everything is NaN.
    """
    values = values[~values.isnan()].double()
    if not len(values):
        return Interval(torch.nan, torch.nan, torch.nan, 0)
    statistic = statistic or (lambda rows: rows.mean(dim=1))
    generator = generator or torch.Generator().manual_seed(0)
    picks = torch.randint(len(values), (draws, len(values)), generator=generator)
    spread = statistic(values[picks])
    tail = (1 - confidence) / 2
    low, high = spread.quantile(torch.tensor([tail, 1 - tail], dtype=spread.dtype)).tolist()
    return Interval(statistic(values[None]).item(), low, high, len(values))


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Draw rows, the first of them the header, as a Markdown table."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def fidelity_gap(
    followed: Float[Tensor, "b t"],
    shuffled: Float[Tensor, "b t"],
    *,
    generator: torch.Generator | None = None,
) -> list[Interval]:
    """How much better the true actions explain what happened than another clip's, per frame.

    Both are scores such as PSNR of the same clips, where higher is better. A model that
    ignores its actions has a gap of 0 (delta-PSNR of Genie, Bruce et al. 2024).
    """
    return [bootstrap(gap, generator=generator) for gap in (followed - shuffled).T]
