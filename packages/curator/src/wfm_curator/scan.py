"""One decoding pass over a video that collects all that the steps need.

Every frame gives its time and how much it differs from the frame before; about four frames a
second are measured, and flow is taken from each of them to the frame a tenth of a second
later. No frame is decoded twice, and memory grows by kilobytes a second of video.
"""

import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from . import motion, natural, quality, text
from .video import (
    VideoError,
    VideoInfo,
    constant_rate,
    convert,
    decode,
    describe,
    open_video,
    upright,
)

cv2.setNumThreads(1)

SAMPLES_PER_SECOND = 4.0
FLOW_SECONDS = 0.1
FLOW_SIDE, PICTURE_SIDE = 256, 64
NATURAL_EVERY, TEXT_EVERY = 4, 2  # sampled frames
UNKNOWN = np.full(natural.FEATURES, np.nan, np.float32)


@runtime_checkable
class Watcher(Protocol):
    """Someone who looks at every frame, uint8 ``h w 3`` of at most 256 pixels, while it is there.

    ``seconds`` is the frame's time; ``found`` gives the first frames of new shots at the end.
    """

    def add(self, picture: np.ndarray, seconds: float) -> None: ...

    def found(self) -> list[int]: ...


@dataclass(frozen=True)
class Scan:
    """What one pass saw.

    ``change`` is how far each frame is from the one before (mean HSV difference, of 255), and
    ``recoloured`` the share of its pixels that have another colour than any there (0 to 1).
    ``columns`` hold one value for each of the frames in ``sampled``: the measurements of
    `quality` and `motion`; NaN where no later frame was left to compare with.
    ``pictures`` are those frames, small, uint8 ``n h w 3``. ``smooth`` are the means of all frames
    from each of them to the next. ``thumbs`` are all frames at 9x16, uint8 ``t 9 16 3``.
    ``natural`` are `natural.features` of some of the sampled frames, NaN for the others,
    ``looks`` the text that a detector saw, ``watched`` the cuts that a watcher found.
    """

    name: str
    info: VideoInfo
    pts: np.ndarray
    times: np.ndarray
    corrupt: np.ndarray
    change: np.ndarray
    recoloured: np.ndarray
    sampled: np.ndarray
    columns: dict[str, np.ndarray]
    pictures: np.ndarray
    smooth: np.ndarray
    thumbs: np.ndarray
    natural: np.ndarray
    looks: tuple[text.Look, ...] = ()
    watched: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.pts)

    @property
    def fps(self) -> float:
        """Mean frames per second."""
        if self.info.rate is not None:
            return float(self.info.rate)
        length = self.times[-1] - self.times[0]
        return (len(self) - 1) / length if length > 0 else 25.0

    @property
    def per_second(self) -> float:
        """Sampled frames per second."""
        return self.fps / float(np.diff(self.sampled).mean()) if len(self.sampled) > 1 else 0.0

    @property
    def exact(self) -> bool:
        """True if timestamps rise strictly, so that a frame can be found by its own."""
        return bool((np.diff(self.pts) > 0).all())


def scan(
    path: str | Path, *, watcher: Watcher | None = None, detector: text.Detector | None = None
) -> Scan:
    """Decode a whole video once and measure it; the decoder works a few frames ahead.

    Raises:
        FileNotFoundError: no such file.
        VideoError: not a video, no frames, or fewer frames than the file promises.
    """
    name = str(path)
    with open_video(path) as container:
        collector = None
        with _ahead(decode(container, name)) as frames:
            for frame in frames:
                if collector is None:
                    collector = Collector(name, describe(container, frame), watcher, detector)
                collector.add(frame)
    if collector is None:
        raise VideoError(f"{name}: no frames")
    return collector.finish()


@contextmanager
def _ahead(frames: Iterator[av.VideoFrame], count: int = 8) -> Generator[Iterator[av.VideoFrame]]:
    """Yield an iterator over frames that another thread decodes, at most ``count`` ahead."""
    ready: queue.Queue[av.VideoFrame | BaseException | None] = queue.Queue(count)
    stopped = threading.Event()

    def work() -> None:
        last: BaseException | None = None
        try:
            for frame in frames:
                if stopped.is_set():
                    return
                ready.put(frame)
        except BaseException as e:  # raised again where the frames are wanted
            last = e
        ready.put(last)

    def taken() -> Iterator[av.VideoFrame]:
        while (found := ready.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield found

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        stopped.set()
        while thread.is_alive():
            with suppress(queue.Empty):
                ready.get(timeout=0.01)
        thread.join()


@dataclass
class Collector:
    """Measures frames one by one; `scan` feeds it a whole file."""

    name: str
    info: VideoInfo
    watcher: Watcher | None = None
    detector: text.Detector | None = None
    pts: list[int] = field(default_factory=list)
    corrupt: list[bool] = field(default_factory=list)
    change: list[float] = field(default_factory=list)
    recoloured: list[float] = field(default_factory=list)
    rows: list[dict[str, float]] = field(default_factory=list)
    sampled: list[int] = field(default_factory=list)
    pictures: list[np.ndarray] = field(default_factory=list)
    sums: list[np.ndarray] = field(default_factory=list)
    thumbs: list[np.ndarray] = field(default_factory=list)
    natural: list[np.ndarray] = field(default_factory=list)
    looks: list[text.Look] = field(default_factory=list)

    def __post_init__(self) -> None:
        info = self.info
        fps = min(max(float(info.rate or 25), 1.0), 240.0)
        self.step = max(1, round(fps / SAMPLES_PER_SECOND))
        self.lag = max(1, round(fps * FLOW_SECONDS))
        self.size = _fit(info.width, info.height, FLOW_SIDE)
        turned = info.rotation in (90, 270)
        self.small = _fit(*(self.size[::-1] if turned else self.size), PICTURE_SIDE)
        self.before: tuple[np.ndarray, np.ndarray] | None = None
        self.large = _fit(info.width, info.height, text.SIDE)
        self.rgb, self.gray = VideoReformatter(), VideoReformatter()  # making one is slow
        self.larger = VideoReformatter()
        self.waiting: list[tuple[int, int, np.ndarray]] = []

    def add(self, frame: av.VideoFrame) -> None:
        index, info = len(self.pts), self.info
        if (frame.height, frame.width) != (info.height, info.width):
            sizes = f"{info.width}x{info.height} to {frame.width}x{frame.height}"
            raise VideoError(f"{self.name}: picture size changes from {sizes} at frame {index}")
        self.pts.append(frame.pts if frame.pts is not None else _following(self.pts))
        self.corrupt.append(bool(frame.is_corrupt))
        picture = convert(self.rgb, frame, "rgb24", *self.size)
        picture = upright(picture, info.rotation)
        small = cv2.resize(picture, self.small, interpolation=cv2.INTER_AREA)
        self._compare(small)
        self.thumbs.append(cv2.resize(small, (16, 9), interpolation=cv2.INTER_AREA))
        if self.watcher is not None:
            self.watcher.add(picture, float(self.pts[-1] * info.time_base))
        gray = None
        if index % self.step == 0:
            gray = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
            self.sampled.append(index)
            self.pictures.append(small)
            self.sums.append(np.zeros(small.shape, np.uint32))
            self._measure(frame, index)
            self.waiting.append((len(self.rows) - 1, index, gray))
        self.sums[-1] += small
        if self.waiting and index - self.waiting[0][1] == self.lag:
            row, earlier, start = self.waiting.pop(0)
            if gray is None:
                gray = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
            seconds = float((self.pts[index] - self.pts[earlier]) * info.time_base)
            self.rows[row] |= motion.measure(start, gray, max(seconds, 1e-3))

    def _measure(self, frame: av.VideoFrame, index: int) -> None:
        """Look at a sampled frame at a larger size; not at all of them for what is costly."""
        number, seconds = len(self.rows), float(self.pts[index] * self.info.time_base)
        gray = convert(self.gray, frame, "gray")
        self.rows.append(quality.measure(gray))
        described = natural.features(gray) if number % NATURAL_EVERY == 0 else None
        self.natural.append(UNKNOWN if described is None else described)
        if self.detector is not None and number % TEXT_EVERY == 0:
            large = upright(convert(self.larger, frame, "rgb24", *self.large), self.info.rotation)
            luma = self.rows[-1]["luma"]
            self.looks.append(text.Look(index, seconds, luma, self.detector(large)))

    def _compare(self, small: np.ndarray) -> None:
        hsv = cv2.cvtColor(small, cv2.COLOR_RGB2HSV).astype(np.int16)
        bins = (hsv[..., 0] // 23) * 16 + (hsv[..., 1] // 64) * 4 + hsv[..., 2] // 64
        colours = np.bincount(bins.ravel(), minlength=128) / bins.size
        change = recoloured = 0.0
        if self.before is not None:
            apart = np.abs(hsv - self.before[0])
            apart[..., 0] = np.minimum(apart[..., 0], 180 - apart[..., 0])  # hue is a circle
            change = float(apart.mean())
            recoloured = float(np.abs(colours - self.before[1]).sum()) / 2
        self.change.append(change)
        self.recoloured.append(recoloured)
        self.before = hsv, colours

    def finish(self, *, whole: bool = True) -> Scan:
        """Return what was seen; a ``whole`` file must have the frames that it promises."""
        n, promised = len(self.pts), self.info.promised
        if whole and n < 0.98 * promised - 1:
            raise VideoError(f"{self.name}: cut off: {promised} frames promised, {n} there")
        pts = np.array(self.pts, dtype=np.int64)
        times = pts * float(self.info.time_base)
        names = (*quality.NAMES, *motion.NAMES)
        return Scan(
            name=self.name,
            info=replace(self.info, rate=constant_rate(times, self.info.rate)),
            pts=pts,
            times=times,
            corrupt=np.array(self.corrupt),
            change=np.array(self.change, dtype=np.float32),
            recoloured=np.array(self.recoloured, dtype=np.float32),
            sampled=np.array(self.sampled),
            columns={k: np.array([row.get(k, np.nan) for row in self.rows]) for k in names},
            pictures=np.stack(self.pictures),
            smooth=self._smooth(),
            thumbs=np.stack(self.thumbs),
            natural=np.stack(self.natural),
            looks=tuple(self.looks),
            watched=tuple(self.watcher.found()) if self.watcher else (),
        )

    def _smooth(self) -> np.ndarray:
        limits = [*self.sampled, len(self.pts)]
        means = [
            total / (b - a) for total, a, b in zip(self.sums, limits, limits[1:], strict=False)
        ]
        return np.stack(means).round().astype(np.uint8)


def _fit(width: int, height: int, side: int) -> tuple[int, int]:
    """Shrink a size so that its longer side is at most ``side``; no side below 16."""
    scale = min(1.0, side / max(width, height))
    return max(16, round(width * scale)), max(16, round(height * scale))


def _following(pts: list[int]) -> int:
    """Stand in for a missing timestamp: one step after the last."""
    if len(pts) < 2:
        return len(pts)
    return pts[-1] + max(1, pts[-1] - pts[-2])
