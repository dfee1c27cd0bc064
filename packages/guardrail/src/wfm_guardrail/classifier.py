"""A small learned reader of scenes: what words and neighbouring words say about harm."""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.resources import files
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import Protocol
from zlib import crc32

import numpy as np
from jaxtyping import Float, Int

from .fold import fold
from .verdict import Finding, Severity, Stage

CLASSES = ["safe", "disturbing", "gore", "hate", "illegal", "self_harm", "sexual", "violence"]
WINDOW = 32  # words that are judged together; windows overlap by half
_LEAST = 8  # words that a shorter text is counted as
_WORD = re.compile(r"[a-z]+")
_END = re.compile(r"[.!?;\n]+")
_SENTENCE = 4  # words that a sentence needs to be judged alone
_STOP_WORDS = """a an the of in on at to by from with and or is are was be it its his her their he
    she they this that as for into out up down over under off him them who which while after before
    through across against between near next one two three some all no not then than there where
    when how what i you my your we our"""
STOP = frozenset(_STOP_WORDS.split())
_ENDINGS = ("ing", "ed", "es", "s", "er", "ly", "d", "y")
_LONGEST_WORD = 24


class Weights:
    """Log-odds of each class for hashed words and pairs of words, and where to refuse.

    ``values`` times ``scale`` are the log-odds of the features whose hashes are ``keys``.
    ``thresholds`` on the log-odds of harm: from which on a text is doubtful, and refused.
    """

    def __init__(
        self,
        keys: Int[np.ndarray, " n"],
        values: Int[np.ndarray, "n k"],
        scale: float,
        bias: Float[np.ndarray, " k"],
        thresholds: tuple[float, float],
    ) -> None:
        self.rows = {int(key): i for i, key in enumerate(keys)}
        self.values = values.astype(np.float32) * scale
        self.bias = bias
        self.thresholds = thresholds

    @classmethod
    def load(cls, path: str | Path) -> "Weights":
        """Read what the trainer wrote.

        Raises:
            ValueError: not such a file.
        """
        try:
            with np.load(path, allow_pickle=False) as z:
                low, high = z["thresholds"].tolist()
                weights = cls(z["keys"], z["values"], float(z["scale"]), z["bias"], (low, high))
        except (OSError, KeyError, ValueError) as e:
            raise ValueError(f"{path}: not a file of text weights") from e
        if weights.values.shape[1:] != (len(CLASSES),) or not np.isfinite(weights.values).all():
            raise ValueError(f"{path}: weights of {weights.values.shape}, or not finite")
        return weights

    def score(self, text: str, allowed: re.Pattern[str] | None = None) -> tuple[float, str]:
        """Return the log-odds of harm in the worst part, and its likeliest class of harm."""
        return worst(self.logits(list(parts_of(text, allowed))))

    def logits(self, parts: Sequence[Sequence[str]]) -> Float[np.ndarray, "n k"]:
        """Return the log-odds of every class for each part."""
        return np.stack([self._logits(part) for part in parts])

    def _logits(self, words: Sequence[str]) -> Float[np.ndarray, " k"]:
        rows = [row for name in features(words) if (row := self._row(name)) is not None]
        total = self.values[rows].sum(axis=0) if rows else 0.0
        return self.bias + total / root_length(words)

    def _row(self, feature: str) -> int | None:
        row = self.rows.get(key_of(feature))
        if row is None and " " not in feature:
            rows = (self.rows.get(key_of(stem)) for stem in stems(feature))
            row = next((row for row in rows if row is not None), None)
        return row


def words_of(text: str) -> list[str]:
    """Return the words of a text as the eye reads them, cut to a length."""
    return _words(fold(text))


def _words(folded: str) -> list[str]:
    plain = folded.lower().replace("'", "")
    return [word[:_LONGEST_WORD] for word in _WORD.findall(plain)]


def parts_of(text: str, allowed: re.Pattern[str] | None = None) -> Iterator[list[str]]:
    """Yield the words of windows over a text and of its sentences, without ``allowed`` phrases."""
    sentences = [_words(part) for part in _END.split(fold(text))]
    if allowed is not None:
        sentences = [allowed.sub(" ", " ".join(words)).split() for words in sentences]
    words = [word for sentence in sentences for word in sentence]
    for start in range(0, max(1, len(words) - WINDOW // 2), WINDOW // 2):
        yield words[start : start + WINDOW]
    yield from (s for s in sentences if _SENTENCE <= len(s) < min(WINDOW, len(words)))


def worst(logits: Float[np.ndarray, "n k"]) -> tuple[float, str]:
    """Return the log-odds of harm in the worst of n parts, and its likeliest class of harm."""
    odds = np.logaddexp.reduce(logits[:, 1:], axis=1) - logits[:, 0]
    row = int(odds.argmax())
    return float(odds[row]), CLASSES[1 + int(logits[row, 1:].argmax())]


def features(words: Sequence[str]) -> Iterator[str]:
    """Yield words that say something, and pairs of neighbours."""
    yield from (word for word in words if word not in STOP)
    for a, b in pairwise(words):
        yield f"{a} {b}"


def stems(word: str) -> Iterator[str]:
    """Yield what a word may be a form of: stabbing, stabb, stab, stabbe."""
    for ending in _ENDINGS:
        stem = word.removesuffix(ending)
        if stem != word and len(stem) > 2:
            yield stem
            yield stem + "e"
            if stem[-1] == stem[-2]:
                yield stem[:-1]


def root_length(words: Sequence[str]) -> float:
    """Root of the number of words that say something; what sums of weights are divided by."""
    return float(np.sqrt(max(sum(word not in STOP for word in words), _LEAST)))


def key_of(feature: str) -> int:
    """Hash a feature to 32 bits."""
    return crc32(feature.encode())


@lru_cache(maxsize=1)
def builtin_weights() -> Weights:
    """Read the weights of this package."""
    return Weights.load(Path(str(files(str(__package__)) / "data" / "scenes.npz")))


class Reader(Protocol):
    """Something that reads a text; ``thresholds``: from which log-odds on to doubt, to refuse."""

    thresholds: tuple[float, float]

    def score(self, text: str, allowed: re.Pattern[str] | None = None, /) -> tuple[float, str]: ...


class SceneCheck:
    """Judge what a text describes; a doubtful one is sensitive, one beyond doubt explicit.

    Phrases to ``allow`` are left out of what is judged.

    The findings' score is a logistic function of the log-odds over the threshold of refusal.
    """

    stages: tuple[Stage, ...] = ("prompt", "upsampled_prompt")

    def __init__(
        self, reader: Reader | None = None, allow: Sequence[str] = (), *, name: str = "scene"
    ) -> None:
        self.name, self.reader = name, reader or builtin_weights()
        self._allowed = re.compile(rf"\b(?:{'|'.join(map(re.escape, allow)) or '(?!)'})\b")

    def check(self, text: str, stage: Stage, /) -> Sequence[Finding]:
        """Find harm; a negative prompt names it in order to avoid it, and is not judged."""
        if stage not in self.stages:
            return ()
        odds, category = self.reader.score(text, self._allowed)
        if not isfinite(odds):
            raise ValueError("the log-odds are not finite")
        doubtful, certain = self.reader.thresholds
        if odds < doubtful:
            return ()
        severity = Severity.EXPLICIT if odds >= certain else Severity.SENSITIVE
        score = float(1 / (1 + np.exp(-np.clip(odds - certain, -30, 30))))
        return (Finding(self.name, category, severity, score, f"log-odds {odds:.1f}", "read"),)
