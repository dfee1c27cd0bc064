"""``load``: a folder of ours, of NVIDIA's or of diffusers', a built-in, or a hub name."""

import json
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from .checkpoint import CONFIG, WEIGHTS, find_source, fingerprint, read_weights
from .config import PRESETS, TokenizerConfig
from .convert import (
    config_from_diffusers,
    fit_config,
    from_diffusers,
    from_nvidia,
    statistics_rows,
)
from .model import ContinuousTokenizer, DiscreteTokenizer, build
from .settings import explain

DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
NVIDIA_FILES = ("autoencoder.jit", "encoder.jit", "decoder.jit", "model.pt")


def load(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    variant: str | None = None,
    revision: str | None = None,
) -> ContinuousTokenizer | DiscreteTokenizer:
    """Load a tokenizer, ready to use: frozen, in ``eval`` mode.

    Args:
        source: A folder, ``builtin:NAME``, or ``owner/name`` of the Hugging Face Hub. The folder
            may be one that :meth:`save` wrote, NVIDIA's (``encoder.jit`` + ``decoder.jit``,
            ``autoencoder.jit`` or ``model.pt``; TorchScript archives run code when opened, so
            open only files you trust) or diffusers' (itself or its ``vae`` subfolder).
        device: Where the weights go.
        dtype: Of the weights; by default float32 on a CPU, bfloat16 elsewhere.
        variant: A name in ``PRESETS``, for a NVIDIA folder whose own name is not one.
        revision: Of a hub repository.

    Raises:
        FileNotFoundError: there is no such source, or it holds no tokenizer.
        ValueError: a file is damaged, or weights and config do not match.
    """
    folder = find_source(source, revision=revision)
    config, weights = _read_folder(folder, variant or folder.resolve().name, folder)
    tokenizer = build(config)
    weights = {name: tensor.float() for name, tensor in weights.items()}
    try:
        tokenizer.load_state_dict(weights)
    except RuntimeError as e:
        raise ValueError(f"{folder}: the weights do not fit config {config.name!r}: {e}") from e
    tokenizer.loaded_fingerprint = fingerprint(config.identity(), tokenizer.state_dict())
    device = torch.device(device)
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    return tokenizer.to(device=device, dtype=dtype).eval().requires_grad_(False)


def read_config(source: str | Path) -> TokenizerConfig:
    """Return the config of what :func:`load` would open; the same errors."""
    folder = find_source(source)
    return _read_folder(folder, folder.resolve().name, folder)[0]


def builtins() -> list[str]:
    """Name the tokenizers that ship with this package."""
    shelf = Path(__file__).parent / "weights"
    return sorted(f"builtin:{path.parent.name}" for path in shelf.glob(f"*/{CONFIG}"))


def pico_cv4x8x8() -> ContinuousTokenizer | DiscreteTokenizer:
    """Load the built-in continuous tokenizer (entry point of ``wfm.codecs``)."""
    return load("builtin:pico-cv4x8x8")


def pico_dv8x16x16() -> ContinuousTokenizer | DiscreteTokenizer:
    """Load the built-in discrete tokenizer (entry point of ``wfm.codecs``)."""
    return load("builtin:pico-dv8x16x16")


def _read_folder(folder: Path, name: str, asked: Path) -> tuple[TokenizerConfig, dict[str, Tensor]]:
    """Recognise the layout and return our config and weights."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: a tokenizer is a folder, not a file")
    if any((folder / file).is_file() for file in NVIDIA_FILES):
        return _read_nvidia(folder, name)
    if (folder / DIFFUSERS_WEIGHTS).is_file():
        settings = _read_json(folder / CONFIG)
        config = _validated(
            folder / CONFIG, lambda: config_from_diffusers({"name": name} | settings)
        )
        return config, from_diffusers(read_weights(folder / DIFFUSERS_WEIGHTS))
    if (folder / CONFIG).is_file():
        settings = _read_json(folder / CONFIG)
        config = _validated(folder / CONFIG, lambda: TokenizerConfig.model_validate(settings))
        return config, read_weights(folder / WEIGHTS)
    if (folder / "vae").is_dir():
        return _read_folder(folder / "vae", name, asked)
    raise FileNotFoundError(
        f"{asked}: no tokenizer here; looked for {CONFIG} + {WEIGHTS}, "
        f"vae/{DIFFUSERS_WEIGHTS}, {', '.join(NVIDIA_FILES)}"
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        settings = json.loads(path.read_text())
    except ValueError as e:
        raise ValueError(f"{path}: not JSON ({e})") from e
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: not a config, which is a JSON object")
    return settings


def _validated(path: Path, make: Any) -> TokenizerConfig:
    try:
        return make()
    except ValidationError as e:
        raise ValueError(f"{path}: not a tokenizer's config: {explain(e)}") from e


def _read_nvidia(folder: Path, name: str) -> tuple[TokenizerConfig, dict[str, Tensor]]:
    """Read a published folder; its variant shows in its name only."""
    if name not in PRESETS:
        raise ValueError(
            f"{folder}: NVIDIA's files do not tell their variant; rename the folder or give "
            f"variant=, one of {', '.join(n for n in PRESETS if n.startswith('Cosmos'))}"
        )
    config = PRESETS[name]
    weights = from_nvidia(_nvidia_state(folder))
    config = fit_config(config, weights)
    if (folder / "mean_std.pt").is_file() and config.kind == "continuous":
        mean, std = _read_pickle(folder / "mean_std.pt")
        update = {
            "latent_mean": statistics_rows(mean.flatten().tolist(), config.latent_channels),
            "latent_std": statistics_rows(std.flatten().tolist(), config.latent_channels),
        }
        config = TokenizerConfig.model_validate(config.model_dump() | update)
    return config, weights


def _nvidia_state(folder: Path) -> Mapping[str, Tensor]:
    if (folder / "autoencoder.jit").is_file():
        return _script_state(folder / "autoencoder.jit")
    if (folder / "encoder.jit").is_file() or (folder / "decoder.jit").is_file():
        return _script_state(folder / "encoder.jit") | _script_state(folder / "decoder.jit")
    state = _read_pickle(folder / "model.pt")
    state = state.get("model", state)
    ema = re.compile(r"ema\.network-")
    averaged = {
        ema.sub("", name).replace("-", "."): tensor
        for name, tensor in state.items()
        if ema.match(name)
    }
    return averaged or state


def _read_pickle(path: Path) -> Any:
    """Read tensors in dicts and tuples, and nothing that could run code."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as e:
        raise ValueError(f"{path}: not a readable weights file ({e})") from e


def _script_state(path: Path) -> dict[str, Tensor]:
    """Take the weights out of a TorchScript archive, on the CPU whatever it was traced on."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with (
            warnings.catch_warnings()
        ):  # torch calls TorchScript outdated; the files are as they are
            warnings.simplefilter("ignore", DeprecationWarning)
            return dict(torch.jit.load(str(path), map_location="cpu").state_dict())
    except RuntimeError as e:
        raise ValueError(f"{path}: not a readable TorchScript archive ({e})") from e
