"""Held-out figures of a tokenizer, and the statistics of its latents."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from math import log2
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from .config import Statistics
from .data import ClipCache
from .memory import forget_peak, peak_bytes
from .metrics import block_mean, frechet_distance, perplexity, psnr, ssim
from .model import ContinuousTokenizer, DiscreteTokenizer


@dataclass(frozen=True)
class Report:
    """PSNR in dB of each clip, by source; of videos, of their first frames, and baselines."""

    video: dict[str, list[float]]
    image: dict[str, list[float]]
    block_mean_video: dict[str, list[float]]
    block_mean_image: dict[str, list[float]]
    token_perplexity: float | None

    def summary(self) -> dict[str, float]:
        """Average over all clips."""
        parts = ("video", "image", "block_mean_video", "block_mean_image")
        figures = {f"psnr_{p}": fmean(chain(*getattr(self, p).values())) for p in parts}
        if self.token_perplexity is not None:
            figures["token_perplexity"] = self.token_perplexity
        return figures

    def everything(self) -> dict[str, Any]:
        """Return the summary, and the average of each source."""
        figures: dict[str, Any] = {k: round(v, 3) for k, v in self.summary().items()}
        for part in ("video", "image"):
            by_source = getattr(self, part)
            figures[f"psnr_{part}_by_source"] = {
                k: round(fmean(v), 3) for k, v in by_source.items()
            }
        return figures


def held_out_clips(
    cache: ClipCache, count: int, compression: tuple[int, int, int], box: tuple[int, int]
) -> dict[str, list[Float[Tensor, "1 3 t h w"]]]:
    """Cut clips to evaluate: at most ``count`` of each source, spread over it."""
    chosen = {}
    for source, clips in zip(cache.sources, cache.clips, strict=True):
        some = clips[:: max(1, len(clips) // count)][:count]
        chosen[source.label] = list(fitting_clips(some, source.clips, compression, box))
    return chosen


def fitting_clips(
    clips: Iterable[UInt8[Tensor, "t 3 h w"]],
    name: str,
    compression: tuple[int, int, int],
    box: tuple[int, int],
) -> Iterator[Float[Tensor, "1 3 t2 h2 w2"]]:
    """Cut of each clip the first frames and the middle of the picture, in sizes that fit.

    They are at most ``box`` (frames, side) large; clips of less than a latent cell are left out.

    Raises:
        ValueError: all clips of the source ``name`` are smaller than a cell.
    """
    time, high, wide = compression
    none = True
    for clip in clips:
        t = 1 + (min(len(clip), box[0]) - 1) // time * time
        h = min(clip.shape[2], box[1]) // high * high
        w = min(clip.shape[3], box[1]) // wide * wide
        top, left = (clip.shape[2] - h) // 2, (clip.shape[3] - w) // 2
        cut = clip[:t, :, top : top + h, left : left + w]
        if cut.numel():
            none = False
            yield cut.transpose(0, 1)[None] / 127.5 - 1
    if none:
        raise ValueError(f"{name}: no clip there, or all are smaller than {high}x{wide}")


@torch.no_grad()
def evaluate_clips(
    tokenizer: ContinuousTokenizer | DiscreteTokenizer,
    clips: dict[str, list[Float[Tensor, "1 3 t h w"]]],
) -> Report:
    """Reconstruct each clip as a video, and its first frame as an image."""
    parts: tuple[dict[str, list[float]], ...] = tuple(
        {name: [] for name in clips} for _ in range(4)
    )
    tokens = []
    for name, videos in clips.items():
        for video in videos:
            video = video.to(tokenizer.device)
            frame = video[:, :, :1]
            for part, target in ((0, video), (1, frame)):
                codes = tokenizer.encode_codes(target)
                parts[part][name].append(psnr(tokenizer.decode_codes(codes), target))
                painted = block_mean(target, tokenizer.compression)
                parts[part + 2][name].append(psnr(painted, target))
                if isinstance(tokenizer, DiscreteTokenizer):
                    tokens.append(tokenizer.fsq.to_tokens(codes).flatten().cpu())
    used = perplexity(torch.cat(tokens), tokenizer.config.vocab_size) if tokens else None
    return Report(*parts, token_perplexity=used)


@torch.no_grad()
def measure(
    tokenizer: ContinuousTokenizer | DiscreteTokenizer,
    clips: Iterable[Float[Tensor, "1 3 _ _ _"]],
    features: Any = None,
) -> list[dict[str, Any]]:
    """Return a row of figures for each resolution among the clips, the smallest first.

    ``psnr`` (dB, over all frames of a clip) and ``ssim`` are means over clips; beside them the
    ``psnr`` of mean colours, the least that a codec must beat. ``bits_per_pixel`` counts a token as
    log2 of the vocabulary and a channel of a latent as 16. ``features`` turns clips into vectors,
    whose Frechet distance is ``rfvd``. Frames per second and ``peak_mb`` are of the network alone:
    the latter the most that the process (on a GPU: its tensors) held, weights and clip included.
    """
    groups: dict[tuple[int, int], list[dict[str, float]]] = {}
    vectors: dict[tuple[int, int], tuple[list[Tensor], list[Tensor]]] = {}
    for clip in clips:
        video = clip.to(tokenizer.device)
        size = (video.shape[3], video.shape[4])
        figures, output = _measure_clip(tokenizer, video)
        groups.setdefault(size, []).append(figures)
        if features is not None:
            of_output, of_video = vectors.setdefault(size, ([], []))
            of_output.append(features(output))
            of_video.append(features(video))
    rows = []
    for size in sorted(groups):
        sums = {key: sum(f[key] for f in groups[size]) for key in groups[size][0]}
        count, frames = len(groups[size]), sums["frames"]
        row = {
            "model": tokenizer.config.name,
            "resolution": f"{size[0]}x{size[1]}",
            "clips": count,
            "psnr": round(sums["psnr"] / count, 2),
            "psnr_mean_colour": round(sums["psnr_mean_colour"] / count, 2),
            "ssim": round(sums["ssim"] / count, 4),
            "bits_per_pixel": round(sums["bits"] / (frames * size[0] * size[1]), 5),
            "encode_frames_per_s": round(frames / sums["encode_s"], 1),
            "decode_frames_per_s": round(frames / sums["decode_s"], 1),
            "peak_mb": round(max(f["peak"] for f in groups[size]) / 2**20),
        }
        if features is not None and count > 1:
            row["rfvd"] = round(frechet_distance(*map(torch.cat, vectors[size])), 3)
        rows.append(row)
    return rows


def _measure_clip(
    tokenizer: ContinuousTokenizer | DiscreteTokenizer, video: Float[Tensor, "1 3 t h w"]
) -> tuple[dict[str, float], Float[Tensor, "1 3 t h w"]]:
    """Return what is added up over clips, and the reconstruction."""
    forget_peak(video.device)
    began = time.perf_counter()
    codes = tokenizer.encode_codes(video)
    if video.is_cuda:
        torch.cuda.synchronize()
    encoded = time.perf_counter()
    output = tokenizer.decode_codes(codes).to(video.dtype)
    if video.is_cuda:
        torch.cuda.synchronize()
    decoded, peak = time.perf_counter(), peak_bytes(video.device)
    vocab = tokenizer.config.vocab_size if tokenizer.config.levels else 0
    cells = codes[:, 0].numel()
    small = min(video.shape[3:]) < 7
    figures = {
        "psnr": psnr(output, video),
        "psnr_mean_colour": psnr(block_mean(video, tokenizer.compression), video),
        "ssim": float("nan") if small else float(ssim(output, video).mean()),
        "frames": video.shape[2],
        "bits": cells * log2(vocab) if vocab else 16 * codes.numel(),
        "encode_s": encoded - began,
        "decode_s": decoded - encoded,
        "peak": peak,
    }
    return figures, output


@torch.no_grad()
def latent_statistics(
    tokenizer: ContinuousTokenizer, batches: Iterable[Float[Tensor, "_ 3 _ _ _"]]
) -> tuple[Statistics, Statistics]:
    """Return mean and standard deviation per channel and latent frame, over the batches.

    Column 0 is the image frame, which sees no motion; the last one stands for all later frames.
    """
    sums: list[Tensor] = []
    for batch in batches:
        latent = tokenizer.encode_codes(batch.to(tokenizer.device)).double().cpu()
        for i in range(latent.shape[2]):
            frame = latent[:, :, i]
            moments = torch.stack((torch.ones_like(frame), frame, frame.square()))
            if i == len(sums):
                sums.append(torch.zeros(3, latent.shape[1], dtype=torch.float64))
            sums[i] += moments.sum((1, 3, 4))
    count, first, second = torch.stack(sums, -1)
    mean = first / count
    std = (second / count - mean.square()).clamp(min=1e-8).sqrt()
    return _rows(mean), _rows(std)


def _rows(values: Tensor) -> Statistics:
    return tuple(tuple(round(float(v), 6) for v in row) for row in values)
