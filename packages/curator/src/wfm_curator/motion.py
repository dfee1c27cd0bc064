"""How much a picture moves, and how the camera does, from dense flow between two frames.

Flow is DIS (Kroeger et al. 2016). Unlike the motion vectors of a codec it does not depend on
who encoded the file, and a robot arm in front of a fixed camera is told from a still picture.
"""

import cv2
import numpy as np

NAMES = ("motion", "moving", "change", "pan", "tilt", "zoom", "roll", "object")

SMALL = 128  # pixels of the longer side
GRID_SHARE = 32  # grid points along the longer side
INLIER = 0.7  # pixels
OBJECT = 0.5  # pixels that a point must stray from the camera's motion
NOISE = 0.05  # pixels; what coding does to a picture that stands
STILL = 0.1  # pixels; with no point that moves more the camera is fixed


def measure(first: np.ndarray, second: np.ndarray, seconds: float) -> dict[str, float]:
    """Measure two gray pictures, uint8 ``h w``, that are ``seconds`` apart.

    motion, moving: 99th percentile and mean of flow in widths per second; change: mean
    difference of the block that differs most, of 1; pan, tilt: camera in widths per second,
    to the right and down; zoom: growth per second; roll: degrees per second; object: share of
    the picture that moves otherwise than the camera.
    """
    _, w = first.shape
    flow = _flow(first, second)
    length = np.hypot(flow[..., 0], flow[..., 1])
    length[length < NOISE] = 0
    camera, object_share = _camera(first, flow)
    rates = {k: v / seconds for k, v in camera.items()}
    return {
        "motion": float(np.percentile(length, 99)) / w / seconds,
        "moving": float(length.mean()) / w / seconds,
        "change": _largest_change(first, second),
        **rates,
        "object": object_share,
    }


def _flow(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return flow in pixels. A DIS object keeps state between calls, so each call has its own.

    On small pictures even the fastest preset works at full resolution.
    """
    fastest, fast = cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST, cv2.DISOPTICAL_FLOW_PRESET_FAST
    dis = cv2.DISOpticalFlow.create(fastest if max(first.shape) <= SMALL else fast)
    return dis.calc(first, second, np.zeros((*first.shape, 2), np.float32))


def _largest_change(first: np.ndarray, second: np.ndarray) -> float:
    difference = cv2.absdiff(first, second)
    blocks = cv2.resize(difference.astype(np.float32), (12, 12), interpolation=cv2.INTER_AREA)
    return float(blocks.max()) / 255


def _camera(gray: np.ndarray, flow: np.ndarray) -> tuple[dict[str, float], float]:
    """Fit shift, zoom and roll to the flow on textured points; return them and the rest."""
    h, w = gray.shape
    still = {"pan": 0.0, "tilt": 0.0, "zoom": 0.0, "roll": 0.0}
    step = max(3, max(h, w) // GRID_SHARE)
    ys, xs = np.mgrid[step // 2 : h : step, step // 2 : w : step]
    ys, xs = ys.ravel(), xs.ravel()
    texture = np.abs(cv2.Laplacian(cv2.blur(gray, (3, 3)), cv2.CV_32F, ksize=3))
    weights = cv2.blur(texture, (step, step))[ys, xs]
    chosen = weights >= np.quantile(weights, 0.4)
    points = np.stack([xs, ys], 1)[chosen].astype(np.float32)
    moved = flow[ys, xs][chosen]
    if len(points) < 8 or np.hypot(*moved.T).max() < STILL:
        return still, 0.0
    matrix, _ = cv2.estimateAffinePartial2D(
        points, points + moved, method=cv2.RANSAC, ransacReprojThreshold=INLIER, maxIters=200
    )
    if matrix is None:
        return still, 1.0
    turn = matrix[:, :2]
    stray = np.hypot(*(points @ turn.T + matrix[:, 2] - points - moved).T)
    centre = np.array([w / 2, h / 2])
    shift = turn @ centre + matrix[:, 2] - centre
    scale = float(np.hypot(turn[0, 0], turn[1, 0]))
    camera = {
        "pan": float(-shift[0]) / w,  # the picture goes left when the camera goes right
        "tilt": float(-shift[1]) / w,
        "zoom": scale - 1,
        "roll": float(np.degrees(np.arctan2(turn[1, 0], turn[0, 0]))),
    }
    return camera, float((stray > OBJECT).mean())
