"""Models on disk: folders of ``config.json`` and ``model.safetensors``, found and written."""

import hashlib
import os
import pickle
import shutil
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

CONFIG, WEIGHTS = "config.json", "model.safetensors"


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


# same as: packages/tokenizer/src/wfm_tokenizer/checkpoint.py
def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read tensors from a ``.safetensors`` or a pickled ``.pt`` file, the latter weights only.

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
