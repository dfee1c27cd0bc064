"""The subcommand ``wfm-diffusion memory``."""

import argparse
import json
import math
import sys

import torch

from .budget import budget
from .checkpoint import find_source, read_config
from .config import PRESETS, DiffusionConfig
from .console import DONE

COMPRESSION = (8, 8, 8)
"""Of the codec CV8x8x8 of Cosmos 1.0."""


def memory(args: argparse.Namespace) -> int:
    """Say how much memory a sampling takes, whole and with streamed blocks."""
    name, config = find_config(args.model)
    latents = latent_size(args.frames, args.height, args.width, config)
    rows = {}
    for how, offload in (("whole on the device", False), ("blocks streamed", True)):
        found = budget(
            config,
            latents,
            dtype=getattr(torch, args.dtype),
            batch=args.batch,
            guided=not args.unguided,
            text_slots=args.text_slots,
            offload=offload,
        )
        rows[how] = {**vars(found), "total": found.total}
    facts = {"model": name, "latents": latents, "dtype": args.dtype, "bytes": rows}
    if args.json:
        sys.stdout.write(json.dumps(facts) + "\n")
        return DONE
    t, h, w = latents
    tokens = t * h * w // math.prod(config.patch)
    sys.stdout.write(f"{name}, {args.dtype}, latents of {t}x{h}x{w}, {tokens:,} tokens, in GB\n")
    sys.stdout.write(f"{'':22}{'weights':>10}{'text':>8}{'activations':>13}{'total':>8}\n")
    for how, row in rows.items():
        w, x, a, total = (row[k] / 1e9 for k in ("weights", "text", "activations", "total"))
        sys.stdout.write(f"{how:22}{w:10.2f}{x:8.2f}{a:13.2f}{total:8.2f}\n")
    sys.stdout.write("The codec, the text encoder and the driver's own memory come on top.\n")
    return DONE


def find_config(model: str) -> tuple[str, DiffusionConfig]:
    """Return a preset, or the first that starts so, or the config of a model folder.

    Raises:
        FileNotFoundError: neither.
    """
    for name in (model, *(f for f in PRESETS if f.startswith(f"{model}-"))):
        if name in PRESETS:
            return name, PRESETS[name]
    try:
        return model, read_config(find_source(model))
    except FileNotFoundError as e:
        known = ", ".join(PRESETS)
        raise FileNotFoundError(f"{model}: no such folder, nor a preset ({known})") from e


def latent_size(
    frames: int, height: int, width: int, config: DiffusionConfig
) -> tuple[int, int, int]:
    """Return t h w of a clip's latents.

    Raises:
        ValueError: sizes that do not divide.
    """
    (ct, ch, cw), (_, ph, pw) = COMPRESSION, config.patch
    if frames < 1 or height % (ch * ph) or width % (cw * pw) or min(height, width) < 1:
        raise ValueError(
            f"{frames} frames of {height}x{width}: the height must be a multiple of {ch * ph}, the"
            f" width of {cw * pw}, and there must be one frame or more"
        )
    return 1 + math.ceil((frames - 1) / ct), height // ch, width // cw
