"""What tests use as networks: small, without weights, and right about what they are asked."""

import numpy as np

KINDS = ("pattern", "footage")


def colours(pictures):
    """How often each of 64 colours occurs and the commonest does, and how rough the picture is."""
    bins = (pictures >> 6).astype(int) @ (16, 4, 1)
    counts = np.stack([np.bincount(b.ravel(), minlength=64) for b in bins]) / bins[0].size
    steps = np.abs(np.diff(pictures.astype(np.float32), axis=2)).mean((1, 2, 3)) / 64
    return np.c_[np.sqrt(counts), counts.max(1), steps].astype(np.float32)


class Worded:
    """Knows the sentences ``red``, ``green`` and ``blue``."""

    def embed(self, pictures):
        return pictures.mean((1, 2)) - pictures.mean((1, 2, 3))[:, None] + 1e-3

    def embed_text(self, sentences):
        return np.eye(3, dtype=np.float32)[[("red", "green", "blue").index(s) for s in sentences]]


worded = Worded()


def flat(vectors):
    """A head: a picture of few colours is a pattern."""
    most = vectors[:, 64] > 0.55 * np.linalg.norm(vectors[:, :64], axis=1)
    return {"pattern": 0.9 * most, "footage": 1 - 0.9 * most}


def broken(pictures):
    return np.full((len(pictures), 4), np.nan)
