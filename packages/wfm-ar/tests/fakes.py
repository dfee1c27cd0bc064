"""Small stand-ins: a model of random weights, and what it meets."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

import wfm_ar as wa
from wfm_ar.video import write_video


def tiny(**changes):
    config = wa.PRESETS["pico"].model_copy(
        update={"vocab_size": 40, "dim": 32, "num_layers": 2, "head_dim": 12, "ffn_dim": 48}
        | {"context_dim": 8, "text_slots": 4, "grid": (3, 2, 2), "max_positions": 12}
        | changes
    )
    lm = wa.ArTransformer(wa.ArConfig.model_validate(config.model_dump()))
    lm.initialize(torch.Generator().manual_seed(0))
    for name, weight in lm.named_parameters():  # far from the small initial values
        if weight.ndim > 1 and name != "embed.weight":
            weight.data *= 0.2 / weight.data.std()
    return lm.eval()


class GreyCodec:
    """Tokens are 40 levels of grey: of 2 frames of 4x4 pixels each, the first frame alone."""

    vocab_size = 40
    compression = (2, 4, 4)
    fingerprint = "0123456789abcdef"

    def encode(self, video, /):
        _, _, t, h, w = video.shape
        if (t - 1) % 2 or h % 4 or w % 4:
            raise ValueError(f"video of {t} frames of {h}x{w}")
        cells = rearrange(video, "b c t (h y) (w x) -> b t h w (c y x)", y=4, x=4).mean(-1)
        pairs = rearrange(cells[:, 1:], "b (t two) h w -> b t h w two", two=2).mean(-1)
        levels = torch.cat([cells[:, :1], pairs], 1)
        return ((levels + 1) / 2 * 39).round().clamp(0, 39).long()

    def decode(self, tokens, /):
        levels = repeat(tokens / 39 * 2 - 1, "b t h w -> b c t (h y) (w x)", c=3, y=4, x=4)
        return torch.cat([levels[:, :, :1], levels[:, :, 1:].repeat_interleave(2, 2)], 2)


class LengthEncoder:
    """A prompt's embedding is its length; four slots, the first ones real."""

    dim = 8

    def encode(self, prompts: Sequence[str], /):
        text = torch.zeros(len(prompts), 4, 8)
        mask = torch.zeros(len(prompts), 4, dtype=torch.bool)
        for i, prompt in enumerate(prompts):
            text[i, :2, len(prompt) % 8] = 1.0
            mask[i, :2] = True
        return text, mask


class ActionEncoder:
    """An action becomes one slot of context."""

    def encode(self, inputs, /):
        action = inputs["action"]
        text = torch.zeros(len(action), action.shape[1], 8)
        text[..., : action.shape[2]] = action
        return {"text": text}


class Answer:
    def __init__(self, safe, reason=""):
        self.safe, self.reason = safe, reason


class WordGuard:
    """Refuses prompts with "bad" and videos that are all white; blackens the first row."""

    def check_text(self, text, /):
        return Answer("bad" not in text, "says bad" if "bad" in text else "")

    def check_video(self, frames, /):
        white = bool((frames > 250).all())
        return Answer(not white, "all white" if white else "")

    def redact(self, frames, /):
        frames = frames.clone()
        frames[:, :, 0] = 0
        return frames


def moving_square(frames: int, size: int = 8, start: int = 0) -> Float[Tensor, "1 3 t h w"]:
    """Return a bright half that steps to the right, dark elsewhere."""
    video = torch.full((1, 3, frames, size, size), -1.0)
    for i in range(frames):
        x = (start + i) // 2 * 4 % size
        video[:, :, i, :, x : x + 4] = 0.5
    return video


def clip_folder(folder: Path, clips: int = 4, frames: int = 9) -> Path:
    """Write a folder of small videos with captions."""
    for i in range(clips):
        pictures = ((moving_square(frames, 8, i)[0] + 1) * 127.5).byte()
        video = rearrange(pictures, "c t h w -> t c h w")
        write_video(folder / f"clip{i}.mp4", video, 10.0, crf=1)
        (folder / f"clip{i}.json").write_text(json.dumps({"caption": "right " * (i + 1)}))
    return folder


def codec() -> GreyCodec:
    return GreyCodec()


def text_encoder() -> LengthEncoder:
    return LengthEncoder()


def guard() -> WordGuard:
    return WordGuard()


SMALL = {"dim": 32, "num_layers": 2, "head_dim": 12, "ffn_dim": 48}


def run_settings(out: Path, clips: Path, **changes: object) -> dict[str, object]:
    """Return the settings of a training of seconds, for TrainConfig."""
    return {
        "out": out,
        "clips": str(clips),
        "codec": "fakes:codec",
        "model": SMALL,
        "frames": 5,
        "stride": 2,
        "height": 8,
        "width": 8,
        "past_frames": 3,
        "holdout": 0.25,
        "image_every": 4,
        "steps": 12,
        "batch": 4,
        "warmup": 2,
        "log_every": 3,
        "eval_every": 6,
        "save_every": 6,
    } | changes


class Lamp:
    """A world of one grey: the action's first number is added to its brightness."""

    past_frames = 2

    def rollout(self, past, /, *, frames, controls=None, prompts=None, generator=None):
        action = controls["action"]
        if action.shape[2] != 7:
            raise ValueError(f"actions have 7 numbers, not {action.shape[2]}")
        level = past[:, :1, -1:].mean((3, 4), keepdim=True)
        grey = (level + action[:, :1, 0, None, None] * 0.2).clamp(-1, 1)
        return grey.expand(-1, 3, frames, *past.shape[-2:])


def lamp() -> Lamp:
    return Lamp()


def pushed() -> wa.WorldModel:
    """Return one of our worlds that encodes frames alone and follows actions."""
    settings = wa.WorldSettings(
        codec="grey", latents="image", past_frames=2, frames=2, height=8, width=8
    )
    return wa.WorldModel(
        tiny(), GreyCodec(), condition_encoder=ActionEncoder(), settings=settings, temperature=0
    )


def imagined() -> wa.WorldModel:
    """Return one of our worlds that imagines clips from captions."""
    settings = wa.WorldSettings(codec="grey", past_frames=3, frames=2, height=8, width=8)
    return wa.WorldModel(tiny(), GreyCodec(), LengthEncoder(), settings=settings)
