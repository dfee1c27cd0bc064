"""What a run will cost, from the headers of all files and a short trial on a few."""

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from . import embedders, split, text
from .captioning import Clip
from .config import CurateConfig
from .embedders import Embedder
from .inputs import Recording
from .scan import Collector
from .video import Span, VideoError, Writer, decode, describe, open_video

TRIALS, TRIAL_FRAMES = 3, 48
TOKENS_A_PICTURE = 200  # of a vision-language model, roughly: 8 pictures of 512 pixels take 1,600


@dataclass(frozen=True)
class Header:
    """What a file says of itself, before a frame is decoded."""

    name: str
    seconds: float
    frames: int
    pixels: int
    bytes: int


@dataclass(frozen=True)
class Estimate:
    """Hours are of one core, and of the clock with as many workers as the settings say.

    ``encode_hours`` is for all footage cut anew; what stays whole costs nothing. ``megabytes``
    is what the encoder wrote in the trial, scaled to all. ``embed_hours`` are of the clock, for
    as many clips as the footage can give, all kept. Requests and tokens are those of a caption
    model, if every clip is kept and none has a caption.
    """

    recordings: int
    unreadable: tuple[str, ...]
    hours: float
    gigabytes: float
    measure_hours: float
    encode_hours: float
    embed_hours: float
    clock_hours: float
    megabytes: float
    caption_requests: int
    caption_tokens: int

    def as_dict(self) -> dict[str, Any]:
        """Return the estimate as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"{self.recordings} recordings, {self.hours:.2f} hours, {self.gigabytes:.2f} GB",
            f"  measure   {_duration(self.measure_hours)} of one core",
            f"  encode    {_duration(self.encode_hours)} of one core at most, "
            f"about {self.megabytes:,.0f} MB",
        ]
        if self.embed_hours:
            lines.append(f"  embed     {_duration(self.embed_hours)} at most")
        lines.append(f"  in all    {_duration(self.clock_hours)} by the clock")
        if self.caption_requests:
            tokens = f"about {self.caption_tokens:,} tokens"
            lines.append(f"  captions  {self.caption_requests:,} requests at most, {tokens}")
        lines += [f"  unreadable: {name}" for name in self.unreadable]
        return "\n".join(lines)


def _duration(hours: float) -> str:
    if hours < 1 / 30:
        return f"{hours * 3600:.0f} s"
    return f"{hours * 60:.0f} min" if hours < 2 else f"{hours:.1f} h"


def estimate(
    recordings: Sequence[Recording],
    config: CurateConfig,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Estimate:
    """Read headers, try a second or two of a few files, and scale by frames and pixels.

    Remote files are not fetched and not counted.
    """
    headers, unreadable = [], []
    paths = {r.name: r.path for r in recordings if not r.remote}
    for done, (name, path) in enumerate(paths.items(), 1):
        try:
            headers.append(_header(name, path))
        except (VideoError, OSError) as e:
            unreadable.append(" ".join(str(e).split()))
        progress(done, len(paths))
    order = sorted(headers, key=lambda h: h.pixels * h.frames)
    places = np.linspace(0, len(order) - 1, min(TRIALS, len(order))).round().astype(int)
    tried = [order[i] for i in sorted(set(places.tolist()))]
    network = embedders.load(config.embed) if config.embed.model else None
    trials = [_trial(paths[h.name], config, network) for h in tried]
    work = sum(h.pixels * h.frames for h in headers)
    sample = max(1, sum(h.pixels * n for h, (n, *_) in zip(tried, trials, strict=True)))
    measure, encode, size = (work * sum(t[k] for t in trials) / sample for k in (1, 2, 3))
    cores = max(1, min(config.run.workers or 1, os.cpu_count() or 1))
    seconds = sum(h.seconds for h in headers)
    shortest = max(config.split.min_seconds, 1e-3)
    clips = sum(max(1, math.floor(h.seconds / shortest)) for h in headers)
    embed = clips * float(np.mean([t[4] for t in trials])) if trials else 0.0
    window = config.caption.window_seconds
    asked = bool(config.caption.endpoint or config.caption.vllm)
    requests = sum(-(-h.seconds // window) for h in headers) if asked else 0
    tokens = config.caption.frames * TOKENS_A_PICTURE + config.caption.max_tokens
    return Estimate(
        recordings=len(recordings),
        unreadable=tuple(unreadable),
        hours=round(seconds / 3600, 4),
        gigabytes=round(sum(h.bytes for h in headers) / 1e9, 4),
        measure_hours=round(measure / 3600, 5),
        encode_hours=round(encode / 3600, 5),
        embed_hours=round(embed / 3600, 8),
        clock_hours=round(((measure + encode) / cores + embed) / 3600, 5),
        megabytes=round(size / 1e6, 2),
        caption_requests=int(requests),
        caption_tokens=int(requests) * tokens,
    )


def _header(name: str, path: Path) -> Header:
    with open_video(path) as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        if stream.duration and stream.time_base:
            seconds = float(stream.duration * stream.time_base)
        else:
            seconds = (container.duration or 0) / 1e6
        frames = stream.frames or round(seconds * rate)
        pixels = stream.codec_context.width * stream.codec_context.height
        return Header(name, seconds or frames / rate, frames, pixels, path.stat().st_size)


def _trial(
    path: Path, config: CurateConfig, network: Embedder | None
) -> tuple[int, float, float, int, float]:
    """Measure, encode and embed some frames.

    Returns how many, seconds to measure and to encode, bytes written, and seconds for a vector.
    """
    settings = config.split.resolved()
    began = time.process_time()
    try:
        with open_video(path) as container:
            frames = list(islice(decode(container, str(path)), TRIAL_FRAMES))
            if not frames:
                return 0, 0.0, 0.0, 0, 0.0
            info = describe(container, frames[0])
            seeing = split.watcher(settings), text.detector(config.look)
            collector = Collector(str(path), info, *seeing)
            for frame in frames:
                collector.add(frame)
    except VideoError:
        return 0, 0.0, 0.0, 0, 0.0
    split.shots(collector.finish(whole=False), settings)
    measured = time.process_time() - began
    span = Span(0, len(frames), frames[0].pts or 0, None)
    embedding = _vector_seconds(Clip("", path, span, float(info.rate or 25)), config, network)
    began = time.process_time()
    writer = Writer(info, config.shard.crf, config.shard.preset)
    with TemporaryDirectory() as folder:
        output = Path(folder) / "trial.mp4"
        with writer.open(output, span) as write:
            for frame in frames:
                write(frame)
        size = output.stat().st_size
    return len(frames), measured, time.process_time() - began, size, embedding


def _vector_seconds(clip: Clip, config: CurateConfig, network: Embedder | None) -> float:
    """Seconds for the vector of a clip; the second time, when all is loaded."""
    if network is None:
        return 0.0
    for _ in range(2):
        began = time.perf_counter()
        embedders.vector_of(clip, config.embed, network)
    return time.perf_counter() - began
