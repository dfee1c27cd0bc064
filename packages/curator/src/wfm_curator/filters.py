"""Scores of a clip, tags, and the verdict.

``measure`` is the costly part and is kept in the ledger; ``judge`` is a view on it that can
be changed and run again at no cost.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import text
from .config import FilterConfig
from .scan import Scan

STILL_CHANGE = 0.002  # of 1: what decoding noise does to a picture that stands
PAN, ZOOM, ROLL, SHAKE = 0.03, 0.07, 3.6, 0.144  # per second; widths, growth, degrees, widths

Scores = Mapping[str, float]


def measure(scan: Scan, start: int, stop: int) -> dict[str, float]:
    """Score frames ``start`` to ``stop`` of a scanned video; see the README for each score."""
    rows = (scan.sampled >= start) & (scan.sampled < stop)
    inside = _pairs_inside(scan, start, stop)
    columns = {k: v[rows] for k, v in scan.columns.items()}
    pairs = {k: v[inside] for k, v in scan.columns.items()}
    height, width = scan.info.height, scan.info.width
    scores = {
        "side": float(min(height, width)),
        "corrupt": float(scan.corrupt[start:stop].sum()),
        **{k: _median(columns[k]) for k in ("luma", "contrast", "dark", "bright")},
        **{k: _median(columns[k]) for k in ("blur", "blocking")},
        "bars": float(np.nanmin(columns["bars"])) if rows.any() else 0.0,
        "motion": _quantile(pairs["motion"], 0.9),
        "moving": float(pairs["moving"].mean()) if inside.any() else 0.0,
        "change": _quantile(pairs["change"], 0.95),
        "frozen": float((pairs["change"] < STILL_CHANGE).mean()) if inside.any() else 0.0,
        "object": _median(pairs["object"]),
        **{k: _median(pairs[k]) for k in ("pan", "tilt", "zoom", "roll")},
        "shake": _shake(pairs["pan"], pairs["tilt"]),
    }
    if not inside.any():  # too short to have a pair of its own: frames tell whether it stands
        within = scan.change[start + 1 : stop]
        scores["change"] = float(within.max()) / 255 if len(within) else 0.0
    clean = 1 / (1 + max(0.0, scores["blocking"]))
    exposed = 1 - min(1.0, scores["dark"] + scores["bright"])
    scores["quality"] = (1 - scores["blur"]) * clean * exposed
    return {k: round(float(v), 5) for k, v in scores.items()}


def written(scan: Scan, looks: Sequence[text.Look], marks: text.Boxes) -> dict[str, float]:
    """Score the text seen in a clip; ``marks`` are places of it that shots of a file share."""
    turned = scan.info.rotation in (90, 270)
    aspect = scan.info.width / scan.info.height
    rates = np.stack([scan.columns[k] for k in ("pan", "tilt", "zoom")], 1)
    camera = text.Camera.of(scan.times[scan.sampled], rates)
    found = text.judge(looks, camera, 1 / aspect if turned else aspect, marks)
    return {k: round(v, 5) for k, v in found.items()}


def _pairs_inside(scan: Scan, start: int, stop: int) -> np.ndarray:
    """Mark samples whose flow was taken, and to a frame of the same clip."""
    from .scan import FLOW_SECONDS

    lag = max(1, round(min(max(scan.fps, 1.0), 240.0) * FLOW_SECONDS))
    taken = ~np.isnan(scan.columns["motion"])
    return taken & (scan.sampled >= start) & (scan.sampled + lag < stop)


def _median(values: np.ndarray) -> float:
    return float(np.nanmedian(values)) if len(values) else 0.0


def _quantile(values: np.ndarray, q: float) -> float:
    return float(np.quantile(values, q)) if len(values) else 0.0


def _shake(pan: np.ndarray, tilt: np.ndarray) -> float:
    """Mean change of the camera's speed from sample to sample, beyond its usual speed."""
    if len(pan) < 3:
        return 0.0
    jerk = np.hypot(np.diff(pan), np.diff(tilt)).mean()
    usual = np.hypot(np.median(pan), np.median(tilt))
    return float(jerk) if jerk > 1.2 * usual else 0.0


def tags(scores: Scores) -> list[str]:
    """Say in words what the camera does and how much moves."""
    found = []
    if scores["shake"] > SHAKE:
        found.append("shaking camera")
    if abs(scores["pan"]) > PAN:
        found.append("pan right" if scores["pan"] > 0 else "pan left")
    if abs(scores["tilt"]) > PAN:
        found.append("tilt down" if scores["tilt"] > 0 else "tilt up")
    if abs(scores["zoom"]) > ZOOM:
        found.append("forward or zoom in" if scores["zoom"] > 0 else "backward or zoom out")
    if abs(scores["roll"]) > ROLL:
        found.append("roll")
    if not found:
        found.append("fixed camera")
    if scores["motion"] < 0.003 and scores["change"] < 0.008:
        found.append("static")
    elif scores["object"] > 0.02 or "fixed camera" in found:
        found.append("moving objects")
    return found


def judge(scores: Scores, config: FilterConfig) -> str:
    """Return why a clip is rejected, or an empty text."""
    checks = (
        ("corrupt frames", scores["corrupt"] > 0),
        ("small", scores["side"] < config.min_side),
        ("dark", scores["luma"] < config.min_luma),
        ("black bars", scores["bars"] > config.max_bars),
        ("burnt out", scores["bright"] > config.max_bright),
        ("blank", scores["contrast"] < config.min_contrast),
        ("blurred", scores["blur"] > config.max_blur),
        ("static", scores["motion"] < config.min_motion and scores["change"] < config.min_change),
        ("frozen", scores["frozen"] > config.max_frozen),
        ("overlay text", scores.get("overlay", 0.0) > config.max_overlay),
        ("text in place", scores.get("placed", 0.0) > config.max_placed),
        ("shaking", config.max_shake is not None and scores["shake"] > config.max_shake),
    )
    return next((reason for reason, failed in checks if failed), "")


def lowest(quality: Sequence[Any], share: float) -> list[bool]:
    """Mark the lowest ``share`` of the clips; of equals the later go first."""
    count = int(len(quality) * share)
    order = sorted(range(len(quality)), key=lambda i: (quality[i], -i))
    marked = set(order[:count])
    return [i in marked for i in range(len(quality))]
