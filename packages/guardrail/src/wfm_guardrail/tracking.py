"""Follow boxes through frames, so that one missed detection does not bare a face."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float

from .faces import overlap

JOIN = 0.25  # overlap from which on two boxes are the same face


@dataclass
class _Track:
    scene: int
    sure: bool = False
    frames: list[int] = field(default_factory=list)
    boxes: list[Float[np.ndarray, "4"]] = field(default_factory=list)

    def add(self, frame: int, box: Float[np.ndarray, "4"], sure: bool) -> None:
        self.sure |= sure
        self.frames.append(frame)
        self.boxes.append(box)

    def forget(self, before: int) -> None:
        """Drop the sightings that no later frame needs: all but the last two before it."""
        old = max(0, sum(frame < before for frame in self.frames) - 2)
        del self.frames[:old], self.boxes[:old]

    def at(self, frame: int, hold: int) -> Float[np.ndarray, "4"] | None:
        """The box at a frame: between two sightings on the line, beyond the ends held still."""
        if not self.frames[0] - hold <= frame <= self.frames[-1] + hold:
            return None
        boxes = np.stack(self.boxes)
        return np.array([np.interp(frame, self.frames, boxes[:, i]) for i in range(4)])


class Tracker:
    """Tracks of boxes within scenes.

    Tell it of every frame in order with :meth:`push`; ask :meth:`boxes` for a frame once
    ``lag`` later ones were told, or when there are no more.
    """

    def __init__(self, *, hold: int, gap: int) -> None:
        self.hold, self.gap = hold, gap
        self.lag = max(hold, gap)
        self._tracks: list[_Track] = []
        self._scene_starts = [0]

    def cut(self, frame: int) -> None:
        """Begin a new scene with this frame: no track reaches across."""
        self._scene_starts.append(frame)

    def push(
        self, frame: int, boxes: Float[np.ndarray, "n 4"], sure: Bool[np.ndarray, " n"]
    ) -> None:
        """Take the boxes of one frame, and join each to the track that it overlaps most.

        A track counts, its earlier boxes too, once one of its boxes is sure.
        """
        scene = len(self._scene_starts) - 1
        live = [t for t in self._tracks if t.scene == scene and frame - t.frames[-1] <= self.gap]
        pairs = [
            (float(share), i, j)
            for i, track in enumerate(live)
            for j, share in enumerate(overlap(track.boxes[-1], boxes))
            if share > JOIN
        ]
        joined: dict[int, int] = {}
        for _, i, j in sorted(pairs, reverse=True):
            if i not in joined.values() and j not in joined:
                joined[j] = i
        for j, box in enumerate(boxes):
            track = live[joined[j]] if j in joined else _Track(scene)
            if j not in joined:
                self._tracks.append(track)
            track.add(frame, box, bool(sure[j]))

    def boxes(self, frame: int) -> list[Float[np.ndarray, "4"]]:
        """Return the boxes at a frame, and forget tracks that ended long before it."""
        self._tracks = [t for t in self._tracks if t.frames[-1] + self.lag >= frame]
        for track in self._tracks:
            track.forget(frame)
        scene = sum(start <= frame for start in self._scene_starts) - 1
        found = (t.at(frame, self.hold) for t in self._tracks if t.sure and t.scene == scene)
        return [box for box in found if box is not None]
