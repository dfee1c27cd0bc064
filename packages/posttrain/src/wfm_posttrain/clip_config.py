"""Settings of the clip recipes."""

from typing import Annotated, Literal

from pydantic import Field

from .clip_recipe import Condition
from .fidelity import FidelityConfig
from .objectives import Denoising, Predicting
from .run_config import RunConfig


class ClipDenoising(Denoising):
    """Denoise all new latent frames of a clip at once."""

    text_encoder: str | None = Field("pico", description="None: captions are not used")
    steps: int = Field(8, gt=0, description="of the sampler, in rollouts")
    guidance: float = Field(0.0, ge=0, description="in rollouts, away from no text")
    temperature: float = Field(
        1.0, ge=0, description="in rollouts: deviation of the first noise; less: likelier ends"
    )


class ClipTokens(Predicting):
    """Predict the tokens of all new latent frames; only text steers such a model."""

    text_encoder: str | None = Field("pico", description="name or module:callable=SOURCE")


class ClipConfig(RunConfig):
    """Fine-tune a base model to follow a condition; ``condition.kind`` says which."""

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
    evaluation: FidelityConfig = FidelityConfig()
