"""What became of every clip: the table, the index of the shards, and the summary."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .dataset import INDEX

SCHEMA = 3
MANIFEST, REPORT = "manifest.parquet", "report.json"
EMBEDDINGS = "embeddings.parquet"
WORDS = (
    "duplicate_how",
    "kept_for",
    "caption",
    "caption_source",
    "caption_windows",
    "category",
    "content",
    "hash",
    "shard",
)
TEXTS = ("key", "recording", "state", "reason", "error_kind")
STATES = ("kept", "rejected", "duplicate", "quarantined")


@dataclass
class Entry:
    """A range of frames of a recording, and what became of it.

    ``state`` is one of ``STATES``. A recording that could not be read is one entry with no
    frames; ``reason`` then holds the error. ``number`` is the clip's place in its recording.
    """

    key: str
    recording: str
    number: int = 0
    start: int = 0
    stop: int = 0
    start_seconds: float = 0.0
    stop_seconds: float = 0.0
    fps: float = 0.0
    height: int = 0
    width: int = 0
    state: str = "kept"
    reason: str = ""
    error_kind: str = ""
    duplicate_of: str = ""
    duplicate_how: str = ""
    kept_for: str = ""
    cosine: float | None = None
    difference: float | None = None
    caption: str = ""
    caption_source: str = ""
    windows: list[dict[str, Any]] = field(default_factory=list)
    category: str = ""
    content: str = ""
    content_share: float | None = None
    hash: str = ""
    shard: str = ""
    tags: list[str] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def frames(self) -> int:
        return self.stop - self.start

    @property
    def seconds(self) -> float:
        return self.stop_seconds - self.start_seconds


@dataclass(frozen=True)
class CurationReport:
    """The outcome of a run. ``frames`` counts those of each state; together they are all."""

    out: Path
    recordings: int
    clips: int
    kept: int
    duplicates: int
    rejected: Mapping[str, int]
    quarantined: Mapping[str, str]
    frames: Mapping[str, int]
    seconds_kept: float
    captions: Mapping[str, int]
    shards: int

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON values, without the place it lies in."""
        return {k: v for k, v in vars(self).items() if k != "out"}

    def __str__(self) -> str:
        reasons = ", ".join(f"{n} {reason}" for reason, n in self.rejected.items())
        lines = [
            f"{self.recordings} recordings, {self.clips} clips",
            f"  kept         {self.kept:6d}  ({self.seconds_kept:.1f} s in {self.shards} shards)",
            f"  rejected     {sum(self.rejected.values()):6d}"
            + (f"  ({reasons})" if reasons else ""),
            f"  duplicates   {self.duplicates:6d}",
            f"  quarantined  {len(self.quarantined):6d}  recordings",
            *(f"    {name}: {error}" for name, error in self.quarantined.items()),
        ]
        return "\n".join(lines)


def summarise(out: Path, entries: Sequence[Entry], shards: int) -> CurationReport:
    """Count what became of the clips."""
    clips = [e for e in entries if e.state != "quarantined"]
    kept = [e for e in clips if e.state == "kept"]
    reasons = Counter(e.reason for e in clips if e.state == "rejected")
    captions = Counter(e.caption_source for e in kept)
    frames = Counter(dict.fromkeys(STATES[:3], 0))
    for entry in clips:
        frames[entry.state] += entry.frames
    return CurationReport(
        out=out,
        recordings=len({e.recording for e in entries}),
        clips=len(clips),
        kept=len(kept),
        duplicates=sum(e.state == "duplicate" for e in clips),
        rejected=dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
        quarantined={e.recording: e.reason for e in entries if e.state == "quarantined"},
        frames=dict(frames),
        seconds_kept=round(sum((e.seconds for e in kept), 0.0), 3),
        captions=dict(sorted(captions.items())),
        shards=shards,
    )


def write_index(out: Path, entries: Sequence[Entry], places: Mapping[str, Mapping]) -> None:
    """Write where each kept clip lies; ``places`` are a clip's members by its key."""
    clips: list[dict[str, Any]] = [
        {
            "key": e.key,
            "shard": e.shard,
            "fps": e.fps,
            "frames": e.frames,
            "height": e.height,
            "width": e.width,
            "caption": e.caption,
            "members": places[e.key],
        }
        for e in entries
        if e.state == "kept"
    ]
    clips.sort(key=lambda c: (c["shard"], min(c["members"].values())))
    lines = ",\n".join(json.dumps(clip, ensure_ascii=False) for clip in clips)
    write_if_new(out / INDEX, f'{{"schema": {SCHEMA}, "clips": [\n{lines}\n]}}\n'.encode())


def write_manifest(out: Path, entries: Sequence[Entry]) -> None:
    """Write the table of all clips, kept or not, as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = sorted({name for e in entries for name in e.scores})
    rows = []
    for e in entries:
        row = {k: v for k, v in vars(e).items() if k not in ("scores", "windows")}
        row["caption_windows"] = json.dumps(e.windows, ensure_ascii=False) if e.windows else ""
        row |= {f"score_{name}": e.scores.get(name) for name in names}
        rows.append(row | {"frames": e.frames})
    fields = [(name, pa.string()) for name in TEXTS]
    fields += [(name, pa.int64()) for name in ("number", "start", "stop", "frames")]
    fields += [(name, pa.int64()) for name in ("height", "width")]
    fields += [(name, pa.float64()) for name in ("start_seconds", "stop_seconds", "fps")]
    fields += [
        ("duplicate_of", pa.string()),
        ("cosine", pa.float64()),
        ("difference", pa.float64()),
        ("content_share", pa.float64()),
    ]
    fields += [(n, pa.string()) for n in WORDS]
    fields += [("tags", pa.list_(pa.string()))]
    fields += [(f"score_{name}", pa.float64()) for name in names]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(fields)), sink)
    write_if_new(out / MANIFEST, sink.getvalue().to_pybytes())


def write_embeddings(out: Path, vectors: Mapping[str, np.ndarray], model: str) -> None:
    """Write the vectors of kept clips beside the table, as Parquet; ``model`` made them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    keys = sorted(vectors)
    rows = pa.array([vectors[key].astype(np.float32) for key in keys], pa.list_(pa.float32()))
    table = pa.table({"key": pa.array(keys, pa.string()), "embedding": rows})
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({"model": model}), sink)
    write_if_new(out / EMBEDDINGS, sink.getvalue().to_pybytes())


def kept_keys(out: Path) -> dict[tuple[str, int], str]:
    """Return the keys of the kept clips of a finished run, by recording and number."""
    import pyarrow.parquet as pq

    columns = ["key", "recording", "number", "state"]
    rows = pq.read_table(out / MANIFEST, columns=columns).to_pylist()
    return {(r["recording"], r["number"]): r["key"] for r in rows if r["state"] == "kept"}


def write_if_new(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, and not if it holds that already."""
    if path.is_file() and path.read_bytes() == content:
        return
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
