"""Train a tokenizer on videos and images together: ``train(TrainConfig(...))``.

A run is a folder: ``config.json``, ``metrics.jsonl``, ``checkpoint.safetensors`` while it goes on,
and at the end ``model``, which ``load`` opens. Each step's batch depends on the seed and the
number of the step only, so a resumed run is bit for bit the uninterrupted one.
"""

import json
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import cos, pi
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from safetensors import safe_open
from torch import Tensor, nn

from .checkpoint import read_weights, replacing, write_weights
from .config import PRESETS, TokenizerConfig
from .data import BatchShape, ClipCache, Source
from .evaluation import evaluate_clips, held_out_clips, latent_statistics
from .model import ContinuousTokenizer, DiscreteTokenizer, build
from .muon import Muon

logger = logging.getLogger(__name__)

SATURATED = 1.5

Log = Callable[[int, Mapping[str, float]], None]


class LossConfig(BaseModel):
    """Weights of the terms of :func:`reconstruction_loss`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    l1: float = 1.0
    l2: float = Field(2.0, description="squared error: what PSNR measures")
    gradient: float = Field(0.5, description="differences of neighbours in x, y and t: edges")
    scales: int = Field(3, ge=1, description="the gradient term is taken at 1, 1/2, 1/4 ... size")
    saturation: float = Field(0.2, description="of FSQ inputs, see saturation_loss")


class TrainConfig(BaseModel):
    """Everything that decides what a run computes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    out: Path
    model: TokenizerConfig = Field(description="a preset's name, or a whole tokenizer config")
    sources: tuple[Source, ...] = Field(min_length=1)
    held_out: tuple[Source, ...] = Field(
        (), description="evaluated on; if there is none, every 20th training clip is held out"
    )
    shapes: tuple[BatchShape, ...] = (
        BatchShape(frames=1, size=64, batch=24, weight=2),
        BatchShape(frames=9, size=64, batch=8, weight=5),
        BatchShape(frames=17, size=64, batch=4, weight=2),
        BatchShape(frames=9, size=96, batch=4, weight=0.5),
        BatchShape(frames=1, size=128, batch=8, weight=0.5),
    )
    steps: int = Field(6000, gt=0)
    optimizer: Literal["muon", "adamw"] = Field("muon", description="adamw: as the paper")
    lr: float = Field(2e-3, gt=0)
    final_lr: float = Field(0.02, ge=0, le=1, description="of lr, at the end of the cosine")
    warmup: int = Field(200, ge=0, description="steps")
    betas: tuple[float, float] = (0.95, 0.99)
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema: float = Field(0.998, ge=0, lt=1, description="decay of the averaged weights, per step")
    loss: LossConfig = LossConfig()
    seed: int = 0
    device: str = "cpu"
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of matrix products in training; the weights stay float32"
    )
    threads: int | None = Field(None, gt=0, description="of the CPU; None: as torch decides")
    log_every: int = Field(50, gt=0)
    evaluate_every: int = Field(500, gt=0)
    evaluate_clips: int = Field(24, gt=0, description="at most, of each held-out source")
    evaluate_frames: int = Field(17, gt=0)
    evaluate_size: int = Field(128, gt=0, description="larger clips are cut to it, in the middle")
    checkpoint_every: int = Field(500, gt=0)
    statistics_batches: int = Field(64, gt=0, description="for the statistics of the latents")
    max_minutes: float | None = Field(None, gt=0, description="then stop, and export what is there")

    @model_validator(mode="after")
    def _batches_fit(self) -> "TrainConfig":
        time, high, _ = self.model.compression
        for shape in self.shapes:
            if (shape.frames - 1) % time or shape.size % high:
                raise ValueError(
                    f"shapes: {shape.frames} frames of {shape.size} pixels do not fit {time}x{high}"
                    f"x{high}: take 1 + {time}k frames and a multiple of {high} pixels"
                )
        return self

    @field_validator("model", mode="before")
    @classmethod
    def _preset(cls, value: Any) -> Any:
        if isinstance(value, str):
            if value not in PRESETS:
                raise ValueError(f"no preset {value!r}; there are {', '.join(PRESETS)}")
            return PRESETS[value]
        return value


def train(
    config: TrainConfig, *, resume: bool = False, log: Log | None = None
) -> ContinuousTokenizer | DiscreteTokenizer:
    """Train, and return the exported tokenizer, which is also at ``config.out / "model"``.

    ``log(step, metrics)`` is called with every line of ``metrics.jsonl``.

    Raises:
        ValueError: no usable clips, a run is already there, or ``resume`` of another config.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.set_flush_denormal(True)
    _open_run(config, resume=resume)
    cache = ClipCache.read(config.sources)
    if config.held_out:
        held_out = ClipCache.read(config.held_out)
    else:
        cache, held_out = cache.hold_out(20)
    run = Run(config, log)
    if resume:
        run.restore()
    clips = held_out_clips(held_out, config.evaluate_clips, config.model.compression, run.box)
    for step in run.steps():
        run.update(step, cache)
        if (step + 1) % config.evaluate_every == 0:
            run.record(step + 1, evaluate_clips(run.average, clips).summary())
        if (step + 1) % config.checkpoint_every == 0:
            run.save(step + 1)
    run.save(run.done)
    tokenizer = finish(run, cache)
    report = evaluate_clips(tokenizer, clips)
    export(run, tokenizer, report.everything())
    return tokenizer


class Run:
    """The state of a training: weights, their average, the optimiser, the clock."""

    def __init__(self, config: TrainConfig, log: Log | None) -> None:
        self.config = config
        self.log = log
        self.box = (config.evaluate_frames, config.evaluate_size)
        torch.manual_seed(config.seed)
        self.model = build(config.model).to(config.device)
        for parameter in self.model.parameters():
            if parameter.ndim == 4:  # the convolutions' fast layout
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self.average = build(config.model).to(config.device).eval().requires_grad_(False)
        self.average.load_state_dict(self.model.state_dict())
        self.parameters = list(self.model.parameters())
        self.optimizer = new_optimizer(self.parameters, config)
        self.start = 0
        self.seconds = 0.0
        self.done = 0

    def steps(self) -> Iterator[int]:
        """Count from where the run stands to its end, or until the time is up."""
        began, before = time.monotonic(), self.seconds
        for step in range(self.start, self.config.steps):
            yield step
            self.done = step + 1
            self.seconds = before + time.monotonic() - began
            limit = self.config.max_minutes
            if limit is not None and self.seconds > 60 * limit:
                logger.warning("stopped after %.0f minutes, at step %d", limit, self.done)
                return

    def update(self, step: int, cache: ClipCache) -> None:
        """Take one step."""
        config = self.config
        dice = random.Random(f"{config.seed}:{step}")
        shape = dice.choices(config.shapes, [shape.weight for shape in config.shapes])[0]
        video = cache.batch(shape, dice).to(config.device)
        rate = learning_rate(config, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(video.device.type, torch.bfloat16, config.precision == "bfloat16"):
            features = self.model.features(video)
            output = self.model.decode_codes(self.model.quantize(features))
        loss = reconstruction_loss(output, video, config.loss)
        if isinstance(self.model, DiscreteTokenizer):
            loss = loss + config.loss.saturation * saturation_loss(features)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, config.clip_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"step {step}: the gradient is not finite; lower lr")
        self.optimizer.step()
        decay = min(config.ema, (1 + step) / (10 + step))
        for mean, parameter in zip(self.average.parameters(), self.parameters, strict=True):
            mean.lerp_(parameter.detach(), 1 - decay)
        if (step + 1) % config.log_every == 0:
            mse = (output.detach() - video).square().mean()
            self.record(
                step + 1,
                {
                    "loss": float(loss.detach()),
                    "psnr_batch": float(10 * torch.log10(4 / mse)),
                    "frames": float(shape.frames),
                    "lr": rate,
                    "grad_norm": float(norm),
                    "seconds": round(self.seconds, 1),
                },
            )

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append a line to ``metrics.jsonl``."""
        line = {"step": step, **{k: round(v, 6) for k, v in metrics.items()}}
        with (self.config.out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self.log is not None:
            self.log(step, metrics)

    def save(self, step: int) -> None:
        """Write the checkpoint, whole or not at all."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            state = self.optimizer.state[parameter]
            # Steps are counted per parameter: image batches do not reach all of them.
            tensors |= {f"{key}.{name}": torch.as_tensor(x) for key, x in state.items()}
        metadata = {"step": str(step), "seconds": repr(self.seconds)}
        write_weights(self.config.out / "checkpoint.safetensors", tensors, metadata=metadata)

    def restore(self) -> None:
        """Take up the checkpoint, and forget metrics of later steps."""
        path = self.config.out / "checkpoint.safetensors"
        tensors = read_weights(path)
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = tensor
        self.model.load_state_dict(parts["model"])
        self.average.load_state_dict(parts["average"])
        self.start = self.done = int(metadata["step"])
        self.seconds = float(metadata["seconds"])
        for name, parameter in self.model.named_parameters():
            state: dict[str, Any] = {
                key: torch.empty_like(parameter).copy_(parts[key][name])
                for key in ("exp_avg", "exp_avg_sq")
                if name in parts.get(key, {})
            }
            if name in parts.get("step", {}):
                state["step"] = parts["step"][name]
            self.optimizer.state[parameter] = state
        metrics = self.config.out / "metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.is_file() else []
        kept = [line for line in lines if json.loads(line)["step"] <= self.start]
        metrics.write_text("".join(line + "\n" for line in kept))


def new_optimizer(parameters: Sequence[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """Return Muon, or AdamW as in the paper."""
    rate, betas, decay = config.lr, config.betas, config.weight_decay
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, rate, betas, weight_decay=decay)
    return Muon(parameters, rate, betas, decay, getattr(torch, config.precision))


def learning_rate(config: TrainConfig, step: int) -> float:
    """Rise linearly, then fall along half a cosine."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    way = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * (config.final_lr + (1 - config.final_lr) * (1 + cos(pi * way)) / 2)


def reconstruction_loss(
    output: Float[Tensor, "b 3 t h w"], target: Float[Tensor, "b 3 t h w"], config: LossConfig
) -> Float[Tensor, ""]:
    """Return the mean of |e|, e**2, and |differences of e| at several scales, weighted.

    ``e`` is the error. The differences between neighbours in x, y and t weigh edges and motion,
    which a plain error blurs; at the coarser scales, made by averaging 2x2 pixels, they weigh
    larger structures. They stand in for a perceptual network, which would have to be
    downloaded.
    """
    error = (output - target).float()
    loss = config.l1 * error.abs().mean() + config.l2 * error.square().mean()
    if not config.gradient:
        return loss
    for scale in range(config.scales):
        if scale:
            error = error.unflatten(-2, (-1, 2)).unflatten(-1, (-1, 2)).mean((-3, -1))
        axes = (-1, -2) if error.shape[2] == 1 else (-1, -2, -3)
        terms = [error.diff(dim=axis).abs().mean() for axis in axes]
        loss = loss + config.gradient / config.scales * torch.stack(terms).mean()
    return loss


def saturation_loss(features: Float[Tensor, "b c t h w"]) -> Float[Tensor, ""]:
    """Return the mean square of what exceeds 1.5 in the quantiser's inputs.

    There its tanh is well inside the outermost level. Without this term inputs drift on, the
    gradient through the tanh dies, and training collapses to a handful of tokens.
    """
    return (features.float().abs() - SATURATED).relu().square().mean()


def finish(run: Run, cache: ClipCache) -> ContinuousTokenizer | DiscreteTokenizer:
    """Make the tokenizer to keep: averaged weights in float16, and the latents' statistics."""
    config = run.config.model
    weights = {name: t.half().float() for name, t in run.average.state_dict().items()}
    run.average.load_state_dict(weights)
    if isinstance(run.average, ContinuousTokenizer):
        batches = (
            cache.batch(shape, random.Random(f"statistics:{i}"))
            for i in range(run.config.statistics_batches)
            for shape in [_statistics_shape(run.config, i)]
        )
        mean, std = latent_statistics(run.average, batches)
        update = {"latent_mean": mean, "latent_std": std}
        config = TokenizerConfig.model_validate(config.model_dump() | update)
    tokenizer = build(config)
    tokenizer.load_state_dict(weights)
    return tokenizer.to(run.config.device).eval().requires_grad_(False)


def _statistics_shape(config: TrainConfig, i: int) -> BatchShape:
    """Go through the shapes of video batches (or, if there are none, of images) in turn."""
    videos = [shape for shape in config.shapes if shape.frames > 1] or list(config.shapes)
    return videos[i % len(videos)]


def export(
    run: Run,
    tokenizer: ContinuousTokenizer | DiscreteTokenizer,
    report: Mapping[str, Any],
) -> None:
    """Write ``model``: config, float16 weights, model card, ``metrics.json``."""
    config = run.config
    figures = {**report, "steps": run.done, "seconds": round(run.seconds)}
    folder = config.out / "model"
    tokenizer.save(folder, card=model_card(config, tokenizer, figures), dtype=torch.float16)
    with replacing(folder / "metrics.json") as partial:
        partial.write_text(json.dumps(figures, indent=1) + "\n")
    logger.info("wrote %s: %s", folder, json.dumps(figures))


def model_card(
    config: TrainConfig,
    tokenizer: ContinuousTokenizer | DiscreteTokenizer,
    figures: Mapping[str, Any],
) -> str:
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
        "## Training\n\n"
        f"{figures['steps']} steps with seed {config.seed}, learning rate {config.lr}, loss "
        f"{config.loss.model_dump()}, on {len(config.sources)} sources of clips in batches of "
        + "; ".join(f"{s.batch} x {s.frames} x {s.size}x{s.size}" for s in config.shapes)
        + ".\n\n## Held-out figures\n\n"
        "PSNR in dB over all frames of a clip, mean over clips; `block_mean` paints each latent "
        f"cell in its mean colour.\n\n| | |\n| --- | --- |\n{table}"
    )


def _open_run(config: TrainConfig, *, resume: bool) -> None:
    """Start the run's folder, or check that a resumed run is the same one."""
    text = config.model_dump_json(indent=1)
    path = config.out / "config.json"
    if not resume:
        if (config.out / "checkpoint.safetensors").exists():
            raise ValueError(f"{config.out}: a run is there; resume it, or choose another folder")
        config.out.mkdir(parents=True, exist_ok=True)
        (config.out / "metrics.jsonl").unlink(missing_ok=True)
        path.write_text(text + "\n")
        return
    if not (config.out / "checkpoint.safetensors").is_file():
        raise FileNotFoundError(f"{config.out}: no checkpoint.safetensors to resume from")
    ignored = {"max_minutes", "threads", "out"}
    old = TrainConfig.model_validate_json(path.read_text()).model_dump(exclude=ignored)
    new = config.model_dump(exclude=ignored)
    changed = [key for key in new if new[key] != old[key]]
    if changed:
        raise ValueError(f"{config.out}: cannot resume, other {', '.join(changed)} than before")
