"""Post-train world models, act in them, plan with them, and measure them."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import (
        clips,
        comparison,
        distribution,
        env,
        export,
        following,
        geometry,
        imagination,
        lora,
        metrics,
        motion,
        plan,
        policies,
        probes,
        recipes,
        references,
        residuals,
        sim,
        simulator,
        synthetic,
        vision,
    )
    from .comparison import PolicyEvaluation, evaluate_policy
    from .encoder import ActionEncoder, action_encoder
    from .env import WorldEnv, WorldVectorEnv
    from .saved import load, pico_arm_ar, pico_arm_diffusion

__all__ = [
    "ActionEncoder",
    "PolicyEvaluation",
    "WorldEnv",
    "WorldVectorEnv",
    "action_encoder",
    "clips",
    "comparison",
    "distribution",
    "env",
    "evaluate_policy",
    "export",
    "following",
    "geometry",
    "imagination",
    "load",
    "lora",
    "metrics",
    "motion",
    "pico_arm_ar",
    "pico_arm_diffusion",
    "plan",
    "policies",
    "probes",
    "recipes",
    "references",
    "residuals",
    "sim",
    "simulator",
    "synthetic",
    "vision",
]

_HOMES = {
    "ActionEncoder": "encoder",
    "action_encoder": "encoder",
    "WorldEnv": "env",
    "WorldVectorEnv": "env",
    "PolicyEvaluation": "comparison",
    "evaluate_policy": "comparison",
    "load": "saved",
    "pico_arm_ar": "saved",
    "pico_arm_diffusion": "saved",
}


def __getattr__(name: str) -> Any:
    """Import torch and the rest on first use, so that ``wfm-posttrain --help`` is instant."""
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __package__), name)
    if name in __all__:
        return importlib.import_module(f".{name}", __package__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
