"""Train a model to predict the next token: resumable bit by bit, by one process or several."""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int64
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from .checkpoint import replacing
from .clips import find_clips
from .config import PRESETS, ArConfig
from .interfaces import DiscreteCodec, Fingerprinted, TextEncoder
from .model import ArTransformer
from .muon import Muon
from .parallel import Ranks, launched
from .precision import computing_in
from .pretrained import CARD, begin_from, load, write_folder
from .references import resolve
from .settings import explain
from .tokens import TokenSet, Windows, cached_tokens

logger = logging.getLogger(__name__)

Log = Callable[[int, Mapping[str, float]], None]
STATE, METRICS, MODEL, SETTINGS, TOKENS = (
    "state.pt",
    "metrics.jsonl",
    "model",
    "config.json",
    "tokens.safetensors",
)


class TrainConfig(BaseModel):
    """A training run. Everything of it lies in the folder ``out``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    out: Path = Field(description="folder of the run")
    clips: str = Field(description="folder of videos, or module:callable=ARGUMENT of a dataset")
    codec: str = Field("pico-dv8x16x16", description="name or module:callable, group wfm.codecs")
    text_encoder: str | None = Field(
        None, description="the same of wfm.text_encoders; None: no text"
    )
    tokens: Path | None = Field(None, description="token file; None is tokens.safetensors in out")

    init: str | None = Field(None, description="start from this model instead of at random")
    preset: str = Field("pico", description="size of the network")
    model: dict[str, Any] = Field({}, description="what differs from the preset")

    latents: Literal["video", "image"] = Field("video", description="image: each frame alone")
    frames: int = Field(33, ge=1, description="frames of a window; video: 1 + 8 k")
    stride: int = Field(8, ge=1, description="frames from one window of a clip to the next")
    fps: float = Field(10.0, gt=0, description="frame rate of the windows, Hz")
    height: int = Field(64, gt=0)
    width: int = Field(64, gt=0)
    past_frames: int = Field(9, ge=1, description="frames that a user gives; video: 1 + 8 k")
    holdout: float = Field(0.05, ge=0, lt=1, description="part of the clips kept for evaluation")

    condition_latents: int = Field(1, ge=0, description="first latent frames without loss")
    image_every: int = Field(8, ge=0, description="every so many steps one of images; 0: none")
    text_dropout: float = Field(0.1, ge=0, le=1, description="part of the samples without text")
    token_noise: float = Field(
        0.0, ge=0, lt=1, description="part of the tokens seen that is random; against overfitting"
    )
    z_loss: float = Field(3e-4, ge=0, description="weight of mean(logsumexp^2)")

    steps: int = Field(6000, ge=1)
    batch: int = Field(16, ge=1, description="windows a step")
    optimizer: Literal["adamw", "muon"] = Field("adamw", description="muon learns in fewer steps")
    lr: float = Field(1e-3, gt=0)
    min_lr: float = Field(0.02, ge=0, le=1, description="part of lr at the end")
    warmup: int = Field(200, ge=0, description="steps")
    weight_decay: float = Field(0.05, ge=0, description="of matrices; norms have none")
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = Field(1.0, gt=0)
    ema: float = Field(0.999, ge=0, lt=1)
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of matrix products in training; the weights stay float32"
    )
    seed: int = 0

    log_every: int = Field(20, ge=1)
    eval_every: int = Field(500, ge=1)
    eval_windows: int = Field(256, ge=1)
    save_every: int = Field(200, ge=1)


class Loss(NamedTuple):
    """A training loss and what it is made of."""

    total: Float[Tensor, ""]
    cross_entropy: Float[Tensor, ""]
    z: Float[Tensor, ""]
    accuracy: Float[Tensor, ""]


def next_token_loss(
    logits: Float[Tensor, "b n v"],
    labels: Int64[Tensor, "b n"],
    *,
    ignore: int = 0,
    z_loss: float = 1e-4,
) -> Loss:
    """Return cross-entropy + ``z_loss`` * mean(logsumexp^2), in nats.

    The first ``ignore`` positions have no cross-entropy; the mean of z is over all of them.
    """
    logits = logits.float()
    z = logits.logsumexp(-1)
    scored = logits[:, ignore:]
    kept = labels[:, ignore:]
    likelihood = scored.gather(-1, kept[..., None])[..., 0]
    cross_entropy = (z[:, ignore:] - likelihood).mean()
    mean_z = z.square().mean()
    accuracy = (scored.detach().argmax(-1) == kept).float().mean()
    return Loss(cross_entropy + z_loss * mean_z, cross_entropy, mean_z, accuracy)


def train(
    config: TrainConfig,
    *,
    codec: DiscreteCodec | None = None,
    text_encoder: TextEncoder | None = None,
    log: Log | None = None,
    stop_after: int | None = None,
) -> Path:
    """Run the training to its end, or on from where it stopped; return the model's folder.

    A run that is stopped and resumed ends bit by bit where an uninterrupted one does: the
    samples of a step depend on nothing but the seed and the step's number.

    Args:
        config: the run; the folder ``config.out`` holds an earlier part of it or nothing.
        codec: instead of the one that ``config.codec`` names.
        text_encoder: instead of the one that ``config.text_encoder`` names.
        log: told step and figures whenever a line of ``metrics.jsonl`` is written.
        stop_after: stop at this step, with a checkpoint.

    Raises:
        FileNotFoundError: no such clips.
        ValueError: parts that do not fit together, or ``out`` holds another run.
    """
    with launched() as ranks:
        if config.batch % ranks.count:
            raise ValueError(
                f"a batch of {config.batch} does not part among {ranks.count} processes"
            )
        if not ranks.first:  # the first one makes the files that the others then find
            ranks.wait()
        _claim(config)
        codec = codec or _codec(config.codec)
        if text_encoder is None and config.text_encoder is not None:
            text_encoder = _text_encoder(config.text_encoder)
        data = _tokens(config, codec, text_encoder)
        if ranks.first:
            ranks.wait()
        run = _Run(config, _network(config, codec, text_encoder, data), data, log, ranks)
        last = min(config.steps, stop_after or config.steps)
        while run.step < last:
            run.advance()
        run.save()
        folder = run.export(codec) if ranks.first else config.out / MODEL
        ranks.wait()
        return folder


class _Run:
    """The state of a training: network, average, optimiser, step."""

    def __init__(
        self,
        config: TrainConfig,
        network: ArConfig,
        data: TokenSet,
        log: Log | None,
        ranks: Ranks,
    ) -> None:
        self.config, self.log, self.step, self.ranks = config, log, 0, ranks
        self.data, self.held = data.split(config.holdout)
        self.lm = ArTransformer(network)
        self.lm.initialize(torch.Generator().manual_seed(config.seed))
        if config.init is not None:
            begin_from(self.lm, load(config.init), config.init)
        self.average = {k: v.detach().clone() for k, v in self.lm.state_dict().items()}
        self.optimizer = _optimizer(self.lm, config)
        self.seen, self.since = 0, time.perf_counter()
        state = config.out / STATE
        if state.is_file():
            self._restore(torch.load(state, map_location="cpu", weights_only=True))
        self._trim_metrics()

    def advance(self) -> None:
        """Take one step; log, evaluate and save when it is time."""
        config = self.config
        rate = _rate(self.step, config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self._loss()
        loss.total.backward()
        self.ranks.average_gradients(self.lm)
        norm = torch.nn.utils.clip_grad_norm_(self.lm.parameters(), config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._average()
        self.step += 1
        if self.step % config.log_every == 0 or self.step == config.steps:
            total, entropy, z, accuracy = self.ranks.mean(*loss)
            if not math.isfinite(total):
                raise ValueError(f"the loss is {total} at step {self.step}; lower lr")
            took, self.since = time.perf_counter() - self.since, time.perf_counter()
            self._write(
                {"loss": total, "cross_entropy": entropy, "accuracy": accuracy, "z": z}
                | {"lr": rate}
                | {"grad_norm": norm.item(), "tokens_per_s": self.ranks.count * self.seen / took}
            )
            self.seen = 0
        if self.ranks.first and (self.step % config.eval_every == 0 or self.step == config.steps):
            self._write(self.evaluate())
        if self.step % config.save_every == 0:
            self.save()

    def _loss(self) -> Loss:
        """Draw the samples of this step and score them."""
        config = self.config
        draw = torch.Generator().manual_seed(config.seed * 1_000_003 + self.step)
        t, h, w = self.data.grid
        images = config.image_every > 0 and self.step % config.image_every == config.image_every - 1
        count = config.batch * t if images else config.batch
        rows = torch.randint(len(self.data.tokens), (count,), generator=draw)
        tokens, context = self._batch(self.data, rows[self.ranks.part])
        if context is not None:
            kept = torch.rand(count, 1, 1, generator=draw) >= config.text_dropout
            context = context * kept[self.ranks.part]
        ignore = config.condition_latents * h * w
        if images:
            t, ignore = 1, 0
            tokens = tokens[:, : h * w]
        wrong = torch.rand(tokens.shape, generator=draw) < config.token_noise
        random = torch.randint(self.lm.vocab_size, tokens.shape, generator=draw)
        seen = torch.where(wrong, random, tokens)
        return self._score(tokens, context, (t, h, w), ignore, seen)

    def _batch(self, data: TokenSet, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        tokens = rearrange(data.tokens[rows], "b t h w -> b (t h w)").long()
        if data.text is None:
            return tokens, None
        return tokens, data.text[data.clip[rows].long()].float()

    def _score(
        self,
        tokens: Int64[Tensor, "b n"],
        context: Tensor | None,
        grid: tuple[int, int, int],
        ignore: int,
        seen: Int64[Tensor, "b n"] | None = None,
    ) -> Loss:
        """Predict each token from those before it, or from what is ``seen`` of them.

        The first ``ignore`` tokens are given.
        """
        before = (tokens if seen is None else seen)[:, :-1]
        self.seen += tokens.numel()
        bov = self.lm.bov_token
        if bov is None:
            inputs, labels, ignore = before, tokens[:, 1:], max(ignore - 1, 0)
        else:
            first = torch.full_like(tokens[:, :1], bov)
            inputs, labels = torch.cat([first, before], 1), tokens
        with computing_in(self.config.precision, tokens.device.type):
            scores = self.lm(inputs, context, grid=grid)
        return next_token_loss(scores, labels, ignore=ignore, z_loss=self.config.z_loss)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Return loss and accuracy of the averaged network on held-out windows."""
        t, h, w = self.held.grid
        spread = torch.linspace(0, len(self.held.tokens) - 1, self.config.eval_windows)
        rows = spread.round().long().unique()
        current = {k: v.clone() for k, v in self.lm.state_dict().items()}
        seen = self.seen
        self.lm.load_state_dict(self.average)
        entropy = accuracy = 0.0
        for part in rows.split(32):
            tokens, context = self._batch(self.held, part)
            loss = self._score(tokens, context, (t, h, w), self.config.condition_latents * h * w)
            entropy += loss.cross_entropy.item() * len(part) / len(rows)
            accuracy += loss.accuracy.item() * len(part) / len(rows)
        self.lm.load_state_dict(current)
        self.seen = seen
        return {"held_out_loss": entropy, "held_out_accuracy": accuracy}

    @torch.no_grad()
    def _average(self) -> None:
        """Move the average towards the network; faster in the first steps."""
        weight = 1 - min(self.config.ema, (1 + self.step) / (10 + self.step))
        state = self.lm.state_dict()
        torch._foreach_lerp_(list(self.average.values()), [state[k] for k in self.average], weight)

    def _write(self, figures: Mapping[str, float]) -> None:
        if not self.ranks.first:
            return
        with (self.config.out / METRICS).open("a") as file:
            file.write(json.dumps({"step": self.step, **figures}) + "\n")
        if self.log is not None:
            self.log(self.step, figures)

    def _trim_metrics(self) -> None:
        """Forget the lines after the checkpoint: they will be written again."""
        if not self.ranks.first:
            return
        path = self.config.out / METRICS
        lines = path.read_text().splitlines() if path.is_file() else []
        kept = [line for line in lines if json.loads(line)["step"] <= self.step]
        with replacing(path) as partial:
            partial.write_text("".join(f"{line}\n" for line in kept))

    def save(self) -> None:
        """Write the state of the run, whole or not at all."""
        if not self.ranks.first:  # all have the same
            return
        state = {
            "step": self.step,
            "model": self.lm.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
        }
        with replacing(self.config.out / STATE) as partial:
            torch.save(state, partial)

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.step = state["step"]
        self.lm.load_state_dict(state["model"])
        self.average = dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        logger.info("resumed at step %s", self.step)

    def export(self, codec: DiscreteCodec) -> Path:
        """Write the averaged network as a model folder: float16, world.json, card."""
        config, figures = self.config, self.evaluate()
        slots = None if self.data.text is None else config.text_encoder or "given"
        world = {
            "codec": config.codec,
            "codec_fingerprint": codec.fingerprint if isinstance(codec, Fingerprinted) else None,
            "latents": config.latents,
            "past_frames": config.past_frames,
            "frames": config.frames - config.past_frames,
            "height": config.height,
            "width": config.width,
            "fps": config.fps,
            "text_encoder": slots,
            "conditions": ["text"] if slots else [],
        }
        files = {
            "world.json": json.dumps(world, indent=2) + "\n",
            CARD: _card(self, figures),
        }
        half = {name: tensor.half() for name, tensor in self.average.items()}
        write_folder(self.lm.config, half, config.out / MODEL, files=files)
        return config.out / MODEL


def _claim(config: TrainConfig) -> None:
    """Take the folder of the run, unless another run lies there."""
    settings = config.out / SETTINGS
    said = config.model_dump_json(indent=2, exclude={"out"}) + "\n"
    if not settings.is_file():
        with replacing(settings) as partial:
            partial.write_text(said)
    elif settings.read_text() != said:
        raise ValueError(f"{settings}: another run, its settings differ; choose another out")


def _tokens(
    config: TrainConfig, codec: DiscreteCodec, text_encoder: TextEncoder | None
) -> TokenSet:
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


def _network(
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


def _codec(reference: str) -> DiscreteCodec:
    codec = resolve(reference, "wfm.codecs")
    if not isinstance(codec, DiscreteCodec):
        raise ValueError(f"{reference}: a {type(codec).__name__}, not a codec of tokens")
    return codec


def _text_encoder(reference: str) -> TextEncoder:
    encoder = resolve(reference, "wfm.text_encoders")
    if not isinstance(encoder, TextEncoder):
        raise ValueError(f"{reference}: a {type(encoder).__name__}, not a text encoder")
    return encoder


def _optimizer(lm: ArTransformer, config: TrainConfig) -> torch.optim.Optimizer:
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
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def _rate(step: int, config: TrainConfig) -> float:
    """Learning rate: a straight rise, then half a cosine."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return config.lr * (config.min_lr + (1 - config.min_lr) * (1 + math.cos(math.pi * done)) / 2)


def _card(run: _Run, figures: Mapping[str, float]) -> str:
    config = run.config
    count = sum(p.numel() for p in run.lm.parameters())
    settings = json.dumps(config.model_dump(mode="json", exclude={"out", "tokens"}), indent=2)
    return f"""---
license: apache-2.0
library_name: wfm-ar
tags: [world-model, video, autoregressive]
---
# Autoregressive world model, {count / 1e6:.1f} M parameters

Predicts the tokens of a video of {config.height}x{config.width} at {config.fps:g} Hz one by one
(`{config.latents}` tokens of the codec `{config.codec}`), stored in float16.

| held-out, teacher-forced, after {run.step} steps | |
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
