"""An imperceptible mark that survives re-encoding: spread spectrum, flipped in time.

After Cox et al. 1997 (doi 10.1109/83.650120): a keyed pattern of one grey level, far below what
is seen, read from the sum over many frames. The pattern changes its sign every second frame, so
that the difference of frames two apart shows it and takes the picture away.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import shake_256
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

ROWS, COLUMNS = 36, 64  # cells of the pattern, whatever the size of the picture
BITS = 32  # of payload; a checksum of 16 follows
LEAST_FRAMES = 24
# Standard deviations of the sync cells. Their signs are random to who lacks the key, so that by
# Hoeffding's inequality chance passes with 4 exp(-FOUND^2 / 2) = 6e-7 at most (two phases, two
# ways round).
FOUND = 5.6
_CHECK = 16
_MARKED = 4  # one cell in so many is marked: fewer and stronger ones survive a coder's rounding
_SYNC = 4  # of these, one in so many says where the mark begins and which way round it is
_CLIP = 6.0  # grey levels: larger changes are motion
_TURN = (1, 1, -1, -1)

Pixels = UInt8[np.ndarray, "t 3 h w"]


@dataclass(frozen=True)
class Mark:
    """What a search found. ``payload`` is None where the mark is not there, or unreadable.

    ``score`` is in standard deviations of what an unmarked video gives.
    """

    found: bool
    score: float
    payload: int | None
    frames: int


class Embedder:
    """Write a payload of 32 bits into frames, chunk after chunk; the input is not written to."""

    def __init__(self, payload: int, key: bytes, *, strength: int = 2) -> None:
        if not 0 <= payload < 1 << BITS:
            raise ValueError(f"payload {payload}: it is a number of {BITS} bits")
        if not 1 <= strength <= 4:
            raise ValueError(f"strength {strength}: 1 to 4 grey levels")
        signs, owners = _pattern(key)
        bits = np.array([1, *_signed(_with_checksum(payload))])
        self._cells = strength * signs * bits[owners]
        self._frame = 0

    def push(self, frames: Pixels) -> Pixels:
        """Return marked frames."""
        _, _, height, width = frames.shape
        rows = np.arange(height) * ROWS // height
        columns = np.arange(width) * COLUMNS // width
        picture = self._cells.reshape(ROWS, COLUMNS)[rows][:, columns].astype(np.int16)
        out = np.empty_like(frames)
        for i, frame in enumerate(frames):
            turn = _TURN[(self._frame + i) % 4]
            out[i] = np.clip(frame + turn * picture, 0, 255)
        self._frame += len(frames)
        return out


class Detector:
    """Look for the mark of a key, chunk after chunk; memory does not grow with the video."""

    def __init__(self, key: bytes) -> None:
        self._signs, self._owners = _pattern(key)
        self._recent: deque[Float[np.ndarray, " cells"]] = deque(maxlen=5)
        self._sums = np.zeros((2, ROWS * COLUMNS))
        self._squares = np.full(ROWS * COLUMNS, 1e-3)
        self.frames = 0

    def push(self, frames: Pixels) -> None:
        """Take frames of any size."""
        for frame in frames:
            self._recent.append(_cell_means(frame))
            self.frames += 1
            if len(self._recent) == 5:
                first, _, middle, _, last = self._recent
                change = np.clip(middle - (first + last) / 2, -_CLIP, _CLIP)
                for phase in (0, 1):
                    self._sums[phase] += _TURN[(self.frames + phase) % 4] * change
                self._squares += change**2

    def finish(self) -> Mark:
        """Weigh all frames; the phases two apart are each other's negative."""
        if self.frames < LEAST_FRAMES:
            return Mark(False, 0.0, None, self.frames)
        seen = self._signs * self._sums / np.sqrt(self._squares)
        sync = seen[:, self._owners == 0]
        scores = sync.sum(axis=1) / np.sqrt((sync**2).sum(axis=1) + 1e-9)
        phase = int(np.abs(scores).argmax())
        score = float(np.abs(scores[phase]))
        if score < FOUND:
            return Mark(False, score, None, self.frames)
        votes = np.bincount(self._owners, weights=seen[phase] * np.sign(scores[phase]))[1:]
        return Mark(True, score, _checked(votes > 0), self.frames)


def embed(frames: Pixels, payload: int, key: bytes, *, strength: int = 2) -> Pixels:
    """Return marked frames.

    Raises:
        ValueError: too few frames, or a payload of more than 32 bits.
    """
    if len(frames) < LEAST_FRAMES:
        raise ValueError(f"{len(frames)} frames: a mark needs at least {LEAST_FRAMES}")
    return Embedder(payload, key, strength=strength).push(frames)


def detect(frames: Pixels, key: bytes) -> Mark:
    """Look for a mark."""
    detector = Detector(key)
    detector.push(frames)
    return detector.finish()


def _pattern(key: bytes) -> tuple[Int[np.ndarray, " cells"], Int[np.ndarray, " cells"]]:
    """Return a sign for each cell, 0 for most, and what it carries: 0 sync, or a bit's number."""
    if len(key) < 8:
        raise ValueError(f"a watermark key has at least 8 bytes, got {len(key)}")
    count = ROWS * COLUMNS
    stream = shake_256(b"wfm-guardrail watermark 1" + key).digest(5 * count)
    signs = np.where(np.frombuffer(stream[:count], np.uint8) & 1, 1, -1)
    order = np.argsort(np.frombuffer(stream[count:], ">u4"), kind="stable")
    used = count // _MARKED
    owners = np.zeros(count, np.int64)
    carriers = order[used // _SYNC : used]
    owners[carriers] = 1 + np.arange(len(carriers)) % (BITS + _CHECK)
    signs[order[used:]] = 0
    return signs, owners


def _cell_means(frame: UInt8[np.ndarray, "3 h w"]) -> Float[np.ndarray, " cells"]:
    """Return the mean brightness of every cell; small pictures are enlarged first."""
    _, height, width = frame.shape
    light = frame.sum(axis=0, dtype=np.uint16)
    light = np.repeat(light, -(-ROWS // height), axis=0) if height < ROWS else light
    light = np.repeat(light, -(-COLUMNS // width), axis=1) if width < COLUMNS else light
    height, width = light.shape
    rows = -(-np.arange(ROWS) * height // ROWS)
    columns = -(-np.arange(COLUMNS) * width // COLUMNS)
    sums = np.add.reduceat(light.astype(np.uint32), rows, axis=0)
    sums = np.add.reduceat(sums, columns, axis=1)
    areas = np.diff([*rows, height])[:, None] * np.diff([*columns, width])
    return (sums / areas / 3).ravel()


def _with_checksum(payload: int) -> int:
    return payload << _CHECK | _crc16(payload.to_bytes(BITS // 8, "big"))


def _crc16(data: bytes) -> int:
    """CRC-16/CCITT-FALSE."""
    value = 0xFFFF
    for byte in data:
        value ^= byte << 8
        for _ in range(8):
            value = (value << 1 ^ 0x1021 if value & 0x8000 else value << 1) & 0xFFFF
    return value


def _signed(number: int) -> Iterator[int]:
    return (1 if number >> i & 1 else -1 for i in range(BITS + _CHECK))


def _checked(bits: Any) -> int | None:
    number = sum(1 << i for i, bit in enumerate(bits) if bit)
    payload = number >> _CHECK
    return payload if _with_checksum(payload) == number else None
