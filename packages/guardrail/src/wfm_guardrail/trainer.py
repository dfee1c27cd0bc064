"""Train the text classifier from its scenes: `wfm-guardrail train-text`."""

import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from .classifier import CLASSES, STOP, Weights, features, key_of, root_length, stems, words_of
from .semantic import Encode, SemanticReader, unit

DOUBTFUL = 0.01  # share of held-out harmless prompts past the first threshold; none is past both
_MARGIN = 0.01  # between the highest of them and the threshold of refusal
_RARE = 2  # scenes that a feature must occur in
_SPREAD = 4.0  # of the encoder's vectors, so that the fit gets somewhere in its steps


@dataclass(frozen=True)
class Scenes:
    """Sentences and the numbers of their classes."""

    texts: tuple[str, ...]
    labels: Int[np.ndarray, " n"]


def read_scenes(text: str, each: int, seed: int = 0) -> Scenes:
    """Draw up to ``each`` different sentences from every pattern.

    Raises:
        ValueError: a line is not ``class: pattern``.
    """
    rng = random.Random(seed)
    texts: list[str] = []
    labels: list[int] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        label, colon, pattern = line.partition(": ")
        if not colon or label not in CLASSES:
            raise ValueError(f"line {number}: write one of {', '.join(CLASSES)}, then a pattern")
        parts = re.split(r"\(([^()]*)\)", pattern)
        drawn = (_draw(parts, rng) for _ in range(3 * each))
        for sentence in list(dict.fromkeys(drawn))[:each]:
            texts.append(sentence)
            labels.append(CLASSES.index(label))
    return Scenes(tuple(texts), np.array(labels))


def _draw(parts: Sequence[str], rng: random.Random) -> str:
    words = (rng.choice(p.split("|")) if i % 2 else p for i, p in enumerate(parts))
    return " ".join("".join(words).replace(" ,", ",").split())


def train(
    scenes: Scenes,
    held_out: Iterable[str],
    vectors: tuple[Sequence[str], Float[np.ndarray, "v d"]],
    *,
    decay: float = 1e-4,
    steps: int = 150,
) -> dict[str, np.ndarray]:
    """Fit multinomial logistic regression; return the arrays of a weights file.

    A text is the sum of its words, its pairs of words, and its words' vectors, over the root of
    its length. What the fit learns of the vectors goes into the weights of all words that have
    one, so that a word which no scene holds says something, too. The thresholds are set on
    harmless prompts that were ``held_out``: none of them may be refused, one in a hundred doubted.
    """
    words, table = vectors[0], unit(vectors[1] - vectors[1].mean(axis=0))
    place = {word: i for i, word in enumerate(words)}
    bags = [words_of(text) for text in scenes.texts]
    counts = Counter(name for bag in bags for name in dict.fromkeys(features(bag)))
    column = {name: i for i, name in enumerate(n for n, c in counts.items() if c >= _RARE)}
    x = np.zeros((len(bags), len(column) + table.shape[1]), np.float32)
    for row, bag in zip(x, bags, strict=True):
        for name in features(bag):
            known = _known(name, column)
            if known is not None:
                row[known] += 1
            if name in place:
                row[len(column) :] += table[place[name]]
        row /= root_length(bag)
    weights, bias = _regress(x, scenes.labels, decay, steps)
    shared = table @ weights[len(column) :]
    names = [name for name in dict.fromkeys((*column, *words)) if name not in STOP]
    total = np.zeros((len(names), len(CLASSES)), np.float32)
    for row, name in zip(total, names, strict=True):
        known = _known(name, column)
        row += weights[known] if known is not None else 0.0
        row += shared[place[name]] if name in place else 0.0
    return _packed(names, total, bias, held_out)


def _known(name: str, column: Mapping[str, int]) -> int | None:
    """Return the column of a feature or, for a word without one, of its stem."""
    found = column.get(name)
    if found is None and " " not in name:
        found = next((column[stem] for stem in stems(name) if stem in column), None)
    return found


def _regress(
    x: Float[np.ndarray, "n f"], labels: Int[np.ndarray, " n"], decay: float, steps: int
) -> tuple[Float[np.ndarray, "f k"], Float[np.ndarray, " k"]]:
    """Minimise cross-entropy with weight decay by Adam; harmful and safe count alike."""
    share = np.bincount(labels, minlength=len(CLASSES)).clip(1)
    importance = np.where(labels == 0, 0.5 / share[0], 0.5 / share[1:].sum()).astype(np.float32)
    truth = np.eye(len(CLASSES), dtype=np.float32)[labels]
    w = np.zeros((x.shape[1], len(CLASSES)), np.float32)
    b = np.zeros(len(CLASSES), np.float32)
    state = [[np.zeros_like(p), np.zeros_like(p)] for p in (w, b)]
    for step in range(1, steps + 1):
        logits = x @ w + b
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        error = (p / p.sum(axis=1, keepdims=True) - truth) * importance[:, None]
        for value, gradient, (m, v) in zip(
            (w, b), (x.T @ error + decay * w, error.sum(axis=0)), state, strict=True
        ):
            m += 0.1 * (gradient - m)
            v += 0.01 * (gradient**2 - v)
            value -= 0.1 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.99**step)) + 1e-8)
    return w, b


def _packed(
    names: Sequence[str],
    weights: Float[np.ndarray, "f k"],
    bias: Float[np.ndarray, " k"],
    held_out: Iterable[str],
) -> dict[str, np.ndarray]:
    weights = weights - weights[:, :1]  # only differences matter
    scale = float(np.abs(weights).max()) / 127 or 1.0
    values = np.round(weights / scale).astype(np.int8)
    kept = np.flatnonzero(np.abs(values).max(axis=1) > 1)
    keys = np.array([key_of(names[i]) for i in kept], np.uint32)
    order = np.argsort(keys, kind="stable")
    arrays = {"keys": keys[order], "values": values[kept][order], "bias": bias - bias[0]}
    draft = Weights(arrays["keys"], arrays["values"], scale, arrays["bias"], (0.0, 0.0))
    odds = np.array([draft.score(text)[0] for text in held_out])
    return {**arrays, "scale": np.array(scale), "thresholds": _limits(odds)}


def builtin_scenes() -> str:
    """Return the scenes of this package."""
    return (files(str(__package__)) / "data" / "scenes.txt").read_text(encoding="utf-8")


def read_vectors(path: str | Path) -> tuple[list[str], Float[np.ndarray, "v d"]]:
    """Read word vectors: an npz file of ``words`` and ``vectors``.

    Raises:
        ValueError: not such a file.
    """
    try:
        with np.load(path, allow_pickle=False) as z:
            return z["words"].tolist(), z["vectors"].astype(np.float32)
    except (OSError, KeyError, ValueError) as e:
        raise ValueError(f"{path}: not an npz file of words and vectors") from e


def vocabulary_vectors(
    folder: str | Path, encode: Encode
) -> tuple[list[str], Float[np.ndarray, "v d"]]:
    """Return the whole words of a BERT-like encoder's ``vocab.txt``, each encoded alone.

    Raises:
        FileNotFoundError: the folder holds no vocabulary.
    """
    path = Path(folder) / "vocab.txt"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such vocabulary")
    lines = path.read_text(encoding="utf-8").splitlines()
    words = [word for word in lines if re.fullmatch(r"[a-z]{2,}", word)]
    return words, _encoded(words, encode, "words")


def train_head(
    scenes: Scenes,
    held_out: Iterable[str],
    words: Weights,
    encode: Encode,
    *,
    decay: float = 1e-3,
    steps: int = 400,
) -> dict[str, np.ndarray]:
    """Fit multinomial logistic regression on a sentence encoder's vectors of the scenes.

    Returns the arrays of a head's file. The thresholds are set on the harmless prompts that
    were ``held_out``, for the sum of its log-odds and those of ``words``.
    """
    texts = [" ".join(words_of(text)) for text in scenes.texts]
    x = unit(_encoded(texts, encode, "scenes"))
    mean = x.mean(axis=0)
    w, b = _regress(_SPREAD * (x - mean), scenes.labels, decay, steps)
    head, bias = _SPREAD * w, b - _SPREAD * mean @ w
    draft = SemanticReader(encode, head, bias, (0.0, 0.0), words)
    odds = np.array([draft.score(text)[0] for text in held_out])
    return {"head": head.astype(np.float32), "bias": bias, "thresholds": _limits(odds)}


def _encoded(texts: Sequence[str], encode: Encode, what: str) -> Float[np.ndarray, "n d"]:
    batches = range(0, len(texts), 256)
    progress = tqdm(batches, desc=what, unit="batch", disable=None)
    return np.concatenate([encode(texts[start : start + 256]) for start in progress])


def _limits(odds: Float[np.ndarray, " n"]) -> Float[np.ndarray, "2"]:
    limits = np.quantile(odds, [1 - DOUBTFUL, 1.0]) if len(odds) else np.zeros(2)
    return limits + np.array([0.0, _MARGIN])
