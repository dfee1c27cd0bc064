"""Choose the frames to look at so that nothing can hide between them."""

import numpy as np
from jaxtyping import Float, Int, UInt8

from .frames import cell_means

_GRID = 16
_CHANGE = 12.0  # grey levels of one cell: less is noise, more is something to be looked at

Pixels = UInt8[np.ndarray, "t 3 h w"]


class Sampler:
    """Pick each frame in which some cell of the picture differs from the last one picked.

    A single frame that shows something else is always picked; a still stretch is picked once.
    So the number of looks follows the content, and there is no interval to hide in.
    """

    def __init__(self, change: float = _CHANGE) -> None:
        self.change = change
        self._last: Float[np.ndarray, "3 gh gw"] | None = None

    def pick(self, frames: Pixels) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]]:
        """Return the picked positions, and for how many frames each stands.

        The counts begin with the frames before the first pick, which look like the last pick of
        the chunk before.
        """
        picked: list[int] = []
        counts = [0]
        for i, frame in enumerate(frames):
            cells = cell_means(frame.astype(np.float32), _GRID)
            same = self._last is not None and self._last.shape == cells.shape
            if not same or np.abs(cells - self._last).max() > self.change:
                self._last = cells
                picked.append(i)
                counts.append(0)
            counts[-1] += 1
        return np.array(picked, np.int64), np.array(counts, np.int64)
