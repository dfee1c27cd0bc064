"""Find shots, and cut them to the lengths that are wanted.

``shots(scan, config)`` gives the first frame of each shot, ``pieces(...)`` a partition of all
frames: a piece that is too short is named, not forgotten.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from . import gradual
from .config import SplitConfig
from .scan import Scan, Watcher

WINDOW = 3  # frames to both sides that a cut is compared with


@dataclass(frozen=True)
class Piece:
    """Frames ``start`` to ``stop`` (not included); ``reason`` says why it is no clip, if so."""

    start: int
    stop: int
    reason: str = ""


def shots(scan: Scan, config: SplitConfig) -> list[int]:
    """Return the first frame of every shot; the first of all is 0."""
    match config.method:
        case "whole":
            return [0]
        case "stride":
            length = max(1, round(config.stride * scan.fps))
            return list(range(0, len(scan), length))
        case "content":
            found = content_cuts(scan.change, scan.recoloured, config)
            found = gradual.without_flashes(found, scan.thumbs)
            return [0, *(gradual.add(found, scan.thumbs) if config.gradual else found)]
        case "transnet":
            found = list(scan.watched)
            worth = gradual.DOUBTFUL
            return [0, *(gradual.add(found, scan.thumbs, worth=worth) if config.gradual else found)]
        case "scenedetect":
            return [0, *(c for c in scan.watched if c < len(scan))]
        case _:
            return shots(scan, config.resolved())


def watcher(config: SplitConfig) -> Watcher | None:
    """Return what must see the frames of a scan for this way to split, if anything."""
    match config.resolved().method:
        case "transnet":
            from .transnet import ShotWatcher

            return ShotWatcher(config.threshold)
        case "scenedetect":
            from .scenes import SceneWatcher

            return SceneWatcher(config.detector)
    return None


def content_cuts(change: np.ndarray, recoloured: np.ndarray, config: SplitConfig) -> list[int]:
    """Return the first frames of new shots.

    There the picture changes by much, by more than in the frames around, and to other colours.
    The last condition keeps fast motion in one piece: what moves takes its colours along.
    """
    cuts = []
    for i in np.flatnonzero((change >= config.content) & (recoloured >= config.recoloured)):
        near = np.r_[change[max(1, i - WINDOW) : i], change[i + 1 : i + 1 + WINDOW]]
        usual = max(float(near.mean()) if len(near) else 0.0, 1.0)
        highest = change[i] >= near.max(initial=0.0)
        if highest and change[i] >= config.ratio * usual:
            cuts.append(int(i))
    return cuts


def pieces(
    starts: list[int],
    frames: int,
    fps: float,
    config: SplitConfig,
    *,
    shared: tuple[int, int] | None = None,
) -> list[Piece]:
    """Divide ``frames`` into shots no longer than allowed; short ones carry the reason.

    A single shot that is the whole recording is judged by ``min_frames`` alone. Pieces outside
    the frames that are ``shared`` by synchronised sources are ``not in all views``.
    """
    longest = max(1, int(config.max_seconds * fps + 1e-6))
    found = []
    for start, stop in pairwise([*starts, frames]):
        parts = -(-(stop - start) // longest)
        limits = [start + (stop - start) * i // parts for i in range(parts + 1)]
        found += [Piece(a, b) for a, b in pairwise(limits)]
    if len(found) == 1:
        return [_judged(found[0], config.min_frames)]
    least = max(config.min_frames, int(np.ceil(config.min_seconds * fps - 1e-6)))
    first, last = shared or (0, frames)
    return [
        _judged(piece, least)
        if first <= piece.start < last
        else Piece(piece.start, piece.stop, "not in all views")
        for piece in found
    ]


def _judged(piece: Piece, least: int) -> Piece:
    if piece.stop - piece.start >= least:
        return piece
    return Piece(piece.start, piece.stop, "short")
