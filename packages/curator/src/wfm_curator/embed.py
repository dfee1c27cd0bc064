"""A descriptor of what a clip shows and how it moves, with no weights.

Eight frames at 32x32 go through a cosine transform over time, height and width. What does not
change over time says what is shown, the rest how it moves, and both are weighted by frequency,
which makes the falling spectrum of natural pictures flat (a whitening that needs no data).
Motion has a part of its own because two recordings of one fixed scene differ in nothing else.
"""

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

FRAMES, SIDE, CELLS = 8, 32, 16
SHOWN, MOVED, COLOUR = 0.5, 0.35, 0.15  # shares of the squared length
EVEN = 50.0  # standard deviation of brightness that clips are compared at, of 255
MOTION_FLOOR = 3.0  # of about 90; below it motion is coding noise and counts for less


@dataclass(frozen=True)
class Embedding:
    """``vector`` has length 1; ``cells`` are 8 gray frames of 16x16 cells, for a second look."""

    vector: np.ndarray
    cells: np.ndarray
    hash: str


def embed(pictures: np.ndarray) -> Embedding:
    """Embed a clip from some of its frames in order, uint8 ``n h w 3``."""
    chosen = pictures[np.linspace(0, len(pictures) - 1, FRAMES).round().astype(int)]
    small = [cv2.resize(p, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for p in chosen]
    colours = np.stack([cv2.cvtColor(p, cv2.COLOR_RGB2YCrCb) for p in small])
    gray = colours[..., 0].astype(np.float32)
    cells = gray.reshape(FRAMES, CELLS, 2, CELLS, 2).mean((2, 4))
    waves = _transform((gray - gray.mean()) / (gray.std() + 12.0))
    shown = (waves[0] * _weights(16))[_low(16)]
    moved = (waves[1:, :8, :8] * _weights(8)).ravel()
    chroma = colours[..., 1:].astype(np.float32).mean(0) / 128 - 1
    tint = np.einsum("ay,bx,yxc->abc", _cosines(SIDE)[:4], _cosines(SIDE)[:4], chroma).ravel()
    parts = (
        np.sqrt(SHOWN) * _unit(shown, 1e-3),
        np.sqrt(MOVED) * _unit(moved, MOTION_FLOOR * 4),
        np.sqrt(COLOUR) * _unit(tint, 1.0),
    )
    bits = np.r_[shown[:32] > 0, moved[:32] > 0]
    digest = np.packbits(bits).tobytes().hex()
    vector = _unit(np.concatenate(parts), 1e-9).astype(np.float16)
    return Embedding(vector, cells.round().astype(np.uint8), digest)


def difference(one: np.ndarray, many: np.ndarray) -> np.ndarray:
    """Return how much the most different hundredth of the cells differ, of 1, for each of many.

    Brightness and contrast of a whole clip do not count.
    """
    apart = np.abs(_evened(one[None]) - _evened(many))
    rank = apart.shape[1] - apart.shape[1] // 100
    return np.partition(apart, rank, axis=1)[:, rank]


def _evened(cells: np.ndarray) -> np.ndarray:
    flat = cells.reshape(len(cells), -1).astype(np.float32)
    gain = EVEN / (flat.std(1, keepdims=True) + EVEN / 4)
    return (flat - flat.mean(1, keepdims=True)) * gain / 255


@cache
def _cosines(n: int) -> np.ndarray:
    """Orthonormal DCT-II, one wave a row."""
    k, x = np.mgrid[:n, :n]
    waves = np.sqrt(2 / n) * np.cos(np.pi * (x + 0.5) * k / n)
    waves[0] /= np.sqrt(2)
    return waves.astype(np.float32)


def _transform(gray: np.ndarray) -> np.ndarray:
    space = _cosines(SIDE)[:16]
    return np.einsum("ut,ay,bx,tyx->uab", _cosines(FRAMES), space, space, gray, optimize=True)


@cache
def _weights(n: int) -> np.ndarray:
    u, v = np.mgrid[:n, :n]
    return np.hypot(u, v).astype(np.float32) + 1


@cache
def _low(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Waves in the order of their frequency, without the constant one."""
    u, v = np.mgrid[:n, :n]
    order = np.lexsort((v.ravel(), u.ravel(), (u + v).ravel()))[1:]
    return u.ravel()[order], v.ravel()[order]


def _unit(vector: np.ndarray, floor: float) -> np.ndarray:
    return vector / (np.linalg.norm(vector) + floor)
