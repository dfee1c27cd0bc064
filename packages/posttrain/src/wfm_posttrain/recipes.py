"""Ways to make a base model into a model of one thing.

A recipe is a condition encoder, a place where it enters the network, the labels that it reads
from clips, what it freezes, and what is measured. All share one trainer; ``action`` predicts
frame by frame, the others a clip at once. Settings start from ``recipes/NAME.yaml``.
"""

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from . import action, camera, chunk, control, engine, instruction, multiview
from .action import ActionConfig
from .clip_config import ClipConfig
from .clips import open_clips
from .evaluation import Evaluation, EvaluationConfig
from .fidelity import Fidelity, FidelityConfig
from .imagine import ClipWorld
from .interfaces import ClipDataset, WorldModel
from .settings import explain

NAMES = ("action", "action-chunk", "camera", "instruction", "multiview", "control")

__all__ = [
    "NAMES", "ActionConfig", "ClipConfig", "action", "camera", "chunk", "configure", "control",
    "engine", "evaluate", "instruction", "multiview", "train",
]  # fmt: skip


def configure(
    name: str, path: str | Path | None = None, overrides: Sequence[str] = ()
) -> ActionConfig | ClipConfig:
    """Return a recipe's settings: its own file, then those of ``path``, then ``a.b=value``.

    Raises:
        FileNotFoundError: there is no file at ``path``.
        ValueError: no such recipe, or settings that do not fit.
    """
    if name not in NAMES:
        raise ValueError(f"no recipe {name!r}; there are {', '.join(NAMES)}")
    file = Path(str(resources.files(str(__package__)))) / "recipes" / f"{name}.yaml"
    model = ActionConfig if name == "action" else ClipConfig
    data = _read(file)
    if path is not None:
        data = _merged(data, _read(Path(path)))
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"--set takes KEY=VALUE, got {override!r}")
        nested: Any = yaml.safe_load(value)
        for part in reversed(key.split(".")):
            nested = {part: nested}
        data = _merged(data, nested)
    try:
        return model.model_validate(data)
    except ValidationError as e:
        raise ValueError(explain(e)) from e


def _read(path: Path) -> dict[str, Any]:
    """Read the settings of a YAML file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        data = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise ValueError(f"{path}: not YAML ({e})") from e
    if not isinstance(data, dict):
        raise ValueError(f"{path}: settings are key: value pairs, got a {type(data).__name__}")
    return data


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Put new settings over old ones; those of another ``kind`` replace the old ones whole."""
    if "kind" in new and new["kind"] != old.get("kind"):
        return dict(new)
    both = dict(old)
    for key, value in new.items():
        below = both.get(key)
        deep = isinstance(below, Mapping) and isinstance(value, Mapping)
        both[key] = _merged(below, value) if deep else value
    return both


def evaluate(
    world: WorldModel, clips: ClipDataset | str, *, clips_at_most: int = 32, frames: int = 8
) -> Evaluation | Fidelity:
    """Imagine held-out clips with their own and with other clips' actions or conditions.

    ``frames`` is the horizon of models that act frame by frame; others imagine whole clips.
    """
    clips = open_clips(clips) if isinstance(clips, str) else clips
    if isinstance(world, ClipWorld):
        return engine.evaluate(world, clips, FidelityConfig(samples=clips_at_most))
    return action.evaluate(world, clips, EvaluationConfig(clips=clips_at_most, frames=frames))


def train(config: ActionConfig | ClipConfig, run: str | Path, **options: object) -> Path:
    """Train by whichever recipe the settings are of; see ``engine.train``."""
    start = action.train if isinstance(config, ActionConfig) else engine.train
    return start(config, run, **options)  # ty: ignore[invalid-argument-type]
