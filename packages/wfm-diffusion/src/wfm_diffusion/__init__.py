"""Diffusion world models: text to world, video to world, and rollouts under actions.

Names are imported when first used, so that ``wfm-diffusion --help`` need not wait for torch.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "DiffusionConfig": "config",
    "PRESETS": "config",
    "TrainConfig": "config",
    "WorldSettings": "config",
    "DiffusionTransformer": "transformer",
    "ControlBranch": "control",
    "load": "checkpoint",
    "save_network": "checkpoint",
    "WorldModel": "world",
    "imagine_cameras": "cameras",
    "DiffusionDecoder": "decoder",
    "load_decoder": "loading",
    "Refused": "guards",
    "load_world": "loading",
    "pico_world_model": "loading",
    "pico_token_decoder": "loading",
    "PicoTextEncoder": "text",
    "pico_text_encoder": "text",
    "train_text_encoder": "text",
    "T5TextEncoder": "t5",
    "CachedTextEncoder": "textcache",
    "offload": "streaming",
    "quantise": "quantised",
    "compile_blocks": "compiling",
    "evaluate": "evaluation",
    "Shortcuts": "shortcuts",
    "save_diffusers": "export",
    "PromptUpsampler": "upsample",
    "train": "training",
    "SAMPLERS": "samplers",
}
_MODULES = ("convert", "edm", "samplers", "guidance", "text")

__all__ = [*_HOMES, "convert"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
