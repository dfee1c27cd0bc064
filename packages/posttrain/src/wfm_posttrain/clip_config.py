"""Settings of the clip recipes."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from .clip_recipe import Condition
from .fidelity import FidelityConfig
from .fit import FitConfig
from .lora import LoraConfig
from .objectives import BASE, Noise


class ClipDenoising(Noise):
    """Denoise all new latent frames of a clip at once."""

    kind: Literal["diffusion"] = "diffusion"
    base: str = Field(
        "wfm_diffusion:load=builtin:pico", pattern=BASE, description="module:callable=SOURCE"
    )
    codec: str = Field("pico-cv4x8x8", description="name or module:callable=SOURCE")
    text_encoder: str | None = Field("pico", description="None: captions are not used")
    steps: int = Field(8, gt=0, description="of the sampler, in rollouts")
    guidance: float = Field(0.0, ge=0, description="in rollouts, away from no text")


class ClipTokens(BaseModel):
    """Predict the tokens of all new latent frames; only text steers such a model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["ar"] = "ar"
    base: str = Field(
        "wfm_ar:load=builtin:pico-ar", pattern=BASE, description="module:callable=SOURCE"
    )
    codec: str = Field("pico-dv8x16x16", description="name or module:callable=SOURCE")
    text_encoder: str | None = Field("pico", description="name or module:callable=SOURCE")
    past_noise: float = Field(0.05, ge=0, le=1, description="share of past tokens made wrong")


class ClipConfig(BaseModel):
    """Fine-tune a base model to follow a condition; ``condition.kind`` says which."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    clips: str = Field(description="folder of recordings, or module:callable=ARGUMENT")
    held_out: str | int = Field(
        32, description="clips that are not trained on: another reference, or so many of the last"
    )
    size: tuple[int, int] | None = Field(
        None, description="rows and columns that clips are brought to; None: as they are"
    )
    condition: Condition
    backend: Annotated[ClipDenoising | ClipTokens, Field(discriminator="kind")] = ClipDenoising()
    latents: Literal["video", "image"] = Field("video", description="image: frames encoded alone")
    frames: int = Field(17, gt=1, description="frames of a sample, past ones included")
    past_frames: int = Field(1, gt=0, description="frames that a rollout looks back at")
    given_least: int = Field(1, ge=0, description="latent frames given in training, at the least")
    text_dropout: float = Field(0.1, ge=0, le=1, description="samples without their text")
    trained: str | None = Field(
        None, description="regular expression of the network's weights to train; None: as the "
        "recipe has it, all or none"
    )  # fmt: skip
    lora: LoraConfig | None = Field(None, description="train adapters in place of the network")
    fit: FitConfig = FitConfig()
    evaluation: FidelityConfig = FidelityConfig()
