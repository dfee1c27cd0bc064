"""What tests use as a text detector: it takes magenta for text."""

import cv2
import numpy as np


def magenta(picture):
    """Return boxes around what is magenta, letters a few pixels apart in one."""
    red, green, blue = (picture[..., k].astype(int) for k in range(3))
    ink = ((red - green > 70) & (blue - green > 70)).astype(np.uint8)
    joined = cv2.morphologyEx(ink, cv2.MORPH_CLOSE, np.ones((9, 25), np.uint8))
    _, _, facts, _ = cv2.connectedComponentsWithStats(joined)
    h, w = ink.shape
    found = [(x / w, y / h, (x + a) / w, (y + b) / h) for x, y, a, b, n in facts[1:] if n > 60]
    return np.array(found, np.float32).reshape(-1, 4)
