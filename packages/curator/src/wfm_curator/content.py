"""What a clip is, told from its vector: by sentences (CLIP zero-shot), or by a head of one's own.

A head is linear: probabilities are the softmax of weights times the vector. Sentences make one
whose weights are their own vectors; labelled clips make one by regression. It is a view on kept
vectors: change labels, sentences or thresholds, and no picture is looked at again.
"""

import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .config import EmbedConfig
from .embedders import Embedder, TextEmbedder
from .text import named

SCALE = 100.0  # of cosines, as CLIP was trained (Radford et al. 2021, section 2.5)
ROUNDS, STEP, DECAY = 300, 0.5, 1e-3
SENTENCES = {
    "driving": "a view of a road from a driving car",
    "hand motion and object manipulation": "hands or a robot arm handling objects",
    "human motion and activity": "people moving, working or doing sports",
    "spatial awareness and navigation": "moving through the rooms of a building",
    "first person view": "a first-person view of someone's own hands and surroundings",
    "nature dynamics": "a landscape, water, plants, clouds or animals in nature",
    "dynamic camera movement": "an aerial view from a flying camera",
    "synthetically rendered": "a photo-realistic computer rendering",
    "abstract pattern": "an abstract pattern or a test card",
    "video game": "a screen recording of a video game",
    "animation": "a cartoon or an animated drawing",
}

Probabilities = Mapping[str, np.ndarray]
Teller = Callable[[np.ndarray], Probabilities]


@dataclass(frozen=True)
class Head:
    """``weights`` are ``k d``, ``bias`` is ``k``, one row for each label."""

    labels: tuple[str, ...]
    weights: np.ndarray
    bias: np.ndarray

    def __call__(self, vectors: np.ndarray) -> Probabilities:
        """Return the probabilities of each label for vectors, float ``n d``.

        Raises:
            ValueError: the vectors are of another network.
        """
        if vectors.shape[1] != self.weights.shape[1]:
            sizes = f"{self.weights.shape[1]} features, the vectors have {vectors.shape[1]}"
            raise ValueError(f"embed.content was made for {sizes}")
        chances = softmax(vectors @ self.weights.T + self.bias)
        return dict(zip(self.labels, chances.T, strict=True))

    def save(self, path: Path) -> None:
        """Write the head as ``.npz``, whole or not at all."""
        partial = path.with_name(path.name + ".partial")
        with partial.open("wb") as file:
            np.savez(file, labels=np.array(self.labels), weights=self.weights, bias=self.bias)
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Head":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it holds no head.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file (embed.content)")
        try:
            with np.load(path, allow_pickle=False) as file:
                labels, weights, bias = file["labels"], file["weights"], file["bias"]
        except (KeyError, ValueError, zipfile.BadZipFile) as e:
            raise ValueError(f"{path}: labels, weights and bias are wanted ({e})") from e
        if weights.shape[:1] != labels.shape or bias.shape != labels.shape:
            raise ValueError(f"{path}: {len(labels)} labels, but weights {weights.shape}")
        return cls(tuple(map(str, labels)), weights, bias)


def softmax(values: np.ndarray) -> np.ndarray:
    """Return rows that sum to 1."""
    values = np.exp(values - values.max(1, keepdims=True))
    return values / values.sum(1, keepdims=True)


def zero_shot(embedder: Embedder, sentences: Mapping[str, str]) -> Head:
    """Return a head that compares pictures with a sentence for each label.

    Raises:
        ValueError: the network does not know sentences.
    """
    if not isinstance(embedder, TextEmbedder):
        raise ValueError("embed.content=zero-shot needs a network for sentences, as open_clip is")
    vectors = np.asarray(embedder.embed_text(list(sentences.values())), np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    return Head(tuple(sentences), SCALE * vectors, np.zeros(len(vectors), np.float32))


def fit(vectors: np.ndarray, labels: Sequence[str]) -> Head:
    """Return a head learned from labelled vectors of length 1, by logistic regression.

    Raises:
        ValueError: fewer than two labels.
    """
    names = tuple(sorted(set(labels)))
    if len(names) < 2:
        raise ValueError(f"a head tells labels apart; only {names} was given")
    wanted = np.eye(len(names), dtype=np.float32)[[names.index(label) for label in labels]]
    x = np.c_[vectors * np.sqrt(vectors.shape[1]), np.ones(len(vectors))].astype(np.float32)
    step = STEP * 4 * len(x) / np.linalg.norm(x, 2) ** 2  # within the curvature's bound
    weights = np.zeros((len(names), x.shape[1]), np.float32)
    for _ in range(ROUNDS):
        slope = (softmax(x @ weights.T) - wanted).T @ x / len(x) + DECAY * weights
        weights -= step * slope
    return Head(names, weights[:, :-1] * np.sqrt(vectors.shape[1]), weights[:, -1])


def teller(config: EmbedConfig, embedder: Callable[[], Embedder]) -> Teller | None:
    """Return what ``config.content`` names: vectors to probabilities by label.

    Raises:
        FileNotFoundError, ValueError: it is not there, or does not fit the network.
    """
    match config.content:
        case "":
            return None
        case "zero-shot":
            return zero_shot(embedder(), config.labels or SENTENCES)
        case name if name.endswith(".npz"):
            return Head.load(Path(name))
        case name:
            return named(name, "embed.content")
