"""The files of a LeRobot data set, versions 3.0 (long shared files) and 2.1 (one per episode)."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import UInt8

from .export import Recorded

EPISODES_IN_FILE = 1000  # of version 3.0; also the size of a chunk
VIDEO = {"crf": "12", "g": "2", "preset": "fast"}  # a key frame every second one: quick to seek


class Writer:
    """Adds episodes one by one; ``finish`` writes the tables about all of them.

    Raises:
        ImportError: no pyarrow.
        ValueError: an episode that has other cameras, labels, sizes or rate than the first.
    """

    def __init__(self, folder: Path, version: str, robot: str) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as e:
            raise ImportError("LeRobot needs: pip install wfm-posttrain[lerobot]") from e
        self.arrow: Any = pa
        self.parquet: Any = pq
        self.folder, self.version, self.robot = folder, version, robot
        self.first: dict[str, Any] | None = None
        self.tasks: dict[str, int] = {}
        self.episodes: list[dict[str, Any]] = []
        self.stats: list[dict[str, dict[str, Any]]] = []
        self.frames = 0
        self._tables: list[Any] = []
        self._films: dict[str, _Film] = {}

    def add(self, episode: Recorded) -> None:
        """Write one episode."""
        number = len(self.episodes)
        self._check(episode)
        pictures = {
            f"observation.images.{name}": clip.read(0, len(clip)).numpy()
            for name, clip in episode.views.items()
        }
        task = self.tasks.setdefault(episode.caption, len(self.tasks))
        table = self._table(episode, number, task)
        facts = {
            "episode_index": number, "tasks": [episode.caption], "length": episode.length,
        }  # fmt: skip
        if self.version == "v3.0":
            facts |= self._add_shared(episode, table, pictures, number)
        else:
            self._add_own(table, pictures, number, episode.fps)
        self.frames += episode.length
        self.episodes.append(facts)
        numbers = {name: _stats(rows) for name, rows in episode.columns.items()}
        self.stats.append(numbers | {key: _stats(_pixels(p)) for key, p in pictures.items()})

    def finish(self) -> None:
        """Write what is about all episodes.

        Raises:
            ValueError: there are none.
        """
        if self.first is None:
            raise ValueError("no recordings to write")
        meta = self.folder / "meta"
        meta.mkdir(exist_ok=True)
        _dump(meta / "info.json", self._info())
        if self.version == "v3.0":
            self._flush()
            _dump(meta / "stats.json", _together(self.stats))
            self._write_tasks(meta / "tasks.parquet")
            rows = [
                facts | _flat(stats) for facts, stats in zip(self.episodes, self.stats, strict=True)
            ]
            place = {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
            path = meta / "episodes" / "chunk-000" / "file-000.parquet"
            self._write(path, self.arrow.Table.from_pylist([row | place for row in rows]))
            return
        tasks = [{"task_index": i, "task": task} for task, i in self.tasks.items()]
        _lines(meta / "tasks.jsonl", tasks)
        _lines(meta / "episodes.jsonl", self.episodes)
        _lines(
            meta / "episodes_stats.jsonl",
            [{"episode_index": i, "stats": stats} for i, stats in enumerate(self.stats)],
        )

    def facts(self) -> dict[str, object]:
        """Return what a card says."""
        assert self.first is not None
        return {
            "episodes": len(self.episodes), "frames": self.frames, "tasks": len(self.tasks),
            "frames per second": self.first["fps"], "features": ", ".join(self.first["features"]),
        }  # fmt: skip

    def _check(self, episode: Recorded) -> None:
        """Note the sizes of the first episode; refuse others."""
        sizes = {
            f"observation.images.{name}": list(clip.read(0, 1).shape[2:])
            for name, clip in episode.views.items()
        }
        features = {name: [rows.shape[1]] for name, rows in episode.columns.items()} | sizes
        found = {"fps": episode.fps, "features": features, "cameras": list(sizes)}
        self.first = self.first or found
        if found != self.first:
            raise ValueError(
                f"{episode.name}: has {found['features']} at {episode.fps:g} Hz, the first has "
                f"{self.first['features']} at {self.first['fps']:g} Hz; export them apart"
            )

    def _table(self, episode: Recorded, number: int, task: int) -> Any:
        """Return the rows of an episode."""
        pa, n = self.arrow, episode.length
        columns = {
            name: pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
            for name, rows in episode.columns.items()
        }
        last = np.zeros(n, bool)
        last[-1] = True
        return pa.table(
            columns
            | {
                "timestamp": pa.array((np.arange(n) / episode.fps).astype(np.float32)),
                "frame_index": pa.array(np.arange(n)),
                "episode_index": pa.array(np.full(n, number)),
                "index": pa.array(np.arange(n) + self.frames),
                "task_index": pa.array(np.full(n, task)),
                "next.done": pa.array(last),
            }
        )

    def _add_own(
        self, table: Any, pictures: dict[str, UInt8[np.ndarray, "t 3 h w"]], number: int, fps: float
    ) -> None:
        """Version 2.1: files of the episode's own."""
        chunk, name = f"chunk-{number // EPISODES_IN_FILE:03d}", f"episode_{number:06d}"
        self._write(self.folder / "data" / chunk / f"{name}.parquet", table)
        for key, frames in pictures.items():
            film = _Film(self.folder / "videos" / chunk / key / f"{name}.mp4", fps)
            film.add(frames)
            film.close()

    def _add_shared(
        self,
        episode: Recorded,
        table: Any,
        pictures: dict[str, UInt8[np.ndarray, "t 3 h w"]],
        number: int,
    ) -> dict[str, Any]:
        """Version 3.0: append to long files; return where the episode lies in them."""
        file = number // EPISODES_IN_FILE
        if number % EPISODES_IN_FILE == 0:
            self._flush()
        self._tables.append(table)
        place: dict[str, Any] = {
            "data/chunk_index": 0, "data/file_index": file,
            "dataset_from_index": self.frames, "dataset_to_index": self.frames + episode.length,
        }  # fmt: skip
        for key, frames in pictures.items():
            if key not in self._films:
                path = self.folder / "videos" / key / "chunk-000" / f"file-{file:03d}.mp4"
                self._films[key] = _Film(path, episode.fps)
            film = self._films[key]
            place |= {
                f"videos/{key}/chunk_index": 0, f"videos/{key}/file_index": file,
                f"videos/{key}/from_timestamp": film.count / episode.fps,
                f"videos/{key}/to_timestamp": (film.count + episode.length) / episode.fps,
            }  # fmt: skip
            film.add(frames)
        return place

    def _flush(self) -> None:
        """Close the long files that are open."""
        if not self._tables:
            return
        file = (len(self.episodes) - 1) // EPISODES_IN_FILE
        path = self.folder / "data" / "chunk-000" / f"file-{file:03d}.parquet"
        self._write(path, self.arrow.concat_tables(self._tables))
        for film in self._films.values():
            film.close()
        self._tables, self._films = [], {}

    def _write(self, path: Path, table: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.parquet.write_table(table, path)

    def _write_tasks(self, path: Path) -> None:
        """Write the tasks as pandas would: the words are the index."""
        pa = self.arrow
        table = pa.table({"task_index": list(self.tasks.values()), "task": list(self.tasks)})
        columns = [
            {
                "name": name,
                "field_name": name,
                "pandas_type": kind,
                "numpy_type": numpy,
                "metadata": None,
            }
            for name, kind, numpy in (
                ("task_index", "int64", "int64"),
                ("task", "unicode", "object"),
            )
        ]
        nothing = {"name": None, "field_name": None, "pandas_type": "unicode",
                   "numpy_type": "object", "metadata": {"encoding": "UTF-8"}}  # fmt: skip
        about = {
            "index_columns": ["task"], "columns": columns,
            "column_indexes": [nothing],
            "creator": {"library": "pyarrow", "version": pa.__version__}, "pandas_version": "2.2.0",
        }  # fmt: skip
        self._write(path, table.replace_schema_metadata({"pandas": json.dumps(about)}))

    def _info(self) -> dict[str, Any]:
        """Return ``meta/info.json``."""
        assert self.first is not None
        fps, cameras = self.first["fps"], self.first["cameras"]
        fps = int(fps) if float(fps).is_integer() else fps
        features: dict[str, Any] = {}
        for name, shape in self.first["features"].items():
            if name in cameras:
                features[name] = _video_feature(shape, fps)
            else:
                names = [str(i) for i in range(shape[0])]
                features[name] = {"dtype": "float32", "shape": shape, "names": names}
        kinds = {"timestamp": "float32", "next.done": "bool"}
        for name in (
            "timestamp",
            "frame_index",
            "episode_index",
            "index",
            "task_index",
            "next.done",
        ):
            features[name] = {"dtype": kinds.get(name, "int64"), "shape": [1], "names": None}
        count = len(self.episodes)
        info = {
            "codebase_version": self.version, "robot_type": self.robot, "total_episodes": count,
            "total_frames": self.frames, "total_tasks": len(self.tasks),
            "chunks_size": EPISODES_IN_FILE, "fps": fps, "splits": {"train": f"0:{count}"},
        }  # fmt: skip
        if self.version == "v3.0":
            file = "chunk-{chunk_index:03d}/file-{file_index:03d}"
            paths = {
                "data_path": f"data/{file}.parquet",
                "video_path": f"videos/{{video_key}}/{file}.mp4",
                "data_files_size_in_mb": 100,
                "video_files_size_in_mb": 200,
            }
        else:
            file = "episode_{episode_index:06d}"
            chunk = "chunk-{episode_chunk:03d}"
            paths = {"data_path": f"data/{chunk}/{file}.parquet",
                     "video_path": f"videos/{chunk}/{{video_key}}/{file}.mp4",
                     "total_videos": count * len(cameras),
                     "total_chunks": -(-count // EPISODES_IN_FILE)}  # fmt: skip
        return info | paths | {"features": features}


class _Film:
    """An H.264 file that grows."""

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.fps, self.count = path, fps, 0
        self._container: Any = None

    def add(self, frames: UInt8[np.ndarray, "t 3 h w"]) -> None:
        if self._container is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._container = av.open(str(self.path), "w", format="mp4")
            rate = Fraction(self.fps).limit_denominator(1001)
            self._stream = self._container.add_stream("libx264", rate=rate, options=VIDEO)
            self._stream.height, self._stream.width = frames.shape[2:]
            odd = frames.shape[2] % 2 or frames.shape[3] % 2
            self._stream.pix_fmt = "yuv444p" if odd else "yuv420p"
        for frame in frames:
            image = np.ascontiguousarray(frame.transpose(1, 2, 0))
            picture = av.VideoFrame.from_ndarray(image, format="rgb24")
            self._container.mux(self._stream.encode(picture))
        self.count += len(frames)

    def close(self) -> None:
        if self._container is not None:
            self._container.mux(self._stream.encode())
            self._container.close()


def _video_feature(shape: list[int], fps: float | int) -> dict[str, Any]:
    h, w = shape
    pixels = "yuv444p" if h % 2 or w % 2 else "yuv420p"
    info = {"video.height": h, "video.width": w, "video.codec": "h264", "video.pix_fmt": pixels,
            "video.is_depth_map": False, "video.fps": fps, "video.channels": 3,
            "has_audio": False}  # fmt: skip
    return {"dtype": "video", "shape": [h, w, 3], "names": ["height", "width", "channels"],
            "info": info}  # fmt: skip


def _pixels(frames: UInt8[np.ndarray, "t 3 h w"]) -> np.ndarray:
    """Return some frames' pixels in [0, 1], one row each."""
    some = frames[:: max(1, len(frames) // 8)]
    return some.transpose(0, 2, 3, 1).reshape(-1, 3) / 255


def _stats(rows: np.ndarray) -> dict[str, Any]:
    """Return the statistics of columns; colours of pixels are three by one by one."""
    found = {
        "min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)
    }  # fmt: skip
    colours = rows.dtype == np.float64
    shaped = {k: (v[:, None, None] if colours else v).tolist() for k, v in found.items()}
    return shaped | {"count": [len(rows)]}


def _together(stats: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Put the statistics of episodes together."""
    found = {}
    for name in stats[0]:
        parts = {k: np.array([s[name][k] for s in stats]) for k in stats[0][name]}
        weight = parts["count"][:, 0] / parts["count"].sum()
        weight = weight.reshape(-1, *[1] * (parts["mean"].ndim - 1))
        mean = (weight * parts["mean"]).sum(0)
        square = (weight * (parts["std"] ** 2 + parts["mean"] ** 2)).sum(0) - mean**2
        found[name] = {
            "min": parts["min"].min(0).tolist(), "max": parts["max"].max(0).tolist(),
            "mean": mean.tolist(), "std": np.sqrt(np.maximum(square, 0)).tolist(),
            "count": [int(parts["count"].sum())],
        }  # fmt: skip
    return found


def _flat(stats: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {f"stats/{name}/{key}": v for name, s in stats.items() for key, v in s.items()}


def _dump(path: Path, facts: dict[str, Any]) -> None:
    path.write_text(json.dumps(facts, indent=4) + "\n")


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
