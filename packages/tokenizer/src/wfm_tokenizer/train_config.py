"""The settings of a training run."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .config import PRESETS, TokenizerConfig
from .data import BatchShape, Source
from .loading import read_config
from .losses import LossConfig


class TrainConfig(BaseModel):
    """Everything that decides what a run computes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    out: Path
    model: TokenizerConfig = Field(
        description="a preset's name, or a whole tokenizer config; left out with ``start``"
    )
    start: str | None = Field(
        None, description="go on from this tokenizer: whatever ``load`` opens; None: random weights"
    )
    freeze_encoder: bool = Field(
        False,
        description="train the decoder alone: latents and tokens stay as ``start`` makes them, "
        "so that world models of them can go on to use the tokenizer",
    )
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
    shard: bool = Field(
        False, description="split weights, averages, optimiser over torchrun's processes (FSDP2)"
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

    @model_validator(mode="before")
    @classmethod
    def _model_of_start(cls, values: Any) -> Any:
        if not isinstance(values, dict) or not values.get("start") or "model" in values:
            return values
        try:
            return {"model": read_config(values["start"])} | values
        except (OSError, ValueError) as e:
            raise ValueError(f"start: {e}") from e

    @model_validator(mode="after")
    def _start_fits(self) -> "TrainConfig":
        if self.freeze_encoder and not self.start:
            raise ValueError("freeze_encoder: needs start, the tokenizer whose encoder stays")
        if self.start and self.model.identity() != read_config(self.start).identity():
            raise ValueError(f"model: not the one of {self.start}; leave it out")
        return self

    @model_validator(mode="after")
    def _batches_fit(self) -> "TrainConfig":
        time, high, _ = self.model.compression
        for shape in self.shapes:
            sides = f"{shape.size}x{shape.columns}"
            if (shape.frames - 1) % time or shape.size % high or shape.columns % high:
                raise ValueError(
                    f"shapes: {shape.frames} frames of {sides} pixels do not fit {time}x{high}"
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


def open_run(config: TrainConfig, *, resume: bool) -> None:
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
    ignored = {"max_minutes", "threads", "shard", "out"}
    old = TrainConfig.model_validate_json(path.read_text()).model_dump(exclude=ignored)
    new = config.model_dump(exclude=ignored)
    changed = [key for key in new if new[key] != old[key]]
    if changed:
        raise ValueError(f"{config.out}: cannot resume, other {', '.join(changed)} than before")
