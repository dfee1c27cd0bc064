"""Caption clips with a vision-language model: windows, pictures, bounded concurrency, cache.

A clip is captioned in windows of some seconds, each by a few pictures spread over it. What a
model said is kept in the ledger by clip, window, prompt and model, and not asked for again.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from .config import CaptionConfig
from .ledger import Ledger, Row
from .manifest import Entry
from .video import Span, convert, frames_of, upright
from .vlm import Answer, Endpoint

QUALITY = 90
KEPT = ("ok", "truncated", "blocked")  # answers that asking again would not change


@dataclass(frozen=True)
class Clip:
    """Where a clip lies; ``key`` tells its content."""

    key: str
    path: Path
    span: Span
    fps: float

    @property
    def frames(self) -> int:
        return self.span.stop - self.span.start


def clip_of(entry: Entry, facts: Mapping[str, Any], path: Path) -> Clip:
    """Return where the clip of an entry lies."""
    clip = facts["clips"][entry.number]
    limits = (clip["start"], clip["stop"], clip["start_pts"], clip["stop_pts"])
    return Clip(entry.key, path, Span(*limits, facts["exact"]), entry.fps)


@dataclass(frozen=True)
class Window:
    """Frames ``start`` to ``stop`` of a clip, and what was said of them."""

    start: int
    stop: int
    answer: Answer

    def facts(self) -> dict[str, Any]:
        """Return this as JSON values, without what is empty."""
        said = {k: v for k, v in asdict(self.answer).items() if v}
        return {"start": self.start, "stop": self.stop, **said}


def windows(frames: int, fps: float, seconds: float) -> list[tuple[int, int]]:
    """Divide a clip; a rest of less than half a window goes to the one before."""
    size = max(1, round(seconds * fps))
    starts = [*range(0, frames, size)]
    if len(starts) > 1 and frames - starts[-1] < size / 2:
        starts.pop()
    return list(pairwise([*starts, frames]))


def joined(parts: Sequence[Window]) -> str:
    """Return the caption of a clip: what was said of its windows, in order."""
    said = [w.answer.text for w in parts if w.answer.status in ("ok", "truncated")]
    return " ".join(said)


Seen = TypeVar("Seen")


def spread(
    clip: Clip, limits: tuple[int, int], count: int, take: Callable[[np.ndarray], Seen]
) -> list[Seen]:
    """Return what ``take`` makes of frames spread evenly over a window, upright ``h w 3``.

    Raises:
        VideoError: the file no longer yields the frames that were seen before.
    """
    start, stop = limits
    count = min(count, stop - start)
    wanted = set(start + ((2 * np.arange(count) + 1) * (stop - start)) // (2 * count))
    reformatter, found = VideoReformatter(), []
    for index, frame in enumerate(frames_of(clip.path, clip.span)):
        if index in wanted:
            picture = convert(reformatter, frame, "rgb24")
            found.append(take(upright(picture, int(frame.rotation) % 360)))
        if len(found) == len(wanted):
            break
    return found


def pictures(clip: Clip, limits: tuple[int, int], config: CaptionConfig) -> list[bytes]:
    """Return JPEGs of frames of a window, as `spread` does."""

    def small(picture: np.ndarray) -> bytes:
        h, w = picture.shape[:2]
        scale = min(1.0, config.side / max(h, w))
        size = (max(2, round(w * scale)), max(2, round(h * scale)))
        return jpeg_of(cv2.resize(picture, size, interpolation=cv2.INTER_AREA)[..., ::-1])

    return spread(clip, limits, config.frames, small)


def jpeg_of(bgr: np.ndarray) -> bytes:
    """Return a picture as JPEG."""
    _, jpeg = cv2.imencode(".jpg", np.ascontiguousarray(bgr), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return jpeg.tobytes()


def question(clip: Clip, limits: tuple[int, int], config: CaptionConfig) -> str:
    """Return the text that goes with a window's pictures."""
    start, stop = limits
    count = min(config.frames, stop - start)
    places = (np.arange(count) + 0.5) * (stop - start) / count
    times = ", ".join(f"{place / clip.fps:.1f}" for place in places)
    return f"{count} pictures of one video, at {times} seconds. {config.prompt}"


def mark(clip: Clip, limits: tuple[int, int], model: str, config: CaptionConfig) -> str:
    """Return a digest of all that an answer depends on."""
    asked = config.model_dump(
        include={"prompt", "frames", "side", "max_tokens", "temperature", "window_seconds"}
    )
    text = json.dumps([clip.key, limits, model, asked], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


Recall = Callable[[str], Answer | None]
Record = Callable[[str, Answer], None]


def caption_clips(
    clips: Sequence[Clip],
    endpoint: Endpoint,
    *,
    recall: Recall = lambda mark: None,
    record: Record = lambda mark, answer: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Mapping[str, list[Window]]:
    """Return the windows of each clip by its key, with what a model says of them.

    The server is probed before the first window is asked about; if all are known, it is not.
    ``recall`` and ``record`` are the cache; both are called from this thread. A window that
    fails has the error in its answer and costs no other window anything.

    Raises:
        EndpointError: there is no such server or model; nothing was asked.
    """
    config = endpoint.config
    if clips and not endpoint.model:
        endpoint.probe()
    found: dict[str, dict[tuple[int, int], Answer]] = {clip.key: {} for clip in clips}
    todo = []
    for clip in clips:
        for limits in windows(clip.frames, clip.fps, config.window_seconds):
            known = recall(mark(clip, limits, endpoint.model, config))
            if known is None:
                todo.append((clip, limits))
            else:
                found[clip.key][limits] = known
    if todo:
        endpoint.probe()
    for done, (clip, limits, answer) in enumerate(_ask(todo, endpoint), 1):
        found[clip.key][limits] = answer
        if answer.status in KEPT:
            record(mark(clip, limits, endpoint.model, config), answer)
        progress(done, len(todo))
    return {
        key: [Window(*limits, answer) for limits, answer in sorted(parts.items())]
        for key, parts in found.items()
    }


class Captions:
    """The captions of a run: asked for once, kept in the ledger."""

    def __init__(
        self, endpoint: Endpoint, ledger: Ledger, progress: Callable[[str, int, int], None]
    ) -> None:
        self.endpoint, self.ledger, self.progress = endpoint, ledger, progress

    def fill(
        self, entries: Sequence[Entry], rows: Mapping[str, Row], paths: Mapping[str, Path]
    ) -> None:
        """Give entries their captions; one that no window answered for keeps what it has.

        Raises:
            EndpointError: there is no such server or model; nothing was asked.
        """
        clips = [clip_of(e, rows[e.recording].facts, paths[e.recording]) for e in entries]
        found = caption_clips(
            clips,
            self.endpoint,
            recall=self._recall,
            record=self._record,
            progress=lambda done, total: self.progress("caption", done, total),
        )
        self.ledger.commit()
        for entry in entries:
            parts = found[entry.key]
            entry.windows = [w.facts() for w in parts]
            if text := joined(parts):
                entry.caption, entry.caption_source = text, f"model {self.endpoint.model}"

    def _recall(self, mark: str) -> Answer | None:
        row = self.ledger.caption(mark)
        return row and Answer(row[0], row[1], **row[2])

    def _record(self, mark: str, answer: Answer) -> None:
        counts = {k: v for k, v in vars(answer).items() if k.endswith("tokens")}
        self.ledger.put_caption(mark, answer.status, answer.text, counts)
        self.ledger.commit()


Job = tuple[Clip, tuple[int, int]]


def _ask(todo: Sequence[Job], endpoint: Endpoint) -> Iterator[tuple[Clip, tuple[int, int], Answer]]:
    """Yield answers as they come; pictures wait in memory for two windows a thread at most."""
    config = endpoint.config
    rest = iter(todo)
    with ThreadPoolExecutor(config.concurrency) as threads:
        waiting: dict[Future[Answer], Job] = {}

        def fill() -> None:
            while len(waiting) < 2 * config.concurrency:
                job = next(rest, None)
                if job is None:
                    return
                waiting[threads.submit(_answer, *job, endpoint)] = job

        try:
            fill()
            while waiting:
                ended, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in ended:
                    yield *waiting.pop(future), future.result()
                fill()
        finally:
            for future in waiting:
                future.cancel()


def _answer(clip: Clip, limits: tuple[int, int], endpoint: Endpoint) -> Answer:
    try:
        jpegs = pictures(clip, limits, endpoint.config)
    except (ValueError, OSError) as e:
        return Answer("error", error=" ".join(str(e).split()))
    return endpoint.describe(jpegs, question(clip, limits, endpoint.config))
