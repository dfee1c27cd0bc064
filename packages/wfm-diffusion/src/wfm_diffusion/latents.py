"""Clips -> latents and text embeddings, once, in a file that training then reads."""

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from .checkpoint import write_weights
from .config import Shape, TrainConfig
from .interfaces import (
    ClipDataset,
    DiscreteCodec,
    Fingerprinted,
    LabelledClip,
    LatentCodec,
    TextEncoder,
)
from .references import resolve
from .video import read_video

logger = logging.getLogger(__name__)
SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi")
ENCODED_AT_ONCE = 8


@dataclass(frozen=True)
class Latents:
    """Everything a run trains on. Latents are the codec's: unit variance; tokens a decoder's."""

    latents: Float[Tensor, "n c t h w"]
    fps: Float[Tensor, " n"]
    clip: Tensor
    text: Tensor
    embeddings: Float[Tensor, "m k d"]
    tokens: Int[Tensor, "_ tl hl wl"] = field(default_factory=lambda: torch.zeros(0, 0, 0, 0).int())

    def split(self, held_out: float, clips: int) -> tuple[Tensor, Tensor]:
        """Return the samples to train on and those of the held-out clips, evenly spread."""
        count = round(clips * held_out)
        if not count:
            return torch.arange(len(self.clip)), torch.arange(0)
        chosen = (torch.arange(count) * clips) // count
        out = torch.isin(self.clip, chosen)
        return torch.where(~out)[0], torch.where(out)[0]


class VideoFile:
    """A plain video file as a clip without labels; a caption if STEM.json has one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def _content(self) -> tuple[UInt8[Tensor, "t 3 h w"], float]:
        return read_video(self.path)

    @cached_property
    def attributes(self) -> dict[str, object]:
        side = self.path.with_suffix(".json")
        return json.loads(side.read_text()) if side.is_file() else {}

    @property
    def fps(self) -> float:
        return self._content[1]

    @property
    def caption(self) -> str:
        return str(self.attributes.get("caption", ""))

    def __len__(self) -> int:
        return len(self._content[0])

    def read(self, start: int, stop: int, /) -> UInt8[Tensor, "t 3 h w"]:
        return self._content[0][start:stop]

    def labels(self) -> dict[str, Tensor]:
        return {}


class VideoFolder:
    """The videos in a folder and below, in the order of their names."""

    def __init__(self, folder: str | Path) -> None:
        self.paths = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in SUFFIXES)
        if not self.paths:
            raise ValueError(f"{folder}: holds no video ({', '.join(SUFFIXES)})")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> LabelledClip:
        return VideoFile(self.paths[index])


def open_clips(reference: str) -> ClipDataset:
    """Open a folder of videos, or the dataset that a reference names.

    Raises:
        ValueError: neither, or no clip inside.
    """
    if Path(reference).is_dir():
        return VideoFolder(reference)
    if ":" not in reference:
        raise ValueError(f"{reference}: neither a folder nor module:callable")
    clips = cast(ClipDataset, resolve(reference, "wfm.clips"))
    if not len(clips):
        raise ValueError(f"{reference}: holds no clip")
    return clips


def fit(frames: UInt8[Tensor, "t 3 h w"], height: int, width: int) -> UInt8[Tensor, "t 3 _ _"]:
    """Scale frames to cover ``height`` x ``width``, then cut out the middle."""
    h, w = frames.shape[-2:]
    if (h, w) == (height, width):
        return frames
    scale = max(height / h, width / w)
    size = (max(height, round(h * scale)), max(width, round(w * scale)))
    scaled = F.interpolate(frames.float(), size=size, mode="bilinear", antialias=True)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return scaled[..., top : top + height, left : left + width].round().clamp(0, 255).byte()


def encode_video(
    codec: LatentCodec, video: Float[Tensor, "b 3 t h w"], kind: str
) -> Float[Tensor, "b c tl hl wl"]:
    """Encode a video whole, or (``kind`` "image") each frame by itself."""
    if kind == "video":
        return codec.encode(video)
    frames = codec.encode(rearrange(video, "b c t h w -> (b t) c 1 h w"))
    return rearrange(frames, "(b t) c 1 h w -> b c t h w", b=len(video))


def decode_video(
    codec: LatentCodec, latents: Float[Tensor, "b c tl hl wl"], kind: str
) -> Float[Tensor, "b 3 t h w"]:
    """Undo :func:`encode_video`."""
    if kind == "video":
        return codec.decode(latents)
    frames = codec.decode(rearrange(latents, "b c t h w -> (b t) c 1 h w"))
    return rearrange(frames, "(b t) c 1 h w -> b c t h w", b=len(latents))


def nearest(frames: UInt8[Tensor, "t 3 h w"], shapes: Sequence[Shape]) -> Shape:
    """Return the shape whose aspect ratio is nearest to that of the frames."""
    h, w = frames.shape[-2:]
    return min(shapes, key=lambda shape: abs(math.log(h * shape.width / (w * shape.height))))


def windows(
    clips: ClipDataset, shape: Shape, peers: Sequence[Shape], stride: int | None
) -> Iterator[tuple[int, LabelledClip, int]]:
    """Yield (number of the clip, clip, first frame) of every sample of a shape."""
    for number in range(len(clips)):
        clip = clips[number]
        if len(peers) > 1 and nearest(clip.read(0, 1), peers) != shape:
            continue
        for start in range(0, len(clip) - shape.frames + 1, stride or shape.frames):
            yield number, clip, start


def fingerprint_of(part: object) -> str:
    """Return a part's own fingerprint, or nothing when it offers none."""
    return part.fingerprint if isinstance(part, Fingerprinted) else ""


def text_fingerprint(encoder: TextEncoder | None) -> str:
    """Tell text encoders apart by what they make of one sentence."""
    if encoder is None:
        return ""
    embedding, _ = encoder.encode(["a red cube on a table, seen from above"])
    return hashlib.sha256(embedding.float().cpu().numpy().tobytes()).hexdigest()[:16]


def prepare(
    clips: ClipDataset,
    config: TrainConfig,
    codec: LatentCodec,
    encoder: TextEncoder | None,
    token_codec: DiscreteCodec | None = None,
) -> list[Latents]:
    """Return the latents and embeddings of all clips, for each of ``config.sizes``.

    They are read from the cache if that is of these parts.

    Raises:
        ValueError: no clip is long enough, or the codec does not fit the network.
    """
    if codec.latent_channels != config.model.latent_channels:
        raise ValueError(
            f"{config.codec} makes {codec.latent_channels} latent channels, the network takes"
            f" {config.model.latent_channels}"
        )
    if encoder is not None and encoder.dim != config.model.text_dim:
        raise ValueError(
            f"{config.text_encoder} makes {encoder.dim} features, the network takes"
            f" {config.model.text_dim}; set model.text_dim"
        )
    if token_codec is not None and token_codec.vocab_size != config.model.token_vocab:
        raise ValueError(
            f"{config.token_codec} makes {token_codec.vocab_size} kinds of tokens, the network"
            f" takes {config.model.token_vocab}"
        )
    made_by: list[object] = [len(clips), fingerprint_of(codec), text_fingerprint(encoder)]
    made_by += [fingerprint_of(token_codec)] if token_codec is not None else []
    found = []
    for shape in config.sizes:
        path, of = cache_of(config, shape)
        key = json.dumps([of, *made_by], sort_keys=True)
        data = read_cache(path, key)
        if data is None:
            data = encode_clips(clips, shape, config, codec, encoder, token_codec)
            write_weights(path, vars(data), metadata={"of": key})
            logger.info("encoded %d samples to %s", len(data.latents), path)
        size = tuple(data.latents.shape[2:])
        if any(n > m for n, m in zip(size, config.model.max_size, strict=True)):
            most = config.model.max_size
            raise ValueError(f"{shape}: latents of {size}; the network takes up to {most}")
        found.append(data)
    return found


def cache_of(config: TrainConfig, shape: Shape) -> tuple[Path, dict[str, object]]:
    """Return where the latents of a shape are kept, and what of the settings they depend on."""
    path = Path(config.cache or Path(config.out) / "latents.safetensors")
    of: dict[str, object] = shape.model_dump(include={"frames", "height", "width"})
    of |= config.model_dump(include={"clips", "latents", "stride"})
    if config.shapes:
        path = path.with_stem(f"{path.stem}-{shape.frames}x{shape.height}x{shape.width}")
    if len(peers := peers_of(config, shape)) > 1:
        of["peers"] = [(x.frames, x.height, x.width) for x in peers]
    return path, of


def peers_of(config: TrainConfig, shape: Shape) -> list[Shape]:
    """Return the shapes of a stage."""
    return [other for other in config.sizes if other.start == shape.start]


def read_cache(path: Path, key: str) -> Latents | None:
    """Read a cache that was made of the same parts."""
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        if (file.metadata() or {}).get("of") != key:
            return None
        return Latents(**{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


@torch.no_grad()
def encode_clips(
    clips: ClipDataset,
    shape: Shape,
    config: TrainConfig,
    codec: LatentCodec,
    encoder: TextEncoder | None,
    token_codec: DiscreteCodec | None,
) -> Latents:
    """Encode every sample; latents and embeddings are kept as float16."""
    captions: dict[str, int] = {}
    fps, numbers, texts, latents, tokens, waiting = [], [], [], [], [], []

    def encode() -> None:
        video = rearrange(torch.stack(waiting), "b t c h w -> b c t h w") / 127.5 - 1
        latents.append(encode_video(codec, video, config.latents).half())
        if token_codec is not None:
            tokens.append(token_codec.encode(video).int())
        waiting.clear()

    for number, clip, start in windows(clips, shape, peers_of(config, shape), config.stride):
        frames = clip.read(start, start + shape.frames)
        waiting.append(fit(frames, shape.height, shape.width))
        fps.append(clip.fps)
        numbers.append(number)
        texts.append(captions.setdefault(clip.caption, len(captions)))
        if len(waiting) == ENCODED_AT_ONCE:
            encode()
    if waiting:
        encode()
    if not latents:
        size = f"{shape.height}x{shape.width}"
        raise ValueError(f"{config.clips}: no clip has {shape.frames} frames to show at {size}")
    return Latents(
        latents=torch.cat(latents),
        fps=torch.tensor(fps, dtype=torch.float32),
        clip=torch.tensor(numbers),
        text=torch.tensor(texts),
        embeddings=_embed(encoder, list(captions), config.model.text_dim),
        **({"tokens": torch.cat(tokens)} if tokens else {}),
    )


def _embed(encoder: TextEncoder | None, captions: Sequence[str], dim: int) -> Tensor:
    if encoder is None:
        return torch.zeros(len(captions), 1, dim, dtype=torch.float16)
    parts = [encoder.encode(captions[i : i + 64])[0] for i in range(0, len(captions), 64)]
    return torch.cat(parts).half()
