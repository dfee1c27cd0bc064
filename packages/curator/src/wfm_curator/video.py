"""Read, cut and write video files, exact to the frame, with PyAV alone.

Frames are addressed by their ordinal number in presentation order and found by their
timestamp, never by ``seconds * fps``: that is off for variable frame rates.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np

av.logging.set_level(None)  # decoders' chatter; what matters comes back as an exception

SUFFIXES = frozenset(
    ".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .ts .m2ts .wmv .flv .ogv .3gp .gif .y4m .mxf".split()
)


class VideoError(ValueError):
    """A file that cannot be used as a video; the text is one line with the file's name."""


@dataclass(frozen=True)
class VideoInfo:
    """What a file says of itself, and ``rate``: frames per second, or None if that varies."""

    height: int
    width: int
    codec: str
    container: str
    pixels: str
    rotation: int
    time_base: Fraction
    rate: Fraction | None
    promised: int
    streams: int


@contextmanager
def open_video(source: str | Path | bytes) -> Iterator[av.container.InputContainer]:
    """Open a file, or the bytes of one, and check that it has pictures in it.

    Raises:
        FileNotFoundError: there is no such file.
        VideoError: it is empty, not a video, or damaged beyond opening.
    """
    name = "clip" if isinstance(source, bytes) else str(source)
    try:
        container = av.open(io.BytesIO(source) if isinstance(source, bytes) else name)
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: no such file") from None
    except (av.FFmpegError, ValueError) as e:
        if not isinstance(source, bytes) and Path(source).stat().st_size == 0:
            raise VideoError(f"{name}: the file is empty") from e
        raise VideoError(f"{name}: not a video, or cut off ({_reason(e)})") from e
    with container:
        if not container.streams.video:
            raise VideoError(f"{name}: no video stream")
        stream = container.streams.video[0]
        if not stream.codec_context or not stream.codec_context.width:
            raise VideoError(f"{name}: no decodable pictures")
        stream.codec_context.thread_count = 1  # many workers, one core each
        yield container


def decode(container: av.container.InputContainer, name: str) -> Iterator[av.VideoFrame]:
    """Yield frames in presentation order.

    Raises:
        VideoError: decoding stopped with an error.
    """
    count = 0
    try:
        for frame in container.decode(container.streams.video[0]):
            yield frame
            count += 1
    except av.FFmpegError as e:
        raise VideoError(f"{name}: decoding stopped after frame {count} ({_reason(e)})") from e


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def describe(container: av.container.InputContainer, frame: av.VideoFrame) -> VideoInfo:
    """Collect what the file and its first frame say; the rate is settled by `constant_rate`."""
    stream = container.streams.video[0]
    return VideoInfo(
        height=frame.height,
        width=frame.width,
        codec=stream.codec_context.name,
        container=container.format.name,
        pixels=stream.codec_context.pix_fmt or frame.format.name,
        rotation=int(frame.rotation) % 360,
        time_base=Fraction(stream.time_base or 1),
        rate=stream.average_rate or stream.guessed_rate,
        promised=stream.frames,
        streams=len(container.streams),
    )


def constant_rate(times: np.ndarray, hint: Fraction | None) -> Fraction | None:
    """Frames per second if all times lie on one grid to a quarter of a frame, else None."""
    if len(times) < 2:
        return hint
    measured = (len(times) - 1) / (times[-1] - times[0]) if times[-1] > times[0] else 0.0
    guesses = [hint, Fraction(measured).limit_denominator(1001)]
    for rate in guesses:
        if rate is None or rate <= 0:
            continue
        grid = times[0] + np.arange(len(times)) / float(rate)
        if np.abs(times - grid).max() < 0.25 / float(rate):
            return rate
    return None


def upright(picture: np.ndarray, rotation: int) -> np.ndarray:
    """Turn ``h w ...`` the way the file asks for."""
    return np.ascontiguousarray(np.rot90(picture, rotation // 90)) if rotation else picture


@dataclass(frozen=True)
class Span:
    """Frames ``start`` to ``stop`` (not included), and the timestamps where they begin.

    ``stop_pts`` is None at the end of the file. ``exact`` says that timestamps rise strictly,
    so that frames can be told apart by them; otherwise they are counted from the start.
    """

    start: int
    stop: int
    start_pts: int
    stop_pts: int | None
    exact: bool = True


def cut(source: Path, spans: Sequence[Span], outputs: Sequence[Path], writer: "Writer") -> None:
    """Write frames of each span, ordered and apart, to its own mp4; decode but once.

    Raises:
        VideoError: the file no longer yields the frames that were seen before.
    """
    with open_video(source) as container:
        stream = container.streams.video[0]
        first = spans[0]
        seek = first.exact and first.start > 0
        if seek:
            container.seek(first.start_pts, stream=stream, backward=True)
        frames = decode(container, str(source))
        index = -1 if seek else 0  # unknown after a seek until the first span begins
        for span, output in zip(spans, outputs, strict=True):
            taken, frames, index = _take(frames, span, index)
            with writer.open(output, span) as write:
                count = 0
                for frame in taken:
                    write(frame)
                    count += 1
            if count != span.stop - span.start:
                raise VideoError(f"{source}: {count} frames where {span.stop - span.start} were")
            index = span.stop


def _take(
    frames: Iterator[av.VideoFrame], span: Span, index: int
) -> tuple[Iterator[av.VideoFrame], Iterator[av.VideoFrame], int]:
    """Skip to the span's first frame; return its frames and the iterator to go on with."""
    for frame in frames:
        if index < 0 and frame.pts is not None and frame.pts >= span.start_pts:
            index = span.start
        if index == span.start:
            break
        index += index >= 0
    else:
        return iter(()), frames, index

    def taken() -> Iterator[av.VideoFrame]:
        yield frame
        for _ in range(span.stop - span.start - 1):
            following = next(frames, None)
            if following is None:
                return
            yield following

    return taken(), frames, index


@dataclass(frozen=True)
class Writer:
    """H.264 in mp4. Pictures stay yuv420p unless the source has full chroma or an odd side."""

    info: VideoInfo
    crf: int = 12
    preset: str = "veryfast"

    @contextmanager
    def open(self, path: Path, span: Span):
        """Yield a function that takes the span's frames one by one; the file appears at the end."""
        partial = path.with_name(path.name + ".partial")
        try:
            with av.open(str(partial), "w", format="mp4", options={"fflags": "+bitexact"}) as out:
                encoder = _Encoder(out, self, span)
                yield encoder.write
                encoder.finish()
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


class _Encoder:
    def __init__(self, out: av.container.OutputContainer, writer: Writer, span: Span) -> None:
        info = writer.info
        self.rotation = info.rotation
        self.constant = info.rate is not None
        self.time_base = 1 / info.rate if info.rate else info.time_base
        height, width = info.height, info.width
        if info.rotation in (90, 270):
            height, width = width, height
        stream = out.add_stream("libx264", rate=info.rate or 25)
        full = "444" in info.pixels or height % 2 or width % 2
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv444p" if full else "yuv420p"
        stream.codec_context.time_base = self.time_base
        stream.codec_context.thread_count = 1  # the same bytes on every machine
        stream.options = {"crf": str(writer.crf), "preset": writer.preset, "bf": "0"}
        self.out, self.stream, self.origin = out, stream, span.start_pts
        self.times: list[int] = []

    def write(self, frame: av.VideoFrame) -> None:
        time = frame.pts
        if self.rotation:
            turned = upright(frame.to_ndarray(format="rgb24"), self.rotation)
            frame = av.VideoFrame.from_ndarray(turned, "rgb24")
        count = len(self.times)
        self.times.append(count if self.constant or time is None else time - self.origin)
        frame.pts, frame.time_base, frame.pict_type = self.times[-1], self.time_base, 0
        self._mux(self.stream.encode(frame))

    def finish(self) -> None:
        self._mux(self.stream.encode(None))

    def _mux(self, packets: Sequence[av.Packet]) -> None:
        """Write packets; each lasts as long as the frame before it did, or else one tick.

        Without this the last frame lasts no time, and readers compute a wrong rate.
        """
        steps = [b - a for a, b in pairwise(self.times)]
        for packet in packets:
            packet.duration = max(1, round(float(np.median(steps)))) if steps else 1
            self.out.mux(packet)


def read_frames(source: str | Path | bytes, start: int, stop: int, total: int) -> np.ndarray:
    """Return frames ``start`` to ``stop`` as uint8 ``t h w 3``, upright.

    Raises:
        VideoError: the file ends before.
    """
    name = "clip" if isinstance(source, bytes) else str(source)
    with open_video(source) as container:
        skip = start
        if start > 0:
            skip = _seek(container, start, total)
        frames = decode(container, name)
        pictures = []
        for index, frame in enumerate(frames):
            if index >= skip:
                picture = frame.to_ndarray(format="rgb24")
                pictures.append(upright(picture, int(frame.rotation) % 360))
            if len(pictures) == stop - start:
                return np.stack(pictures)
    raise VideoError(f"{name}: ends at frame {start + len(pictures)}, asked for {start} to {stop}")


def _seek(container: av.container.InputContainer, start: int, total: int) -> int:
    """Go to the last keyframe at or before a frame; return how many frames to skip from there."""
    stream = container.streams.video[0]
    packets = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.size]
    times = sorted(pts for pts, _ in packets if pts is not None)
    if len(times) != total or len(set(times)) != total:
        container.seek(0, stream=stream)
        return start
    keys = sorted(pts for pts, key in packets if key and pts <= times[start])
    container.seek(keys[-1] if keys else times[0], stream=stream, backward=True)
    first = next(iter(container.decode(stream)), None)  # where the seek really went
    container.seek(keys[-1] if keys else times[0], stream=stream, backward=True)
    if first is None or first.pts not in times or times.index(first.pts) > start:
        raise VideoError("clip: cannot be searched; its timestamps are out of order")
    return start - times.index(first.pts)
