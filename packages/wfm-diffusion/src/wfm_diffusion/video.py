"""Read and write video files with PyAV: frames are uint8 RGB, ``t 3 h w``."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from .checkpoint import replacing

SHEET_FRAMES = 8


# same as: packages/tokenizer/src/wfm_tokenizer/video.py
def open_video(path: str | Path) -> av.container.InputContainer:
    """Open a file that holds at least one video stream.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a video, or has no picture stream.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError) as e:
        raise ValueError(f"{path}: not a readable video ({e.strerror or e})") from e
    if not container.streams.video:
        container.close()
        raise ValueError(f"{path}: holds no video stream")
    return container


# same as: packages/tokenizer/src/wfm_tokenizer/video.py
def iterate_video(path: str | Path) -> Iterator[UInt8[Tensor, "3 h w"]]:
    """Yield the frames of a video file one by one, rotation flags ignored.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a video, damaged or cut off in the middle, or without frames.
    """
    count = 0
    with open_video(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        convert = VideoReformatter().reformat  # one for all frames: making it is not free
        try:
            for frame in container.decode(stream):
                picture = convert(frame, format="rgb24").to_ndarray()
                count += 1
                yield rearrange(torch.from_numpy(picture), "h w c -> c h w")
        except av.error.FFmpegError as e:
            raise ValueError(
                f"{path}: damaged after frame {count} ({e.strerror or e}); re-encode or re-copy it"
            ) from e
    if not count:
        raise ValueError(f"{path}: no frame could be decoded; the file is empty or cut off")


# same as: packages/tokenizer/src/wfm_tokenizer/video.py
def read_video(path: str | Path) -> tuple[UInt8[Tensor, "t 3 h w"], float]:
    """Read a whole file; return its frames and its frame rate in Hz.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a video, damaged or cut off in the middle, or without frames.
    """
    with open_video(path) as container:
        rate = container.streams.video[0].average_rate
    return torch.stack(list(iterate_video(path))), float(rate) if rate else 24.0


# same as: packages/tokenizer/src/wfm_tokenizer/video.py
def write_video(
    path: str | Path,
    frames: UInt8[Tensor, "t 3 h w"],
    fps: float,
    *,
    crf: int = 12,
    pixels: str = "yuv420p",
) -> None:
    """Write an H.264 file that browsers play; it appears whole or not at all.

    ``crf`` is x264's quality (0 lossless ... 51 worst). ``yuv420p`` drops the last row or
    column of an odd side; ``yuv444p`` keeps all pixels, but not every player shows it.
    """
    path = Path(path)
    if pixels == "yuv420p":
        frames = frames[..., : frames.shape[-2] // 2 * 2, : frames.shape[-1] // 2 * 2]
    count, _, height, width = frames.shape
    if not (count and height and width):
        raise ValueError(f"{path}: nothing to write, {count} frames of {height}x{width}")
    pictures = np.ascontiguousarray(rearrange(frames.cpu(), "t c h w -> t h w c").numpy())
    with replacing(path) as partial, av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        stream.options = {"crf": str(crf), "preset": "fast"}
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


# same as: packages/tokenizer/src/wfm_tokenizer/video.py
def to_model(frames: UInt8[Tensor, "t 3 h w"]) -> Float[Tensor, "1 3 t h w"]:
    """Scale the frames of a file to [-1, 1], as the networks take them."""
    return rearrange(frames, "t c h w -> 1 c t h w") / 127.5 - 1


# same as: packages/tokenizer/src/wfm_tokenizer/video.py
def to_frames(video: Float[Tensor, "1 3 t h w"]) -> UInt8[Tensor, "t 3 h w"]:
    """Undo :func:`to_model`; values outside [-1, 1] are clamped."""
    return rearrange((video[0] + 1) * 127.5, "c t h w -> t c h w").round().clamp(0, 255).byte()


def write_sheet(path: str | Path, videos: Sequence[UInt8[Tensor, "t 3 h w"]]) -> None:
    """Write a picture: a row for each video, up to eight frames evenly spaced, small ones enlarged.

    The videos are of one size.
    """
    rows = []
    for frames in videos:
        chosen = torch.linspace(0, len(frames) - 1, min(SHEET_FRAMES, len(frames))).round().long()
        rows.append(rearrange(frames[chosen].cpu(), "t c h w -> h (t w) c"))
    image = Image.fromarray(torch.cat(rows).numpy())
    factor = max(1, 128 // videos[0].shape[-2])
    image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    with replacing(path) as partial:
        image.save(partial, format="PNG")
