"""What a training run is made of, from its settings: tokens, network, optimiser, rate, card."""

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ValidationError

from .checkpoint import replacing
from .clips import find_clips
from .config import PRESETS, ArConfig
from .interfaces import DiscreteCodec, Fingerprinted, TextEncoder
from .model import ArTransformer
from .muon import Muon
from .settings import explain
from .tokens import TokenSet, Windows, cached_tokens
from .train_config import TrainConfig

SETTINGS, TOKENS = "config.json", "tokens.safetensors"


def claim(config: TrainConfig) -> None:
    """Take the folder of the run, unless another run lies there."""
    settings = config.out / SETTINGS
    if (config.out / "state.pt").exists():
        raise ValueError(f"{config.out}: a run of an earlier version; choose another out")
    if not settings.is_file():
        with replacing(settings) as partial:
            partial.write_text(config.model_dump_json(indent=2, exclude={"out"}) + "\n")
        return
    said = json.loads(settings.read_text()) | {"out": config.out}
    if TrainConfig.model_validate(said) != config:
        raise ValueError(f"{settings}: another run, its settings differ; choose another out")


def find_tokens(
    config: TrainConfig, codec: DiscreteCodec, text_encoder: TextEncoder | None
) -> TokenSet:
    """Read or make the tokens of all windows.

    Raises:
        ValueError: windows that the codec or each other do not allow.
    """
    ct = codec.compression[0]
    for name, frames in (("frames", config.frames), ("past_frames", config.past_frames)):
        if config.latents == "video" and (frames - 1) % ct:
            raise ValueError(f"{name} is {frames}; this codec takes 1 + {ct} k")
    if config.past_frames >= config.frames:
        raise ValueError(
            f"{config.past_frames} past_frames leave none of {config.frames} to predict"
        )
    windows = Windows(
        config.latents, config.frames, config.stride, config.fps, config.height, config.width
    )
    about = [config.clips, str(config.text_encoder)]
    path = config.tokens or config.out / TOKENS
    clips = find_clips(config.clips)
    return cached_tokens(path, clips, codec, windows, about=about, text_encoder=text_encoder)


def find_network(
    config: TrainConfig, codec: DiscreteCodec, text_encoder: TextEncoder | None, data: TokenSet
) -> ArConfig:
    """Fit the preset to the codec, the windows and the text encoder."""
    if config.preset not in PRESETS:
        raise ValueError(f"preset {config.preset!r}: there are {', '.join(PRESETS)}")
    network = PRESETS[config.preset].model_dump()
    t, h, w = data.grid
    network |= {"vocab_size": codec.vocab_size, "grid": (t, h, w)}
    if text_encoder is not None and data.text is not None:
        network |= {"context_dim": text_encoder.dim, "text_slots": data.text.shape[1]}
    network |= config.model
    network["max_positions"] = t * h * w + bool(network["bov"])
    try:
        return ArConfig.model_validate(network)
    except ValidationError as e:
        raise ValueError(f"model: {explain(e)}") from e


def make_optimizer(lm: ArTransformer, config: TrainConfig) -> torch.optim.Optimizer:
    """Return AdamW as in the paper, or Muon for the matrices; norms have no decay."""
    weights = list(lm.parameters())
    groups: list[dict[str, Any]]
    if config.optimizer == "muon":
        ends = {lm.embed.weight, lm.head.weight}
        groups = [
            {"params": [p for p in weights if p.ndim > 1 and p not in ends]},
            {"params": [p for p in weights if p in ends], "matrices": False},
            {"params": [p for p in weights if p.ndim == 1], "weight_decay": 0.0},
        ]
        decay, dtype = config.weight_decay, getattr(torch, config.precision)
        return Muon(groups, lr=config.lr, weight_decay=decay, dtype=dtype)
    groups = [
        {"params": [p for p in weights if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in weights if p.ndim == 1], "weight_decay": 0.0},
    ]
    # Parted weights lie on several meshes, which no fused step takes together.
    fused = {"foreach": False} if config.sharding else {"fused": True}
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, **fused)


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return the rate of a step: a straight rise, then half a cosine or a straight fall."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(config.steps - config.warmup, 1)
    left = 1 - done if config.decay == "linear" else (1 + math.cos(math.pi * done)) / 2
    return config.lr * (config.min_lr + (1 - config.min_lr) * left)


def world_of(config: TrainConfig, codec: DiscreteCodec, *, text: bool) -> str:
    """Return ``world.json``."""
    encoder = (config.text_encoder or "given") if text else None
    world = {
        "codec": config.codec,
        "codec_fingerprint": codec.fingerprint if isinstance(codec, Fingerprinted) else None,
        "latents": config.latents,
        "past_frames": config.past_frames,
        "frames": config.frames - config.past_frames,
        "height": config.height,
        "width": config.width,
        "fps": config.fps,
        "text_encoder": encoder,
        "conditions": ["text"] if encoder else [],
    }
    return json.dumps(world, indent=2) + "\n"


def card(config: TrainConfig, count: int, step: int, figures: Mapping[str, float]) -> str:
    """Return the model card of a network of ``count`` parameters."""
    settings = json.dumps(config.model_dump(mode="json", exclude={"out", "tokens"}), indent=2)
    return f"""---
license: apache-2.0
library_name: wfm-ar
tags: [world-model, video, autoregressive]
---
# Autoregressive world model, {count / 1e6:.1f} M parameters

Predicts the tokens of a video of {config.height}x{config.width} at {config.fps:g} Hz one by one
(`{config.latents}` tokens of the codec `{config.codec}`), stored in float16.

| held-out, teacher-forced, after {step} steps | |
| --- | --- |
| cross-entropy (nats a token) | {figures["held_out_loss"]:.3f} |
| accuracy | {figures["held_out_accuracy"]:.3f} |

```python
import wfm_ar
world = wfm_ar.load_world("this folder")
future = world.video2world(past, ["a caption"])
```

A small model for tests and demonstrations: its pictures are coarse, and it knows nothing that
is not like its training clips. Trained by `wfm-ar train` with

```json
{settings}
```
"""
