"""Causal video and image tokenizers: pixels to latents or tokens, and back."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import convert
    from .config import PRESETS, TokenizerConfig
    from .loading import builtins, load, pico_cv4x8x8, pico_dv8x16x16
    from .model import ContinuousTokenizer, DiscreteTokenizer
    from .train_config import TrainConfig
    from .training import train

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "ContinuousTokenizer",
    "DiscreteTokenizer",
    "TokenizerConfig",
    "TrainConfig",
    "builtins",
    "convert",
    "load",
    "pico_cv4x8x8",
    "pico_dv8x16x16",
    "train",
]

_HOMES = {
    "PRESETS": "config",
    "TokenizerConfig": "config",
    "ContinuousTokenizer": "model",
    "DiscreteTokenizer": "model",
    "builtins": "loading",
    "load": "loading",
    "pico_cv4x8x8": "loading",
    "pico_dv8x16x16": "loading",
    "TrainConfig": "train_config",
    "train": "training",
}


def __getattr__(name: str) -> object:
    """Import on first use: ``wfm-tokenizer --help`` must not wait for torch."""
    if name == "convert":
        return import_module(".convert", __name__)
    if name in _HOMES:
        value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
