"""Everything that is known of a recording before any decision: shots, scores, descriptors."""

import hashlib
import re
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from . import filters, rigs, sidecar, split, text
from .config import LookConfig, SplitConfig
from .embed import Embedding, embed
from .inputs import files_of
from .scan import Scan, scan
from .sidecar import SidecarError
from .video import Span, VideoError, VideoInfo

NOT_FACTS = ("path", "embeddings", "strips")
STRIP_HEIGHT, STRIP_PICTURES = 64, 4
WITHOUT_TEXT = LookConfig(text="none")


@dataclass(frozen=True)
class Clip:
    """A piece of a recording. ``reason`` says why splitting gave it up, if it did.

    ``natural`` are `natural.features`, the medians over its pictures; empty if there are none.
    """

    key: str
    start: int
    stop: int
    start_pts: int
    stop_pts: int | None
    start_seconds: float
    stop_seconds: float
    reason: str
    scores: dict[str, float]
    tags: list[str]
    natural: list[float]


@dataclass(frozen=True)
class Analysis:
    """``clips`` together hold every frame once; embeddings and strips are one for each.

    ``views`` are those of a rig, the reference first; none for a file alone. ``strips`` are
    JPEGs of a few frames side by side.
    """

    name: str
    path: Path
    frames: int
    fps: float
    exact: bool
    bytes: int
    sha256: str
    info: VideoInfo
    attributes: dict[str, object]
    text: str
    views: list[str]
    clips: list[Clip]
    embeddings: list[Embedding]
    strips: list[bytes]

    def facts(self) -> dict[str, Any]:
        """Return all but embeddings and strips as JSON values."""
        facts = {k: v for k, v in vars(self).items() if k not in NOT_FACTS}
        info = asdict(self.info) | {"time_base": str(self.info.time_base)}
        info["rate"] = None if self.info.rate is None else str(self.info.rate)
        return facts | {"info": info, "clips": [asdict(clip) for clip in self.clips]}


def info_from(facts: dict[str, Any]) -> VideoInfo:
    """Undo the JSON form of a `VideoInfo`."""
    rate = facts["rate"]
    values: dict[str, Any] = facts | {
        "time_base": Fraction(facts["time_base"]),
        "rate": None if rate is None else Fraction(rate),
    }
    return VideoInfo(**values)


def analyse(
    path: str | Path,
    config: SplitConfig | None = None,
    *,
    name: str | None = None,
    rig: Path | None = None,
    look: LookConfig = WITHOUT_TEXT,
) -> Analysis:
    """Split, measure and embed a recording, decoding it once.

    With ``rig``, a folder of synchronised files, ``path`` is its reference. Text is looked for
    only if ``look`` says so.

    Raises:
        FileNotFoundError: no such file.
        VideoError: it is no video, or damaged.
        SidecarError: a side-car file is damaged or does not fit.
    """
    path, config = Path(path), (config or SplitConfig()).resolved()
    parts = None if rig is None else rigs.find(rig)
    json_path, text_path, arrays_path = sidecar.paths(path)
    attributes = sidecar.read_attributes(json_path)
    words = sidecar.read_text(text_path)
    seen = scan(path, watcher=split.watcher(config), detector=text.detector(look))
    sidecar.check(arrays_path, sidecar.read_arrays(arrays_path), len(seen))
    name = name or path.name
    digest = _digest(path)
    starts = split.shots(seen, config)
    shared, views = (0, len(seen)), []
    if parts is not None:
        shared, views = _shared(parts, len(seen)), [parts.reference, *parts.others]
        starts = sorted({*starts, *(f for f in shared if f < len(seen))})
        texts = "".join(map(_digest, files_of(parts.folder)))
        digest = hashlib.sha256(texts.encode()).hexdigest()
    found = split.pieces(starts, len(seen), seen.fps, config, shared=shared)
    marks = text.repeated([_looks(seen, *limits) for limits in pairwise([*starts, len(seen)])])
    clips = [_clip(seen, piece, f"{name} {digest}", path.stem, marks) for piece in found]
    pictures = [_inside(seen, piece, seen.pictures) for piece in found]
    smooth = [_inside(seen, piece, seen.smooth) for piece in found]
    return Analysis(
        name=name,
        path=path,
        frames=len(seen),
        fps=round(seen.fps, 6),
        exact=seen.exact,
        bytes=path.stat().st_size,
        sha256=digest,
        info=seen.info,
        attributes=attributes,
        text=words,
        views=views,
        clips=clips,
        embeddings=[embed(p, per_second=seen.per_second) for p in smooth],
        strips=[_strip(p) for p in pictures],
    )


def _shared(rig: rigs.Rig, frames: int) -> tuple[int, int]:
    """Return the frames of the reference that all sources share.

    Raises:
        SidecarError: there are none, or the clock of the reference does not fit its frames.
    """
    moments = rigs.clock(rig.path)
    if len(moments) != frames:
        text = f"{len(moments)} timestamps for {frames} frames of {rig.reference}"
        raise SidecarError(f"{rig.folder}: {text}")
    return rigs.common(rig, moments)


def find_shots(path: str | Path, config: SplitConfig | None = None) -> list[int]:
    """Return the first frame of every shot of a video; the first of all is 0.

    Raises:
        FileNotFoundError: no such file.
        VideoError: it is no video, or damaged.
    """
    config = (config or SplitConfig()).resolved()
    seen = scan(path, watcher=split.watcher(config))
    return split.shots(seen, config)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _looks(seen: Scan, start: int, stop: int) -> list[text.Look]:
    return [look for look in seen.looks if start <= look.frame < stop]


def _clip(seen: Scan, piece: split.Piece, origin: str, stem: str, marks: text.Boxes) -> Clip:
    scores = filters.measure(seen, piece.start, piece.stop)
    if seen.looks:
        looks = _looks(seen, piece.start, piece.stop)
        scores |= filters.written(seen, looks, marks)
    described = _inside(seen, piece, seen.natural)
    known = described[~np.isnan(described).any(1)]
    row = np.median(known, 0) if len(known) else None
    whole = piece.stop == len(seen)
    slug = re.sub(r"[^A-Za-z0-9_-]+", "-", stem)[:40].strip("-") or "clip"
    digest = hashlib.sha256(f"{origin} {piece.start} {piece.stop}".encode()).hexdigest()[:12]
    times = seen.times - seen.times[0]
    end = times[-1] + 1 / seen.fps if whole else times[piece.stop]
    return Clip(
        key=f"{slug}-{digest}",
        start=piece.start,
        stop=piece.stop,
        start_pts=int(seen.pts[piece.start]),
        stop_pts=None if whole else int(seen.pts[piece.stop]),
        start_seconds=round(float(times[piece.start]), 6),
        stop_seconds=round(float(end), 6),
        reason=piece.reason,
        scores=scores,
        tags=filters.tags(scores),
        natural=[] if row is None else [round(float(v), 5) for v in row],
    )


def _inside(seen: Scan, piece: split.Piece, pictures: np.ndarray) -> np.ndarray:
    """Return those of the sampled pictures in a clip; for a very short clip, the nearest one."""
    inside = (seen.sampled >= piece.start) & (seen.sampled < piece.stop)
    if not inside.any():
        inside[np.argmin(np.abs(seen.sampled - piece.start))] = True
    return pictures[inside]


def _strip(pictures: np.ndarray) -> bytes:
    chosen = pictures[np.linspace(0, len(pictures) - 1, STRIP_PICTURES).round().astype(int)]
    framed = [np.pad(p, ((0, 0), (1, 1), (0, 0)), constant_values=255) for p in chosen]
    strip = np.concatenate(framed, axis=1)[..., ::-1]
    scale = STRIP_HEIGHT / strip.shape[0]
    if scale < 1:
        strip = cv2.resize(strip, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    done, jpeg = cv2.imencode(".jpg", strip, [cv2.IMWRITE_JPEG_QUALITY, 80])
    if not done:
        raise VideoError("a preview picture could not be made")
    return jpeg.tobytes()


def span(clip: dict[str, Any], exact: bool) -> Span:
    """Return where a clip of the ledger lies in its recording."""
    return Span(clip["start"], clip["stop"], clip["start_pts"], clip["stop_pts"], exact)
