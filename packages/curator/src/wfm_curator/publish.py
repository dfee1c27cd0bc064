"""What a run leaves behind: the metadata of clips, the tables and the reports."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import content, manifest, sidecar
from .config import CurateConfig, DedupConfig, ShardConfig
from .decide import RANKS, decide
from .embed import Embedding, unpack
from .embedders import Vectors
from .ledger import LEDGER, Ledger, read_vectors
from .manifest import CurationReport, Entry


def load_embeddings(ledger: Ledger) -> dict[tuple[str, int], Embedding]:
    """Read the embeddings of all clips."""
    return {(name, number): unpack(*blobs) for name, number, *blobs in ledger.vectors()}


def earlier_clips(config: DedupConfig) -> dict[str, Embedding]:
    """Read the embeddings of clips that earlier runs kept, by key.

    Raises:
        FileNotFoundError: a folder of ``config.against`` holds no finished run.
    """
    found: dict[str, Embedding] = {}
    for folder in config.against:
        if not (folder / manifest.MANIFEST).is_file():
            raise FileNotFoundError(f"{folder}: no finished run in here (dedup.against)")
        kept = manifest.kept_keys(folder)
        for name, number, *blobs in read_vectors(folder / LEDGER):
            if (name, number) in kept:
                found[kept[name, number]] = unpack(*blobs)
    return found


def is_copied(facts: Mapping[str, Any], config: ShardConfig) -> bool:
    """True if the clip is a whole file that is as a clip should be: it stays untouched."""
    info = facts["info"]
    plain = info["codec"] == "h264" and "mp4" in info["container"] and not facts["views"]
    heard = info["sounds"] if config.audio else 0
    alone = info["streams"] == 1 + heard and heard <= 1
    return plain and alone and len(facts["clips"]) == 1 and not info["rotation"]


def metadata(entry: Entry, facts: Mapping[str, Any]) -> bytes:
    """Return the clip's JSON: the recording's own, with the caption and where it came from."""
    own = {k: v for k, v in facts["attributes"].items() if k != "curation"}
    value = own | {
        "caption": entry.caption,
        "fps": entry.fps,
        "curation": {
            "schema": manifest.SCHEMA,
            "frames": entry.frames,
            "height": entry.height,
            "width": entry.width,
            "caption_source": entry.caption_source,
            **({"caption_windows": entry.windows} if entry.windows else {}),
            "recording": entry.recording,
            "sha256": facts["sha256"],
            "start": entry.start,
            "stop": entry.stop,
            "start_seconds": entry.start_seconds,
            "stop_seconds": entry.stop_seconds,
            **({"views": facts["views"]} if facts["views"] else {}),
            "tags": entry.tags,
            **({"content": entry.content} if entry.content else {}),
            "scores": {k: v for k, v in entry.scores.items() if k not in RANKS},
        },
    }
    return json.dumps(value, ensure_ascii=False, indent=1).encode()


def labels_of(path: Path, entry: Entry, frames: int) -> bytes:
    if entry.frames == frames:
        return path.read_bytes()
    arrays = sidecar.read_arrays(path)
    return sidecar.dump(sidecar.cut(arrays, entry.start, entry.stop, frames))


def by_key(places: Mapping[str, tuple[int, int]]) -> dict[str, dict[str, list[int]]]:
    """Group a tar's members by their clip."""
    found: dict[str, dict[str, list[int]]] = {}
    for name, place in places.items():
        key, _, suffix = name.partition(".")
        found.setdefault(key, {})[suffix] = list(place)
    return found


def publish(
    out: Path, entries: list[Entry], shards: int, config: CurateConfig, ledger: Ledger
) -> CurationReport:
    """Write the table and the reports."""
    from .report import render

    report = manifest.summarise(out, entries, shards)
    manifest.write_manifest(out, entries)
    kept = [e for e in entries if e.state == "kept"]
    vectors, name = Vectors(config.embed, ledger).known([e.key for e in kept]), config.embed.model
    if not config.embed.model:
        found, name = load_embeddings(ledger), "built-in"
        vectors = {e.key: found[e.recording, e.number].vector for e in kept}
    manifest.write_embeddings(out, vectors, name)
    settings = config.model_dump(mode="json", exclude={"run"})
    summary = {"schema": manifest.SCHEMA, **report.as_dict(), "settings": settings}
    text = json.dumps(summary, indent=1, ensure_ascii=False) + "\n"
    manifest.write_if_new(out / manifest.REPORT, text.encode())
    page = render(report, entries, lambda e: ledger.strip(e.recording, e.number), config.filter)
    manifest.write_if_new(out / "report.html", page.encode())
    return report


def rewrite_report(out: Path) -> CurationReport:
    """Write the reports of a finished run anew, from its ledger and settings.

    Raises:
        FileNotFoundError: the folder holds no finished run.
    """
    if not (out / manifest.REPORT).is_file():
        raise FileNotFoundError(f"{out}: no finished run in here; wfm-curator run makes one")
    told = json.loads((out / manifest.REPORT).read_text())
    if told["schema"] != manifest.SCHEMA:
        raise ValueError(f"{out}: written by another version; run wfm-curator run again")
    config = CurateConfig(**told["settings"])
    ledger = Ledger(out / LEDGER)
    try:
        earlier = earlier_clips(config.dedup)
        known = Vectors(config.embed, ledger)
        entries = decide(
            ledger.recordings(),
            load_embeddings(ledger),
            config,
            earlier,
            lambda kept: known.known([e.key for e in kept]),
            content.teller(config.embed, lambda: known.embedder),
        )
        shards = ledger.shards()
        homes = {key: path for path, (_, _, keys) in shards.items() for key in keys}
        for entry in entries:
            entry.shard = homes.get(entry.key, "")
        return publish(out, entries, len(shards), config, ledger)
    finally:
        ledger.close()
