"""Technical quality of one picture, without a network and without a reference."""

import cv2
import numpy as np

NAMES = ("luma", "contrast", "dark", "bright", "blur", "blocking", "bars")
BLACK = 24  # of 255: a row or column that is nowhere brighter is part of a black bar
BLUR_SIDE, BLOCK_SIDE = 640, 720


def measure(gray: np.ndarray) -> dict[str, float]:
    """Measure a gray picture, uint8 ``h w``, at its full resolution.

    luma: mean; contrast: standard deviation; dark, bright: share of pixels with next to no or
    full brightness; blur: 0 sharp to 1; blocking: how much stronger edges are on the 8-pixel
    grid of block codecs than off it, 0 for none; bars: share of the picture in black bars. All
    but blocking are of 1.
    """
    h, w = gray.shape
    scale = BLUR_SIDE / max(h, w)
    size = (max(16, round(w * scale)), max(16, round(h * scale)))
    small = cv2.resize(gray, size, interpolation=cv2.INTER_AREA) if scale < 1 else gray
    mean, deviation = cv2.meanStdDev(small)
    return {
        "luma": float(mean[0, 0]) / 255,
        "contrast": float(deviation[0, 0]) / 255,
        "dark": float((small < 8).mean()),
        "bright": float((small > 247).mean()),
        "blur": blur(small),
        "blocking": blocking(gray[:BLOCK_SIDE, :BLOCK_SIDE]),
        "bars": bars(gray),
    }


def blur(gray: np.ndarray) -> float:
    """Blur in [0, 1] by blurring again (Crete et al. 2007, "The blur effect").

    A strong low-pass changes a sharp picture much and a blurred one little.
    """
    picture = gray.astype(np.float32)
    worst = 0.0
    for axis, kernel in ((0, (1, 9)), (1, (9, 1))):
        steps = np.abs(np.diff(picture, axis=axis))
        after = np.abs(np.diff(cv2.blur(picture, kernel), axis=axis))
        total = float(steps.sum())
        if total > 0:
            worst = max(worst, 1 - float(np.maximum(steps - after, 0).sum()) / total)
    return worst


def blocking(gray: np.ndarray) -> float:
    """How much stronger steps across the 8-pixel grid are than the others; 0 if not at all."""
    h, w = gray.shape
    if h < 24 or w < 24:
        return 0.0
    picture, worst = gray.astype(np.float32), 0.0
    for steps in (
        np.abs(np.diff(picture, axis=0)).mean(1),
        np.abs(np.diff(picture, axis=1)).mean(0),
    ):
        on = steps[7::8].mean()
        off = (steps.sum() - steps[7::8].sum()) / (len(steps) - len(steps[7::8]))
        worst = max(worst, float((on - off) / (off + 1)))
    return worst


def bars(gray: np.ndarray) -> float:
    """Share of the picture in black bars at its edges; 0 if all of it is black."""
    rows, columns = np.flatnonzero(gray.max(1) >= BLACK), np.flatnonzero(gray.max(0) >= BLACK)
    if not len(rows):
        return 0.0
    used = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
    return 1 - float(used) / gray.size
