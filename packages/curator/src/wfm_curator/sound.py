"""Carry sound into clips: exact to the sample, encoded anew as AAC."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from .video import VideoError, open_video

BITS = 128_000  # per second
EARLY = 1.0  # seconds before a clip from which sound is decoded, to be sure of its beginning


def add(source: Path, pictures: Path, output: Path, start: float, seconds: float) -> None:
    """Write the pictures of one file with the sound of another, from ``start`` on.

    Where the source has no sound there is silence, so that both stay together. The file appears
    whole or not at all.

    Raises:
        VideoError: a file cannot be read.
    """
    partial = output.with_name(output.name + ".partial")
    options = {"fflags": "+bitexact"}
    try:
        with (
            open_video(source) as heard,
            open_video(pictures) as seen,
            av.open(str(partial), "w", format="mp4", options=options) as out,
        ):
            voice = heard.streams.audio[0].codec_context
            stereo = voice.layout.nb_channels > 1
            layout, rate = "stereo" if stereo else "mono", voice.sample_rate
            video = out.add_stream_from_template(seen.streams.video[0])
            audio = out.add_stream("aac", rate=rate, layout=layout)
            audio.codec_context.bit_rate, audio.codec_context.thread_count = BITS, 1
            for packet in seen.demux(seen.streams.video[0]):
                if packet.size:
                    packet.stream = video
                    out.mux(packet)
            samples = _samples(heard, str(source), start, round(seconds * rate), layout, rate)
            position = 0
            size = audio.codec_context.frame_size or 1024
            for block in _blocks(samples, size):
                frame = av.AudioFrame.from_ndarray(block, "fltp", layout)
                frame.sample_rate, frame.pts = rate, position
                frame.time_base = Fraction(1, rate)
                position += block.shape[1]
                out.mux(audio.encode(frame))
            out.mux(audio.encode(None))
        partial.replace(output)
    except av.FFmpegError as e:
        raise VideoError(f"{source}: its sound cannot be carried over ({e})") from e
    finally:
        partial.unlink(missing_ok=True)


def _samples(
    heard: av.container.InputContainer, name: str, start: float, count: int, layout: str, rate: int
) -> Iterator[np.ndarray]:
    """Yield exactly ``count`` samples, float32 ``channels n``, from ``start`` seconds on."""
    stream = heard.streams.audio[0]
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
    channels = 2 if layout == "stereo" else 1
    unit = stream.time_base or Fraction(1, rate)
    if start > EARLY:
        heard.seek(int((start - EARLY) / unit), stream=stream, backward=True)
    done, ahead = 0, None
    try:
        for frame in heard.decode(stream):
            if ahead is None and frame.pts is not None:
                ahead = round((float(frame.pts * unit) - start) * rate)
            for part in resampler.resample(frame):
                block = part.to_ndarray()
                place = ahead or 0
                ahead = place + block.shape[1]
                if place > done:
                    yield np.zeros((channels, min(place, count) - done), np.float32)
                    done = min(place, count)
                block = block[:, max(0, done - place) : max(0, count - place)]
                yield block
                done += block.shape[1]
            if done >= count:
                break
    except av.FFmpegError as e:
        raise VideoError(f"{name}: its sound cannot be decoded ({e})") from e
    yield np.zeros((channels, count - done), np.float32)


def _blocks(samples: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Regroup samples into blocks of a size; the last may be shorter."""
    kept: list[np.ndarray] = []
    for block in samples:
        kept.append(block)
        while sum(b.shape[1] for b in kept) >= size:
            joined = np.concatenate(kept, axis=1)
            yield np.ascontiguousarray(joined[:, :size])
            kept = [joined[:, size:]]
    rest = np.concatenate(kept, axis=1) if kept else np.zeros((1, 0), np.float32)
    if rest.shape[1]:
        yield np.ascontiguousarray(rest)
