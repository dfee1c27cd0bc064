"""A descriptor of what a clip shows and how it moves, with no weights.

Eight moments at 32x32 go through a cosine transform over time, height and width. What does not
change over time says what is shown, the rest how it moves, and both are weighted by frequency,
which makes the falling spectrum of natural pictures flat (a whitening that needs no data).
Motion has a part of its own because two recordings of one fixed scene differ in nothing else.
The corners are left out, where one copy may have a logo.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

HASH_BYTES = 8
FRAMES, SIDE, CELLS = 8, 32, 16
CORNER = 5  # of 32: the vector leaves out what is there, such as logos and clocks
SHOWN, MOVED, COLOUR = 0.5, 0.35, 0.15  # shares of the squared length
EVEN = 50.0  # standard deviation of brightness that clips are compared at, of 255
CROPS, TRIMS = (0.1,), (0.25, 0.5)  # shares of the side, and seconds, that copies may lack
MOTION_FLOOR = 3.0  # of about 90; below it motion is coding noise and counts for less


@dataclass(frozen=True)
class Embedding:
    """``vector`` has length 1; ``cells`` are 8 gray frames of 16x16 cells, for a second look.

    ``learned`` is what a network made of the clip, if there is one.
    """

    vector: np.ndarray
    cells: np.ndarray
    hash: str
    variants: tuple["Variant", ...] = ()
    learned: np.ndarray | None = None


@dataclass(frozen=True)
class Variant:
    """What the clip would look like ``how``: cropped, or without its beginning or end."""

    how: str
    vector: np.ndarray
    cells: np.ndarray


def embed(pictures: np.ndarray, *, per_second: float = 0.0) -> Embedding:
    """Embed a clip from some of its frames in order, uint8 ``n h w 3``.

    With ``per_second``, of the pictures, variants are embedded too: copies that were cropped or
    trimmed look like one of them, and not like the whole clip.
    """
    vector, cells, digest = _describe(pictures)
    variants = []
    for how, changed in _changed(pictures, per_second) if per_second else ():
        variants.append(Variant(how, *_describe(changed)[:2]))
    return Embedding(vector, cells, digest, tuple(variants))


def pack(embedding: Embedding) -> tuple[bytes, bytes, bytes]:
    """Return vector, cells and variants as bytes."""
    names = ",".join(v.how for v in embedding.variants).encode()
    bodies = [v.vector.tobytes() + v.cells.tobytes() for v in embedding.variants]
    vector = bytes.fromhex(embedding.hash) + embedding.vector.tobytes()
    return vector, embedding.cells.tobytes(), b"\n".join([names, b"".join(bodies)])


def unpack(vector: bytes, cells: bytes, variants: bytes) -> Embedding:
    """Undo `pack`."""
    names, _, body = variants.partition(b"\n")
    hows = names.decode().split(",") if names else []
    size = len(vector) - HASH_BYTES
    step = size + len(cells)
    found = []
    for how, start in zip(hows, range(0, len(body), step), strict=True):
        part = np.frombuffer(body, np.float16, size // 2, start)
        found.append(Variant(how, part, _cells(body[start + size : start + step])))
    values = np.frombuffer(vector, np.float16, offset=HASH_BYTES)
    return Embedding(values, _cells(cells), vector[:HASH_BYTES].hex(), tuple(found))


def _cells(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8).reshape(FRAMES, CELLS, CELLS)


def mirrored(variant: Variant) -> Variant:
    """Return the mirror image, without looking at pictures again: odd waves change their sign."""
    how = f"{variant.how}, mirrored" if variant.how else "mirrored"
    vector = (variant.vector * _signs()).astype(variant.vector.dtype)
    return Variant(how, vector, np.ascontiguousarray(variant.cells[..., ::-1]))


@cache
def _signs() -> np.ndarray:
    _, columns = _low(16)
    odd = (columns % 2, np.tile(np.arange(8) % 2, (FRAMES - 1) * 8), np.tile([0, 0, 1, 1], 8))
    return (1 - 2 * np.concatenate(odd)).astype(np.float32)


def forms(clip: Embedding) -> list[Variant]:
    """Return the clip as it is, then all that a copy may look like."""
    plain = [Variant("", clip.vector, clip.cells), *clip.variants]
    return [*plain, *map(mirrored, plain)]


def _changed(pictures: np.ndarray, per_second: float) -> Iterator[tuple[str, np.ndarray]]:
    """Yield what a copy may be: a part of the picture, or of the time, or faster."""
    _, h, w, _ = pictures.shape
    for share in CROPS:
        y, x = round(h * share / 2), round(w * share / 2)
        yield f"cropped {share:.0%}", pictures[:, y : h - y, x : w - x]
    for seconds in TRIMS:
        n = round(seconds * per_second)
        if 0 < 4 * n <= len(pictures):
            yield f"{seconds:g} s later", pictures[n:]
            yield f"{seconds:g} s less", pictures[:-n]
    if len(pictures) >= 4:
        even = np.concatenate([pictures, pictures[-1:]])[: -(-len(pictures) // 2) * 2]
        pairs = even.reshape(-1, 2, h, w, 3)
        yield "twice as fast", pairs.mean(1).round().astype(np.uint8)


def _describe(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    """Return vector, cells and hash."""
    small = np.stack([cv2.resize(p, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for p in pictures])
    chosen = _between(small, np.linspace(0, len(small) - 1, FRAMES))
    colours = np.stack([cv2.cvtColor(p, cv2.COLOR_RGB2YCrCb) for p in chosen])
    gray = colours[..., 0].astype(np.float32)
    cells = gray.reshape(FRAMES, CELLS, 2, CELLS, 2).mean((2, 4))
    waves = _transform((gray - gray.mean()) / (gray.std() + 12.0) * _window())
    shown = (waves[0] * _weights(16))[_low(16)]
    moved = (waves[1:, :8, :8] * _weights(8)).ravel()
    chroma = (colours[..., 1:].astype(np.float32).mean(0) / 128 - 1) * _window()[..., None]
    tint = np.einsum("ay,bx,yxc->abc", _cosines(SIDE)[:4], _cosines(SIDE)[:4], chroma).ravel()
    parts = (
        np.sqrt(SHOWN) * _unit(shown, 1e-3),
        np.sqrt(MOVED) * _unit(moved, MOTION_FLOOR * 4),
        np.sqrt(COLOUR) * _unit(tint, 1.0),
    )
    bits = np.r_[shown[:32] > 0, moved[:32] > 0]
    digest = np.packbits(bits).tobytes().hex()
    vector = _unit(np.concatenate(parts), 1e-9).astype(np.float16)
    return vector, cells.round().astype(np.uint8), digest


def _between(pictures: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return pictures at places between those that there are, mixed from both neighbours."""
    below = np.floor(places).astype(int)
    above = np.minimum(below + 1, len(pictures) - 1)
    share = (places - below).astype(np.float32)[:, None, None, None]
    mixed = pictures[below] * (1 - share) + pictures[above] * share
    return mixed.round().astype(np.uint8)


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
def _window() -> np.ndarray:
    """0 in the corners, else 1."""
    inwards = np.minimum(np.arange(SIDE), np.arange(SIDE)[::-1])
    return (np.maximum(inwards[:, None], inwards) >= CORNER).astype(np.float32)


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
