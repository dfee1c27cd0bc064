"""Load and save models: our folders, and NVIDIA's as they are."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from .checkpoint import CONFIG, WEIGHTS, find_source, read_weights, replacing, write_weights
from .config import ArConfig, WorldSettings
from .convert import config_from_nvidia, config_from_weights, from_nvidia
from .model import ArTransformer
from .settings import explain

NVIDIA_WEIGHTS = "model.pt"
CARD, WORLD = "README.md", "world.json"


def load(
    source: str | Path, *, device: str = "cpu", dtype: torch.dtype | None = None
) -> ArTransformer:
    """Return the model of a folder, a weights file, ``builtin:NAME`` or a hub ``owner/name``.

    Our layout and NVIDIA's (plain or TransformerEngine keys) are told apart by themselves.
    ``dtype`` None is float32, or bfloat16 on CUDA.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: what is there is not an autoregressive world model.
    """
    path = find_source(source)
    config, weights = read(path, str(source))
    if dtype is None:
        dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    weights = {name: tensor.to(device, dtype) for name, tensor in weights.items()}
    with torch.device("meta"):
        model = ArTransformer(config)
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as e:
        raise ValueError(f"{source}: the weights do not fit the config ({e})") from e
    model.world = read_world(path if path.is_dir() else path.parent)
    return model.eval()


def begin_from(model: ArTransformer, other: ArTransformer, name: str) -> None:
    """Take over another model's weights, for the next stage of a training.

    The grid may be longer (with YaRN or without), and there may be new cross-attention: it
    begins by adding nothing, so that the first answers are those of ``other``.

    Raises:
        ValueError: any other difference.
    """
    mine, theirs = model.state_dict(), other.state_dict()
    added = mine.keys() - theirs.keys()
    for key in sorted({k for k in added if ".cross" not in k} | (theirs.keys() - mine.keys())):
        raise ValueError(f"{name}: {key} is {'missing' if key in mine else 'unknown'} here")
    for key, tensor in theirs.items():
        if tensor.shape != mine[key].shape:
            raise ValueError(
                f"{name}: {key} is {tuple(tensor.shape)}, not {tuple(mine[key].shape)}"
            )
    model.load_state_dict(theirs, strict=False)
    for key in added:
        if key.endswith("cross.out.weight"):
            nn.init.zeros_(model.get_parameter(key))


def read(path: Path, name: str) -> tuple[ArConfig, dict[str, Tensor]]:
    """Return config and weights, in our layout, of a folder or file in any known layout."""
    folder = path if path.is_dir() else path.parent
    file = _weights_file(path, name) if path.is_dir() else path
    described = _description(folder / CONFIG)
    weights = _tensors(file)
    try:
        if "num_layers" in described:
            return ArConfig.model_validate(described), weights
        weights = from_nvidia(weights)
        if "n_layers" in described and file.name != NVIDIA_WEIGHTS:
            return config_from_nvidia(described), weights
        try:
            return config_from_weights(weights), weights
        except ValueError:
            if "n_layers" in described:
                return config_from_nvidia(described), weights
            raise
    except ValidationError as e:
        raise ValueError(f"{folder / CONFIG}: {explain(e)}") from e
    except ValueError as e:
        raise ValueError(f"{name}: not an autoregressive world model ({e})") from e


def save(
    model: ArTransformer, folder: str | Path, *, files: Mapping[str, str] | None = None
) -> None:
    """Write a model folder, float16, whole or not at all; ``files`` are further texts in it."""
    tensors = {name: tensor.half() for name, tensor in model.state_dict().items()}
    write_folder(model.config, tensors, folder, files=files)


def write_folder(
    config: ArConfig,
    tensors: Mapping[str, Tensor],
    folder: str | Path,
    *,
    files: Mapping[str, str] | None = None,
) -> None:
    """Write ``config.json``, ``model.safetensors`` and further texts, whole or not at all."""
    with replacing(folder) as partial:
        partial.mkdir()
        (partial / CONFIG).write_text(config.model_dump_json(indent=2) + "\n")
        write_weights(partial / WEIGHTS, tensors)
        for name, text in (files or {}).items():
            (partial / name).write_text(text)


def convert_folder(
    source: str | Path, folder: str | Path, *, dtype: torch.dtype | None = None
) -> int:
    """Write any model that :func:`load` reads as a folder of ours; return its parameter count.

    ``dtype`` None keeps what the checkpoint has.
    """
    config, weights = read(find_source(source), str(source))
    if dtype is not None:
        weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
    with torch.device("meta"):
        expected = ArTransformer(config).state_dict()
    for name in sorted(expected.keys() ^ weights.keys()):
        raise ValueError(f"{source}: {name} is {'missing' if name in expected else 'unknown'}")
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"{source}: {name} is {tuple(tensor.shape)}, not {tuple(expected[name].shape)}"
            )
    count = sum(tensor.numel() for tensor in weights.values())
    card = f"# {Path(source).name}\n\nConverted to the layout of wfm-ar; {count:,} parameters.\n"
    write_folder(config, weights, folder, files={CARD: card})
    return count


def read_world(folder: Path) -> WorldSettings | None:
    """Read what ``world.json`` says of the training, if there is one.

    Raises:
        ValueError: it is damaged.
    """
    file = folder / WORLD
    if not file.is_file():
        return None
    try:
        return WorldSettings.model_validate(json.loads(file.read_text()))
    except ValidationError as e:
        raise ValueError(f"{file}: {explain(e)}") from e
    except json.JSONDecodeError as e:
        raise ValueError(f"{file}: not JSON ({e})") from e


def _tensors(file: Path) -> dict[str, Any]:
    """Read a weights file; a pickled one may hold its tensors one level down."""
    if file.suffix == ".safetensors" or not file.is_file():
        return dict(read_weights(file))
    try:
        # Mapped, because the larger checkpoints do not fit in memory twice.
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as e:
        raise ValueError(f"{file}: not a readable weights file ({e})") from e


def _weights_file(folder: Path, name: str) -> Path:
    for file in (WEIGHTS, NVIDIA_WEIGHTS):
        if (folder / file).is_file():
            return folder / file
    raise FileNotFoundError(f"{name}: holds neither {WEIGHTS} nor {NVIDIA_WEIGHTS}")


def _description(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise ValueError(f"{file}: not JSON ({e})") from e
    return found if isinstance(found, dict) else {}
