"""Embeddings of prompts on disk: a text encoder of many gigabytes is asked once for each prompt."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .checkpoint import write_weights
from .interfaces import Fingerprinted, TextEncoder


class CachedTextEncoder:
    """Any text encoder, with a folder of what it has said. Only real tokens are stored.

    ``name`` tells encoders apart; None takes the encoder's own ``fingerprint``. A file that is
    damaged is made anew.

    Raises:
        ValueError: an encoder without a fingerprint, and no name.
    """

    def __init__(
        self, encoder: TextEncoder, folder: str | Path, *, name: str | None = None
    ) -> None:
        if name is None:
            if not isinstance(encoder, Fingerprinted):
                raise ValueError(f"{type(encoder).__name__} has no fingerprint: give it a name")
            name = encoder.fingerprint
        self.encoder, self.folder, self.name = encoder, Path(folder), name

    @property
    def dim(self) -> int:
        return self.encoder.dim

    @property
    def fingerprint(self) -> str:
        return self.name

    def path(self, prompt: str) -> Path:
        """Return the file of a prompt's embeddings."""
        digest = hashlib.sha256(f"{self.name}\0{prompt}".encode()).hexdigest()
        return self.folder / f"{digest[:32]}.safetensors"

    def encode(
        self, prompts: Sequence[str], /
    ) -> tuple[Float[Tensor, "b n d"], Bool[Tensor, "b n"]]:
        """Return what the encoder returns, from disk where it is there."""
        known = {prompt: self._read(prompt) for prompt in prompts}
        missing = [prompt for prompt, found in known.items() if found is None]
        if missing:
            embeddings, mask = self.encoder.encode(missing)
            for prompt, text, real in zip(missing, embeddings.cpu(), mask.cpu(), strict=True):
                write_weights(self.path(prompt), {"embedding": text[real], "mask": real})
                known[prompt] = (text, real)
        rows = [found for prompt in prompts if (found := known[prompt]) is not None]
        texts, masks = zip(*rows, strict=True)
        return torch.stack(texts), torch.stack(masks)

    def _read(self, prompt: str) -> tuple[Tensor, Tensor] | None:
        path = self.path(prompt)
        if not path.is_file():
            return None
        try:
            stored = load_file(path)
            real, embedding = stored["mask"], stored["embedding"]
        except (SafetensorError, KeyError):
            return None
        text = embedding.new_zeros(len(real), embedding.shape[-1])
        text[real] = embedding
        return text, real
