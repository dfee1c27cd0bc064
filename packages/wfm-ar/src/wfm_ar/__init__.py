"""Autoregressive world models: discrete video tokens in, the tokens that follow out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import convert
    from .config import PRESETS, ArConfig, WorldSettings, Yarn
    from .decoding import Sampler, decode, decode_plainly, generate
    from .fast import for_decoding
    from .loss import next_token_loss
    from .medusa import MedusaHeads, load_heads, train_heads
    from .model import ArTransformer
    from .pretrained import convert_folder, load, save
    from .speculation import PreviousFrame, speculate
    from .text import PicoTextEncoder, pico_text_encoder
    from .train_config import TrainConfig
    from .training import train
    from .world import WorldModel, load_world, pico_ar

_HOMES = {
    "config": ("PRESETS", "ArConfig", "WorldSettings", "Yarn"),
    "decoding": ("Sampler", "decode", "decode_plainly", "generate"),
    "fast": ("for_decoding",),
    "loss": ("next_token_loss",),
    "medusa": ("MedusaHeads", "load_heads", "train_heads"),
    "model": ("ArTransformer",),
    "pretrained": ("convert_folder", "load", "save"),
    "speculation": ("PreviousFrame", "speculate"),
    "text": ("PicoTextEncoder", "pico_text_encoder"),
    "train_config": ("TrainConfig",),
    "training": ("train",),
    "world": ("WorldModel", "load_world", "pico_ar"),
}

__all__ = [
    "PRESETS",
    "ArConfig",
    "ArTransformer",
    "MedusaHeads",
    "PicoTextEncoder",
    "PreviousFrame",
    "Sampler",
    "TrainConfig",
    "WorldModel",
    "WorldSettings",
    "Yarn",
    "convert",
    "convert_folder",
    "decode",
    "decode_plainly",
    "for_decoding",
    "generate",
    "load",
    "load_heads",
    "load_world",
    "next_token_loss",
    "pico_ar",
    "pico_text_encoder",
    "save",
    "speculate",
    "train",
    "train_heads",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for, so that the command line starts without torch."""
    if name == "convert":
        return import_module(".convert", __name__)
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(f".{home}", __name__), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
