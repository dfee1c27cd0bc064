"""The checks on pictures that need no learned model: broken, still, or flashing video."""

from collections import deque
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from .frames import cell_means
from .policy import VideoPolicy
from .verdict import Finding, Severity, Stage

BROKEN = "broken_media"
FLASHING = "photosensitive_flash"

_FLAT = 3  # grey levels: a picture with less contrast in every channel shows nothing
_SWING = 0.1  # of relative luminance, WCAG 2.2 "general flash"
_DARKER_BELOW = 0.8
_RED_SWING = 20.0  # of (R - G - B) * 320, WCAG 2.2 "red flash" (working definition of 2.0)
_GRID, _CELL = 16, 8  # cells on a side at most, pixels in a cell at least: texture is no flash

Pixels = UInt8[np.ndarray, "t 3 h w"]


class SanityCheck:
    """Find videos that show nothing, or change their size."""

    name = "sanity"

    def __init__(self, policy: VideoPolicy) -> None:
        self.policy = policy

    def open(self, _stage: Stage, _fps: float) -> "_Sanity":
        """Begin a video."""
        return _Sanity(self.name, self.policy.blank_fraction)


class _Sanity:
    def __init__(self, name: str, blank_fraction: float) -> None:
        self.name, self.blank_fraction = name, blank_fraction
        self.frames = self.blank = 0
        self.size: tuple[int, ...] | None = None

    def push(self, frames: Pixels) -> Sequence[Finding]:
        """Count blank frames; a size that changes is found at once."""
        size, self.size = self.size, frames.shape[2:]
        self.frames += len(frames)
        flat = np.ptp(frames.reshape(len(frames), 3, -1), axis=2).max(axis=1) < _FLAT
        self.blank += int(flat.sum())
        if size is not None and size != self.size:
            return (_broken(self.name, f"frames change from {size} to {self.size}"),)
        return ()

    def close(self) -> Sequence[Finding]:
        """Weigh the blank frames."""
        if not self.frames:
            return (_broken(self.name, "there is no frame"),)
        if self.blank >= self.blank_fraction * self.frames:
            return (_broken(self.name, f"{self.blank} of {self.frames} frames are blank"),)
        return ()


class FrozenCheck:
    """Find videos in which nothing changes."""

    name = "frozen"

    def open(self, _stage: Stage, _fps: float) -> "_Frozen":
        """Begin a video."""
        return _Frozen(self.name)


class _Frozen:
    def __init__(self, name: str) -> None:
        self.name = name
        self.first: UInt8[np.ndarray, "3 h w"] | None = None
        self.frames = 0
        self.moved = False

    def push(self, frames: Pixels) -> Sequence[Finding]:
        """Compare with the first frame."""
        if self.first is None:
            self.first = frames[0].copy()
        self.frames += len(frames)
        self.moved = self.moved or self.first.shape != frames.shape[1:]
        self.moved = self.moved or bool((frames != self.first).any())
        return ()

    def close(self) -> Sequence[Finding]:
        """Weigh the whole."""
        if self.moved or self.frames < 2:
            return ()
        return (_broken(self.name, f"all {self.frames} frames are the same"),)


def _broken(check: str, rule: str) -> Finding:
    return Finding(check, BROKEN, Severity.EXPLICIT, 1.0, rule)


class FlashCheck:
    """Find flashes that can cause seizures (WCAG 2.2, success criterion 2.3.1).

    A flash is a pair of opposing changes of a tenth of the greatest relative luminance, or of
    saturated red. Refused: more than ``flashes_per_second`` in some second on more than
    ``flash_area`` of the picture. WCAG's area is a quarter of any ten degrees of sight; without
    a known viewing distance this check takes the whole picture for that field.
    """

    name = "flash"

    def __init__(self, policy: VideoPolicy) -> None:
        self.policy = policy

    def open(self, _stage: Stage, fps: float) -> "_Flash":
        """Begin a video."""
        return _Flash(self.name, self.policy, fps)


class _Flash:
    def __init__(self, name: str, policy: VideoPolicy, fps: float) -> None:
        self.name, self.policy = name, policy
        self.window = max(1, round(fps))
        self.swings: tuple[_Swings, ...] = ()
        self.recent: deque[UInt8[np.ndarray, "2 h w"]] = deque()
        self.changes = np.zeros((2, 1, 1), np.int64)
        self.worst = 0.0

    def push(self, frames: Pixels) -> Sequence[Finding]:
        """Follow every cell of the picture through the frames."""
        light, red = _light(frames)
        if not self.swings:
            self.swings = (_Swings(light[0], _SWING, _DARKER_BELOW), _Swings(red[0], _RED_SWING))
        for now in zip(light, red, strict=True):
            turned = np.stack([s.push(x) for s, x in zip(self.swings, now, strict=True)])
            self.recent.append(turned)
            self.changes = self.changes + turned
            if len(self.recent) > self.window:
                self.changes = self.changes - self.recent.popleft()
            flashing = self.changes.max(axis=0) > 2 * self.policy.flashes_per_second
            self.worst = max(self.worst, float(flashing.mean()))
        return ()

    def close(self) -> Sequence[Finding]:
        """Weigh the worst second."""
        if self.worst <= self.policy.flash_area:
            return ()
        rule = f"{self.worst:.0%} of the picture flashes too often"
        return (Finding(self.name, FLASHING, Severity.EXPLICIT, self.worst, rule),)


class _Swings:
    """Opposing changes of each cell: a turn counts when it is ``least`` away from the extreme."""

    def __init__(
        self, first: Float[np.ndarray, "h w"], least: float, darker_below: float = np.inf
    ) -> None:
        self.low = first.copy()
        self.high = first.copy()
        self.direction = np.zeros(first.shape, np.int8)
        self.least, self.darker_below = least, darker_below

    def push(self, now: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
        """Return 1 for the cells that have just turned."""
        up, down = self.direction >= 0, self.direction <= 0
        self.high = np.where(up, np.maximum(self.high, now), self.high)
        self.low = np.where(down, np.minimum(self.low, now), self.low)
        falls = up & (self.high - now >= self.least) & (now < self.darker_below)
        rises = down & (now - self.low >= self.least) & (self.low < self.darker_below) & ~falls
        self.direction[falls], self.direction[rises] = -1, 1
        self.low = np.where(falls, now, self.low)
        self.high = np.where(rises, now, self.high)
        return (falls | rises).astype(np.uint8)


_LINEAR = np.arange(256) / 255.0
_LINEAR = np.where(_LINEAR <= 0.04045, _LINEAR / 12.92, ((_LINEAR + 0.055) / 1.055) ** 2.4)
_LINEAR = _LINEAR.astype(np.float32)


def _light(
    frames: Pixels,
) -> tuple[Float[np.ndarray, "t gh gw"], Float[np.ndarray, "t gh gw"]]:
    """Relative luminance, and saturated red, as means over the cells of a grid."""
    r, g, b = (cell_means(_LINEAR[frames[:, c]], _GRID, _CELL) for c in range(3))
    red = np.where(r >= 0.8 * (r + g + b), np.maximum(0, (r - g - b) * 320), 0)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b, red.astype(np.float32)
