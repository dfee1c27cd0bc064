"""Settings that every recipe has."""

from pydantic import BaseModel, ConfigDict, Field

from .fit import FitConfig
from .lora import LoraConfig


class RunConfig(BaseModel):
    """Which clips, whether adapters, how long."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    clips: str = Field(description="folder of recordings, or module:callable=ARGUMENT")
    held_out: str | int = Field(
        32, description="clips that are not trained on: another reference, or so many of the last"
    )
    size: tuple[int, int] | None = Field(
        None, description="rows and columns that clips are brought to; None: as they are"
    )
    lora: LoraConfig | None = Field(None, description="train adapters in place of the network")
    fit: FitConfig = FitConfig()
