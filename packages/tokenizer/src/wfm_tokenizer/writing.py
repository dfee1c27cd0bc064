"""Video files that grow: written in pieces, and joined without encoding them again."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from einops import rearrange
from jaxtyping import UInt8
from torch import Tensor

from .checkpoint import replacing


@contextmanager
def video_writer(
    path: str | Path,
    fps: float,
    *,
    crf: int = 12,
) -> Generator[Callable[[UInt8[Tensor, "t 3 h w"]], None], None, None]:
    """Give a function that appends frames to an H.264 file, as ``write_video`` makes them.

    Such files can be put one after the other by :func:`join_videos`.
    """
    path = Path(path)
    with replacing(path) as partial, av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.pix_fmt = "yuv420p"
        # Frames that refer to later ones would start a file before its own beginning; x264's
        # vector code for small pictures goes by what lay in memory before, its plain code does not.
        same = {"x264-params": "cpu-independent=1"}
        stream.options = {"crf": str(crf), "preset": "fast", "bf": "0", **same}
        written = 0

        def write(frames: UInt8[Tensor, "t 3 h w"]) -> None:
            nonlocal written
            frames = frames[..., : frames.shape[-2] // 2 * 2, : frames.shape[-1] // 2 * 2]
            count, _, height, width = frames.shape
            if not (height and width):
                raise ValueError(f"{path}: nothing to write, {count} frames of {height}x{width}")
            if not written:
                stream.width, stream.height = width, height
            pictures = np.ascontiguousarray(rearrange(frames.cpu(), "t c h w -> t h w c").numpy())
            for picture in pictures:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            written += count

        yield write
        if not written:
            raise ValueError(f"{path}: nothing to write, 0 frames")
        container.mux(stream.encode())


def join_videos(pieces: Sequence[Path], path: str | Path) -> None:
    """Put joinable files one after the other, without encoding them again."""
    with replacing(path) as partial, av.open(str(partial), "w", format="mp4") as target:
        stream, offset = None, 0
        for piece in pieces:
            with av.open(str(piece)) as source:
                origin = source.streams.video[0]
                stream = stream or target.add_stream_from_template(origin)
                for packet in source.demux(origin):
                    if packet.dts is not None and packet.pts is not None:
                        packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                        packet.stream = stream
                        target.mux(packet)
                offset += origin.duration or 0
