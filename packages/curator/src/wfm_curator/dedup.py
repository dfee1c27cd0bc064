"""Find clips that show the same footage, and keep the best of each.

As in SemDeDup (Abbas et al. 2023): k-means on unit vectors, cosines only within clusters. Each
clip is looked for in its nearest clusters, so that pairs on a border are met. A pair must also
look the same cell by cell: two recordings of one scene by one fixed camera have like vectors,
and are not duplicates.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .clusters import pairs_above
from .config import DedupConfig
from .embed import Embedding, difference, forms

CLEARLY = 0.01  # by so much a changed copy must be more alike to be called one


@dataclass(frozen=True)
class Duplicate:
    """A clip that is left out, the clip kept for it, and the evidence.

    ``how`` says what the two would have in common: empty if they look alike as they are, else
    what was done to one of them, such as ``mirrored`` or ``0.5 s later``.
    """

    index: int
    kept: int
    cosine: float
    difference: float
    how: str = ""


@dataclass(frozen=True)
class _Likeness:
    cosine: float
    difference: float
    how: str


def find_duplicates(
    clips: Sequence[Embedding], ranks: Sequence[tuple], config: DedupConfig
) -> list[Duplicate]:
    """Return the clips to leave out. Of like clips the one with the highest rank stays.

    Every clip left out is like a clip that is kept, not merely like another left out.
    """
    heads, copies = _exact(clips, ranks)
    near: dict[int, dict[int, _Likeness]] = defaultdict(dict)
    for one, other, found in _pairs([clips[i] for i in heads], config):
        a, b = heads[one], heads[other]
        if b not in near[a] or found.cosine > near[a][b].cosine + CLEARLY:
            near[a][b] = near[b][a] = found
    order = sorted(near, key=lambda i: ranks[i], reverse=True)
    kept: set[int] = set()
    gone: dict[int, Duplicate] = {}
    for i in order:
        likes = [(near[i][j].cosine, -j) for j in near[i] if j in kept]
        if not likes:
            kept.add(i)
            continue
        best = -max(likes)[1]
        gone[i] = Duplicate(i, best, **vars(near[i][best]))
    for i, head in copies.items():
        whole = gone.get(head, Duplicate(i, head, 1.0, 0.0))
        gone[i] = replace(whole, index=i)
    return sorted(gone.values(), key=lambda d: d.index)


def _exact(clips: Sequence[Embedding], ranks: Sequence[tuple]) -> tuple[list[int], dict[int, int]]:
    """Return one clip of each set of exact copies, the best, and for the others which it is.

    So a thousand copies of one clip are a thousand entries, not half a million pairs.
    """
    groups: dict[tuple[bytes, bytes], list[int]] = defaultdict(list)
    for i, clip in enumerate(clips):
        groups[clip.vector.tobytes(), clip.cells.tobytes()].append(i)
    best = [max(group, key=lambda i: ranks[i]) for group in groups.values()]
    pairs = zip(best, groups.values(), strict=True)
    return sorted(best), {i: head for head, group in pairs for i in group if i != head}


def _pairs(clips: Sequence[Embedding], config: DedupConfig) -> Iterator[tuple[int, int, _Likeness]]:
    """Yield pairs of clips that look alike, or would if one were changed as a copy may be."""
    if len(clips) < 2:
        return
    vectors = unit(np.stack([clip.vector for clip in clips]))
    for one, other, cosine in pairs_above(vectors, config.cosine, config):
        apart = float(difference(clips[one].cells, clips[other].cells[None])[0])
        if apart <= config.difference:
            yield one, other, _likeness(cosine, apart, "")
    yield from _learned(clips, config)
    if not config.variants:
        return
    changed = [(i, form) for i, clip in enumerate(clips) for form in forms(clip)[1:]]
    queries = unit(np.stack([form.vector for _, form in changed]))
    for query, other, cosine in pairs_above(vectors, config.cosine, config, queries=queries):
        one, form = changed[query]
        if one == other:
            continue
        apart = float(difference(form.cells, clips[other].cells[None])[0])
        if apart <= config.difference:
            yield one, other, _likeness(cosine, apart, form.how)


def _learned(
    clips: Sequence[Embedding], config: DedupConfig
) -> Iterator[tuple[int, int, _Likeness]]:
    """Yield pairs that a network takes for alike, if some form of one looks like the other."""
    having = [(i, clip.learned) for i, clip in enumerate(clips) if clip.learned is not None]
    if len(having) < 2:
        return
    vectors = unit(np.stack([vector for _, vector in having]))
    for first, second, cosine in pairs_above(vectors, config.learned_cosine, config):
        one, other = having[first][0], having[second][0]
        cells = clips[other].cells[None]
        looks = [(float(difference(f.cells, cells)[0]), f.how) for f in forms(clips[one])]
        apart, how = min(looks)
        if apart <= config.learned_difference:
            yield one, other, _likeness(cosine, apart, ", ".join(filter(None, ("network", how))))


def _likeness(cosine: float, apart: float, how: str) -> _Likeness:
    return _Likeness(round(min(1.0, float(cosine)), 5), round(apart, 5), how)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors as float32 of length 1; those without length stay 0."""
    vectors = vectors.astype(np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    return vectors
