"""What a training run leaves: the tokenizer to keep, its model card, pictures on the way."""

import json
import logging
import random
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from .checkpoint import replacing
from .config import TokenizerConfig
from .data import BatchShape, ClipCache
from .evaluation import latent_statistics
from .model import ContinuousTokenizer, DiscreteTokenizer, build
from .train_config import TrainConfig
from .video import to_frames

logger = logging.getLogger(__name__)

AnyTokenizer = ContinuousTokenizer | DiscreteTokenizer

GRID = 6
"""Clips in a grid of samples, at most."""


def finish(average: AnyTokenizer, settings: TrainConfig, cache: ClipCache) -> AnyTokenizer:
    """Make the tokenizer to keep: averaged weights in float16, and the latents' statistics."""
    config = settings.model
    weights = {name: t.half().float() for name, t in average.state_dict().items()}
    average.load_state_dict(weights)
    if isinstance(average, ContinuousTokenizer) and not settings.freeze_encoder:
        batches = (
            cache.batch(shape, random.Random(f"statistics:{i}"))
            for i in range(settings.statistics_batches)
            for shape in [_statistics_shape(settings, i)]
        )
        mean, std = latent_statistics(average, batches)
        update = {"latent_mean": mean, "latent_std": std}
        config = TokenizerConfig.model_validate(config.model_dump() | update)
    tokenizer = build(config)
    tokenizer.load_state_dict(weights)
    return tokenizer.to(average.device).eval().requires_grad_(False)


def _statistics_shape(config: TrainConfig, i: int) -> BatchShape:
    """Go through the shapes of video batches (or, if there are none, of images) in turn."""
    videos = [shape for shape in config.shapes if shape.frames > 1] or list(config.shapes)
    return videos[i % len(videos)]


def export(config: TrainConfig, tokenizer: AnyTokenizer, figures: Mapping[str, Any]) -> None:
    """Write ``model``: config, float16 weights, model card, ``metrics.json``."""
    folder = config.out / "model"
    tokenizer.save(folder, card=model_card(config, tokenizer, figures), dtype=torch.float16)
    with replacing(folder / "metrics.json") as partial:
        partial.write_text(json.dumps(figures, indent=1) + "\n")
    logger.info("wrote %s: %s", folder, json.dumps(figures))


@torch.no_grad()
def write_samples(
    path: Path, tokenizer: AnyTokenizer, clips: Mapping[str, list[Float[Tensor, "1 3 t h w"]]]
) -> None:
    """Write a picture: of some clips the first, middle and last frame, original and made."""
    every = [clip for of_source in clips.values() for clip in of_source]
    rows = []
    for clip in every[:: max(1, len(every) // GRID)][:GRID]:
        made = tokenizer(clip.to(tokenizer.device)).float().cpu()
        last = clip.shape[2] - 1
        both = torch.cat((clip, made), 4)[:, :, [0, last // 2, last]]
        rows.append(rearrange(to_frames(both), "t c h w -> h (t w) c"))
    width = max(row.shape[1] for row in rows)
    image = torch.cat([torch.nn.functional.pad(r, (0, 0, 0, width - r.shape[1])) for r in rows])
    with replacing(path) as partial:
        partial.write_bytes(png(image))


def png(image: UInt8[Tensor, "h w 3"]) -> bytes:
    """Return the picture as a PNG file (ISO 15948)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    h, w, _ = image.shape
    lines = np.zeros((h, 1 + 3 * w), np.uint8)  # each line begins with its filter, none
    lines[:, 1:] = image.numpy().reshape(h, 3 * w)
    header = struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines.tobytes()))
    return b"\x89PNG\r\n\x1a\n" + data + chunk(b"IEND", b"")


def _start(config: TrainConfig) -> str:
    if not config.start:
        return ""
    kept = "; the encoder stayed as it was" if config.freeze_encoder else ""
    return f"From `{config.start}`{kept}. "


def model_card(config: TrainConfig, tokenizer: AnyTokenizer, figures: Mapping[str, Any]) -> str:
    """Write the facts of a training run down; intended use and limits are for a person to add."""
    model = config.model
    count = sum(p.numel() for p in tokenizer.parameters())
    rows = {k: v for k, v in figures.items() if not isinstance(v, dict)}
    for part in ("video", "image"):
        by_source = figures[f"psnr_{part}_by_source"]
        rows |= {f"psnr_{part}, {name}": value for name, value in by_source.items()}
    table = "".join(f"| {k} | {v} |\n" for k, v in rows.items())
    size = "x".join(map(str, model.compression))
    made = f"{model.vocab_size} tokens" if model.levels else f"{model.latent_channels} channels"
    return (
        "---\nlicense: apache-2.0\nlibrary_name: wfm-tokenizer\ntags: [video-tokenizer]\n---\n\n"
        f"# {model.name}\n\n"
        f"A {model.kind} {model.network} tokenizer, compression {size}, {made}, "
        f"{count:,} parameters, stored as float16.\n\n"
        "```python\nimport wfm_tokenizer as wt\n"
        'tokenizer = wt.load("PATH OF THIS FOLDER")\n```\n\n'
        f"## Training\n\n{_start(config)}"
        f"{figures['steps']} steps with seed {config.seed}, learning rate {config.lr}, loss "
        f"{config.loss.model_dump()}, on {len(config.sources)} sources of clips in batches of "
        + "; ".join(f"{s.batch} x {s.frames} x {s.size}x{s.columns}" for s in config.shapes)
        + ".\n\n## Held-out figures\n\n"
        "PSNR in dB over all frames of a clip, mean over clips; `block_mean` paints each latent "
        f"cell in its mean colour.\n\n| | |\n| --- | --- |\n{table}"
    )
