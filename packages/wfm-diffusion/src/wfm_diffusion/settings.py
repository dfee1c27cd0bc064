"""Settings from a YAML file and ``--set key=value``, checked by pydantic. No torch here."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)


# same as: packages/tokenizer/src/wfm_tokenizer/settings.py
def load_settings(model: type[Model], path: str | Path | None, overrides: Sequence[str]) -> Model:
    """Read a YAML file, apply ``a.b=value`` overrides (values are YAML), validate.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not YAML, an override without ``=``, or settings that do not fit; one line
            for each mistake.
    """
    data: dict[str, Any] = {}
    if path is not None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: no such file")
        try:
            data = yaml.safe_load(Path(path).read_text()) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as e:
            raise ValueError(f"{path}: not YAML ({e})") from e
        if not isinstance(data, dict):
            raise ValueError(f"{path}: settings are key: value pairs, got a {type(data).__name__}")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"--set takes KEY=VALUE, got {override!r}")
        *parents, leaf = key.split(".")
        node = data
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = yaml.safe_load(value)
    try:
        return model.model_validate(data)
    except ValidationError as e:
        raise ValueError(explain(e)) from e


# same as: packages/tokenizer/src/wfm_tokenizer/settings.py
def explain(error: ValidationError) -> str:
    """Put each mistake in words: ``sampler.steps: Input should be greater than 0, got 0``."""
    return "; ".join(
        f"{'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']!r}" for e in error.errors()
    )
