"""Find clips that show the same footage, and keep the best of each.

As in SemDeDup (Abbas et al. 2023): k-means on unit vectors, cosines only within clusters. Each
clip is looked for in its two nearest clusters, so that pairs on a border are met; equal
perceptual hashes are met too. A pair must also look the same cell by cell: two recordings of
one scene by one fixed camera have like vectors, and are not duplicates.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .config import DedupConfig
from .embed import Embedding, difference

BLOCK = 1024
LARGEST_BUCKET = 4096


@dataclass(frozen=True)
class Duplicate:
    """A clip that is left out, the clip kept for it, and the evidence."""

    index: int
    kept: int
    cosine: float
    difference: float


def find_duplicates(
    clips: Sequence[Embedding], ranks: Sequence[tuple], config: DedupConfig
) -> list[Duplicate]:
    """Return the clips to leave out. Of like clips the one with the highest rank stays.

    Every clip left out is like a clip that is kept, not merely like another left out.
    """
    if len(clips) < 2:
        return []
    vectors = np.stack([clip.vector for clip in clips]).astype(np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    cells = np.stack([clip.cells for clip in clips])
    near = defaultdict(dict)
    for one, other, cosine, apart in _pairs(vectors, cells, [c.hash for c in clips], config):
        near[one][other] = near[other][one] = (cosine, apart)
    order = sorted(near, key=lambda i: ranks[i], reverse=True)
    kept: set[int] = set()
    found = []
    for i in order:
        likes = [(near[i][j][0], -j) for j in near[i] if j in kept]
        if not likes:
            kept.add(i)
            continue
        best = -max(likes)[1]
        found.append(Duplicate(i, best, *near[i][best]))
    return sorted(found, key=lambda d: d.index)


def _pairs(
    vectors: np.ndarray, cells: np.ndarray, hashes: Sequence[str], config: DedupConfig
) -> Iterator[tuple[int, int, float, float]]:
    seen: set[tuple[int, int]] = set()
    for members in _groups(vectors, hashes, config):
        for rows in range(0, len(members), BLOCK):
            here = members[rows : rows + BLOCK]
            cosines = vectors[here] @ vectors[members].T
            for a, b in np.argwhere(cosines >= config.cosine):
                one, other = int(here[a]), int(members[b])
                if one >= other or (one, other) in seen:
                    continue
                seen.add((one, other))
                apart = float(difference(cells[one], cells[other : other + 1])[0])
                if apart <= config.difference:
                    yield one, other, round(min(1.0, float(cosines[a, b])), 5), round(apart, 5)


def _groups(
    vectors: np.ndarray, hashes: Sequence[str], config: DedupConfig
) -> Iterator[np.ndarray]:
    """Yield sets of clips that are to be compared with each other."""
    buckets = defaultdict(list)
    for index, digest in enumerate(hashes):
        buckets[digest].append(index)
    yield from (np.array(b) for b in buckets.values() if 1 < len(b) <= LARGEST_BUCKET)
    k = min(config.clusters or max(1, round(np.sqrt(len(vectors)))), len(vectors))
    centres = spherical_kmeans(vectors, k, seed=config.seed)
    nearest = nearest_centres(vectors, centres, min(config.probes, k))
    for cluster in range(k):
        yield np.flatnonzero((nearest == cluster).any(1))


def spherical_kmeans(
    vectors: np.ndarray, k: int, *, rounds: int = 10, seed: int = 0, per_centre: int = 256
) -> np.ndarray:
    """Return ``k`` unit centres of unit vectors, from a sample of ``per_centre * k`` of them."""
    generator = np.random.default_rng(seed)
    sample = vectors
    if len(vectors) > per_centre * k:
        sample = vectors[np.sort(generator.choice(len(vectors), per_centre * k, replace=False))]
    centres = sample[np.sort(generator.choice(len(sample), k, replace=False))].copy()
    for _ in range(rounds):
        nearest = nearest_centres(sample, centres, 1)[:, 0]
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, sample)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(lengths > 0, sums / np.maximum(lengths, 1e-9), centres)
    return centres


def nearest_centres(vectors: np.ndarray, centres: np.ndarray, probes: int) -> np.ndarray:
    """Return the numbers of each vector's nearest centres, nearest first."""
    found = [
        np.argsort(-(vectors[i : i + BLOCK] @ centres.T), axis=1, kind="stable")[:, :probes]
        for i in range(0, len(vectors), BLOCK)
    ]
    return np.concatenate(found)
