"""What a training run is told; no torch here."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


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
    decay: Literal["cosine", "linear"] = Field(
        "cosine", description="from lr to min_lr; a cool-down is linear to 0"
    )
    weight_decay: float = Field(0.05, ge=0, description="of matrices; norms have none")
    betas: tuple[float, float] = (0.9, 0.95)
    clip_norm: float = Field(1.0, gt=0)
    ema: float = Field(0.999, ge=0, lt=1)
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of matrix products in training; the weights stay float32"
    )
    seed: int = 0

    sharding: bool = Field(
        False, description="each process of torchrun keeps a part of the weights (FSDP2)"
    )
    tensor_parallel: int = Field(
        1, ge=1, description="so many processes share each matrix; needs sharding"
    )

    log_every: int = Field(20, ge=1)
    eval_every: int = Field(500, ge=1)
    eval_windows: int = Field(256, ge=1)
    save_every: int = Field(200, ge=1)
