"""Folders of an external renderer, as Omniverse Replicator's BasicWriter lays them out.

``rgb_0000.png`` and, for the same numbers, ``distance_to_image_plane_0000.npy`` (metres),
``semantic_segmentation_0000.png`` with ``semantic_segmentation_labels_0000.json``, and
``camera_params_0000.json``; side by side or each kind in a folder of its own. What a hint says
must fit what the picture shows, so units and alignment are checked when a clip is read.
"""

import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from .imported import ImportedClip, ImportedClips, options, read_picture

DEPTH, SEGMENTS, CAMERA = "distance_to_image_plane", "semantic_segmentation", "camera_params"
KINDS = {DEPTH: ".npy", SEGMENTS: ".png", CAMERA: ".json"}
UNITS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])
"""From Replicator's camera axes (y up, looking along -z) to OpenCV's."""
NEAREST, FARTHEST = 0.02, 2000.0
"""Metres: a scene whose median depth lies outside is in other units."""


def replicator(argument: str) -> ImportedClips:
    """Open ``FOLDER`` or ``FOLDER?fps=24&unit=1``: one clip for each folder of pictures.

    ``fps`` (default 24) is not in the files; ``unit`` (default 1) is the metres of one unit of
    depth. Labels: ``depth`` (float16 metres, 0 where there is nothing), ``segmentation`` with the
    names in the attribute ``segments``, ``camera_pose``, ``intrinsics``. A ``caption.txt`` beside
    the pictures is the caption.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no pictures in it.
    """
    folder, chosen = options(argument, {"fps": float, "unit": float})
    places = sorted({path.parent for path in folder.rglob("rgb_*.png")})
    makers: list[Callable[[], ImportedClip]] = [
        partial(_clip, folder, place, chosen.get("fps", 24.0), chosen.get("unit", 1.0))
        for place in places
    ]
    return ImportedClips(makers, f"{folder}: no picture (rgb_0000.png)")


def _clip(folder: Path, place: Path, fps: float, unit: float) -> ImportedClip:
    base = place.parent if place.name == "rgb" else place
    pictures = _numbered(place, "rgb", ".png")
    kinds = {kind: files for kind, suffix in KINDS.items() if (files := _find(base, kind, suffix))}
    for kind, files in kinds.items():
        if odd := sorted(pictures.keys() ^ files.keys()):
            has, lacks = (kind, "rgb") if odd[0] in files else ("rgb", kind)
            raise ValueError(f"{base}: frame {odd[0]} has {has} but no {lacks}")
    names = _class_names(base) if SEGMENTS in kinds else []
    caption = base / "caption.txt"
    film = partial(_film, list(pictures.values()))
    return ImportedClip(
        stem=str(base.relative_to(folder)) if base != folder else folder.name,
        fps=fps,
        caption=caption.read_text().strip() if caption.is_file() else "",
        length=len(pictures),
        film=film,
        arrays=partial(_arrays, base, kinds, names, unit, film),
        attributes={"segments": {str(i): name for i, name in enumerate(names, 1)}},
    )


def _film(files: Sequence[Path]) -> UInt8[Tensor, "t 3 h w"]:
    return torch.stack([read_picture(file) for file in files])


def _arrays(
    base: Path,
    kinds: dict[str, dict[int, Path]],
    names: list[str],
    unit: float,
    film: Callable[[], Tensor],
) -> dict[str, Tensor]:
    """Read what there is, and check that it fits the pictures and itself.

    Raises:
        ValueError: names the file or the measurement that does not fit.
    """
    frames, found = film(), {}
    size = tuple(frames.shape[2:])
    if CAMERA in kinds:
        found |= _cameras(list(kinds[CAMERA].values()), size)
    if DEPTH in kinds:
        loaded = [np.load(file).squeeze() for file in kinds[DEPTH].values()]
        _check_sizes(base, DEPTH, loaded, size)
        depth = np.stack(loaded)
        depth = np.where(np.isfinite(depth), depth, 0).astype(np.float32) * unit
        found["depth"] = torch.from_numpy(depth)
        check_units(str(base), found)
        found["depth"] = found["depth"].clamp(max=60_000).half()
    if SEGMENTS in kinds:
        found["segmentation"] = _segments(base, list(kinds[SEGMENTS].values()), names)
        _check_sizes(base, SEGMENTS, list(found["segmentation"]), size)
    for kind in ("depth", "segmentation"):
        if kind in found:
            check_alignment(f"{base}: {kind}", frames, found[kind])
    return found


def check_units(what: str, labels: dict[str, Tensor]) -> None:
    """Refuse depth that is not in the metres of the camera's path.

    Where the camera moves, the depth of one frame, carried over by the poses, must not stand
    before that of another; the unit under which it does so least is the one of the data.
    Without poses, or on a still camera, only a median outside 2 cm to 2 km is refused.

    Raises:
        ValueError: names the unit to give.
    """
    depth = labels["depth"].double()
    median = float(depth[depth > 0].median()) if (depth > 0).any() else 0.0
    if not NEAREST < median < FARTHEST:
        raise ValueError(f"{what}: the median depth is {median:g} m; set ?unit=METRES_PER_UNIT")
    if "camera_pose" not in labels:
        return
    first, last = 0, len(depth) - 1
    move = labels["camera_pose"][last, :3, 3] - labels["camera_pose"][first, :3, 3]
    if float(move.norm()) < 0.02 * median * min(UNITS):
        return
    pairs = ((first, last), (last, first))
    errors = {unit: sum(_conflict(labels, unit, a, b) for a, b in pairs) for unit in UNITS}
    best = min(errors, key=lambda unit: errors[unit])
    if errors[best] < 0.5 * errors[1.0] and errors[1.0] > 0.02:
        raise ValueError(
            f"{what}: depth and camera path disagree; one unit of depth looks like {best:g} of "
            f"what was assumed: set ?unit= to that many times its value"
        )


def _conflict(labels: dict[str, Tensor], unit: float, a: int, b: int) -> float:
    """Return how much of frame a, carried to b by the poses, hides what is seen there.

    That is the mean of ln(depth seen / depth carried), from 0 to 1; a surface may be hidden from
    b, but nothing can stand before what b sees.
    """
    depth, pose = labels["depth"].double() * unit, labels["camera_pose"].double()
    pinhole = labels["intrinsics"].double()
    h, w = depth.shape[1:]
    v, u = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
    pixels = torch.stack([u, v, torch.ones_like(u)]).double().flatten(1)
    points = torch.linalg.inv(pinhole[a]) @ pixels * depth[a].flatten()
    points = torch.linalg.inv(pose[b]) @ pose[a] @ torch.cat([points, torch.ones(1, h * w)])
    there = pinhole[b] @ points[:3]
    z = there[2]
    x, y = (there[:2] / z.clamp_min(1e-9)).floor().long()
    seen = (z > 0) & (depth[a].flatten() > 0) & (x >= 0) & (x < w) & (y >= 0) & (y < h)
    if seen.sum() < 16:
        return float("inf")
    other = depth[b][y[seen], x[seen]]
    good = other > 0
    return float((other[good] / z[seen][good]).log().clamp(0, 1).mean())


def check_alignment(what: str, frames: UInt8[Tensor, "t 3 h w"], hint: Tensor) -> None:
    """Refuse a hint whose outlines lie on those of the frame before or after.

    Where a hint jumps, the picture mostly does; the share of the picture's gradient that lies on
    the hint's outlines is greatest when both show the same moment.

    Raises:
        ValueError: says by how many frames it is shifted.
    """
    if len(frames) < 4:
        return
    grey = frames.float().mean(dim=1)
    jumps = _jump(grey)
    x = hint.float()
    outlines = _jump(1 / x.clamp_min(0.05) if x.max() > 300 or not _is_whole(x) else x) > 0.05
    inner = slice(1, len(frames) - 1)

    def share(shift: int) -> float:
        moved = outlines.roll(-shift, 0)[inner]
        count = moved.sum()
        return float((jumps[inner] * moved).sum() / count) if count else 0.0

    scores = {shift: share(shift) for shift in (0, -1, 1)}
    best = max(scores, key=lambda shift: scores[shift])
    if best and scores[best] > 1.15 * scores[0]:
        raise ValueError(f"{what}: its outlines are those of the pictures {best:+d} frames away")


def _is_whole(x: Tensor) -> bool:
    return bool((x == x.round()).all())


def _jump(x: Float[Tensor, "t h w"]) -> Float[Tensor, "t h w"]:
    """Return the largest difference to the next pixel to the right and below."""
    right = torch.nn.functional.pad((x[:, :, 1:] - x[:, :, :-1]).abs(), (0, 1))
    below = torch.nn.functional.pad((x[:, 1:] - x[:, :-1]).abs(), (0, 0, 0, 1))
    return torch.maximum(right, below)


def _cameras(files: Sequence[Path], size: tuple[int, ...]) -> dict[str, Tensor]:
    """Read poses (camera to world, OpenCV axes, metres) and pixel intrinsics.

    ``cameraViewTransform`` takes world to camera, for points as rows; square pixels.
    """
    poses, pinholes = [], []
    for file in files:
        about = json.loads(file.read_text())
        try:
            view = np.array(about["cameraViewTransform"], np.float64).reshape(4, 4).T
            width, height = about["renderProductResolution"]
            focal = about["cameraFocalLength"] / about["cameraAperture"][0] * width
            metres = float(about.get("metersPerSceneUnit", 1.0))
        except (KeyError, ValueError, TypeError) as e:
            raise ValueError(f"{file}: not BasicWriter's camera parameters ({e!r})") from e
        if (height, width) != size:
            raise ValueError(f"{file}: is of a {height}x{width} picture, not {size[0]}x{size[1]}")
        pose = np.linalg.inv(view) @ OPENCV
        pose[:3, 3] *= metres
        poses.append(pose)
        pinholes.append([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    arrays = {"camera_pose": np.stack(poses), "intrinsics": np.array(pinholes)}
    return {name: torch.from_numpy(x.astype(np.float32)) for name, x in arrays.items()}


def _class_names(base: Path) -> list[str]:
    """Return the classes of all frames, in the order of their names; the background is none."""
    files = _find(base, f"{SEGMENTS}_labels", ".json", SEGMENTS)
    names = {name for file in files.values() for name in _legend(file).values()}
    return sorted(names - {"BACKGROUND", "UNLABELLED"})


def _legend(file: Path) -> dict[tuple[int, ...], str]:
    """Return the class of each colour (RGBA) or number."""
    found = {}
    for key, value in json.loads(file.read_text()).items():
        numbers = tuple(int(x) for x in re.findall(r"\d+", key))
        found[numbers] = str(value["class"] if isinstance(value, dict) else value)
    return found


def _segments(base: Path, files: Sequence[Path], names: list[str]) -> UInt8[Tensor, "t h w"]:
    """Number the classes of the painted pictures.

    Raises:
        ValueError: a picture has a colour that its legend does not explain.
    """
    legends, rows = _find(base, f"{SEGMENTS}_labels", ".json", SEGMENTS), []
    for file in files:
        number = int(re.findall(r"(\d+)", file.stem)[-1])
        if number not in legends:
            raise ValueError(f"{file}: has no legend ({SEGMENTS}_labels_{number:04d}.json)")
        painted = _rgba(file)
        out = np.zeros(painted.shape[:2], np.uint8)
        explained = np.zeros(painted.shape[:2], bool)
        for colour, name in _legend(legends[number]).items():
            here = (painted == np.array((*colour, 255)[:4])).all(axis=2)
            explained |= here
            if name in names:
                out[here] = names.index(name) + 1
        if not explained.all():
            odd = painted[~explained][0].tolist()
            raise ValueError(f"{file}: the colour {odd} is not in its legend")
        rows.append(torch.from_numpy(out))
    return torch.stack(rows)


def _rgba(file: Path) -> np.ndarray:
    """Read a picture with its alpha."""
    with av.open(str(file), "r") as container:
        return next(container.decode(video=0)).to_ndarray(format="rgba")


def _find(base: Path, kind: str, suffix: str, folder: str | None = None) -> dict[int, Path]:
    """Find the files of a kind, beside the pictures or in a folder of its own."""
    return _numbered(base, kind, suffix) or _numbered(base / (folder or kind), kind, suffix)


def _numbered(place: Path, kind: str, suffix: str) -> dict[int, Path]:
    """Return the files ``KIND_NUMBER.suffix`` of a folder by their numbers, in order."""
    pattern = re.compile(rf"{kind}_(\d+){re.escape(suffix)}")
    found = {int(m[1]): p for p in place.glob(f"{kind}_*") if (m := pattern.fullmatch(p.name))}
    return dict(sorted(found.items()))


def _check_sizes(base: Path, kind: str, found: Sequence[Any], size: tuple[int, ...]) -> None:
    if odd := [tuple(x.shape) for x in found if tuple(x.shape) != size]:
        raise ValueError(f"{base}: {kind} is {odd[0]}, the pictures {size}; need the same size")
