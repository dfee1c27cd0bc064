"""Models on disk: folders of ``config.json`` and ``model.safetensors``, found and written."""

import hashlib
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import convert
from .config import DiffusionConfig, WorldSettings
from .transformer import DiffusionTransformer

CONFIG, WEIGHTS, CARD, WORLD = "config.json", "model.safetensors", "README.md", "world.json"


def load(
    source: str | Path, *, device: str = "cpu", dtype: torch.dtype | None = None
) -> DiffusionTransformer:
    """Load a network from a folder, ``builtin:NAME``, a hub's ``owner/name`` or a ``.pt`` file.

    The layout is recognised: ours, diffusers' (the pipeline's folder or its ``transformer``,
    sharded or not) or NVIDIA's ``model.pt``. ``dtype`` None is bfloat16 on CUDA, else float32.

    Raises:
        FileNotFoundError: nothing of that name.
        ValueError: the folder holds no such network, or weights that do not fit.
    """
    path = find_source(source)
    config, state = read_network(path)
    if dtype is None:
        dtype = torch.bfloat16 if str(device).startswith("cuda") else torch.float32
    with torch.device("meta"):
        net = DiffusionTransformer(config)
    state = {name: tensor.to(device=device, dtype=dtype) for name, tensor in state.items()}
    try:
        net.load_state_dict(state, assign=True)
    except RuntimeError as e:
        raise ValueError(f"{source}: the weights do not fit the config ({e})") from e
    if (path / WORLD).is_file():
        net.world = WorldSettings.model_validate(_read_json(path / WORLD))
    return net.eval()


def read_network(path: Path) -> tuple[DiffusionConfig, dict[str, Tensor]]:
    """Read a network of any layout; return its config and its weights under our names."""
    if path.is_file():
        return _read_nvidia(path)
    for folder in (path, path / "transformer"):
        if (folder / CONFIG).is_file():
            mapping = _read_json(folder / CONFIG)
            if "num_attention_heads" in mapping:
                state = convert.from_diffusers(_read_shards(folder))
                return convert.config_from_diffusers(mapping), state
            if "width" in mapping and "adaln_rank" in mapping:
                return DiffusionConfig.model_validate(mapping), read_weights(folder / WEIGHTS)
    if (path / "model.pt").is_file():
        return _read_nvidia(path / "model.pt")
    raise ValueError(
        f"{path}: holds no diffusion network; wanted {CONFIG} and {WEIGHTS}, a diffusers"
        " transformer, or NVIDIA's model.pt"
    )


def read_config(path: Path) -> DiffusionConfig:
    """Read the config of a model folder, without its weights if it has a config file."""
    for folder in (path, path / "transformer"):
        if (folder / CONFIG).is_file():
            mapping = _read_json(folder / CONFIG)
            if "num_attention_heads" in mapping:
                return convert.config_from_diffusers(mapping)
            if "width" in mapping and "adaln_rank" in mapping:
                return DiffusionConfig.model_validate(mapping)
    return read_network(path)[0]


def _read_nvidia(path: Path) -> tuple[DiffusionConfig, dict[str, Tensor]]:
    try:
        state = convert.from_nvidia(read_weights(path), uncertainty=True)
        return convert.config_from_weights(state), state
    except (KeyError, AttributeError) as e:
        raise ValueError(f"{path}: holds no diffusion network of NVIDIA's ({e})") from e


def _read_shards(folder: Path) -> dict[str, Tensor]:
    """Read diffusers' weights, from one file or from the shards that an index lists."""
    single = folder / "diffusion_pytorch_model.safetensors"
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    if not index.is_file():
        return read_weights(single)
    state: dict[str, Tensor] = {}
    for name in sorted(set(_read_json(index)["weight_map"].values())):
        state |= read_weights(folder / name)
    return state


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise ValueError(f"{path}: not JSON ({e})") from e
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a JSON object")
    return content


def save_network(
    net: DiffusionTransformer,
    folder: str | Path,
    *,
    card: str,
    world: WorldSettings | None = None,
    dtype: torch.dtype | None = torch.float16,
) -> None:
    """Write a model folder, whole or not at all: config, weights, card, and world.json."""
    with replacing(folder) as partial:
        partial.mkdir()
        (partial / CONFIG).write_text(net.config.model_dump_json(indent=2) + "\n")
        (partial / CARD).write_text(card)
        if world is not None:
            (partial / WORLD).write_text(world.model_dump_json(indent=2) + "\n")
        state = net.state_dict()
        write_weights(partial / WEIGHTS, {k: v.to(dtype or v.dtype) for k, v in state.items()})


# same as: packages/tokenizer/src/wfm_tokenizer/checkpoint.py
@contextmanager
def replacing(path: str | Path) -> Generator[Path, None, None]:
    """Give a temporary name beside ``path``; rename it to ``path`` if all goes well.

    A file or a folder may be written under the temporary name. On an error it is removed,
    and what was at ``path`` before is still there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(descriptor)
    partial = Path(name)
    partial.unlink()
    try:
        yield partial
        if partial.is_dir() and path.is_dir():
            shutil.rmtree(path)
        partial.replace(path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)


# same as: packages/tokenizer/src/wfm_tokenizer/checkpoint.py
def find_source(source: str | Path, *, revision: str | None = None) -> Path:
    """Return the folder or file that a model's ``source`` means.

    ``source`` is a path, ``builtin:NAME`` (shipped in this package) or ``owner/name`` (Hugging
    Face Hub; extra ``[hub]``). A mistyped path never becomes a download: only a string of the
    form ``owner/name`` whose owner is no folder here is looked up.

    Raises:
        FileNotFoundError: nothing of that name.
        ImportError: a hub name without ``huggingface_hub``.
    """
    name = str(source)
    if name.startswith("builtin:"):
        return _builtin(name.removeprefix("builtin:"))
    path = Path(name).expanduser()
    if path.exists():
        return path
    owner, slash, rest = name.partition("/")
    if not (slash and owner.strip(".~") and rest) or "/" in rest or Path(owner).is_dir():
        raise FileNotFoundError(
            f"{name}: no such folder; give a folder, builtin:NAME, or owner/name of the hub"
        )
    try:
        from huggingface_hub import snapshot_download  # ty: ignore[import-not-found]
    except ImportError as e:
        raise ImportError(
            f"{name}: no such folder, and loading from the hub needs: pip install huggingface-hub"
        ) from e
    return Path(snapshot_download(name, revision=revision))


# same as: packages/tokenizer/src/wfm_tokenizer/checkpoint.py
def _builtin(name: str) -> Path:
    """Find a model that ships inside this package."""
    shelf = Path(str(resources.files(str(__package__)))) / "weights"
    folder = shelf / name
    if not name or not (folder / CONFIG).is_file():
        known = sorted(f"builtin:{p.parent.name}" for p in shelf.glob(f"*/{CONFIG}"))
        raise FileNotFoundError(f"builtin:{name}: not shipped; there are {', '.join(known) or '-'}")
    return folder


def read_weights(path: str | Path) -> dict[str, Any]:
    """Read tensors from a ``.safetensors`` or a pickled ``.pt`` file, the latter weights only.

    A training checkpoint comes as it is, with its weights in ``model`` or ``state_dict``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as e:
        raise ValueError(f"{path}: not a readable weights file ({e})") from e
    except pickle.UnpicklingError as e:
        raise ValueError(f"{path}: holds more than weights, which is not loaded ({e})") from e


# same as: packages/tokenizer/src/wfm_tokenizer/checkpoint.py
def write_weights(
    path: str | Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a ``.safetensors`` file, whole or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as partial:
        save_file(tensors, partial, metadata={"format": "pt", **(metadata or {})})
        partial.chmod(0o644)  # safetensors lets nobody else read


# same as: packages/tokenizer/src/wfm_tokenizer/checkpoint.py
def fingerprint(config: str, tensors: Mapping[str, Tensor]) -> str:
    """Return 16 hexadecimal digits that change with a model's config or any of its weights.

    Floating weights count as float16, so that a model and its copy stored in half precision
    have one fingerprint.
    """
    digest = hashlib.sha256(config.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu()
        tensor = tensor.half() if tensor.is_floating_point() else tensor
        digest.update(name.encode() + str(tuple(tensor.shape)).encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
