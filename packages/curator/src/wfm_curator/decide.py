"""The decisions: a pure view on what was measured, made anew on every run."""

from collections.abc import Mapping, Sequence
from typing import Any

from . import caption, dedup, filters, taxonomy
from .config import CaptionConfig, CurateConfig
from .embed import Embedding
from .ledger import Row
from .manifest import Entry


def decide(
    recordings: Mapping[str, Row],
    embeddings: Mapping[tuple[str, int], Embedding],
    config: CurateConfig,
    earlier: Mapping[str, Embedding] | None = None,
) -> list[Entry]:
    """Return an entry for every clip, by recording and time; ``earlier`` are kept already."""
    entries = []
    for name, row in sorted(recordings.items()):
        if row.state != "done":
            bad = Entry(name, name, state="quarantined", reason=row.error, error_kind=row.kind)
            entries.append(bad)
            continue
        entries += [_entry(name, row.facts, n, config) for n in range(len(row.facts["clips"]))]
    for entry in entries:
        if entry.state != "quarantined":
            entry.hash = embeddings[entry.recording, entry.number].hash
    drop_lowest([e for e in entries if e.state == "kept"], config.filter.drop_lowest)
    if config.dedup.enabled:
        kept = [e for e in entries if e.state == "kept"]
        mark_duplicates(kept, embeddings, config, earlier or {})
    return entries


def _entry(name: str, facts: Mapping[str, Any], number: int, config: CurateConfig) -> Entry:
    clip, info = facts["clips"][number], facts["info"]
    turned = info["rotation"] in (90, 270)
    reason = clip["reason"] or filters.judge(clip["scores"], config.filter)
    words = captioned(clip, facts, config.caption)
    return Entry(
        key=clip["key"],
        recording=name,
        number=number,
        start=clip["start"],
        stop=clip["stop"],
        start_seconds=clip["start_seconds"],
        stop_seconds=clip["stop_seconds"],
        fps=facts["fps"],
        height=info["width"] if turned else info["height"],
        width=info["height"] if turned else info["width"],
        state="rejected" if reason else "kept",
        reason=reason,
        caption=words.text,
        caption_source=words.source,
        category=taxonomy.category(facts["attributes"]),
        tags=clip["tags"],
        scores=clip["scores"],
    )


def captioned(
    clip: Mapping[str, Any], facts: Mapping[str, Any], config: CaptionConfig
) -> caption.Caption:
    """Return the caption of a clip of the ledger."""
    seconds = clip["stop_seconds"] - clip["start_seconds"]
    words = caption.describe(clip["scores"], clip["tags"], seconds)
    return caption.choose(facts["attributes"], facts["text"], words, described=config.describe)


def drop_lowest(kept: Sequence[Entry], share: float) -> None:
    """Reject the share of clips with the lowest quality, as the paper does (15 %)."""
    marks = filters.lowest([e.scores["quality"] for e in kept], share)
    for entry, marked in zip(kept, marks, strict=True):
        if marked:
            entry.state, entry.reason = "rejected", "lowest quality"


def mark_duplicates(
    kept: Sequence[Entry],
    embeddings: Mapping[tuple[str, int], Embedding],
    config: CurateConfig,
    earlier: Mapping[str, Embedding],
) -> None:
    """Of clips that are alike keep the largest, then the best, then the longest, then the first.

    Clips of earlier runs, by their keys, stay whatever is like them.
    """
    names = [*earlier, *(e.key for e in kept)]
    vectors = [*earlier.values(), *(embeddings[e.recording, e.number] for e in kept)]
    ranks: list[tuple] = [(float("inf"), -i) for i in range(len(earlier))]
    ranks += [(e.height * e.width, e.scores["quality"], e.frames, -i) for i, e in enumerate(kept)]
    for found in dedup.find_duplicates(vectors, ranks, config.dedup):
        if found.index < len(earlier):
            continue
        entry = kept[found.index - len(earlier)]
        entry.state, entry.reason = "duplicate", "duplicate"
        entry.duplicate_of, entry.duplicate_how = names[found.kept], found.how
        entry.kept_for = _rule(ranks[found.kept], ranks[found.index])
        entry.cosine, entry.difference = found.cosine, found.difference


def _rule(kept: tuple, left: tuple) -> str:
    """Say what decided which of two clips stays."""
    names = ("size", "quality", "length", "order")
    if len(kept) != len(left):
        return "earlier run"
    return next(name for name, a, b in zip(names, kept, left, strict=True) if a != b)
