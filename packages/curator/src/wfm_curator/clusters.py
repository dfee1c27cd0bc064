"""Pairs of unit vectors above a cosine, without comparing all with all: spherical k-means."""

import itertools
from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np

from .config import DedupConfig

BLOCK = 1024
EXACT = 4096  # so few are compared all with all
ROUNDS, PER_CENTRE = 8, 64


def pairs_above(
    vectors: np.ndarray, cosine: float, config: DedupConfig, *, queries: np.ndarray | None = None
) -> Iterator[tuple[int, int, float]]:
    """Yield pairs ``i < j`` of rows with at least this cosine; each pair once.

    With ``queries``, yield each pair of a query and a row instead. Every row is looked for in
    its ``config.probes`` nearest clusters, every query in as many.
    """
    k = min(config.clusters or max(1, round(np.sqrt(len(vectors)))), len(vectors))
    if len(vectors) <= EXACT and config.clusters is None:
        k = 1
    backend = "numpy" if k == 1 else chosen(config.backend)
    centres = spherical_kmeans(vectors, k, seed=config.seed, backend=backend)
    probes = min(config.probes, k)
    rows = members(nearest_centres(vectors, centres, probes, backend=backend), k)
    if queries is None:
        yield from _within(vectors, rows, cosine, probes)
        return
    asked = members(nearest_centres(queries, centres, 1, backend=backend), k)
    for mine, theirs in zip(asked, rows, strict=True):
        for start in range(0, len(mine), BLOCK):
            here = mine[start : start + BLOCK]
            cosines = queries[here] @ vectors[theirs].T
            for a, b in np.argwhere(cosines >= cosine):
                yield int(here[a]), int(theirs[b]), float(cosines[a, b])


def _within(
    vectors: np.ndarray, rows: list[np.ndarray], cosine: float, probes: int
) -> Iterator[tuple[int, int, float]]:
    """Compare the rows of each cluster, the upper triangle in blocks."""
    seen: set[tuple[int, int]] = set()
    for group in rows:
        inside = vectors[group]
        for start in range(0, len(group), BLOCK):
            cosines = inside[start : start + BLOCK] @ inside[start:].T
            for a, b in np.argwhere(cosines >= cosine):
                one, other = int(group[start + a]), int(group[start + b])
                if one >= other or (probes > 1 and (one, other) in seen):
                    continue
                seen.add((one, other))
                yield one, other, float(cosines[a, b])


def members(nearest: np.ndarray, k: int) -> list[np.ndarray]:
    """Return the rows that each of ``k`` clusters is among the nearest of, in order."""
    rows = np.repeat(np.arange(len(nearest)), nearest.shape[1])
    labels = nearest.ravel()
    order = np.argsort(labels, kind="stable")
    limits = np.searchsorted(labels[order], np.arange(k + 1))
    sorted_rows = rows[order]
    return [sorted_rows[a:b] for a, b in itertools.pairwise(limits)]


def spherical_kmeans(
    vectors: np.ndarray, k: int, *, seed: int = 0, backend: str = "numpy"
) -> np.ndarray:
    """Return ``k`` unit centres of unit vectors, from a sample of 64 for each."""
    generator = np.random.default_rng(seed)
    sample = vectors
    if len(vectors) > PER_CENTRE * k:
        chosen = generator.choice(len(vectors), PER_CENTRE * k, replace=False)
        sample = vectors[np.sort(chosen)]
    centres = sample[np.sort(generator.choice(len(sample), k, replace=False))].copy()
    if k == 1:
        return centres
    for _ in range(ROUNDS):
        groups = members(nearest_centres(sample, centres, 1, backend=backend), k)
        sums = np.stack([sample[rows].sum(0) for rows in groups])
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(lengths > 0, sums / np.maximum(lengths, 1e-9), centres)
    return centres.astype(np.float32)


def nearest_centres(
    vectors: np.ndarray, centres: np.ndarray, probes: int, *, backend: str = "numpy"
) -> np.ndarray:
    """Return the numbers of each vector's nearest centres, nearest first."""
    if backend != "numpy":
        nearest = _faiss_nearest if backend == "faiss" else _torch_nearest
        return nearest(vectors, centres, probes)
    found = np.empty((len(vectors), probes), np.int64)
    for start in range(0, len(vectors), BLOCK):
        cosines = vectors[start : start + BLOCK] @ centres.T
        rows = np.arange(len(cosines))
        for probe in range(probes):
            best = cosines.argmax(1)
            found[start : start + BLOCK, probe] = best
            cosines[rows, best] = -np.inf
    return found


def chosen(backend: str) -> str:
    """Return the back-end that ``auto`` stands for here."""
    if backend != "auto":
        return backend
    if find_spec("faiss"):
        return "faiss"
    if find_spec("torch"):
        import torch

        return "torch" if torch.cuda.is_available() else "numpy"
    return "numpy"


def _torch_nearest(vectors: np.ndarray, centres: np.ndarray, probes: int) -> np.ndarray:
    """Search by torch: on a GPU if there is one."""
    if find_spec("torch") is None:
        raise ImportError('dedup.backend=torch needs: pip install "wfm-curator[torch]"')
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    against = torch.from_numpy(np.ascontiguousarray(centres.T)).to(device)
    found = np.empty((len(vectors), probes), np.int64)
    for start in range(0, len(vectors), 8 * BLOCK):
        part = torch.from_numpy(vectors[start : start + 8 * BLOCK]).to(device)
        found[start : start + 8 * BLOCK] = (part @ against).topk(probes, dim=1).indices.cpu()
    return found


def _faiss_nearest(vectors: np.ndarray, centres: np.ndarray, probes: int) -> np.ndarray:
    """Search by faiss: on GPUs if its build has them and one is there."""
    if find_spec("faiss") is None:
        raise ImportError('dedup.backend=faiss needs: pip install "wfm-curator[faiss]"')
    import faiss  # ty: ignore[import-not-found]

    index = faiss.IndexFlatIP(vectors.shape[1])
    if getattr(faiss, "get_num_gpus", lambda: 0)():
        index = faiss.index_cpu_to_all_gpus(index)
    index.add(np.ascontiguousarray(centres, np.float32))
    return index.search(np.ascontiguousarray(vectors, np.float32), probes)[1]
