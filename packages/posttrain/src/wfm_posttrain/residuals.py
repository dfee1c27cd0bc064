"""Whether imagined things obey mechanics: fits to the tracks of objects, in metres and seconds.

Tracks come from a simulator, or from centroids of masks times the metres per pixel.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float

GRAVITY = 9.81


def fitted_acceleration(height: Float[np.ndarray, " t"], fps: float) -> tuple[float, float]:
    """Fit a parabola to heights; return the acceleration (m/s^2) and the rms residual (m).

    NaN with fewer than four known heights.
    """
    time = np.arange(len(height)) / fps
    known = ~np.isnan(height)
    if known.sum() < 4:
        return float("nan"), float("nan")
    powers = np.stack([np.ones_like(time), time, time**2], axis=1)[known]
    fit, *_ = np.linalg.lstsq(powers, height[known], rcond=None)
    left = powers @ fit - height[known]
    return float(2 * fit[2]), float(np.sqrt((left**2).mean()))


def gravity_error(height: Float[np.ndarray, " t"], fps: float) -> float:
    """Return how far a free fall's acceleration is from gravity, as a share of it."""
    return abs(fitted_acceleration(height, fps)[0] + GRAVITY) / GRAVITY


def flight(height: Float[np.ndarray, " t"], *, floor: float, margin: float = 0.02) -> slice:
    """Return the frames before a falling thing comes within ``margin`` metres of the floor."""
    down = np.flatnonzero(height <= floor + margin)
    return slice(0, int(down[0]) if len(down) else len(height))


def energy_drift(position: Float[np.ndarray, "t 3"], fps: float) -> float:
    """Return the greatest rise of a body's mechanical energy over its first, as a share.

    Kinetic energy of the centre from central differences, and potential energy over the lowest
    place of the track, per kilogram. Friction and impacts only ever lower it, so a rise is an
    error; 0 is none. Rotation is not seen.
    """
    velocity = (position[2:] - position[:-2]) * fps / 2
    height = position[1:-1, 2] - np.nanmin(position[:, 2])
    energy = 0.5 * (velocity**2).sum(axis=1) + GRAVITY * height
    energy = energy[~np.isnan(energy)]
    if len(energy) < 2 or energy[0] < 1e-9:
        return float("nan")
    return float(max(energy.max() / energy[0] - 1, 0.0))


def momentum_change(
    position: Float[np.ndarray, "t n 3"],
    mass: Float[np.ndarray, " n"],
    fps: float,
    impact: int,
) -> float:
    """Return how much horizontal momentum a collision at frame ``impact`` made or lost, as a share.

    Velocities are those of the steps before and after it.
    """
    before = (position[impact - 1] - position[impact - 2]) * fps
    after = (position[impact + 2] - position[impact + 1]) * fps
    first, last = ((mass[:, None] * v[:, :2]).sum(axis=0) for v in (before, after))
    scale = (mass * np.linalg.norm(before[:, :2], axis=1)).sum()
    return float(np.linalg.norm(last - first) / max(scale, 1e-9))


def penetration(height: Float[np.ndarray, " t"], *, rest: float) -> float:
    """Return how many metres a thing sinks below where it can rest on the floor."""
    return float(max(rest - np.nanmin(height), 0.0))


def area_variation(mask: Bool[torch.Tensor, "b t h w"]) -> Float[torch.Tensor, " b"]:
    """Return the coefficient of variation of an object's pixel area: permanence without a truth.

    0 is an object that keeps its size; one that is never there is NaN.
    """
    area = mask.float().sum(dim=(2, 3))
    mean = area.mean(dim=1)
    return torch.where(mean > 0, area.std(dim=1, correction=0) / mean.clamp_min(1e-9), torch.nan)


def topple_times(
    quaternion: Float[np.ndarray, "t n 4"], *, degrees: float = 30.0
) -> Float[np.ndarray, " n"]:
    """Return the first frame at which each body leans by more than ``degrees``; NaN if never.

    Quaternions are w x y z; the lean is that of the body's z axis.
    """
    _, x, y, _ = np.moveaxis(quaternion, -1, 0)
    lean = np.degrees(np.arccos(np.clip(1 - 2 * (x**2 + y**2), -1, 1)))
    over = lean > degrees
    return np.where(over.any(axis=0), over.argmax(axis=0).astype(float), np.nan)


def order_kept(times: Float[np.ndarray, " n"]) -> float:
    """Return the share of neighbours that fall one after the other: 1 for a row of dominoes.

    A neighbour that never falls, or falls first, is out of order. NaN of fewer than two.
    """
    if len(times) < 2:
        return float("nan")
    return float((times[1:] >= times[:-1]).mean())
