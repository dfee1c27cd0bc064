"""Video files <-> latent files, in chunks, so that length does not cost memory of the networks.

A latent file is a safetensors file with one tensor, ``latent`` (c t h w) or ``tokens`` (t h w), and
metadata: the video's frame rate and size, the tokenizer's name and fingerprint.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .checkpoint import read_weights, write_weights
from .metrics import psnr
from .model import ContinuousTokenizer, DiscreteTokenizer, pad_to_fit
from .video import iterate_video, open_video, to_frames, to_model, write_video

CHUNK = 4
"""Latent frames that are worked on at once."""

TIME = -3
"""The axis of time, in latents and in tokens."""


class LatentFile(NamedTuple):
    """What a latent file holds."""

    latent: Tensor
    fps: float
    frames: int
    height: int
    width: int


def write_latents(
    path: str | Path, content: LatentFile, tokenizer: ContinuousTokenizer | DiscreteTokenizer
) -> None:
    """Write a latent file, whole or not at all."""
    discrete = isinstance(tokenizer, DiscreteTokenizer)
    tensor = content.latent[0].int() if discrete else content.latent[0]
    metadata = {
        "model": tokenizer.config.name,
        "fingerprint": tokenizer.fingerprint,
        "fps": repr(content.fps),
        "frames": str(content.frames),
        "height": str(content.height),
        "width": str(content.width),
    }
    write_weights(path, {"tokens" if discrete else "latent": tensor}, metadata=metadata)


def read_latents(
    path: str | Path, tokenizer: ContinuousTokenizer | DiscreteTokenizer
) -> LatentFile:
    """Read a latent file that this tokenizer made.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, no latent file, or made by another tokenizer.
    """
    tensors = read_weights(path)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as e:
        raise ValueError(f"{path}: not a latent file ({e})") from e
    if "fingerprint" not in metadata or not tensors.keys() & {"latent", "tokens"}:
        raise ValueError(f"{path}: not a latent file; wfm-tokenizer encode writes them")
    if metadata["fingerprint"] != tokenizer.fingerprint:
        raise ValueError(
            f"{path}: made by {metadata['model']} ({metadata['fingerprint']}), cannot be decoded "
            f"by {tokenizer.config.name} ({tokenizer.fingerprint}); give its model with -m"
        )
    latent = tensors["tokens"].long() if "tokens" in tensors else tensors["latent"].float()
    sizes = (int(metadata[key]) for key in ("frames", "height", "width"))
    return LatentFile(latent[None], float(metadata["fps"]), *sizes)


def encode_file(path: str | Path, tokenizer: ContinuousTokenizer | DiscreteTokenizer) -> LatentFile:
    """Encode a video file; what does not fit the compression is padded."""
    encoder = tokenizer.streaming_encoder()
    latents, count, height, width = [], 0, 0, 0
    for frames in chunks(iterate_video(path), CHUNK * tokenizer.compression[0]):
        count += len(frames)
        height, width = frames.shape[2:]
        latents.append(encoder.push(_prepare(frames, tokenizer)).cpu())
    latents.append(encoder.flush().cpu())
    return LatentFile(torch.cat(latents, TIME), frame_rate(path), count, height, width)


def decode_file(
    path: str | Path, out: str | Path, tokenizer: ContinuousTokenizer | DiscreteTokenizer
) -> LatentFile:
    """Decode a latent file to a video file of the original size."""
    content = read_latents(path, tokenizer)
    decoder = tokenizer.streaming_decoder()
    pieces = content.latent.split(CHUNK, TIME)
    frames = torch.cat([to_frames(decoder.push(p.to(tokenizer.device)).cpu()) for p in pieces])
    write_video(out, frames[: content.frames, :, : content.height, : content.width], content.fps)
    return content


def reconstruct_file(
    path: str | Path, out: str | Path, tokenizer: ContinuousTokenizer | DiscreteTokenizer
) -> dict[str, float]:
    """Write original and reconstruction side by side; return PSNR and sizes."""
    encoder, decoder = tokenizer.streaming_encoder(), tokenizer.streaming_decoder()
    originals, outputs = [], []
    for frames in chunks(iterate_video(path), CHUNK * tokenizer.compression[0]):
        originals.append(frames)
        outputs.append(_frames(decoder.push(encoder.push(_prepare(frames, tokenizer)))))
    outputs.append(_frames(decoder.push(encoder.flush())))
    original = torch.cat(originals)
    count, _, height, width = original.shape
    output = torch.cat(outputs)[:count, :, :height, :width]
    write_video(out, torch.cat((original, output), -1), frame_rate(path))
    return {
        "psnr": round(psnr(to_model(output), to_model(original)), 3),
        "frames": count,
        "height": height,
        "width": width,
    }


def chunks(
    frames: Iterable[UInt8[Tensor, "3 h w"]], count: int
) -> Iterator[UInt8[Tensor, "t 3 h w"]]:
    """Stack frames in groups; the last group may be smaller."""
    frames = iter(frames)
    while group := list(islice(frames, count)):
        yield torch.stack(group)


def frame_rate(path: str | Path) -> float:
    """Return a file's frame rate in Hz; 24 where it has none."""
    with open_video(path) as container:
        rate = container.streams.video[0].average_rate
    return float(rate) if rate else 24.0


def _prepare(
    frames: UInt8[Tensor, "t 3 h w"], tokenizer: ContinuousTokenizer | DiscreteTokenizer
) -> Float[Tensor, "1 3 t h2 w2"]:
    """Scale to [-1, 1] and pad the sides, not the frames: the stream does that at its end."""
    _, high, wide = tokenizer.compression
    return pad_to_fit(to_model(frames.to(tokenizer.device)), (1, high, wide))


def _frames(video: Float[Tensor, "1 3 t h w"]) -> UInt8[Tensor, "t 3 h w"]:
    return to_frames(video.cpu())
