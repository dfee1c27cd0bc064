"""The decisions: a pure view on what was measured, made anew on every run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from . import caption, dedup, filters, natural, taxonomy
from .config import CaptionConfig, CurateConfig, FilterConfig
from .embed import Embedding
from .ledger import Row
from .manifest import Entry

RANKS = ("unusual", "brisque")  # scores that depend on other clips, or on what is installed
Learned = Callable[[Sequence[Entry]], Mapping[str, np.ndarray]]
Teller = Callable[[np.ndarray], Mapping[str, np.ndarray]]


def decide(
    recordings: Mapping[str, Row],
    embeddings: Mapping[tuple[str, int], Embedding],
    config: CurateConfig,
    earlier: Mapping[str, Embedding] | None = None,
    learned: Learned = lambda kept: {},
    tell: Teller | None = None,
) -> list[Entry]:
    """Return an entry for every clip, by recording and time; ``earlier`` are kept already.

    ``learned`` gives a network's vectors of clips that passed the filter, by key, and ``tell``
    says from those what the clips are.
    """
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
    rank(entries, recordings, config.filter.rank_by)
    drop_lowest([e for e in entries if e.state == "kept"], config.filter)
    vectors = learned([e for e in entries if e.state == "kept"])
    if tell is not None and vectors:
        by_content([e for e in entries if e.key in vectors], vectors, tell, config.filter)
    if config.dedup.enabled:
        kept = [e for e in entries if e.state == "kept"]
        known = {
            e.key: replace(embeddings[e.recording, e.number], learned=vectors.get(e.key))
            for e in kept
        }
        mark_duplicates(kept, known, config, earlier or {})
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
        scores=dict(clip["scores"]),
    )


def captioned(
    clip: Mapping[str, Any], facts: Mapping[str, Any], config: CaptionConfig
) -> caption.Caption:
    """Return the caption of a clip of the ledger."""
    seconds = clip["stop_seconds"] - clip["start_seconds"]
    words = caption.describe(clip["scores"], clip["tags"], seconds)
    return caption.choose(facts["attributes"], facts["text"], words, described=config.describe)


def rank(entries: Sequence[Entry], recordings: Mapping[str, Row], by: str) -> None:
    """Give clips the scores that are views on natural-scene statistics: ``RANKS``."""
    clips = [e for e in entries if e.scores]
    if not clips:
        return
    rows = [recordings[e.recording].facts["clips"][e.number]["natural"] for e in clips]
    table = np.array([row or [np.nan] * natural.FEATURES for row in rows])
    scores = {"unusual": natural.unusual(table)}
    if by == "brisque":
        scores["brisque"] = np.nan_to_num(natural.brisque(table))
    for (name, values), (number, entry) in product(scores.items(), enumerate(clips)):
        entry.scores[name] = round(float(values[number]), 4)


def drop_lowest(kept: Sequence[Entry], config: FilterConfig) -> None:
    """Reject the share of clips with the lowest quality, as the paper does (15 %)."""
    by = config.rank_by
    worth = [(0.0 if by == "quality" else -e.scores[by], e.scores["quality"]) for e in kept]
    for entry, marked in zip(kept, filters.lowest(worth, config.drop_lowest), strict=True):
        if marked:
            entry.state, entry.reason = "rejected", "lowest quality"


def by_content(
    kept: Sequence[Entry], vectors: Mapping[str, np.ndarray], tell: Teller, config: FilterConfig
) -> None:
    """Say what clips are, and reject those that are of a kind that is not wanted."""
    chances = tell(np.stack([vectors[e.key] for e in kept]))
    if unknown := set(config.content_reject) - set(chances):
        have = ", ".join(sorted(chances))
        raise ValueError(f"filter.content_reject names {sorted(unknown)}; labels are {have}")
    for number, entry in enumerate(kept):
        found = {label: round(float(values[number]), 4) for label, values in chances.items()}
        best = max(found, key=lambda label: found[label])
        entry.content, entry.content_share = best, found[best]
        if not entry.category and best in taxonomy.PAPER:
            entry.category = best
        bad = max(config.content_reject, key=lambda label: found[label], default="")
        if bad and found[bad] >= config.content_least:
            entry.state, entry.reason = "rejected", f"content: {bad}"


def mark_duplicates(
    kept: Sequence[Entry],
    embeddings: Mapping[str, Embedding],
    config: CurateConfig,
    earlier: Mapping[str, Embedding],
) -> None:
    """Of clips that are alike keep the largest, then the best, then the longest, then the first.

    Clips of earlier runs, by their keys, stay whatever is like them.
    """
    names = [*earlier, *(e.key for e in kept)]
    vectors = [*earlier.values(), *(embeddings[e.key] for e in kept)]
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
