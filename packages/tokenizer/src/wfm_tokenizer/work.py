"""Long work that may be killed: pieces of the result, and how to go on, beside the result."""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from .checkpoint import write_weights

EVERY = 20.0
"""Seconds between two states on disk."""


class Work:
    """The folder ``.RESULT.part``: numbered pieces and the state after the last of them.

    ``key`` says what makes the result what it is; work of another key starts anew. ``count`` is
    the number of pieces that are complete.
    """

    def __init__(self, out: str | Path, key: Mapping[str, str]) -> None:
        out = Path(out)
        self.folder = out.parent / f".{out.name}.part"
        self.key = dict(key)
        self.count = 0
        self._saved = time.monotonic()

    def resume(self) -> dict[str, Tensor] | None:
        """Return the state that was saved last, or None when there is nothing to go on from."""
        path = self.folder / "state.safetensors"
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
            if all(metadata.get(k) == v for k, v in self.key.items()):
                self.count = int(metadata["pieces"])
                return load_file(path)
        except (FileNotFoundError, SafetensorError):
            pass
        shutil.rmtree(self.folder, ignore_errors=True)
        return None

    def due(self) -> bool:
        """Is it time to save?"""
        return time.monotonic() - self._saved >= EVERY

    def piece(self, number: int, suffix: str) -> Path:
        """Name a piece's file."""
        return self.folder / f"{number:06d}{suffix}"

    def save(self, state: Mapping[str, Tensor]) -> None:
        """Write the state after the last complete piece."""
        metadata = {**self.key, "pieces": str(self.count)}
        state = {name: own(tensor) for name, tensor in state.items()}
        write_weights(self.folder / "state.safetensors", state, metadata=metadata)
        self._saved = time.monotonic()

    def finish(self) -> None:
        """Remove the folder: the result is there."""
        shutil.rmtree(self.folder, ignore_errors=True)


def own(tensor: Tensor) -> Tensor:
    """Return a tensor that shares its storage with no other; as a rule it is that already."""
    whole = tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if whole else tensor.clone()
