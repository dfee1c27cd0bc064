"""Make faces unrecognisable, frame after frame, without keeping the whole video."""

from collections import deque
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int, UInt8

from .faces import FaceDetector
from .policy import FacePolicy
from .tracking import Tracker

_CUT = 50.0  # grey levels that the mean cell changes by at a cut; too low would drop tracks
_CELLS = 16

Frames = UInt8[np.ndarray, "t 3 h w"]
Box = Float[np.ndarray, "4"]


class FaceBlur:
    """Push chunks of any length, get the finished frames back; :meth:`finish` gives the rest.

    Output lags ``lag`` frames behind, so that a face is covered some frames before it is first
    found. Memory holds that many frames. What is pushed is never written to.
    """

    def __init__(self, detector: FaceDetector, policy: FacePolicy) -> None:
        self.detector, self.policy = detector, policy
        self.tracker = Tracker(hold=policy.hold, gap=policy.gap)
        self.lag = self.tracker.lag
        self.faces = 0  # boxes covered so far, over all frames
        self._waiting: deque[UInt8[np.ndarray, "3 h w"]] = deque()
        self._next = 0

    def push(self, frames: Frames) -> UInt8[np.ndarray, "n 3 h w"]:
        """Take frames, return those that are settled."""
        done = []
        for frame in frames:
            index = self._next + len(self._waiting)
            self._look(index, frame)
            self._waiting.append(frame)
            if len(self._waiting) > self.lag:
                done.append(self._settle())
        return np.stack(done) if done else frames[:0].copy()

    def finish(self) -> Iterator[UInt8[np.ndarray, "3 h w"]]:
        """Return the frames that are left."""
        while self._waiting:
            yield self._settle()

    def _look(self, index: int, frame: UInt8[np.ndarray, "3 h w"]) -> None:
        cut = self._waiting and _change(self._waiting[-1], frame) > _CUT
        if cut:
            self.tracker.cut(index)
        if cut or index % self.policy.stride == 0:
            boxes = self.detector.detect(frame)
            if boxes.ndim != 2 or boxes.shape[1] != 5 or not np.isfinite(boxes).all():
                raise ValueError(f"detector {self.detector.name} gave no finite boxes, n x 5")
            sure = boxes[:, 4] >= getattr(self.detector, "sure", 0)
            self.tracker.push(index, boxes[:, :4].astype(np.float64), sure)

    def _settle(self) -> UInt8[np.ndarray, "3 h w"]:
        frame = self._waiting.popleft().copy()
        for box in self.tracker.boxes(self._next):
            self.faces += 1
            cover(frame, enlarged(box, self.policy.enlarge), self.policy)
        self._next += 1
        return frame


def enlarged(box: Box, share: float) -> Box:
    """Grow a box on each side by a share of its size, half as much again at the top (hair)."""
    x0, y0, x1, y1 = box
    wide, tall = (x1 - x0) * share, (y1 - y0) * share
    return np.array([x0 - wide, y0 - 1.5 * tall, x1 + wide, y1 + tall])


def cover(frame: UInt8[np.ndarray, "3 h w"], box: Box, policy: FacePolicy) -> None:
    """Paint over a box in place; what is outside the frame is left out."""
    _, height, width = frame.shape
    x0, x1 = (int(v) for v in np.clip([np.floor(box[0]), np.ceil(box[2])], 0, width))
    y0, y1 = (int(v) for v in np.clip([np.floor(box[1]), np.ceil(box[3])], 0, height))
    if x0 >= x1 or y0 >= y1:
        return
    region = frame[:, y0:y1, x0:x1]
    region[:] = 0 if policy.method == "solid" else pixelated(region, policy.blocks)


def pixelated(region: UInt8[np.ndarray, "3 h w"], blocks: int) -> UInt8[np.ndarray, "3 h w"]:
    """Return the means of at most ``blocks`` by ``blocks`` tiles: nothing finer survives."""
    means, tall, wide = tile_means(region, blocks)
    return np.repeat(np.repeat(np.round(means), tall, axis=1), wide, axis=2).astype(np.uint8)


def tile_means(
    region: UInt8[np.ndarray, "3 h w"], blocks: int
) -> tuple[Float[np.ndarray, "3 n m"], Int[np.ndarray, " n"], Int[np.ndarray, " m"]]:
    """Return the means of tiles, with the tiles' heights and widths in pixels."""
    _, height, width = region.shape
    ys = np.unique(np.linspace(0, height, min(blocks, height) + 1).astype(int))
    xs = np.unique(np.linspace(0, width, min(blocks, width) + 1).astype(int))
    sums = np.add.reduceat(region.astype(np.int64), ys[:-1], axis=1)
    sums = np.add.reduceat(sums, xs[:-1], axis=2)
    tall, wide = np.diff(ys), np.diff(xs)
    return sums / (tall[:, None] * wide), tall, wide


def _change(a: UInt8[np.ndarray, "3 h w"], b: UInt8[np.ndarray, "3 h w"]) -> float:
    """Mean difference of two frames, both drawn small from every n-th pixel."""
    if a.shape != b.shape:
        return float("inf")
    step = max(1, min(a.shape[1:]) // (4 * _CELLS))
    small = [tile_means(frame[:, ::step, ::step], _CELLS)[0] for frame in (a, b)]
    return float(np.abs(small[0] - small[1]).mean())
