"""Find text in pictures, and tell what was laid over them from what is written in the scene.

A detector gives boxes for some pictures of a recording. Text that stays where it is on the
screen while the scene moves under it, by the camera's motion, was added afterwards; so was text
on a black title, and what stands at one place in most shots. Before a fixed camera nothing tells
the two apart: text at a place where overlays usually are is counted by itself.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from .config import LookConfig

SIDE = 512  # pixels of the longer side of what the detector sees
MEAN = np.array((0.485, 0.456, 0.406), np.float32)
DEVIATION = np.array((0.229, 0.224, 0.225), np.float32)
LIKELY, SURE = 0.3, 0.6  # of a pixel; on average, of a box
THIN, GROWN = 3, 1.6  # pixels; boxes are predicted shrunk (Liao et al. 2020, eq. 10)

STAYS = 0.6  # overlap of two boxes at one place
SCENE_MOVES = 0.03  # picture widths that the scene must have gone under a box
FOLLOWS = 0.3  # of that way: a box that goes further is part of the scene
BLACK = 0.08  # mean brightness, of 1, of a title's ground
SHOTS, SHARE = 3, 0.5  # at one place in so many shots, and this share of all
STANDS = 1.0  # seconds before a fixed camera until a place counts

Boxes = np.ndarray  # float32 ``n 4``: left, top, right, bottom, as shares of width and height
Detector = Callable[[np.ndarray], Boxes]


@dataclass(frozen=True)
class Look:
    """The text of one picture; ``frame`` is its number, ``luma`` its mean brightness, of 1."""

    frame: int
    seconds: float
    luma: float
    boxes: Boxes


def detector(config: LookConfig) -> Detector | None:
    """Return what finds text in a picture, uint8 ``h w 3``, or None if that is off.

    Raises:
        ImportError, FileNotFoundError: it is not there.
        ValueError: no such callable.
    """
    return _detector(config.resolved().text)


@cache
def _detector(name: str) -> Detector | None:
    if name == "none":
        return None
    if name == "pp-ocr":
        spec = find_spec("rapidocr_onnxruntime")
        if spec is None or not spec.submodule_search_locations:
            pip = "pip install --no-deps rapidocr-onnxruntime"
            raise ImportError(f"look.text=pp-ocr needs the weights of: {pip}")
        folder = Path(spec.submodule_search_locations[0]) / "models"
        return PPOcr(folder / "ch_PP-OCRv4_det_infer.onnx")
    if name.endswith(".onnx"):
        return PPOcr(Path(name))
    return named(name, "look.text")


def named(name: str, setting: str) -> Any:
    """Return what ``module:name`` means.

    Raises:
        ValueError: there is no such module, or no such name in it.
    """
    module, colon, attribute = name.partition(":")
    try:
        if not colon:
            raise AttributeError("a module and a name in it are wanted, as module:name")
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as e:
        raise ValueError(f"{setting} is {name!r}: {e}") from e


class PPOcr:
    """The differentiable-binarisation detector of PP-OCR, run by OpenCV."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file (look.text)")
        self.net = cv2.dnn.readNetFromONNX(str(path))

    def __call__(self, picture: np.ndarray) -> Boxes:
        """Return the boxes of text in a picture, uint8 ``h w 3``."""
        h, w = picture.shape[:2]
        scale = SIDE / max(h, w)
        size = tuple(max(32, round(side * scale / 32) * 32) for side in (w, h))
        small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        small = (small - MEAN) / DEVIATION
        self.net.setInput(np.ascontiguousarray(small.transpose(2, 0, 1)[None]))
        return boxes_in(self.net.forward()[0, 0])


def boxes_in(likely: np.ndarray) -> Boxes:
    """Return the boxes of a map of probabilities, float32 ``h w``."""
    h, w = likely.shape
    count, parts, facts, _ = cv2.connectedComponentsWithStats((likely > LIKELY).astype(np.uint8))
    found = []
    for number in range(1, count):
        x, y, width, height, _ = facts[number].tolist()
        inside = slice(y, y + height), slice(x, x + width)
        if min(width, height) < THIN or likely[inside][parts[inside] == number].mean() < SURE:
            continue
        grow = width * height * GROWN / (2 * (width + height))
        found.append((x - grow, y - grow, x + width + grow, y + height + grow))
    sides = np.array((w, h, w, h), np.float32)
    return (np.array(found, np.float32).reshape(-1, 4) / sides).clip(0, 1)


@dataclass(frozen=True)
class Camera:
    """How far the picture has gone by a time: ``way`` ``n 3`` are pan, tilt (widths), zoom."""

    times: np.ndarray
    way: np.ndarray

    @classmethod
    def of(cls, times: np.ndarray, rates: np.ndarray) -> "Camera":
        """Add up rates per second, ``n 3``, that were measured at some times."""
        rates = np.nan_to_num(rates)
        steps = np.diff(times)[:, None] * (rates[:-1] + rates[1:]) / 2
        return cls(times, np.concatenate([np.zeros((1, 3)), steps.cumsum(0)]))

    def moved(self, box: np.ndarray, start: float, stop: float, aspect: float) -> np.ndarray:
        """Return how far the scene at a box went over the screen, in widths, right and down."""
        was, now = (
            np.array([np.interp(t, self.times, way) for way in self.way.T]) for t in (start, stop)
        )
        pan, tilt, zoom = now - was
        centre = _centre(box, aspect) - np.array([0.5, 0.5 / aspect])
        return centre * zoom - np.array([pan, tilt])


def _centre(box: np.ndarray, aspect: float) -> np.ndarray:
    """Return the middle of a box in picture widths."""
    return np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2 / aspect])


def judge(looks: Sequence[Look], camera: Camera, aspect: float, marks: Boxes) -> dict[str, float]:
    """Score the text of a clip, as shares of the moments looked at.

    text: with any; overlay: with such that was laid over; placed: with such before a fixed
    camera at a place where overlays usually are, undecided. ``marks`` are places that `repeated`
    found; ``aspect`` is width over height. text_area: mean share of the picture in boxes.
    """
    over, placed = set(), set()
    for chain in _chains(looks):
        first, box = looks[chain[0][0]], looks[chain[0][0]].boxes[chain[0][1]]
        numbers = {index for index, _ in chain}
        seen = [(looks[i], looks[i].boxes[j]) for i, j in chain]
        ways = [camera.moved(box, first.seconds, look.seconds, aspect) for look, _ in seen]
        went = [_centre(other, aspect) - _centre(box, aspect) for _, other in seen]
        expected, drifted = (np.linalg.norm(v, axis=1) for v in (ways, went))
        stays = expected.max() >= SCENE_MOVES and drifted.mean() <= FOLLOWS * expected.mean()
        title = all(look.luma < BLACK for look, _ in seen)
        if stays or title or _overlaps(box, marks).any():
            over |= numbers
        elif seen[-1][0].seconds - first.seconds >= STANDS and _usual_place(box):
            placed |= numbers
    n = max(1, len(looks))
    areas = [float(np.prod(look.boxes[:, 2:] - look.boxes[:, :2], axis=1).sum()) for look in looks]
    return {
        "text": sum(len(look.boxes) > 0 for look in looks) / n,
        "text_area": min(1.0, sum(areas) / n),
        "overlay": len(over) / n,
        "placed": len(placed - over) / n,
    }


def repeated(shots: Sequence[Sequence[Look]]) -> Boxes:
    """Return places where text stands in most shots of a recording, three at least."""
    if len(shots) < SHOTS:
        return np.zeros((0, 4), np.float32)
    each = [np.concatenate([look.boxes for look in looks]) for looks in shots if looks]
    found = []
    for boxes in each:
        for box in boxes:
            having = sum(bool(_overlaps(box, other).any()) for other in each)
            if having >= max(SHOTS, SHARE * len(shots)):
                found.append(box)
    return np.array(found, np.float32).reshape(-1, 4)


def _chains(looks: Sequence[Look]) -> list[list[tuple[int, int]]]:
    """Follow each box for as long as there is one at its place; look and box numbers."""
    chains: list[list[tuple[int, int]]] = []
    alive: list[list[tuple[int, int]]] = []
    for index, look in enumerate(looks):
        free, going = set(range(len(look.boxes))), []
        for chain in alive:
            start = looks[chain[0][0]].boxes[chain[0][1]]
            overlaps = _overlaps(start, look.boxes, least=0.0)
            best = max(free, key=lambda j: overlaps[j], default=None)
            if best is None or overlaps[best] < STAYS:
                chains.append(chain)
            else:
                free.discard(best)
                going.append([*chain, (index, best)])
        alive = going + [[(index, j)] for j in sorted(free)]
    return chains + alive


def _overlaps(box: np.ndarray, others: Boxes, *, least: float = STAYS) -> np.ndarray:
    """Return the intersection over union of a box with others, 0 where it is below ``least``."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    both = np.prod(np.maximum(high - low, 0), axis=1)
    union = np.prod(box[2:] - box[:2]) + np.prod(others[:, 2:] - others[:, :2], axis=1) - both
    share = both / np.maximum(union, 1e-9)
    return np.where(share >= least, share, 0)


def _usual_place(box: np.ndarray) -> bool:
    """True for a line of subtitles and for the corners."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    subtitle = y > 0.72 and 0.3 < x < 0.7 and box[2] - box[0] > 0.15
    corner = (x < 0.25 or x > 0.75) and (y < 0.15 or y > 0.85)
    return bool(subtitle or corner)
