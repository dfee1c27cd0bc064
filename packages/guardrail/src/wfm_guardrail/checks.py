"""What a check of your own must offer."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from .verdict import Finding, Stage

Pixels = UInt8[np.ndarray, "t 3 h w"]


class CoverageError(ValueError):
    """The policy requires a check that cannot run here."""


@runtime_checkable
class TextCheck(Protocol):
    """Look at a text. ``rule`` of a finding goes into logs: do not quote the text there."""

    @property
    def name(self) -> str: ...

    def check(self, text: str, stage: Stage, /) -> Sequence[Finding]: ...


@runtime_checkable
class VideoSession(Protocol):
    """One video, pushed in chunks of frames."""

    def push(self, frames: Pixels, /) -> Sequence[Finding]: ...

    def close(self) -> Sequence[Finding]: ...


@runtime_checkable
class VideoCheck(Protocol):
    """Look at videos; each ``open`` begins a new one at so many frames a second."""

    @property
    def name(self) -> str: ...

    def open(self, stage: Stage, fps: float, /) -> VideoSession: ...
