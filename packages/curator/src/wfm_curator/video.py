"""Read, cut and write video files, exact to the frame, with PyAV alone.

Frames are addressed by their ordinal number in presentation order and found by their
timestamp, never by ``seconds * fps``: that is off for variable frame rates.
"""

import io
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

av.logging.set_level(None)  # decoders' chatter; what matters comes back as an exception

SUFFIXES = frozenset(
    (
        *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts"),
        *(".m2ts", ".wmv", ".flv", ".ogv", ".3gp", ".gif", ".y4m", ".mxf"),
    )
)


LARGEST = 1 << 27  # pixels of a picture; 15360x8640 fits, the lie of a damaged header does not
# What x264's vector code for its macroblock tree gives hangs on the processor and, as seen with
# 64x48 pictures, on what the process did before; its plain code's results do not.
SAME = {"x264-params": "cpu-independent=1"}
COLOURS = ("color_range", "colorspace", "color_primaries", "color_trc")


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
    sounds: int = 0


@contextmanager
def open_video(source: str | Path | bytes) -> Generator[av.container.InputContainer]:
    """Open a file, or the bytes of one, and check that it has pictures in it.

    Raises:
        FileNotFoundError: there is no such file.
        VideoError: it is empty, not a video, or damaged beyond opening.
    """
    name = "clip" if isinstance(source, bytes) else str(source)
    try:
        container = av.open(io.BytesIO(source) if isinstance(source, bytes) else name, "r")
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: no such file") from None
    except (av.FFmpegError, ValueError) as e:
        if not isinstance(source, bytes) and Path(source).stat().st_size == 0:
            raise VideoError(f"{name}: the file is empty") from e
        raise VideoError(f"{name}: cannot be opened as a video ({_reason(e)})") from e
    with container:
        if not container.streams.video:
            raise VideoError(f"{name}: no video stream")
        stream = container.streams.video[0]
        if not stream.codec_context or not stream.codec_context.width:
            raise VideoError(f"{name}: no decodable pictures")
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > LARGEST:
            raise VideoError(f"{name}: pictures of {width}x{height}; {LARGEST} pixels are the most")
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
        sounds=len(container.streams.audio),
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


def convert(
    reformatter: VideoReformatter,
    frame: av.VideoFrame,
    layout: str,
    width: int | None = None,
    height: int | None = None,
) -> np.ndarray:
    """Return a frame as an array, by a reformatter that is kept for frames of this kind.

    A new one for each frame, or its default of a thread for each core, costs many times more
    than small pictures do.
    """
    return reformatter.reformat(frame, width, height, layout, threads=1).to_ndarray()


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


class _LostError(Exception):
    """After a seek, no frame had the timestamp that was looked for."""


def cut(source: Path, spans: Sequence[Span], outputs: Sequence[Path], writer: "Writer") -> None:
    """Write frames of each span, ordered and apart, to its own mp4; decode but once.

    Raises:
        VideoError: the file no longer yields the frames that were seen before.
    """
    first = spans[0]
    try:
        _cut(source, spans, outputs, writer, seek=first.exact and first.start > 0)
    except _LostError:
        _cut(source, spans, outputs, writer, seek=False)


def _cut(
    source: Path, spans: Sequence[Span], outputs: Sequence[Path], writer: "Writer", *, seek: bool
) -> None:
    with open_video(source) as container:
        frames = decode(container, str(source))
        index = 0
        if seek:
            container.seek(spans[0].start_pts, stream=container.streams.video[0], backward=True)
            frames = _from_time(frames, spans[0].start_pts)
            index = spans[0].start
        for span, output in zip(spans, outputs, strict=True):
            for _ in islice(frames, span.start - index):
                pass
            with writer.open(output, span) as write:
                count = 0
                for frame in islice(frames, span.stop - span.start):
                    write(frame)
                    count += 1
                if count != span.stop - span.start:
                    wanted = f"{span.stop - span.start} were before"
                    raise VideoError(f"{source}: {count} frames where {wanted}")
            index = span.stop


def frames_of(source: Path, span: Span) -> Iterator[av.VideoFrame]:
    """Yield the frames of a span.

    Raises:
        VideoError: the file no longer yields the frames that were seen before.
    """
    count, wanted = 0, span.stop - span.start
    with open_video(source) as container:
        frames = decode(container, str(source))
        try:
            if span.exact and span.start > 0:
                stream = container.streams.video[0]
                container.seek(span.start_pts, stream=stream, backward=True)
                frames = _from_time(frames, span.start_pts)
            else:
                frames = islice(frames, span.start, None)
            for frame in islice(frames, wanted):
                yield frame
                count += 1
        except _LostError:
            raise VideoError(f"{source}: no frame at timestamp {span.start_pts}") from None
    if count < wanted:
        raise VideoError(f"{source}: {count} frames where {wanted} were before")


def _from_time(frames: Iterator[av.VideoFrame], pts: int) -> Iterator[av.VideoFrame]:
    """Skip frames before a time; there must be one at that very time."""
    found = next((f for f in frames if f.pts is not None and f.pts >= pts), None)
    if found is None or found.pts != pts:
        raise _LostError
    yield found
    yield from frames


def copy_stream(source: Path, output: Path, frames: int) -> bool:
    """Copy the video stream, not decoded, to an mp4; False if that does not keep all frames."""
    partial = output.with_name(output.name + ".partial")
    options = {"fflags": "+bitexact"}
    try:
        with (
            open_video(source) as container,
            av.open(str(partial), "w", format="mp4", options=options) as out,
        ):
            stream = out.add_stream_from_template(container.streams.video[0])
            for packet in container.demux(container.streams.video[0]):
                if packet.size:
                    packet.stream = stream
                    out.mux(packet)
        with open_video(partial) as container:
            count = sum(1 for _ in decode(container, str(partial)))
        if count == frames:
            partial.replace(output)
        return count == frames
    except (av.FFmpegError, VideoError):
        return False
    finally:
        partial.unlink(missing_ok=True)


@dataclass(frozen=True)
class Writer:
    """H.264 in mp4. Pictures stay yuv420p unless the source has full chroma or an odd side."""

    info: VideoInfo
    crf: int = 12
    preset: str = "veryfast"

    @contextmanager
    def open(self, path: Path, span: Span) -> Generator[Callable[..., None]]:
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
        stream.height, stream.width, stream.pix_fmt = (
            height,
            width,
            "yuv444p" if full else "yuv420p",
        )
        stream.codec_context.time_base = self.time_base
        stream.codec_context.thread_count = 1  # the same bytes on every machine
        stream.options = {"crf": str(writer.crf), "preset": writer.preset, "bf": "0", **SAME}
        self.out, self.stream, self.origin = out, stream, span.start_pts
        self.times: list[int] = []
        self.reformatter = VideoReformatter()

    def write(self, frame: av.VideoFrame, time: int | None = None) -> None:
        """Encode a frame; ``time`` replaces its own, in units of the source's time base."""
        time = frame.pts if time is None else time
        if not self.times and not self.rotation:
            for name in COLOURS:
                setattr(self.stream.codec_context, name, getattr(frame, name))
        if self.rotation:
            turned = upright(convert(self.reformatter, frame, "rgb24"), self.rotation)
            frame = av.VideoFrame.from_ndarray(turned, "rgb24")
        frame = self.reformatter.reformat(frame, format=self.stream.pix_fmt, threads=1)
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
    """Return frames ``start`` to ``stop`` of ``total`` as uint8 ``t h w 3``, upright.

    Raises:
        VideoError: the file ends before.
    """
    name = "clip" if isinstance(source, bytes) else str(source)
    with open_video(source) as container:
        reformatter = VideoReformatter()
        pts = _seek(container, start, total) if start > 0 else None
        frames = decode(container, name)
        frames = islice(frames, start, None) if pts is None else _from_time(frames, pts)
        chosen = [
            upright(convert(reformatter, frame, "rgb24"), int(frame.rotation) % 360)
            for frame in islice(frames, stop - start)
        ]
    if len(chosen) < stop - start:
        raise VideoError(f"{name}: ends at frame {start + len(chosen)}, {stop} were asked for")
    return np.stack(chosen)


def timestamps(source: Path) -> tuple[np.ndarray, Fraction]:
    """Return the timestamps of all frames in order, not decoded, and their unit in seconds.

    Raises:
        VideoError: not a video, or frames without timestamps of their own.
    """
    with open_video(source) as container:
        stream = container.streams.video[0]
        try:
            found = sorted(p.pts for p in container.demux(stream) if p.size and p.pts is not None)
        except av.FFmpegError as e:
            raise VideoError(f"{source}: reading stopped ({_reason(e)})") from e
        if not found or len(set(found)) < len(found):
            raise VideoError(f"{source}: frames cannot be told apart by their timestamps")
        return np.array(found, dtype=np.int64), Fraction(stream.time_base or 1)


def _seek(container: av.container.InputContainer, start: int, total: int) -> int | None:
    """Go to the keyframe before a frame and return its timestamp; None if it must be counted."""
    stream = container.streams.video[0]
    times = sorted(p.pts for p in container.demux(stream) if p.size and p.pts is not None)
    if len(times) != total or len(set(times)) != total:
        container.seek(0, stream=stream)
        return None
    container.seek(times[start], stream=stream, backward=True)
    return times[start]
