"""The whole run: inputs to shards. Stop it at any time and start it again."""

import hashlib
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np

from . import content, manifest, pool, shard, sidecar, text
from .analysis import info_from, span
from .captioning import Captions, clip_of
from .config import CurateConfig
from .dataset import INDEX
from .decide import decide
from .embedders import Vectors
from .inputs import CACHE, Recording, find_recordings
from .ledger import LEDGER, Ledger, Row
from .manifest import CurationReport, Entry
from .publish import by_key, earlier_clips, is_copied, labels_of, load_embeddings, metadata, publish
from .tasks import AnalyseUnit, CutUnit, analyse_unit, cut_unit
from .vlm import model_of

WORK = ".work"
COMMIT_EVERY = 64
EXECUTORS = ("local", "ray")

Progress = Callable[[str, int, int], None]  # what, done, of how many


def curate(
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    config: CurateConfig | None = None,
    executor: str = "local",
    *,
    progress: Progress | None = None,
) -> CurationReport:
    """Split, filter, caption, deduplicate and shard the videos among ``inputs`` into ``out``.

    Work done before is not done again; the same inputs and settings give the same bytes. A
    recording that cannot be read is quarantined with its reason, and the run goes on.

    Raises:
        FileNotFoundError: an input is not there.
        ValueError: no videos, an unknown executor, or another run is writing to ``out``.
        OSError: ``out`` cannot be written.
    """
    if executor not in EXECUTORS:
        raise ValueError(f"executor {executor!r} is not one of {', '.join(EXECUTORS)}")
    places = [inputs] if isinstance(inputs, str | Path) else inputs
    out = Path(out)
    recordings = find_recordings(places, cache=out / CACHE)
    out.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(out / LEDGER)
    try:
        config = config or CurateConfig()
        settled = {"split": config.split.resolved(), "look": config.look.resolved()}
        config = config.model_copy(update=settled)
        run = _Run(out, config, ledger, recordings, progress or _silent, executor)
        return run.all()
    finally:
        ledger.close()


def _silent(what: str, done: int, total: int) -> None:
    pass


@dataclass
class _Run:
    out: Path
    config: CurateConfig
    ledger: Ledger
    recordings: list[Recording]
    progress: Progress
    executor: str

    def __post_init__(self) -> None:
        embedded = partial(self.progress, "embed")
        self.vectors = Vectors(self.config.embed, self.ledger, embedded)

    def all(self) -> CurationReport:
        _sweep(self.out)
        earlier = earlier_clips(self.config.dedup)
        tell = content.teller(self.config.embed, lambda: self.vectors.embedder)
        self.analyse()
        while True:
            rows = self.ledger.recordings()
            embeddings = load_embeddings(self.ledger)
            learned = partial(self.embed, rows=rows)
            entries = decide(rows, embeddings, self.config, earlier, learned, tell)
            self.progress("compare", 1, 1)
            kept = [e for e in entries if e.state == "kept"]
            self.caption(kept, rows)
            planned = self.plan(kept, rows)
            if self.cut(kept, planned, rows):
                break  # else a recording failed while it was cut: decide without it
        places = self.write(kept, planned, rows)
        manifest.write_index(self.out, kept, places)
        shutil.rmtree(self.out / WORK, ignore_errors=True)
        return publish(self.out, entries, len(planned), self.config, self.ledger)

    def embed(self, kept: Sequence[Entry], rows: Mapping[str, Row]) -> dict[str, np.ndarray]:
        """Return the vectors of a network, if there is one; what is not known is computed."""
        if not self.vectors.config.model or not kept:
            return {}
        known = self.vectors.known([e.key for e in kept])
        missing = [e for e in kept if e.key not in known]
        paths = self._fetched(missing)
        clips = [clip_of(e, rows[e.recording].facts, paths[e.recording]) for e in missing]
        found = known | self.vectors.fill(clips)
        if len({len(vector) for vector in found.values()}) > 1:
            raise ValueError("embed.model gives vectors of several lengths; set embed.version anew")
        return found

    def _fetched(self, entries: Sequence[Entry]) -> dict[str, Path]:
        """Return the local files of the recordings of some clips."""
        recordings = {r.name: r for r in self.recordings}
        for name in {e.recording for e in entries}:
            recordings[name].fetch()
        return {name: r.path for name, r in recordings.items()}

    def analyse(self) -> None:
        """Measure recordings that are new, changed, or failed for no fault of theirs."""
        known = self.ledger.marks()
        self.ledger.forget(set(known) - {r.name for r in self.recordings})
        units = []
        for recording in self.recordings:
            mark = recording.mark(self.config.split, self.config.look)
            seen, state, attempts = known.get(recording.name, ("", "", 0))
            again = state == "failed" and attempts < self.config.run.give_up
            if seen != mark or again:
                units.append(AnalyseUnit(recording, mark, self.config.split, self.config.look))
        if units:  # what cannot be had is said before hours of work
            text.detector(self.config.look)
            if self.config.embed.model:
                self.vectors.embedder  # noqa: B018
        for done, outcome in enumerate(self._pool(analyse_unit, units), 1):
            facts, clips = outcome.value or ({}, [])
            self._record(outcome.unit, outcome.unit.mark, outcome, facts, clips)
            if done % COMMIT_EVERY == 0:
                self.ledger.commit()
            self.progress("measure", done, len(units))
        self.ledger.commit()

    def _record(
        self, unit: Any, mark: str, outcome: pool.Outcome, facts: dict, clips: list
    ) -> None:
        state = "done" if not outcome.error else "quarantined" if outcome.lasting else "failed"
        name, path = unit.recording.name, unit.recording.path
        error = outcome.error.removeprefix(f"{path}: ").replace(str(path), path.name)
        before, tries = self.ledger.attempts(name)
        attempts = outcome.attempts + (tries if before == mark else 0)
        self.ledger.put(name, Row(mark, state, error, facts, outcome.kind, attempts), clips)

    def _pool(self, function: FunctionType, units: Sequence) -> Iterator[pool.Outcome]:
        run = self.config.run
        if self.executor == "ray":
            from .cluster import run as start
        else:
            start = pool.run
        return start(
            function,
            units,
            workers=run.workers,
            timeout=run.timeout,
            attempts=run.attempts,
            memory=run.memory,
        )

    def plan(self, kept: Sequence[Entry], rows: Mapping[str, Row]) -> list[shard.Planned]:
        """Distribute clips over tars by what is known before they are cut."""
        config = self.config.shard
        buckets = [shard.bucket(e.height, e.width, e.seconds, config) for e in kept]
        facts = [rows[e.recording].facts for e in kept]
        sizes = [f["bytes"] * e.frames / f["frames"] for e, f in zip(kept, facts, strict=True)]
        planned = shard.plan(buckets, sizes, config)
        for tar in planned:
            for index in tar.clips:
                kept[index].shard = tar.path
        return planned

    def cut(
        self, kept: Sequence[Entry], planned: Sequence[shard.Planned], rows: Mapping[str, Row]
    ) -> bool:
        """Encode clips for tars that are not there yet; False if a recording failed."""
        work, config = self.out / WORK, self.config.shard
        wanted = defaultdict(list)
        for tar in self._missing(kept, planned, rows):
            for entry in (kept[i] for i in tar.clips):
                facts = rows[entry.recording].facts
                if not is_copied(facts, config) and not self._piece(entry).is_file():
                    wanted[entry.recording].append(entry)
        paths = {r.name: r for r in self.recordings}
        if wanted:
            work.mkdir(exist_ok=True)
        shares = max(1, self.config.run.workers // max(1, len(wanted)))
        units = [
            self._cut_unit(paths[name], part, rows[name].facts)
            for name, entries in sorted(wanted.items())
            for part in _parts(entries, shares)
        ]
        good = True
        for done, outcome in enumerate(self._pool(cut_unit, units), 1):
            if outcome.error:
                row = rows[outcome.unit.recording.name]
                self._record(outcome.unit, row.mark, outcome, {}, [])
                good = False
            self.progress("cut", done, len(units))
        self.ledger.commit()
        return good

    def caption(self, kept: Sequence[Entry], rows: Mapping[str, Row]) -> None:
        """Ask the model about kept clips that came without a caption, if there is one."""
        endpoint = model_of(self.config.caption)
        if endpoint is None:
            return
        asked = [e for e in kept if e.caption_source in ("described", "none")]
        Captions(endpoint, self.ledger, self.progress).fill(asked, rows, self._fetched(asked))

    def _cut_unit(self, recording: Recording, entries: Sequence[Entry], facts: dict) -> CutUnit:
        spans = tuple(span(facts["clips"][e.number], facts["exact"]) for e in entries)
        outputs = tuple(self._piece(e) for e in entries)
        config = self.config.shard
        info = info_from(facts["info"])
        return CutUnit(
            recording,
            spans,
            outputs,
            info,
            crf=config.crf,
            preset=config.preset,
            whole=len(facts["clips"]) == 1,
            audio=config.audio,
            seconds=tuple(e.seconds for e in entries),
        )

    def _piece(self, entry: Entry) -> Path:
        config = self.config.shard
        heard = "" if config.audio else "-silent"
        return self.out / WORK / f"{entry.key}-{config.preset}{config.crf}{heard}.mp4"

    def _mark(self, tar: shard.Planned, kept: Sequence[Entry], rows: Mapping[str, Row]) -> str:
        """Return a digest of all that the bytes of a tar depend on."""
        config = self.config.shard
        parts = [f"{manifest.SCHEMA} {config.crf} {config.preset} {config.audio}"]
        for entry in (kept[i] for i in tar.clips):
            row = rows[entry.recording]
            parts.append(f"{row.mark} {metadata(entry, row.facts).decode()}")
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def _missing(
        self, kept: Sequence[Entry], planned: Sequence[shard.Planned], rows: Mapping[str, Row]
    ) -> list[shard.Planned]:
        known = self.ledger.shards()
        missing = []
        for tar in planned:
            mark, size, _ = known.get(tar.path, ("", -1, None))
            file = self.out / tar.path
            there = file.is_file() and file.stat().st_size == size
            if not there or mark != self._mark(tar, kept, rows):
                missing.append(tar)
        return missing

    def write(
        self, kept: Sequence[Entry], planned: Sequence[shard.Planned], rows: Mapping[str, Row]
    ) -> dict[str, dict]:
        """Write tars that are missing, remove those no longer wanted; return all members."""
        missing = self._missing(kept, planned, rows)
        stale = set(self.ledger.shards()) - {tar.path for tar in planned}
        if missing or stale:
            (self.out / INDEX).unlink(missing_ok=True)  # it would point into other bytes
        for path in sorted(stale):
            (self.out / path).unlink(missing_ok=True)
            self.ledger.forget_shard(path)
        for done, tar in enumerate(missing, 1):
            entries = [kept[i] for i in tar.clips]
            members = self._members(entries, rows)
            file = self.out / tar.path
            places = shard.write_tar(file, members)
            mark = self._mark(tar, kept, rows)
            self.ledger.put_shard(tar.path, mark, file.stat().st_size, by_key(places))
            self.progress("write", done, len(missing))
        merged: dict[str, dict] = {}
        for _, _, members in self.ledger.shards().values():
            merged |= members
        return merged

    def _members(self, entries: Sequence[Entry], rows: Mapping[str, Row]) -> Iterator[shard.Member]:
        config, recordings = self.config.shard, {r.name: r for r in self.recordings}
        for entry in entries:
            facts, path = rows[entry.recording].facts, recordings[entry.recording].path
            recordings[entry.recording].fetch()
            piece = self._piece(entry)
            yield f"{entry.key}.mp4", (path if is_copied(facts, config) else piece).read_bytes()
            yield f"{entry.key}.json", metadata(entry, facts)
            labels = sidecar.paths(path)[2]
            if facts["views"]:
                yield f"{entry.key}.safetensors", piece.with_suffix(".safetensors").read_bytes()
                for view in facts["views"][1:]:
                    yield f"{entry.key}.{view}.mp4", piece.with_suffix(f".{view}.mp4").read_bytes()
            elif labels.is_file():
                yield f"{entry.key}.safetensors", labels_of(labels, entry, facts["frames"])


def _parts(entries: Sequence[Entry], count: int) -> list[list[Entry]]:
    """Divide the clips of a recording by time, for workers that have no recording of their own."""
    ordered = sorted(entries, key=lambda e: e.start)
    total, done = sum(e.frames for e in ordered), 0
    parts: list[list[Entry]] = [[] for _ in range(count)]
    for entry in ordered:
        parts[min(count - 1, done * count // total)].append(entry)
        done += entry.frames
    return [part for part in parts if part]


def _sweep(out: Path) -> None:
    """Remove what a killed run was in the middle of writing."""
    for folder in (out, out / WORK, *(out / "shards").glob("*")):
        for left in folder.glob("*.partial"):
            left.unlink()
