"""Read and write video files with PyAV, some frames at a time: uint8 RGB, ``t 3 h w``."""

import os
import shutil
import tempfile
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8

from .frames import CHUNK

Pixels = UInt8[np.ndarray, "t 3 h w"]


# same as: packages/tokenizer/src/wfm_tokenizer/checkpoint.py
@contextmanager
def replacing(path: str | Path) -> Generator[Path, None, None]:
    """Give a temporary name beside ``path``; rename it to ``path`` if all goes well.

    A file or a folder may be written under the temporary name. On an error it is removed,
    and what was at ``path`` before is still there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(descriptor)
    partial = Path(name)
    partial.unlink()
    try:
        yield partial
        if partial.is_dir() and path.is_dir():
            shutil.rmtree(path)
        partial.replace(path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)


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


def frame_rate(path: str | Path) -> float | None:
    """Return a file's frame rate in Hz, if it says one."""
    with open_video(path) as container:
        rate = container.streams.video[0].average_rate
    return float(rate) if rate else None


def has_sound(path: str | Path) -> bool:
    """Tell whether a file holds sound."""
    with open_video(path) as container:
        return bool(container.streams.audio)


def read_chunks(path: str | Path) -> Iterator[Pixels]:
    """Yield a file's frames, at most sixteen at a time and all of one size in each chunk.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a video, damaged or cut off in the middle, or without frames.
    """
    count = 0
    waiting: list[UInt8[np.ndarray, "3 h w"]] = []
    with open_video(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        try:
            for frame in container.decode(stream):
                picture = frame.to_ndarray(format="rgb24").transpose(2, 0, 1)
                if waiting and (len(waiting) == CHUNK or waiting[0].shape != picture.shape):
                    yield np.stack(waiting)
                    waiting = []
                waiting.append(picture)
                count += 1
        except av.error.FFmpegError as e:
            raise ValueError(
                f"{path}: damaged after frame {count} ({e.strerror or e}); re-encode or re-copy it"
            ) from e
    if not count:
        raise ValueError(f"{path}: no frame could be decoded; the file is empty or cut off")
    yield np.stack(waiting)


def write_chunks(path: str | Path, chunks: Iterable[Pixels], fps: float, *, crf: int = 12) -> int:
    """Write an H.264 file; it appears whole or not at all. Return the number of frames.

    All pixels are kept: sides that are even as 4:2:0, which every player shows, odd ones as
    4:4:4, which some do not.
    """
    count = 0
    with replacing(path) as partial, av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.options = {"crf": str(crf), "preset": "fast"}
        for chunk in chunks:
            for picture in np.ascontiguousarray(chunk.transpose(0, 2, 3, 1)):
                if not count:
                    stream.height, stream.width = height, width = picture.shape[:2]
                    stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"
                count += 1
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        if not count:
            raise ValueError(f"{path}: nothing to write")
        container.mux(stream.encode())
    return count
