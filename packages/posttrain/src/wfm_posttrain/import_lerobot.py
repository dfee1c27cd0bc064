"""LeRobot data sets, versions 2.0 to 3.0, as clips: one for each episode and camera."""

import json
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .imported import ImportedClip, ImportedClips, options, read_span
from .video import read_video

Table = Mapping[str, Any]


def lerobot(argument: str) -> ImportedClips:
    """Open ``FOLDER`` or ``FOLDER?camera=observation.images.front``.

    The action of a row leads to the next row's frame, so that the last has none. Every number
    or vector of numbers becomes an array under its own name; ``observation.state`` is also
    ``state``. Cameras of an episode share a ``group``.

    Raises:
        FileNotFoundError: no such folder, or files that its own index names are missing.
        ValueError: no LeRobot data set, or one of another version.
        ImportError: pyarrow is not installed.
    """
    folder, chosen = options(argument, {"camera": str})
    info = _json(folder / "meta" / "info.json")
    version = str(info.get("codebase_version", ""))
    if version not in ("v2.0", "v2.1", "v3.0"):
        raise ValueError(f"{folder}: LeRobot version {version or '?'}; 2.0, 2.1 and 3.0 are known")
    features = info["features"]
    cameras = [k for k, x in features.items() if x["dtype"] in ("video", "image")]
    camera = chosen.get("camera")
    if camera is not None:
        if camera not in cameras:
            raise ValueError(f"{folder}: no camera {camera!r}; there are {', '.join(cameras)}")
        cameras = [camera]
    if not cameras:
        raise ValueError(f"{folder}: has no pictures")
    episodes = _episodes_v3(folder) if version == "v3.0" else _episodes_v2(folder)
    makers: list[Callable[[], ImportedClip]] = [
        partial(_clip, folder, info, episode, name, cameras)
        for episode in episodes
        for name in cameras
    ]
    return ImportedClips(makers, str(folder))


def _clip(
    folder: Path, info: Table, episode: Table, camera: str, cameras: list[str]
) -> ImportedClip:
    number, length = int(episode["episode_index"]), int(episode["length"])
    moving = info["features"][camera]["dtype"] == "video"
    film = partial(_film if moving else _pictures, folder, info, episode, camera)
    return ImportedClip(
        stem=f"{folder.name}-{number:06d}-{camera}",
        fps=float(info["fps"]),
        caption=str((list(episode["tasks"]) or [""])[0]),
        length=length,
        film=film,
        arrays=partial(_arrays, folder, info, episode),
        attributes={
            "group": f"{folder.name}-{number:06d}", "camera": camera, "views": cameras,
            "episode": number, "robot": str(info.get("robot_type")),
        },
    )  # fmt: skip


def _film(folder: Path, info: Table, episode: Table, camera: str) -> Tensor:
    """Read the frames of an episode, from its own file or from within a longer one."""
    length, key = int(episode["length"]), f"videos/{camera}"
    if f"{key}/file_index" in episode:
        place = {
            "chunk_index": int(episode[f"{key}/chunk_index"]),
            "file_index": int(episode[f"{key}/file_index"]),
        }
        path = folder / info["video_path"].format(video_key=camera, **place)
        return read_span(path, float(episode[f"{key}/from_timestamp"]), length)
    number = int(episode["episode_index"])
    chunk = number // int(info["chunks_size"])
    name = info["video_path"].format(video_key=camera, episode_chunk=chunk, episode_index=number)
    return read_video(folder / name)[0]


def _pictures(folder: Path, info: Table, episode: Table, camera: str) -> Tensor:
    """Decode pictures that are kept in the table itself."""
    import io

    import av

    rows = _rows(folder, info, episode)[camera]
    frames = []
    for row in rows:
        with av.open(io.BytesIO(row["bytes"]), "r") as container:
            frame = next(container.decode(video=0))
            frames.append(torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1))
    return torch.stack(frames)


def _arrays(folder: Path, info: Table, episode: Table) -> dict[str, Tensor]:
    """Return the episode's numbers."""
    rows, found = _rows(folder, info, episode), {}
    counters = {"timestamp", "frame_index", "episode_index", "index", "task_index"}
    for name, feature in info["features"].items():
        if name in counters or not str(feature["dtype"]).startswith(("float", "int", "bool")):
            continue
        values = torch.tensor(rows[name])
        values = values.float() if values.is_floating_point() else values
        found[name] = values[:, None] if name == "action" and values.ndim == 1 else values
    if "action" in found:
        found["action"] = found["action"][:-1].float()
    if "observation.state" in found:
        found["state"] = found["observation.state"]
    return found


def _rows(folder: Path, info: Table, episode: Table) -> dict[str, list]:
    """Return the columns of an episode's rows."""
    number = int(episode["episode_index"])
    if "data/file_index" in episode:
        path = info["data_path"].format(
            chunk_index=int(episode["data/chunk_index"]), file_index=int(episode["data/file_index"])
        )
        table = _table(folder / path)
        here = [i for i, n in enumerate(table["episode_index"].to_pylist()) if n == number]
        return table.take(here).to_pydict()
    chunk = number // int(info["chunks_size"])
    path = info["data_path"].format(episode_chunk=chunk, episode_index=number)
    return _table(folder / path).to_pydict()


def _episodes_v2(folder: Path) -> list[Table]:
    return _lines(folder / "meta" / "episodes.jsonl")


def _episodes_v3(folder: Path) -> list[Table]:
    files = sorted((folder / "meta" / "episodes").rglob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"{folder / 'meta' / 'episodes'}: no list of episodes")
    return [row for file in files for row in _table(file).to_pylist()]


@lru_cache(maxsize=2)  # episodes of one file follow each other
def _table(path: Path) -> Any:
    """Read a parquet file."""
    try:
        import pyarrow.parquet as pq
    except ImportError as e:
        raise ImportError(f"{path}: needs pyarrow: pip install wfm-posttrain[lerobot]") from e
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return pq.read_table(path)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; this is no LeRobot data set")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as e:
        raise ValueError(f"{path}: not JSON ({e})") from e


def _lines(path: Path) -> list[Table]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
