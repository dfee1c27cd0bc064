"""Scenes simulated by MuJoCo, filmed with everything that a world model may be asked for.

    from wfm_posttrain import sim
    episode = sim.generate("arm-push", seed=7)
    sim.write_episode(episode, Path("recordings"))

Seeds from ``HELD_OUT_SEED`` on are for evaluation; nothing may be trained on them.
"""

from typing import TYPE_CHECKING

from .actions import ACTION_SCALE, apply_action, relative_actions
from .episode import Episode, write_episode
from .scenes import HELD_OUT_SEED, SCENES, Capture, GraphicsError, generate, generate_views

if TYPE_CHECKING:
    from .arm_env import ArmPushEnv, Goal, Observation
    from .arm_push import PushPolicy

__all__ = [
    "ACTION_SCALE",
    "HELD_OUT_SEED",
    "SCENES",
    "ArmPushEnv",
    "Capture",
    "Episode",
    "Goal",
    "GraphicsError",
    "Observation",
    "PushPolicy",
    "apply_action",
    "generate",
    "generate_views",
    "relative_actions",
    "write_episode",
]

# These need MuJoCo, whose import takes a while and chooses a graphics backend.
_LAZY = {
    "ArmPushEnv": ".arm_env",
    "Goal": ".arm_env",
    "Observation": ".arm_env",
    "PushPolicy": ".arm_push",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name], __package__), name)
