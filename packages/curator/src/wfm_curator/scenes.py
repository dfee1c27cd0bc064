"""PySceneDetect's detectors as a way to split (extra ``[scenedetect]``), fed by our decoder."""

from typing import Any

import numpy as np

COUNTED = 25.0  # frames are told apart by their number; any rate does


class SceneWatcher:
    """Give frames to a detector: ``adaptive``, ``content``, ``hash`` or ``histogram``.

    Raises:
        ImportError: PySceneDetect is not installed.
    """

    def __init__(self, name: str) -> None:
        try:
            import scenedetect  # ty: ignore[import-not-found]
        except ImportError:
            pip = 'pip install "wfm-curator[scenedetect]"'
            raise ImportError(f"split.method=scenedetect needs: {pip}") from None
        self.detector: Any = getattr(scenedetect, f"{name.capitalize()}Detector")()
        self.timecode: Any = scenedetect.FrameTimecode
        self.cuts: list[Any] = []
        self.count = 0

    def add(self, picture: np.ndarray, seconds: float) -> None:
        """Show the next frame; the detectors want blue first."""
        bgr = np.ascontiguousarray(picture[..., ::-1])
        self.cuts += self.detector.process_frame(self.timecode(self.count, COUNTED), bgr)
        self.count += 1

    def found(self) -> list[int]:
        """Return the first frames of new shots."""
        self.cuts += self.detector.post_process(self.timecode(max(0, self.count - 1), COUNTED))
        return sorted({int(cut.frame_num) for cut in self.cuts} - {0})
