"""Calibrated cameras on a car, in the layout of nuScenes (arXiv 1903.11027).

Tables of JSON in ``v1.0-*``: ``scene``, ``sample``, ``sample_data``, ``calibrated_sensor``,
``sensor``, ``ego_pose``; pictures where ``sample_data`` says. Poses are quaternions w x y z and
metres; cameras have OpenCV axes, the car x forward, y left, z up.
"""

import json
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from .imported import ImportedClip, ImportedClips, options, read_picture

TABLES = ("scene", "sample", "sample_data", "calibrated_sensor", "sensor", "ego_pose")
POINTS, POINT_RATE = 64, 10.0
"""The trajectory: so many points, so many a second."""
LATEST = 0.15
"""Seconds that a picture may lie from the moment that it stands for."""

Rows = dict[str, dict[str, Any]]


def driving(argument: str) -> ImportedClips:
    """Open ``FOLDER`` or ``FOLDER?fps=10&cameras=CAM_FRONT,CAM_BACK&version=v1.0-mini``.

    One clip for each scene and camera; those of a scene share a ``group`` and show the same
    moments, ``fps`` times a second (default 10). Labels: ``camera_pose`` (camera to world),
    ``intrinsics``, ``ego_pose``, ``trajectory`` (64 3; the way of 6.4 s from the first frame).

    Raises:
        FileNotFoundError: no such folder, or a table is missing.
        ValueError: a camera that is not there, or none has pictures all the time.
    """
    known = {"fps": float, "cameras": lambda x: x.split(","), "version": str}
    folder, chosen = options(argument, known)
    home = _home(folder, chosen.get("version"))
    tables = {name: _rows(home / f"{name}.json") for name in TABLES}
    frames = _frames(tables)
    makers: list[Callable[[], ImportedClip]] = []
    for token, cameras in frames.items():
        scene = tables["scene"][token]
        names = chosen.get("cameras", sorted(cameras, key=_clockwise))
        if missing := [name for name in names if name not in cameras]:
            raise ValueError(
                f"{scene['name']}: no camera {missing[0]}; there are {', '.join(sorted(cameras))}"
            )
        moments = _moments([cameras[name] for name in names], chosen.get("fps", 10.0))
        for name in names:
            rows = [_nearest(cameras[name], moment) for moment in moments]
            makers.append(
                partial(_clip, folder, scene, name, names, rows, tables, chosen.get("fps", 10.0))
            )
    return ImportedClips(makers, str(home))


def _clip(
    folder: Path,
    scene: dict[str, Any],
    camera: str,
    cameras: Sequence[str],
    rows: list[dict[str, Any]],
    tables: dict[str, Rows],
    fps: float,
) -> ImportedClip:
    return ImportedClip(
        stem=f"{scene['name']}-{camera}",
        fps=fps,
        caption=str(scene.get("description", "")),
        length=len(rows),
        film=lambda: torch.stack([read_picture(folder / row["filename"]) for row in rows]),
        arrays=partial(_arrays, rows, tables),
        attributes={"group": scene["name"], "camera": camera, "views": list(cameras)},
    )


def _arrays(rows: list[dict[str, Any]], tables: dict[str, Rows]) -> dict[str, Tensor]:
    """Return poses, intrinsics and the way that the car takes."""
    calibration = tables["calibrated_sensor"][rows[0]["calibrated_sensor_token"]]
    ego = [tables["ego_pose"][row["ego_pose_token"]] for row in rows]
    car = np.stack([_pose(row) for row in ego])
    times = np.array([row["timestamp"] for row in rows], np.float64) / 1e6
    found = {
        "camera_pose": car @ _pose(calibration),
        "intrinsics": np.tile(np.array(calibration["camera_intrinsic"]), (len(rows), 1, 1)),
        "ego_pose": car,
        "trajectory": _way(car, times),
    }
    return {name: torch.from_numpy(x.astype(np.float32)) for name, x in found.items()}


def _way(car: Float64[np.ndarray, "t 4 4"], times: Float64[np.ndarray, " t"]) -> np.ndarray:
    """Return the car's places at fixed times after the first, seen from there; then it stands."""
    seen = np.linalg.inv(car[0]) @ car
    wanted = times[0] + np.arange(POINTS) / POINT_RATE
    return np.stack([np.interp(wanted, times, seen[:, i, 3]) for i in range(3)], axis=1)


def _pose(row: dict[str, Any]) -> Float64[np.ndarray, "4 4"]:
    """Return the matrix of a rotation (w x y z) and a translation."""
    w, x, y, z = np.array(row["rotation"], np.float64) / np.linalg.norm(row["rotation"])
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, 3] = row["translation"]
    return matrix


def _frames(tables: dict[str, Rows]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return the pictures of every scene and camera, in time."""
    frames: dict[str, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    for row in tables["sample_data"].values():
        sensor = tables["calibrated_sensor"][row["calibrated_sensor_token"]]["sensor_token"]
        if tables["sensor"][sensor]["modality"] == "camera":
            scene = tables["sample"][row["sample_token"]]["scene_token"]
            frames[scene][tables["sensor"][sensor]["channel"]].append(row)
    for cameras in frames.values():
        for rows in cameras.values():
            rows.sort(key=lambda row: row["timestamp"])
    return frames


def _moments(cameras: Sequence[list[dict[str, Any]]], fps: float) -> list[float]:
    """Return the times, in microseconds, at which all cameras film."""
    first = max(rows[0]["timestamp"] for rows in cameras)
    last = min(rows[-1]["timestamp"] for rows in cameras)
    return [first + i * 1e6 / fps for i in range(int((last - first) * fps / 1e6 + 1e-6) + 1)]


def _nearest(rows: list[dict[str, Any]], moment: float) -> dict[str, Any]:
    """Return the picture that was taken nearest to a moment.

    Raises:
        ValueError: none was taken anywhere near.
    """
    i = bisect_left(rows, moment, key=lambda row: row["timestamp"])
    near = min(rows[max(i - 1, 0) : i + 1], key=lambda row: abs(row["timestamp"] - moment))
    late = abs(near["timestamp"] - moment) / 1e6
    if late > LATEST:
        raise ValueError(
            f"{near['filename']}: no picture within {LATEST} s; the next is {late:.2f}"
        )
    return near


def _clockwise(camera: str) -> tuple[int, str]:
    """Put cameras in the order front, front right, back right, back, back left, front left."""
    order = ("FRONT", "FRONT_RIGHT", "BACK_RIGHT", "BACK", "BACK_LEFT", "FRONT_LEFT")
    name = camera.removeprefix("CAM_")
    return (order.index(name) if name in order else len(order), camera)


def _home(folder: Path, version: str | None) -> Path:
    """Find the folder of tables."""
    found = sorted(p.name for p in folder.glob("v1.0-*") if p.is_dir())
    if version is None and len(found) == 1:
        version = found[0]
    if version not in found:
        raise ValueError(f"{folder}: say which tables, ?version=..., of: {', '.join(found) or '-'}")
    return folder / str(version)


def _rows(path: Path) -> Rows:
    """Read a table; its rows by their tokens."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table")
    try:
        return {row["token"]: row for row in json.loads(path.read_text())}
    except (json.JSONDecodeError, KeyError, TypeError) as e:
        raise ValueError(f"{path}: not a table of rows with tokens ({e})") from e
