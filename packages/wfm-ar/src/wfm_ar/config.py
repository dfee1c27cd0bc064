"""What an autoregressive world model is made of; the published sizes. No torch here."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Grid = tuple[int, int, int]


class Yarn(BaseModel):
    """Stretch the rotary frequencies to a longer clip (Peng et al. 2023, arXiv 2309.00071)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scale: float = Field(gt=0, description="how much longer than in the first training")
    beta_fast: float = Field(gt=0, description="full turns above which a frequency stays")
    beta_slow: float = Field(gt=0, description="full turns below which it is divided by scale")
    original_grid: Grid | None = Field(
        None, description="t h w of the first training; t is used for time, h for both h and w"
    )
    original_length: int = Field(8192, gt=0, description="tokens of the first training, 1-d only")


class ArConfig(BaseModel):
    """A decoder-only transformer over the tokens of a video, in (t h w) order, w fastest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    vocab_size: int = Field(64_000, gt=0, description="tokens of the codec; rows of the head")
    dim: int = Field(4096, gt=0)
    num_layers: int = Field(16, gt=0)
    num_heads: int = Field(32, gt=0)
    num_kv_heads: int = Field(8, gt=0, description="each serves num_heads / num_kv_heads heads")
    head_dim: int = Field(128, gt=0)
    ffn_dim: int = Field(14_336, gt=0)
    norm_eps: float = Field(1e-5, gt=0)
    qk_norm: bool = Field(True, description="RMSNorm of queries and keys, head by head")
    rope: Literal["3d", "1d", "1d-interleaved"] = Field(
        "3d", description="interleaved: channels 2i and 2i + 1 turn together, else i and i + d/2"
    )
    rope_theta: float = Field(500_000.0, gt=0)
    yarn: Yarn | None = None
    absolute_positions: bool = Field(False, description="add a sin-cos table before every layer")
    grid: Grid | None = Field((5, 40, 64), description="t h w of the token grid; None with 1-d")
    max_positions: int = Field(12_800, gt=0, description="rows of the position tables")
    bov: bool = Field(False, description="sequences begin with the token number vocab_size")
    embedding_multiple: int = Field(64, gt=0, description="with bov, embedding rows are padded")
    cross_every: int = Field(0, ge=0, description="cross-attention in every so many layers; 0: no")
    context_dim: int = Field(1024, gt=0, description="features of a text slot")
    text_slots: int = Field(512, gt=0, description="slots of a prompt; padding is attended")

    @property
    def embedding_rows(self) -> int:
        """Rows of the embedding: the head has none for the begin-of-video token."""
        if not self.bov:
            return self.vocab_size
        return -(-(self.vocab_size + 1) // self.embedding_multiple) * self.embedding_multiple

    @property
    def max_tokens(self) -> int:
        """Longest sequence on the model's own grid."""
        if self.grid is None:
            return self.max_positions
        t, h, w = self.grid
        return self.bov + t * h * w

    def has_cross_attention(self, layer: int) -> bool:
        return self.cross_every > 0 and layer % self.cross_every == 0

    @model_validator(mode="after")
    def _fits(self) -> "ArConfig":
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if (self.rope == "3d") != (self.grid is not None):
            raise ValueError("grid goes with rope 3d, and only with it")
        if self.absolute_positions and self.grid is None:
            raise ValueError("absolute_positions need a grid")
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even, got {self.head_dim}")
        if self.max_tokens > self.max_positions:
            raise ValueError(f"grid {self.grid} has more than max_positions {self.max_positions}")
        if self.yarn and self.grid and self.yarn.original_grid is None:
            raise ValueError("yarn on a grid needs original_grid")
        return self


class WorldSettings(BaseModel):
    """What ``world.json`` says: the parts and sizes that the model was trained with."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    codec: str = "pico-dv8x16x16"
    codec_fingerprint: str | None = None
    latents: Literal["video", "image"] = Field("video", description="image: each frame alone")
    past_frames: int = Field(9, ge=1)
    frames: int = Field(24, ge=1, description="new frames by default")
    height: int = Field(64, gt=0)
    width: int = Field(64, gt=0)
    fps: float = Field(10.0, gt=0)
    text_encoder: str | None = None


_YARN = Yarn(scale=2.0, beta_fast=4.0, beta_slow=1.0, original_grid=(3, 40, 64))
_V2W = {"absolute_positions": True, "bov": True, "max_positions": 12_864, "cross_every": 1}
_LARGE = {"dim": 5120, "num_layers": 40, "yarn": _YARN}

NANO, NANO_V2W = ArConfig(), ArConfig.model_validate(_V2W)
SUPER, SUPER_V2W = ArConfig.model_validate(_LARGE), ArConfig.model_validate(_LARGE | _V2W)
PICO = ArConfig(
    vocab_size=1000,
    dim=192,
    num_layers=6,
    num_heads=4,
    num_kv_heads=2,
    head_dim=48,
    ffn_dim=512,
    rope_theta=10_000.0,
    absolute_positions=True,
    grid=(5, 4, 4),
    max_positions=80,
    cross_every=2,
    context_dim=128,
    text_slots=32,
)

PRESETS = {
    "pico": PICO,
    "nano": NANO,
    "nano-v2w": NANO_V2W,
    "super": SUPER,
    "super-v2w": SUPER_V2W,
    "4B": NANO,
    "5B-V2W": NANO_V2W,
    "12B": SUPER,
    "13B-V2W": SUPER_V2W,
}
