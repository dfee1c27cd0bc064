"""Judge frames by a classifier: every frame that differs is looked at, and k of n decide."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from .sampling import Sampler
from .verdict import Finding, Severity, Stage

Pixels = UInt8[np.ndarray, "t 3 h w"]
Judge = Callable[[Pixels], Float[np.ndarray, "t k"]]


@dataclass(frozen=True)
class Vote:
    """How many frames must be unsafe: at least ``frames`` and a ``share`` of those looked at.

    A frame is unsafe where the classes but the first have together at least ``threshold``.
    """

    threshold: float = 0.5
    frames: int = 3
    share: float = 0.02


VOTE = Vote()


class FrameCheck:
    """Let ``judge`` give every frame the probabilities of ``classes``, of which the first is safe.

    Only frames that differ from the last one judged are judged, unless ``every_frame``.
    """

    def __init__(
        self,
        name: str,
        judge: Judge,
        classes: Sequence[str],
        vote: Vote = VOTE,
        *,
        every_frame: bool = False,
    ) -> None:
        self.name, self.judge, self.classes = name, judge, tuple(classes)
        self.vote, self.every_frame = vote, every_frame

    def open(self, _stage: Stage, _fps: float, /) -> "_Session":
        """Begin a video."""
        return _Session(self)


class _Session:
    def __init__(self, check: FrameCheck) -> None:
        self.check = check
        self.sampler = None if check.every_frame else Sampler()
        self.unsafe = np.zeros(len(check.classes), np.int64)
        self.looked = self.last = 0
        self.worst = 0.0

    def push(self, frames: Pixels, /) -> Sequence[Finding]:
        """Judge the frames that are new; a still stretch counts by its frames."""
        weights = np.ones(len(frames), np.int64)
        chosen = frames
        if self.sampler is not None:
            picked, counts = self.sampler.pick(frames)
            chosen, weights = frames[picked], counts[1:]
            self._count(self.last, int(counts[0]))  # they look like the last one judged before
        if len(chosen):
            for p, weight in zip(self._judged(chosen), weights, strict=True):
                harm = 1 - float(p[0])
                self.worst = max(self.worst, harm)
                self.last = 1 + int(p[1:].argmax()) if harm >= self.check.vote.threshold else 0
                self._count(self.last, int(weight))
        return ()

    def _judged(self, frames: Pixels) -> Float[np.ndarray, "t k"]:
        p = np.asarray(self.check.judge(frames), np.float64)
        if p.shape != (len(frames), len(self.check.classes)):
            raise ValueError(f"the classifier answered {p.shape} for {len(frames)} frames")
        if not np.isfinite(p).all() or (p < -1e-4).any() or (p > 1 + 1e-4).any():
            raise ValueError("the classifier's numbers are no probabilities")
        return p

    def _count(self, label: int, frames: int) -> None:
        self.looked += frames
        self.unsafe[label] += frames if label else 0

    def close(self) -> Sequence[Finding]:
        """Count the votes; fewer frames than the vote wants must all agree."""
        vote, unsafe = self.check.vote, int(self.unsafe.sum())
        needed = max(min(vote.frames, self.looked), vote.share * self.looked)
        if not unsafe or unsafe < needed:
            return ()
        label = self.check.classes[int(self.unsafe.argmax())]
        severity = Severity.SEVERE if label == "sexual_minors" else Severity.EXPLICIT
        rule = f"{unsafe} of {self.looked} frames"
        return (Finding(self.check.name, label, severity, min(1.0, self.worst), rule),)
