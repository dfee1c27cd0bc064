"""Everything that is known of a recording before any decision: shots, scores, descriptors."""

import hashlib
import re
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from . import filters, sidecar, split
from .config import SplitConfig
from .embed import Embedding, embed
from .scan import Scan, scan
from .video import SUFFIXES, Span, VideoError, VideoInfo

NOT_FACTS = ("path", "embeddings", "strips")
STRIP_HEIGHT, STRIP_PICTURES = 64, 4


@dataclass(frozen=True)
class Recording:
    """A file among the inputs; ``name`` is its path below them, with forward slashes."""

    path: Path
    name: str

    def mark(self, config: SplitConfig) -> str:
        """Return a digest of all that an analysis depends on, from sizes and times of change."""
        files = [self.path, *sidecar.paths(self.path)]
        stats = [(p.stat() if p.is_file() else None) for p in files]
        parts = [(s.st_size, s.st_mtime_ns) if s else None for s in stats]
        text = f"{VERSION} {parts} {config.model_dump_json()}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


VERSION = 2  # of scores and descriptors; a change makes every run measure anew


@dataclass(frozen=True)
class Clip:
    """A piece of a recording. ``reason`` says why splitting gave it up, if it did."""

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


@dataclass(frozen=True)
class Analysis:
    """``clips`` together hold every frame once; embeddings and strips are one for each.

    ``strips`` are JPEGs of a few frames side by side.
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


def find_recordings(inputs: list[Path]) -> list[Recording]:
    """Return the videos among files and below folders, by name.

    Below a folder a video is known by its suffix; a file that is named is taken as one.

    Raises:
        FileNotFoundError: an input is not there.
        ValueError: there is no video at all.
    """
    found: dict[Path, str] = {}
    for place in inputs:
        if not place.exists():
            raise FileNotFoundError(f"{place}: no such file or folder")
        if place.is_file():
            found.setdefault(place.resolve(), place.name)
            continue
        for path in sorted(place.rglob("*")):
            if path.suffix.lower() in SUFFIXES and path.is_file() and not _hidden(path, place):
                found.setdefault(path.resolve(), path.relative_to(place).as_posix())
    if not found:
        raise ValueError(f"{', '.join(map(str, inputs))}: no video files in here")
    names = list(found.values())
    if len(set(names)) < len(names):  # two inputs with like names: tell them by their whole paths
        found = {path: path.as_posix().lstrip("/") for path in found}
    return sorted((Recording(p, n) for p, n in found.items()), key=lambda r: r.name)


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def analyse(
    path: str | Path, config: SplitConfig | None = None, *, name: str | None = None
) -> Analysis:
    """Split, measure and embed a recording, decoding it once.

    Raises:
        FileNotFoundError: no such file.
        VideoError: it is no video, or damaged.
        SidecarError: a side-car file is damaged or does not fit.
    """
    path, config = Path(path), (config or SplitConfig()).resolved()
    json_path, text_path, arrays_path = sidecar.paths(path)
    attributes = sidecar.read_attributes(json_path)
    text = sidecar.read_text(text_path)
    seen = scan(path, tiny=config.method == "transnet", watcher=split.watcher(config))
    sidecar.check(arrays_path, sidecar.read_arrays(arrays_path), len(seen))
    name = name or path.name
    digest = _digest(path)
    found = split.pieces(split.shots(seen, config), len(seen), seen.fps, config)
    clips = [_clip(seen, piece, f"{name} {digest}", path.stem) for piece in found]
    pictures = [_pictures(seen, piece) for piece in found]
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
        text=text,
        clips=clips,
        embeddings=[embed(p) for p in pictures],
        strips=[_strip(p) for p in pictures],
    )


def find_shots(path: str | Path, config: SplitConfig | None = None) -> list[int]:
    """Return the first frame of every shot of a video; the first of all is 0.

    Raises:
        FileNotFoundError: no such file.
        VideoError: it is no video, or damaged.
    """
    config = (config or SplitConfig()).resolved()
    seen = scan(path, tiny=config.method == "transnet", watcher=split.watcher(config))
    return split.shots(seen, config)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _clip(seen: Scan, piece: split.Piece, origin: str, stem: str) -> Clip:
    scores = filters.measure(seen, piece.start, piece.stop)
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
    )


def _pictures(seen: Scan, piece: split.Piece) -> np.ndarray:
    """Return the clip's sampled pictures; for a very short clip, the nearest one."""
    inside = (seen.sampled >= piece.start) & (seen.sampled < piece.stop)
    if not inside.any():
        inside[np.argmin(np.abs(seen.sampled - piece.start))] = True
    return seen.pictures[inside]


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
