"""Synchronised recordings: several cameras and other sensors on one clock.

A folder ``NAME.rig`` is one recording. Each video in it is a view; the reference, the first by
name or the one that ``rig.json`` names, decides shots and scores. ``VIEW.safetensors`` may hold
``timestamp``, the seconds of each frame on the common clock; else the video's own timestamps
count, plus ``start_time`` of ``VIEW.json``. ``NAME.parquet`` is a series of anything else: a
column ``timestamp`` and one or more of numbers or lists of numbers. Each topic of ``NAME.mcap``
is one too; ``rig.json`` may list the ``topics`` that are wanted.

Every clip gets, for each frame of the reference, the frame or row of every other source that is
nearest in time. Where a source has none within half of its own period (frames were dropped) the
nearest is repeated and marked.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from . import bags, sidecar
from .sidecar import Array, SidecarError
from .video import SUFFIXES, Span, Writer, decode, describe, open_video, timestamps

SUFFIX, SETTINGS = ".rig", "rig.json"
LATE = 1e-6  # seconds that rounding may add to half a period


@dataclass(frozen=True)
class Rig:
    """The files of one recording: videos by view, and files of series."""

    folder: Path
    reference: str
    views: Mapping[str, Path]
    tables: tuple[Path, ...]
    topics: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The reference's video."""
        return self.views[self.reference]

    @property
    def others(self) -> dict[str, Path]:
        return {name: path for name, path in self.views.items() if name != self.reference}


@dataclass(frozen=True)
class Aligned:
    """For each moment: the number of the nearest sample, how far off it is, and if near enough."""

    rows: np.ndarray
    offsets: np.ndarray
    valid: np.ndarray


def find(folder: Path) -> Rig:
    """Return the parts of a rig's folder.

    Raises:
        SidecarError: no videos, a reference that is not there, or topics that are no list.
    """
    videos = {p.stem: p for p in sorted(folder.iterdir()) if p.suffix.lower() in SUFFIXES}
    tables = [p for p in sorted(folder.iterdir()) if p.suffix in (".parquet", ".mcap")]
    settings = sidecar.read_attributes(folder / SETTINGS)
    wanted, topics = settings.get("reference", next(iter(videos), "")), settings.get("topics", [])
    if not isinstance(topics, list) or not all(isinstance(t, str) for t in topics):
        raise SidecarError(f"{folder / SETTINGS}: topics are a list of names, got {topics!r}")
    if not isinstance(wanted, str) or wanted not in videos:
        have = ", ".join(videos) or "none"
        raise SidecarError(f"{folder}: reference {wanted!r} is not one of its videos: {have}")
    return Rig(folder, wanted, videos, tuple(tables), tuple(topics))


def clock(video: Path) -> np.ndarray:
    """Return the seconds of each frame of a view on the common clock.

    Raises:
        VideoError: the file cannot be read.
        SidecarError: its timestamps do not fit its frames, or do not rise.
    """
    pts, unit = timestamps(video)
    json_path, _, arrays_path = sidecar.paths(video)
    given = sidecar.read_arrays(arrays_path).get("timestamp")
    if given is None:
        start = sidecar.read_attributes(json_path).get("start_time", 0.0)
        if not isinstance(start, int | float):
            raise SidecarError(f"{json_path}: start_time is {start!r}, not seconds")
        return (pts - pts[0]) * float(unit) + start
    if given.dtype not in ("F32", "F64") or given.shape != (len(pts),):
        raise SidecarError(
            f"{arrays_path}: timestamp is {given.dtype} {given.shape}, the video {len(pts)} frames"
        )
    seconds = np.frombuffer(given.data, "<f4" if given.dtype == "F32" else "<f8").astype(float)
    if not (np.diff(seconds) > 0).all():
        raise SidecarError(f"{arrays_path}: timestamp does not rise from frame to frame")
    return seconds


def align(moments: np.ndarray, samples: np.ndarray) -> Aligned:
    """Find the sample nearest to each moment; both rise, in seconds."""
    after = np.searchsorted(samples, moments).clip(1, max(1, len(samples) - 1))
    before = after - 1
    after = np.minimum(after, len(samples) - 1)
    nearer = np.abs(samples[before] - moments) <= np.abs(samples[after] - moments)
    rows = np.where(nearer, before, after)
    offsets = samples[rows] - moments
    period = float(np.median(np.diff(samples))) if len(samples) > 1 else math.inf
    return Aligned(rows, offsets, np.abs(offsets) <= period / 2 + LATE)


def common(rig: Rig, moments: np.ndarray) -> tuple[int, int]:
    """Return the frames of the reference from which and up to which every source has samples.

    Raises:
        SidecarError: there are none.
    """
    first, last = 0, len(moments)
    sources = {name: clock(path) for name, path in rig.others.items()}
    sources |= {name: times for name, (times, _) in all_series(rig).items()}
    for name, times in sources.items():
        valid = np.flatnonzero(align(moments, times).valid)
        if not len(valid):
            raise SidecarError(f"{rig.folder}: {name} has nothing at the times of {rig.reference}")
        first, last = max(first, int(valid[0])), min(last, int(valid[-1]) + 1)
    if last <= first:
        raise SidecarError(f"{rig.folder}: no time that all sources share")
    return first, last


def all_series(rig: Rig) -> dict[str, bags.Series]:
    """Return every series of a rig by its name: seconds, and columns.

    Raises:
        SidecarError: one cannot be read, or two sources have one name.
    """
    found: dict[str, bags.Series] = {}
    for path in rig.tables:
        mcap = path.suffix == ".mcap"
        new = bags.read(path, rig.topics) if mcap else {path.stem: read_series(path)}
        for name in new:
            if name in found or name in rig.views:
                raise SidecarError(f"{path}: there is another source {name!r} in {rig.folder}")
        found |= new
    return found


def read_series(path: Path) -> bags.Series:
    """Return timestamps in seconds, and each other column as an array with a row for each.

    Raises:
        SidecarError: not Parquet, no rising ``timestamp``, or values that are not numbers.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        columns = {
            name: np.array(table.column(name).to_pylist(), dtype=np.float64)
            for name in table.column_names
        }
    except (pa.ArrowException, OSError, ValueError, TypeError) as e:
        raise SidecarError(f"{path}: not a table of numbers ({' '.join(str(e).split())})") from e
    times = columns.pop("timestamp", None)
    if times is None or times.ndim != 1 or not len(times) or not (np.diff(times) > 0).all():
        raise SidecarError(f"{path}: a column timestamp must rise from row to row, in seconds")
    return times, columns


def cut(rig: Rig, spans: Sequence[Span], outputs: Sequence[Path], writer: Writer) -> None:
    """Write the other views of each span to ``KEY.VIEW.mp4``, and all series beside them.

    ``outputs`` are those of the reference; the others take its name and timing, so that frame n
    of every view belongs to the same moment.

    Raises:
        VideoError, SidecarError: a source no longer is what it was.
    """
    moments = clock(rig.path)
    pts, _ = timestamps(rig.path)
    own = sidecar.read_arrays(sidecar.paths(rig.path)[2])
    labels = [sidecar.cut(own, span.start, span.stop, len(moments)) for span in spans]
    for name, path in rig.others.items():
        aligned = align(moments, clock(path))
        for span, output, found in zip(spans, outputs, labels, strict=True):
            inside = slice(span.start, span.stop)
            view = output.with_suffix(f".{name}.mp4")
            _cut_view(path, aligned.rows[inside], pts[inside], view, writer, span)
            found.update(_evidence(name, aligned, span))
    for name, (times, columns) in all_series(rig).items():
        aligned = align(moments, times)
        for span, found in zip(spans, labels, strict=True):
            rows = aligned.rows[span.start : span.stop]
            for column, values in columns.items():
                key = name if column == "value" else f"{name}.{column}"
                found[key] = _array(values[rows].astype("<f4"), "F32")
            found.update(_evidence(name, aligned, span))
    for span, output, found in zip(spans, outputs, labels, strict=True):
        found["timestamp"] = _array(moments[span.start : span.stop].astype("<f8"), "F64")
        partial = output.with_suffix(".safetensors.partial")
        partial.write_bytes(sidecar.dump(found))
        partial.replace(output.with_suffix(".safetensors"))


def _evidence(name: str, aligned: Aligned, span: Span) -> dict[str, Array]:
    """Return how far off each sample of a source is, in seconds, and if it is near enough."""
    inside = slice(span.start, span.stop)
    return {
        f"sync.{name}.offset": _array(aligned.offsets[inside].astype("<f4"), "F32"),
        f"sync.{name}.valid": _array(aligned.valid[inside].astype("u1"), "BOOL"),
    }


def _array(values: np.ndarray, dtype: str) -> Array:
    return Array(dtype, values.shape, np.ascontiguousarray(values).tobytes())


def _cut_view(
    path: Path, rows: np.ndarray, times: np.ndarray, output: Path, writer: Writer, span: Span
) -> None:
    """Write one frame of a view for each row, at the reference's time; rows may repeat."""
    with open_video(path) as container:
        frames = enumerate(decode(container, str(path)))
        index, frame = next(frames)
        own = describe(container, frame)
        info = replace(own, rate=writer.info.rate, time_base=writer.info.time_base)
        with replace(writer, info=info).open(output, span) as write:
            for row, time in zip(rows.tolist(), times.tolist(), strict=True):
                while index < row:
                    index, frame = next(frames)
                write(frame, time)
