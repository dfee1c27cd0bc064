"""Find dissolves, fades and wipes from thumbnails of the frames, without a network.

In a transition the frames between are made of the frame before and the frame after: a mix of
both (dissolve), one of them darkened (fade through black), or each part from one of them
(wipe). Motion is not: when the camera pans, what is between is from neither.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import cv2
import numpy as np

LENGTHS = (6, 9, 12, 16, 20, 25, 30)  # frames from the last before to the first after
LEAST, LEAST_WIPE = 0.06, 0.09  # of 1: how far the pictures before and after must be apart
UNEXPLAINED = 0.16  # of that distance, on average, over the frames between
ABRUPT = 0.5  # of that distance, between two neighbours: that is a hard cut
ABRUPT_FADE = 1.1  # or a short fade, which goes further than from end to end
SAME, MOST_SAME = 0.03, 0.3  # a cell that differs less stays the same; this share may
ALIKE = 0.9  # correlation of the ends: the same picture, darker or brighter
ZOOMS, SHIFTS, MOVED = (0.9, 1.0, 1.1), (2, 3), 0.8  # cells; correlation of what both ends show
BLACK = 0.35  # of the brightness of the ends: a fade goes through what is darker
TOGETHER = 6  # frames between two transitions that are parts of one, such as a fade's
OUTSIDE, RESTLESS = 3, 1.0  # frames before and after, and of that distance: still in motion
DOUBTFUL = 0.06  # of 1: a transition worth less should be found in another way too
CHUNK = 4096


@dataclass(frozen=True)
class Gradual:
    """Frame ``start`` is the last before the transition, ``stop`` the first after it.

    ``worth`` is how far these two are apart, less where the frames between fit badly.
    """

    start: int
    stop: int
    worth: float


def transitions(thumbs: np.ndarray) -> list[Gradual]:
    """Find gradual transitions in thumbnails, uint8 ``t h w 3``, by time."""
    flat = thumbs.reshape(len(thumbs), -1)
    found = []
    for length, first in product(LENGTHS, range(0, len(flat), CHUNK)):
        part = flat[first : first + CHUNK + length].astype(np.float32) / 255
        found += [Gradual(first + a, first + a + length, w) for a, w in _spans(part, length)]
    chosen: list[Gradual] = []
    for one in sorted(found, key=lambda g: (-g.worth, g.start)):
        free = all(one.stop < other.start or one.start > other.stop for other in chosen)
        if free and not _moved(thumbs[one.start : one.stop + 1]):
            chosen.append(one)
    merged: list[Gradual] = []
    for one in sorted((_tightened(one, flat) for one in chosen), key=lambda g: g.start):
        if merged and one.start - merged[-1].stop <= TOGETHER:
            last = merged.pop()
            one = Gradual(last.start, one.stop, max(last.worth, one.worth))
        merged.append(one)
    return merged


def _moved(frames: np.ndarray) -> bool:
    """Tell whether a camera's turn or zoom makes the last picture of the first, not through black.

    A move of a cell or two shows cells that were not there and mixes those that were, which at
    this size looks like a wipe or a dissolve.
    """
    light = frames.mean((1, 2, 3))
    if light.min() < BLACK * min(light[0], light[-1]):
        return False
    old, new = frames[0].astype(np.float32), frames[-1].astype(np.float32)
    (h, w), (down, right) = old.shape[:2], SHIFTS
    moves = product(ZOOMS, range(-down, down + 1), range(-right, right + 1))
    for zoom, dy, dx in moves:
        way = np.array([[zoom, 0, dx], [0, zoom, dy]], np.float32)
        way[:, 2] += (1 - zoom) * np.array((w - 1, h - 1), np.float32) / 2
        seen = cv2.warpAffine(np.ones((h, w), np.float32), way, (w, h)) > 0.99
        a, b = cv2.warpAffine(old, way, (w, h))[seen], new[seen]
        a, b = a - a.mean(0), b - b.mean(0)
        if (a * b).sum() > MOVED * np.sqrt((a * a).sum() * (b * b).sum() + 1e-6):
            return True
    return False


def _tightened(one: Gradual, flat: np.ndarray) -> Gradual:
    """Leave out what is still the old picture, or already the new one."""
    frames = flat[one.start : one.stop + 1].astype(np.float32)
    way = frames[-1] - frames[0]
    share = (frames - frames[0]) @ way / max(float(way @ way), 1e-6)
    inside = np.flatnonzero((share > 0.1) & (share < 0.9))
    if not len(inside):
        return one
    first, last = one.start + int(inside[0]) - 1, one.start + int(inside[-1]) + 1
    return Gradual(max(one.start, first), min(one.stop, last), one.worth)


def add(cuts: Sequence[int], thumbs: np.ndarray, *, worth: float = 0, near: int = 2) -> list[int]:
    """Add the ends of gradual transitions to cuts; those in or next to one are part of it.

    A transition of less ``worth`` counts only where there is such a cut.
    """
    inside = {
        g: [c for c in cuts if g.start - near <= c <= g.stop + near] for g in transitions(thumbs)
    }
    spans = [g for g, found in inside.items() if found or g.worth >= worth]
    apart = set(cuts).difference(*(inside[g] for g in spans))
    return sorted({*apart, *(g.stop for g in spans)})


def without_flashes(cuts: Sequence[int], thumbs: np.ndarray, *, longest: int = 4) -> list[int]:
    """Drop cuts at a flash of light: soon after it the picture is the one from before."""
    kept = []
    for cut in cuts:
        before = thumbs[max(0, cut - longest) : cut].astype(np.float32)
        after = thumbs[cut : cut + longest + 1].astype(np.float32)
        apart = np.abs(before[:, None] - after[None]).mean((2, 3, 4))
        if apart.size == 0 or apart[:, -1].min() > 0.4 * apart.max():
            kept.append(cut)
    return kept


def _spans(frames: np.ndarray, length: int) -> Iterator[tuple[int, float]]:
    """Yield starts of spans of this length that are transitions, and what they are worth."""
    if len(frames) <= length:
        return
    old, new = frames[:-length], frames[length:]
    apart = np.abs(new - old).mean(1)
    steps = np.abs(np.diff(frames, axis=0)).mean(1)
    largest = np.lib.stride_tricks.sliding_window_view(steps, length).max(1)
    moved = np.abs(frames[OUTSIDE:] - frames[:-OUTSIDE]).mean(1)
    before = np.r_[np.zeros(OUTSIDE), moved][: len(apart)]
    after = np.r_[moved, np.zeros(OUTSIDE)][length:]
    calm = np.maximum(before, after) < RESTLESS * apart
    likely = np.flatnonzero((apart > LEAST) & (largest < ABRUPT_FADE * apart) & calm)
    if not len(likely):
        return
    likely = likely[_other(old[likely], new[likely])]
    old, new, apart = old[likely], new[likely], apart[likely]
    places = [max(1, round(share * length)) for share in (0.25, 0.5, 0.75)]
    middles = [frames[likely + place] for place in places]
    steady = np.minimum(_dissolve(old, new, middles), _wipe(old, new, middles))
    steady[largest[likely] >= ABRUPT * apart] = np.inf
    unexplained = np.minimum(steady, _fade(old, new, middles)) / apart / UNEXPLAINED
    good = unexplained < 1
    worth = apart * (1 - unexplained**2)
    yield from zip(likely[good].tolist(), worth[good].tolist(), strict=True)


def _other(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """True where the second picture is another one: not a part changed, nor the light."""
    cells = np.abs(new - old).reshape(len(old), -1, 3).max(2)
    changed = (cells < SAME).mean(1) < MOST_SAME
    a, b = (p - p.mean(1, keepdims=True) for p in (old, new))
    length = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return changed & ((a * b).sum(1) < ALIKE * np.maximum(length, 1e-6))


def _dissolve(old: np.ndarray, new: np.ndarray, middles: Sequence[np.ndarray]) -> np.ndarray:
    """Mean distance to the best mix of both; infinite where the mix does not go steadily."""
    way = new - old
    length = np.maximum((way * way).sum(1), 1e-6)
    shares = [((m - old) * way).sum(1) / length for m in middles]
    apart = [
        np.abs(m - old - share[:, None] * way).mean(1)
        for m, share in zip(middles, shares, strict=True)
    ]
    return np.where(_steady(shares), np.mean(apart, axis=0), np.inf)


def _fade(old: np.ndarray, new: np.ndarray, middles: Sequence[np.ndarray]) -> np.ndarray:
    """Mean distance to the darkened picture before, black, and the darkened one after."""
    first, middle, last = middles
    gains, apart = [], []
    for picture, source in ((first, old), (last, new)):
        energy = np.maximum((source * source).sum(1), 1e-6)
        gain = (picture * source).sum(1) / energy
        gains.append(gain)
        apart.append(np.abs(picture - gain[:, None] * source).mean(1))
    dark = middle.mean(1)
    apart.append(dark)
    bright = np.minimum(old.mean(1), new.mean(1))
    good = (gains[0] < 0.9) & (gains[1] < 0.9) & (dark < BLACK * bright) & (bright > 0.08)
    return np.where(good, np.mean(apart, axis=0), np.inf)


def _wipe(old: np.ndarray, new: np.ndarray, middles: Sequence[np.ndarray]) -> np.ndarray:
    """Mean distance, part by part, to the nearer of both; infinite if the share is not steady."""
    differ = np.abs(new - old)
    weight = np.maximum(differ.sum(1), 1e-6)
    shares, apart = [], []
    for m in middles:
        to_old, to_new = np.abs(m - old), np.abs(m - new)
        apart.append(np.minimum(to_old, to_new).mean(1))
        shares.append((differ * (to_new < to_old)).sum(1) / weight)
    good = _steady(shares) & (differ.mean(1) > LEAST_WIPE)
    return np.where(good, np.mean(apart, axis=0), np.inf)


def _steady(shares: Sequence[np.ndarray]) -> np.ndarray:
    """True where a share goes from little over about half to much."""
    first, middle, last = shares
    rises = (first < middle - 0.08) & (middle < last - 0.08)
    return rises & (first > 0.03) & (first < 0.55) & (last > 0.45) & (last < 0.97)
