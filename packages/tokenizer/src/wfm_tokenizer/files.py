"""Video files <-> latent files, in chunks: any length in bounded memory, resumable.

A latent file is a safetensors file with one tensor, ``latent`` (c t h w) or ``tokens`` (t h w), and
metadata: the video's frame rate and size, the tokenizer's name and fingerprint.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .checkpoint import named, part, read_weights, replacing, sort_metadata, write_weights
from .metrics import ratio, squared_error, ssim
from .model import ContinuousTokenizer, DiscreteTokenizer, pad_to_fit
from .video import iterate_video, open_video, to_frames, to_model
from .work import Work
from .writing import join_videos, video_writer

AnyTokenizer = ContinuousTokenizer | DiscreteTokenizer
Report = Callable[[int, int], None]

CELLS = 4096
"""Latent cells that the networks take at once, as a rule."""

PIECE = 2**24
"""Pixels of the frames of a piece, at least: 256 of 256x256, 18 of 1280x720."""

TIME = -3
"""The axis of time, in latents and in tokens."""


def ignore(more: int, total: int) -> None:
    """Report to nobody."""


class LatentFile(NamedTuple):
    """What a latent file holds."""

    latent: Tensor
    fps: float
    frames: int
    height: int
    width: int


def write_latents(path: str | Path, content: LatentFile, tokenizer: AnyTokenizer) -> None:
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
    with replacing(path) as partial:
        write_weights(partial, {"tokens" if discrete else "latent": tensor}, metadata=metadata)
        sort_metadata(partial)


def read_latents(path: str | Path, tokenizer: AnyTokenizer) -> LatentFile:
    """Read a latent file that this tokenizer made.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, no latent file, or made by another tokenizer.
    """
    metadata, tensors = read_facts(path), read_weights(path)
    if metadata["fingerprint"] != tokenizer.fingerprint:
        raise ValueError(
            f"{path}: made by {metadata['model']} ({metadata['fingerprint']}), cannot be decoded "
            f"by {tokenizer.config.name} ({tokenizer.fingerprint}); give its model with -m"
        )
    latent = tensors["tokens"].long() if "tokens" in tensors else tensors["latent"].float()
    sizes = (int(metadata[key]) for key in ("frames", "height", "width"))
    return LatentFile(latent[None], float(metadata["fps"]), *sizes)


def read_facts(path: str | Path) -> dict[str, str]:
    """Read what a latent file says of itself: ``model``, ``fingerprint``, ``fps``, ``frames``, ...

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or no latent file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(path, "pt") as file:
            facts, names = file.metadata() or {}, set(file.keys())
    except (SafetensorError, OSError) as e:
        raise ValueError(f"{path}: not a latent file ({e})") from e
    if "fingerprint" not in facts or not names & {"latent", "tokens"}:
        raise ValueError(f"{path}: not a latent file; wfm-tokenizer encode writes them")
    return facts


def encode_file(
    path: str | Path, out: str | Path, tokenizer: AnyTokenizer, *, report: Report = ignore
) -> LatentFile:
    """Encode a video file to a latent file; what does not fit the compression is padded.

    Killed work is taken up where it was, with the same result. ``report`` is called with the
    number of frames that are done more, and of all there are.
    """
    film = Film.open(path)
    work = Work(out, {**film.key, **mode(tokenizer)})
    encoder = tokenizer.streaming_encoder()
    state = work.resume()
    if state is not None:
        encoder.load_state_dict(part(state, "encoder"))
    count = int(state["frames"]) if state is not None else 0
    report(count, film.frames)
    latents: list[Tensor] = []
    for frames in film.chunks(tokenizer, count):
        latents.append(encoder.push(_prepare(frames, tokenizer)).cpu())
        count += len(frames)
        report(len(frames), film.frames)
        if work.due():
            piece = {"latent": torch.cat(latents, TIME)}
            write_weights(work.piece(work.count, ".safetensors"), piece)
            work.count += 1
            work.save(named("encoder", encoder.state_dict()) | {"frames": torch.tensor(count)})
            latents = []
    latents.append(encoder.flush().cpu())
    done = [read_weights(work.piece(i, ".safetensors"))["latent"] for i in range(work.count)]
    latent = torch.cat([*done, *latents], TIME)
    content = LatentFile(latent, film.fps, count, film.height, film.width)
    write_latents(out, content, tokenizer)
    work.finish()
    return content


def decode_file(
    path: str | Path, out: str | Path, tokenizer: AnyTokenizer, *, report: Report = ignore
) -> LatentFile:
    """Decode a latent file to a video file of the original size. Killed work is taken up."""
    content = read_latents(path, tokenizer)
    decoder = tokenizer.streaming_decoder()
    work = Work(out, {**identity(path), **mode(tokenizer)})
    state = work.resume()
    if state is not None:
        decoder.load_state_dict(part(state, "decoder"))
    at, count = (int(state[k]) if state is not None else 0 for k in ("latents", "frames"))
    report(count, content.frames)
    step = chunk_length(tokenizer, content.height, content.width)
    with Pieces(work, content.fps) as pieces:
        for latent in content.latent.narrow(TIME, at, content.latent.shape[TIME] - at).split(
            step, TIME
        ):
            frames = _frames(decoder.push(latent.to(tokenizer.device)))
            frames = frames[: content.frames - count, :, : content.height, : content.width]
            pieces.write(frames)
            at, count = at + latent.shape[TIME], count + len(frames)
            report(len(frames), content.frames)
            if pieces.end():
                figures = {"latents": torch.tensor(at), "frames": torch.tensor(count)}
                work.save(named("decoder", decoder.state_dict()) | figures)
        pieces.join(out)
    return content


def reconstruct_file(
    path: str | Path, out: str | Path, tokenizer: AnyTokenizer, *, report: Report = ignore
) -> dict[str, float]:
    """Write original and reconstruction side by side; return PSNR, SSIM and sizes."""
    film = Film.open(path)
    work = Work(out, {**film.key, **mode(tokenizer)})
    encoder, decoder = tokenizer.streaming_encoder(), tokenizer.streaming_decoder()
    state = work.resume()
    waiting = torch.zeros(0, 3, film.height, film.width, dtype=torch.uint8)
    tally = torch.zeros(3, dtype=torch.float64)  # squared error, SSIM, frames written
    if state is not None:
        encoder.load_state_dict(part(state, "encoder"))
        decoder.load_state_dict(part(state, "decoder"))
        waiting, tally = state["waiting"], state["tally"]
    count = int(tally[2]) + len(waiting)
    report(int(tally[2]), film.frames)

    def show(latent: Tensor) -> None:
        nonlocal waiting, tally
        output = _frames(decoder.push(latent))[: len(waiting), :, : film.height, : film.width]
        original, waiting = waiting[: len(output)], waiting[len(output) :]
        if len(output):
            pieces.write(torch.cat((original, output), -1))
            tally += _compare(to_model(output), to_model(original))
            report(len(output), film.frames)

    with Pieces(work, film.fps) as pieces:
        for frames in film.chunks(tokenizer, count):
            waiting = torch.cat((waiting, frames))
            show(encoder.push(_prepare(frames, tokenizer)))
            if pieces.end():
                streams = named("encoder", encoder.state_dict())
                streams |= named("decoder", decoder.state_dict())
                work.save(streams | {"waiting": waiting, "tally": tally})
        show(encoder.flush())
        pieces.join(out)
    error, likeness, total = tally.tolist()
    mean = error / (total * 3 * film.height * film.width)
    return {
        "psnr": round(ratio(mean), 3),
        "ssim": round(likeness / total, 4),
        "frames": int(total),
        "height": film.height,
        "width": film.width,
    }


def _compare(output: Tensor, original: Tensor) -> Float[Tensor, "3"]:
    """Return what adds up over chunks: squared error, SSIM, frames."""
    error, _ = squared_error(output, original)
    small = min(original.shape[3:]) < 7
    likeness = float("nan") if small else float(ssim(output, original).double().sum())
    return torch.tensor([error, likeness, original.shape[2]], dtype=torch.float64)


class Film(NamedTuple):
    """A video file, and what its header says."""

    path: Path
    fps: float
    frames: int
    height: int
    width: int

    @classmethod
    def open(cls, path: str | Path) -> "Film":
        """Read the header; ``frames`` is 0 where it does not tell."""
        with open_video(path) as container:
            stream = container.streams.video[0]
            rate = stream.average_rate
            fps = float(rate) if rate else 24.0
            return cls(Path(path), fps, stream.frames, stream.height, stream.width)

    @property
    def key(self) -> dict[str, str]:
        return identity(self.path)

    def chunks(self, tokenizer: AnyTokenizer, start: int) -> Iterator[UInt8[Tensor, "t 3 h w"]]:
        """Read frames in groups that the networks take at once, from number ``start`` on."""
        step = chunk_length(tokenizer, self.height, self.width) * tokenizer.compression[0]
        return chunks(islice(iterate_video(self.path), start, None), step)


class Pieces:
    """A video file that grows in pieces, each of which a killed process leaves behind.

    Where a piece ends depends on the frames alone, not on the clock or on kills: so the bytes of
    the whole do not either.
    """

    def __init__(self, work: Work, fps: float) -> None:
        self.work, self.fps = work, fps
        self._open = ExitStack()
        self._write: Callable[[UInt8[Tensor, "t 3 h w"]], None] | None = None
        self._pixels = 0

    def __enter__(self) -> "Pieces":
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def write(self, frames: UInt8[Tensor, "t 3 h w"]) -> None:
        """Append frames to the current piece."""
        if self._write is None and len(frames):
            piece = self.work.piece(self.work.count, ".mp4")
            self._write = self._open.enter_context(video_writer(piece, self.fps))
        if self._write is not None:
            self._write(frames)
            self._pixels += frames[:, 0].numel()

    def end(self) -> bool:
        """End the piece if it is long enough; is it time to save the state after it?"""
        if self._pixels < PIECE:
            return False
        self._open.close()
        self._write, self._pixels = None, 0
        self.work.count += 1
        return self.work.due()

    def join(self, out: str | Path) -> None:
        """Write the whole file."""
        self._open.close()
        count = self.work.count + (self._write is not None)
        join_videos([self.work.piece(i, ".mp4") for i in range(count)], out)
        self.work.finish()


def identity(path: str | Path) -> dict[str, str]:
    """Return what changes when a file does."""
    status = Path(path).stat()
    return {
        "input": str(Path(path).resolve()),
        "size": str(status.st_size),
        "time": str(status.st_mtime_ns),
    }


def mode(tokenizer: AnyTokenizer) -> dict[str, str]:
    """Return what changes when the tokenizer or its way of computing does."""
    return {"fingerprint": tokenizer.fingerprint, "mode": tokenizer.way, "state": "2"}


def chunk_length(tokenizer: AnyTokenizer, height: int, width: int) -> int:
    """Return how many latent frames the networks take at once: many small ones, one large."""
    _, high, wide = tokenizer.compression
    return max(1, min(16, CELLS // (-(-height // high) * -(-width // wide))))


def chunks(
    frames: Iterable[UInt8[Tensor, "3 h w"]], count: int
) -> Iterator[UInt8[Tensor, "t 3 h w"]]:
    """Stack frames in groups; the last group may be smaller."""
    frames = iter(frames)
    while group := list(islice(frames, count)):
        yield torch.stack(group)


def _prepare(
    frames: UInt8[Tensor, "t 3 h w"], tokenizer: AnyTokenizer
) -> Float[Tensor, "1 3 t h2 w2"]:
    """Scale to [-1, 1] and pad the sides, not the frames: the stream does that at its end."""
    _, high, wide = tokenizer.compression
    return pad_to_fit(to_model(frames.to(tokenizer.device)), (1, high, wide))


def _frames(video: Float[Tensor, "1 3 t h w"]) -> UInt8[Tensor, "t 3 h w"]:
    return to_frames(video.cpu())
