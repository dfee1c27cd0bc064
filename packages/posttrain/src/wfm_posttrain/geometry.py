"""Whether imagined views obey the geometry of one rigid scene: epipolar and pose errors.

Points are followed by pyramidal Lucas-Kanade on pictures enlarged four times, which works from
64 pixels on and needs no weights. Low errors from few matches mean nothing, so every score
comes with its number of matches; compare with the same score of real video.

Needs OpenCV: ``pip install wfm-posttrain[geometry]``. Points are (column, row) in pixels with
centres at halves; poses are camera-to-world with OpenCV axes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from .metrics import Interval

LEAST_MATCHES = 15  # fewer than these support no geometry


@dataclass(frozen=True)
class Epipolar:
    """Sampson error in pixels, from so many matches a pair of pictures (the median)."""

    error: float
    matches: float


@dataclass(frozen=True)
class PoseErrors:
    """Errors between neighbouring frames in degrees, and the share of pairs that gave a pose.

    ``direction`` is that of the translation, NaN where the camera does not travel.
    """

    rotation: Float[np.ndarray, " s"]
    direction: Float[np.ndarray, " s"]
    success: float

    @property
    def succeeded(self) -> bool:
        """Whether at least nine in ten pairs gave a pose."""
        return self.success >= 0.9


def follow(
    one: UInt8[np.ndarray, "3 h w"],
    other: UInt8[np.ndarray, "3 h w"],
    *,
    enlarge: int = 4,
    most: int = 800,
    tolerance: float = 0.3,
) -> Float[np.ndarray, "n 4"]:
    """Return points (x, y) of one picture beside where they are in the other.

    A point counts when following it back ends within ``tolerance`` enlarged pixels.
    """
    cv2 = opencv()
    greys = [_grey(picture, enlarge) for picture in (one, other)]
    points = cv2.goodFeaturesToTrack(greys[0], most, 0.005, 3)
    if points is None or not len(points):
        return np.zeros((0, 4))
    points = np.asarray(points, np.float32).reshape(-1, 1, 2)
    window = {"winSize": (21, 21), "maxLevel": 4}
    there, found, _ = cv2.calcOpticalFlowPyrLK(greys[0], greys[1], points, None, **window)
    back, found_back, _ = cv2.calcOpticalFlowPyrLK(greys[1], greys[0], there, None, **window)
    error = np.linalg.norm((back - points)[:, 0], axis=1)
    good = (found[:, 0] == 1) & (found_back[:, 0] == 1) & (error < tolerance)
    pairs = np.concatenate([points[:, 0], there[:, 0]], axis=1)[good].astype(np.float64)
    return (pairs + 0.5) / enlarge


def fundamental(
    matches: Float[np.ndarray, "n 4"], *, threshold: float = 0.5
) -> Float[np.ndarray, "3 3"] | None:
    """Estimate F with ``x1' F x0 = 0`` by RANSAC; None if too few matches agree."""
    if len(matches) < LEAST_MATCHES:
        return None
    cv2 = opencv()
    cv2.setRNGSeed(0)
    found, inliers = cv2.findFundamentalMat(
        matches[:, :2], matches[:, 2:], cv2.FM_RANSAC, threshold, 0.999
    )
    if found is None or found.shape != (3, 3) or inliers.sum() < LEAST_MATCHES:
        return None
    return found


def fundamental_of(
    pose: Float[np.ndarray, "4 4"], k0: Float[np.ndarray, "3 3"], k1: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, "3 3"]:
    """Return F of a calibrated pair; ``pose`` takes points of the first camera to the second."""
    x, y, z = pose[:3, 3]
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.linalg.inv(k1).T @ cross @ pose[:3, :3] @ np.linalg.inv(k0)


def sampson(
    matches: Float[np.ndarray, "n 4"], f: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, " n"]:
    """Return the Sampson distance of each match in pixels (Hartley and Zisserman, 11.4.3)."""
    ones = np.ones((len(matches), 1))
    x0, x1 = (np.concatenate([matches[:, i : i + 2], ones], axis=1) for i in (0, 2))
    line, back = x0 @ f.T, x1 @ f
    top = (x1 * line).sum(axis=1) ** 2
    bottom = (line[:, :2] ** 2).sum(axis=1) + (back[:, :2] ** 2).sum(axis=1)
    return np.sqrt(top / np.maximum(bottom, 1e-12))


def temporal_sampson(frames: UInt8[np.ndarray, "t 3 h w"]) -> Epipolar:
    """TSE of Cosmos: F between neighbouring frames; the median over pairs of their medians.

    NaN where no pair has matches enough. Moving objects and a camera at rest have no epipolar
    geometry, so ask it of moving cameras in static scenes.
    """
    pairs = [follow(a, b) for a, b in pairwise(frames)]
    errors = [float(np.median(sampson(m, f))) for m in pairs if (f := fundamental(m)) is not None]
    return Epipolar(_median(errors), _median([float(len(m)) for m in pairs]))


def cross_view_sampson(
    one: UInt8[np.ndarray, "t 3 h w"],
    other: UInt8[np.ndarray, "t 3 h w"],
    *,
    f: Float[np.ndarray, "3 3"] | None = None,
) -> Epipolar:
    """CSE of Cosmos: one F for a rigid pair of cameras, from the matches of all frames together.

    ``f``, where it is known, takes the place of the estimate.
    """
    pairs = [follow(a, b, tolerance=1.0) for a, b in zip(one, other, strict=True)]
    f = fundamental(np.concatenate(pairs)) if f is None else f
    count = _median([float(len(m)) for m in pairs])
    if f is None:
        return Epipolar(float("nan"), count)
    errors = [float(np.median(sampson(m, f))) for m in pairs if len(m)]
    return Epipolar(_median(errors), count)


def relative_pose(
    matches: Float[np.ndarray, "n 4"], intrinsics: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, "4 4"] | None:
    """Return the second camera's pose seen from the first, with a translation of unit length.

    None if too few matches agree on one.
    """
    if len(matches) < LEAST_MATCHES:
        return None
    cv2 = opencv()
    cv2.setRNGSeed(0)
    essential, inliers = cv2.findEssentialMat(
        matches[:, :2], matches[:, 2:], intrinsics, method=cv2.RANSAC, prob=0.999, threshold=0.3
    )
    if essential is None or essential.shape != (3, 3) or inliers.sum() < LEAST_MATCHES:
        return None
    _, turn, shift, _ = cv2.recoverPose(
        essential, matches[:, :2], matches[:, 2:], intrinsics, mask=inliers
    )[:4]
    pose = np.eye(4)
    # OpenCV gives what takes points of the first camera to the second.
    pose[:3, :3], pose[:3, 3] = turn.T, (-turn.T @ shift)[:, 0]
    return pose


def pan(
    one: UInt8[np.ndarray, "3 h w"],
    other: UInt8[np.ndarray, "3 h w"],
    intrinsics: Float[np.ndarray, "3 3"],
    *,
    most: float = 0.45,
    blur: float = 1.0,
) -> float | None:
    """Return the sine of the turn to the right after which two pictures agree best.

    That is the shift along the rows with the highest normalised correlation, to half a pixel and
    up to ``most`` of the width, of pictures without the detail below ``blur`` pixels. It needs no
    points: those of imagined pictures, whose textures are drawn anew, can be followed for small
    turns only. A camera that travels sideways, too, adds its parallax. None where a picture has
    no contrast.
    """
    cv2 = opencv()
    a, b = (
        cv2.GaussianBlur(_grey(picture, 2), (0, 0), 2 * blur).astype(np.float64)
        for picture in (one, other)
    )
    wide = a.shape[1]
    shifts = range(-int(most * wide), int(most * wide) + 1)
    found = [
        _correlation(a[:, max(s, 0) : wide + min(s, 0)], b[:, max(-s, 0) : wide - max(s, 0)])
        for s in shifts
    ]
    if np.isnan(found).all():
        return None
    return float(np.sin(np.arctan(shifts[int(np.nanargmax(found))] / 2 / intrinsics[0, 0])))


def recovered_steps(
    frames: UInt8[np.ndarray, "t 3 h w"], intrinsics: Float[np.ndarray, "3 3"]
) -> list[Float[np.ndarray, "4 4"] | None]:
    """Return the pose of each frame seen from the one before, as far as it can be told."""
    pairs = pairwise(frames)
    return [relative_pose(follow(a, b), intrinsics) for a, b in pairs]


def commanded_steps(poses: Float[np.ndarray, "t 4 4"]) -> Float[np.ndarray, "s 4 4"]:
    """Return the pose of each frame seen from the one before, in metres."""
    return np.linalg.inv(poses[:-1]) @ poses[1:]


def pose_errors(
    frames: UInt8[np.ndarray, "t 3 h w"],
    poses: Float[np.ndarray, "t 4 4"],
    intrinsics: Float[np.ndarray, "3 3"],
    *,
    least_travel: float = 1e-3,
) -> PoseErrors:
    """Compare recovered with commanded camera motion, pair by pair."""
    return step_errors(recovered_steps(frames, intrinsics), commanded_steps(poses), least_travel)


def step_errors(
    steps: Sequence[Float[np.ndarray, "4 4"] | None],
    wanted: Float[np.ndarray, "s 4 4"],
    least_travel: float = 1e-3,
) -> PoseErrors:
    """Compare recovered with commanded steps; what was not recovered counts as a failure."""
    rotation, direction = [], []
    for step, command in zip(steps, wanted, strict=True):
        if step is None:
            continue
        rotation.append(angle_between(step[:3, :3], command[:3, :3]))
        length = np.linalg.norm(command[:3, 3])
        if length < least_travel:
            direction.append(float("nan"))
        else:
            direction.append(_degrees(np.dot(step[:3, 3], command[:3, 3]) / length))
    share = len(rotation) / max(len(wanted), 1)
    return PoseErrors(np.array(rotation), np.array(direction), share)


def recovered_way(
    steps: Sequence[Float[np.ndarray, "4 4"] | None], lengths: Float[np.ndarray, " s"]
) -> Float[np.ndarray, "t 4 4"]:
    """Chain recovered steps to poses seen from the first frame.

    Two views tell no scale, so each step is as long as ``lengths`` says. Where a step is not
    known, the one before goes on.
    """
    poses, last = [np.eye(4)], np.eye(4)
    for step, length in zip(steps, lengths, strict=True):
        if step is not None:
            last = step.copy()
        move = last.copy()
        move[:3, 3] *= length / max(float(np.linalg.norm(move[:3, 3])), 1e-9)
        poses.append(poses[-1] @ move)
    return np.stack(poses)


def following_error(
    way: Float[np.ndarray, "t 4 4"], commanded: Float[np.ndarray, "t 4 4"]
) -> dict[str, float]:
    """TFE: how far a recovered way is from the commanded one, both seen from their first frame.

    Returns:
        ``ate`` root-mean-square distance in metres, ``rpe_t`` mean error of a step in metres,
        ``rpe_r`` mean error of a step's rotation in degrees.
    """
    own, wanted = (np.linalg.inv(p[:1]) @ p for p in (way, commanded))
    distance = np.linalg.norm(own[:, :3, 3] - wanted[:, :3, 3], axis=1)
    steps = [commanded_steps(p) for p in (way, commanded)]
    shifts = np.linalg.norm(steps[0][:, :3, 3] - steps[1][:, :3, 3], axis=1)
    turns = [angle_between(a[:3, :3], b[:3, :3]) for a, b in zip(*steps, strict=True)]
    return {
        "ate": float(np.sqrt((distance**2).mean())),
        "rpe_t": float(shifts.mean()),
        "rpe_r": float(np.mean(turns)),
    }


def agreement_error(
    one: Float[np.ndarray, "t 4 4"],
    other: Float[np.ndarray, "t 4 4"],
    mount: Float[np.ndarray, "4 4"],
) -> dict[str, float]:
    """TAE: how far the ways recovered from two cameras of one rig are from each other.

    ``mount`` is the second camera's pose seen from the first. The second way is brought to the
    first camera before they are compared as in :func:`following_error`.
    """
    return following_error(mount @ other @ np.linalg.inv(mount), one)


def angle_between(a: Float[np.ndarray, "3 3"], b: Float[np.ndarray, "3 3"]) -> float:
    """Return the angle of the rotation from a to b in degrees."""
    return _degrees((np.trace(a.T @ b) - 1) / 2)


def reconstruction(
    frames: UInt8[np.ndarray, "t 3 h w"], intrinsics: Float[np.ndarray, "3 3"]
) -> float:
    """Return the share of frames that structure from motion (COLMAP) registers.

    For pictures of 256 pixels or more. Needs ``pip install wfm-posttrain[colmap]``.
    """
    import tempfile
    from pathlib import Path

    try:
        import pycolmap  # ty: ignore[import-not-found]
    except ImportError as e:
        raise ImportError("structure from motion needs: pip install wfm-posttrain[colmap]") from e
    cv2 = opencv()
    with tempfile.TemporaryDirectory() as name:
        folder, database = Path(name), Path(name) / "matches.db"
        pictures = folder / "pictures"
        pictures.mkdir()
        for i, frame in enumerate(frames):
            cv2.imwrite(str(pictures / f"{i:04d}.png"), frame[::-1].transpose(1, 2, 0))
        (fx, _, cx), (_, fy, cy), _ = intrinsics
        reader = pycolmap.ImageReaderOptions()
        reader.camera_model, reader.camera_params = "PINHOLE", f"{fx},{fy},{cx},{cy}"
        pycolmap.extract_features(
            database, pictures, camera_mode=pycolmap.CameraMode.SINGLE, reader_options=reader
        )
        pycolmap.match_sequential(database)
        found = pycolmap.incremental_mapping(database, pictures, folder / "sparse")
    most = max((model.num_reg_images() for model in found.values()), default=0)
    return most / len(frames)


def share_reconstructed(shares: Sequence[float], *, least: float = 0.9) -> Interval:
    """Return the success rate of structure from motion over clips, with its interval."""
    import torch

    from .metrics import bootstrap

    return bootstrap(torch.tensor([float(share >= least) for share in shares]))


def _grey(picture: UInt8[np.ndarray, "3 h w"], enlarge: int) -> UInt8[np.ndarray, "H W"]:
    cv2 = opencv()
    image = np.ascontiguousarray(picture.transpose(1, 2, 0))
    h, w = image.shape[:2]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, (w * enlarge, h * enlarge), interpolation=cv2.INTER_CUBIC)


def _correlation(a: Float[np.ndarray, "h w"], b: Float[np.ndarray, "h w"]) -> float:
    a, b = a - a.mean(), b - b.mean()
    spread = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / spread) if spread else np.nan


def _degrees(cosine: float) -> float:
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if len(values) else float("nan")


def opencv() -> Any:
    try:
        import cv2
    except ImportError as e:
        raise ImportError("OpenCV is not installed: pip install wfm-posttrain[geometry]") from e
    return cv2
