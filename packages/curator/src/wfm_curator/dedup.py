"""Find clips that show the same footage, and keep the best of each.

As in SemDeDup (Abbas et al. 2023): k-means on unit vectors, cosines only within clusters. Each
clip is looked for in its nearest clusters, so that pairs on a border are met. A pair must also
look the same cell by cell: two recordings of one scene by one fixed camera have like vectors,
and are not duplicates.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .clusters import pairs_above
from .config import DedupConfig
from .embed import Embedding, Variant, difference, mirrored

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
    if len(clips) < 2:
        return []
    near: dict[int, dict[int, _Likeness]] = defaultdict(dict)
    for one, other, found in _pairs(clips, config):
        if other not in near[one] or found.cosine > near[one][other].cosine + CLEARLY:
            near[one][other] = near[other][one] = found
    order = sorted(near, key=lambda i: ranks[i], reverse=True)
    kept: set[int] = set()
    found = []
    for i in order:
        likes = [(near[i][j].cosine, -j) for j in near[i] if j in kept]
        if not likes:
            kept.add(i)
            continue
        best = -max(likes)[1]
        found.append(Duplicate(i, best, **vars(near[i][best])))
    return sorted(found, key=lambda d: d.index)


def _pairs(clips: Sequence[Embedding], config: DedupConfig) -> Iterator[tuple[int, int, _Likeness]]:
    """Yield pairs of clips that look alike, or would if one were changed as a copy may be."""
    vectors = unit(np.stack([clip.vector for clip in clips]))
    for one, other, cosine in pairs_above(vectors, config.cosine, config):
        apart = float(difference(clips[one].cells, clips[other].cells[None])[0])
        if apart <= config.difference:
            yield one, other, _likeness(cosine, apart, "")
    if not config.variants:
        return
    owners, changed = [], []
    for index, clip in enumerate(clips):
        plain = [Variant("", clip.vector, clip.cells), *clip.variants]
        for variant in [*plain[1:], *map(mirrored, plain)]:
            owners.append(index)
            changed.append(variant)
    queries = unit(np.stack([variant.vector for variant in changed]))
    for query, other, cosine in pairs_above(vectors, config.cosine, config, queries=queries):
        one, variant = owners[query], changed[query]
        if one == other:
            continue
        apart = float(difference(variant.cells, clips[other].cells[None])[0])
        if apart <= config.difference:
            yield one, other, _likeness(cosine, apart, variant.how)


def _likeness(cosine: float, apart: float, how: str) -> _Likeness:
    return _Likeness(round(min(1.0, float(cosine)), 5), round(apart, 5), how)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors as float32 of length 1; those without length stay 0."""
    vectors = vectors.astype(np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    return vectors
