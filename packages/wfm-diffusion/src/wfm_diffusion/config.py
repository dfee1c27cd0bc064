"""Sizes of the network and their presets. No torch here."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    field_validator,
    model_validator,
)

Position = Literal["learnable", "sincos", "none"]


class DiffusionConfig(BaseModel):
    """The transformer of Cosmos 1.0 (arXiv 2501.03575, section 5.1), in full.

    Latent sizes are frames, height and width as the codec gives them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    latent_channels: int = Field(16, gt=0)
    width: int = Field(4096, gt=0, description="features of a token")
    depth: int = Field(28, gt=0, description="number of blocks")
    num_heads: int = Field(32, gt=0)
    mlp_ratio: float = Field(4.0, gt=0)
    text_dim: int = Field(1024, gt=0, description="features of a text embedding")
    adaln_rank: int = Field(256, gt=0, description="rank of AdaLN-LoRA")
    patch: tuple[int, int, int] = (1, 2, 2)
    max_size: tuple[int, int, int] = Field((128, 240, 240), description="largest latent t, h, w")
    rope_scale: tuple[float, float, float] = Field(
        (2.0, 1.0, 1.0), description="extrapolation ratio of RoPE along t, h, w"
    )
    base_fps: float = Field(24.0, gt=0, description="frame rate at which RoPE counts 0, 1, 2, ...")
    position: Position = Field("learnable", description="embedding added before every block")
    condition_mask: bool = Field(False, description="an input channel marks the given frames")
    padding_mask: bool = Field(True, description="an input channel marks the padded pixels")
    views: int = Field(0, ge=0, description="cameras that have an embedding; 0: one camera")
    view_channels: int = Field(6, gt=0, description="features of a camera's embedding")
    frame_repeat: bool = Field(False, description="embed how often a camera's frame is repeated")
    qk_norm_eps: float = Field(1e-5, gt=0, description="1e-5 as in diffusers, 1e-6 as in NVIDIA's")
    sigma_data: float = Field(0.5, gt=0, description="standard deviation of clean latents")
    extra_channels: int = Field(0, ge=0, description="channels of the condition key 'channels'")
    token_vocab: int = Field(0, ge=0, description="tokens of the condition key 'tokens'; 0: none")
    token_channels: int = Field(32, gt=0, description="features of a token's embedding")
    uncertainty: int = Field(0, ge=0, description="features of the learned loss weight; 0: none")

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> "DiffusionConfig":
        if self.width % self.num_heads or (self.width // self.num_heads) % 2:
            raise ValueError(
                f"width {self.width} over {self.num_heads} heads is no even number of features"
            )
        return self

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    @property
    def in_channels(self) -> int:
        """Channels of the patch embedding, masks and camera embedding included."""
        masks = self.condition_mask + self.padding_mask
        views = self.view_channels if self.views else 0
        return (
            self.latent_channels + masks + views + (self.token_channels if self.token_vocab else 0)
        )


_PICO = DiffusionConfig(
    width=128,
    depth=6,
    num_heads=4,
    text_dim=128,
    adaln_rank=32,
    max_size=(32, 64, 64),
    rope_scale=(1.0, 1.0, 1.0),
    condition_mask=True,
    uncertainty=128,
)
_NANO = DiffusionConfig(
    width=1536, depth=16, num_heads=12, adaln_rank=128, condition_mask=True, uncertainty=128
)
_SUPER = DiffusionConfig()
_ULTRA = DiffusionConfig(width=5120, depth=36, num_heads=40, rope_scale=(2.0, 2.0, 2.0))
_GIVEN = {"condition_mask": True}
_DECODER = {"position": "none", "rope_scale": (1.0, 1.5, 1.5)}
_CAMERAS = {"views": 6, "frame_repeat": True, "position": "sincos"}

PRESETS: Mapping[str, DiffusionConfig] = MappingProxyType(
    {
        "pico": _PICO,
        "nano": _NANO,
        "super-text2world": _SUPER,
        "super-video2world": _SUPER.model_copy(update=_GIVEN),
        "super-text2world-multiview": _SUPER.model_copy(update=_CAMERAS),
        "super-video2world-multiview": _SUPER.model_copy(update=_CAMERAS | _GIVEN),
        "super-decoder": _SUPER.model_copy(update=_DECODER | {"token_vocab": 64_000}),
        "pico-decoder": _PICO.model_copy(
            update={"condition_mask": False, "token_vocab": 1_000, "token_channels": 16}
        ),
        "ultra-text2world": _ULTRA,
        "ultra-video2world": _ULTRA.model_copy(update=_GIVEN),
    }
)
"""pico and nano do text2world and video2world in one; super is Cosmos 7B, ultra 14B.

A decoder turns the tokens of an autoregressive model into latents of a continuous codec.
"""


class WorldSettings(BaseModel):
    """``world.json``: what a network was trained with, and how it is rolled out."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    codec: str = Field("", description="name under wfm.codecs, or module:callable[=ARGUMENT]")
    codec_fingerprint: str = Field("", description="of the codec trained with; empty: any")
    token_codec: str = Field("", description="of a decoder: the codec whose tokens it takes")
    token_compression: tuple[int, int, int] = Field(
        (8, 16, 16), description="of a decoder: frames, height and width of a token"
    )
    latents: Literal["video", "image"] = "video"
    past_frames: int = Field(9, gt=0, description="frames that a rollout looks back at")
    frames: int = Field(112, gt=0, description="new frames of one stretch")
    height: int = Field(704, gt=0)
    width: int = Field(1280, gt=0)
    fps: float = Field(24.0, gt=0)
    text_encoder: str | None = None
    conditions: tuple[str, ...] = ("text",)
    guidance: float = Field(7.0, ge=0, description="x0 = cond + guidance (cond - uncond)")
    guidance_given: float | None = Field(
        None, ge=0, description="the same where frames are given; default: as without"
    )
    steps: int = Field(35, gt=1, description="steps of the sampler")
    steps_given: int | None = Field(
        None, gt=1, description="the same where frames are given; default: as without"
    )
    sampler: Literal["res2ab", "euler", "nvidia"] = "res2ab"
    temperature: float = Field(
        1.0, ge=0, description="deviation of the first noise; below 1: likelier, less varied"
    )
    temperature_given: float | None = Field(
        None, ge=0, description="the same where frames are given; default: as without"
    )
    given_sigma: float = Field(0.001, ge=0, description="noise on given frames, as in training")


class Shape(BaseModel):
    """A size to train at. Of the sizes of one stage a clip is fitted to that nearest in aspect."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    frames: int = Field(17, gt=0)
    height: int = Field(64, gt=0)
    width: int = Field(64, gt=0)
    batch: int | None = Field(None, gt=0, description="samples; default: the run's")
    start: int = Field(0, ge=0, description="first step of the stage that this size is part of")


class TrainConfig(BaseModel):
    """One training run: text2world and video2world at once, on any number of devices."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    out: str = Field(description="folder of the run: checkpoints, metrics.jsonl, model/")
    clips: str = Field(description="module:callable[=ARGUMENT] of a dataset, or a video folder")
    codec: str = Field("pico-cv4x8x8", description="name or module:callable[=ARGUMENT]")
    token_codec: str | None = Field(
        None, description="for a decoder: the discrete codec whose tokens it is to take"
    )
    text_encoder: str | None = Field("pico", description="name or module:callable[=ARGUMENT]")
    model: DiffusionConfig = Field(PRESETS["pico"], description="a preset's name, or its fields")
    init: str | None = Field(
        None,
        description="start from this network instead of at random; its sizes win over the model's,"
        " but it learns to take given frames if the model does",
    )
    latents: Literal["video", "image"] = Field(
        "video", description="image: each frame encoded alone, one latent frame each"
    )
    frames: int = Field(17, gt=0, description="video frames of a sample")
    stride: int | None = Field(None, gt=0, description="frames between samples; default: frames")
    height: int = Field(64, gt=0)
    width: int = Field(64, gt=0)
    shapes: tuple[Shape, ...] = Field(
        (), description="several sizes, or stages of them, instead of frames, height and width"
    )
    cache: str | None = Field(None, description="latents on disk; default: OUT/latents.safetensors")

    steps: int = Field(6000, gt=0)
    batch: int = Field(32, gt=0)
    optimizer: Literal["adamw", "muon"] = Field("adamw", description="muon learns in fewer steps")
    rate: float = Field(8e-4, gt=0, description="highest learning rate")
    warmup: int = Field(200, ge=0, description="steps of linear warm-up")
    final_rate: float = Field(0.02, ge=0, le=1, description="last over highest learning rate")
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    ema_length: float = Field(0.1, gt=0, lt=0.28, description="power EMA, share of the run")
    ema_decay: float | None = Field(None, gt=0, lt=1, description="plain EMA instead")

    log_sigma_mean: float = 0.0
    log_sigma_std: float = Field(1.2, gt=0)
    scale_noise_by_frames: bool = True
    given_max: int = Field(3, ge=0, description="given latent frames: uniform from 0 to this")
    given_weights: tuple[NonNegativeFloat, ...] | None = Field(
        None,
        description="how often 0, 1, ... latent frames are given, in place of equally often:"
        " a stage that is mostly video2world has its weight on the last",
    )
    given_log_sigma: tuple[float, float] = Field((-3.0, 2.0), description="noise in given frames")
    token_dropout: float = Field(0.2, ge=0, le=1, description="samples of token 0 everywhere")
    text_dropout: float = Field(0.2, ge=0, le=1, description="samples without text, for guidance")
    image_fraction: float = Field(0.1, ge=0, lt=1, description="batches of single frames")
    held_out: float = Field(0.05, ge=0, lt=1, description="share of clips for validation")
    sampling_steps: int = Field(35, gt=1, description="for world.json: what a rollout uses")
    sampler: Literal["res2ab", "euler", "nvidia"] = Field("res2ab", description="likewise")
    temperature_given: float = Field(1.0, ge=0, description="likewise, where frames are given")
    temperature: float = Field(1.0, ge=0, description="likewise, where none are")
    guidance: float = Field(3.0, ge=0, description="likewise, where none are")

    validate_every: int = Field(500, gt=0)
    sample_every: int = Field(1000, ge=0, description="steps between pictures; 0: none")
    save_every: int = Field(250, gt=0)
    log_every: int = Field(10, gt=0)
    seed: int = 0
    device: str = "cpu"
    context_parallel: int = Field(1, gt=0, description="processes that share the tokens of a clip")
    recompute: bool = Field(False, description="compute activations twice, keep few; same result")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of matrix products in training; the weights stay float32"
    )

    @property
    def sizes(self) -> tuple[Shape, ...]:
        """The sizes to train at, those of the last stage last."""
        if self.shapes:
            return self.shapes
        return (Shape(frames=self.frames, height=self.height, width=self.width),)

    @field_validator("shapes")
    @classmethod
    def _stages_in_order(cls, shapes: tuple[Shape, ...]) -> tuple[Shape, ...]:
        starts = [shape.start for shape in shapes]
        if shapes and (starts[0] or starts != sorted(starts)):
            raise ValueError(f"stages start at {starts}; wanted 0 first, and none before another")
        return shapes

    @field_validator("model", mode="before")
    @classmethod
    def _model_by_name(cls, value: object) -> object:
        if isinstance(value, str):
            if value not in PRESETS:
                raise ValueError(f"no preset {value!r}; there are {', '.join(PRESETS)}")
            return PRESETS[value]
        return value

    @model_validator(mode="after")
    def _a_weight_for_each_number_of_given_frames(self) -> "TrainConfig":
        weights, wanted = self.given_weights, self.given_max + 1
        if weights is not None and (len(weights) != wanted or not sum(weights)):
            raise ValueError(
                f"given_weights has {len(weights)} numbers with sum {sum(weights):g}; wanted"
                f" {wanted}, for 0 to given_max = {self.given_max} frames, not all 0"
            )
        return self

    @model_validator(mode="after")
    def _tokens_need_a_codec(self) -> "TrainConfig":
        if bool(self.model.token_vocab) != bool(self.token_codec):
            raise ValueError("token_codec and a model with token_vocab go together")
        return self
