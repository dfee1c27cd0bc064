"""The network of a post-trained model on disk: whole, or as what was added to a base.

::

    net/                  the whole network, in the base package's own layout; or else
    adapter/              LoRA weights, in PEFT's layout
    ports.safetensors     layers that the recipe added to the network
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from .checkpoint import read_weights, write_weights
from .lora import LoraLinear, load_adapter, merge, save_adapter
from .references import resolve

logger = logging.getLogger(__name__)

NET, ADAPTER, PORTS = "net", "adapter", "ports.safetensors"
SAMPLED = 4096


def fingerprint(network: nn.Module) -> str:
    """Tell networks apart: a hash of all names and shapes and of some of every weight."""
    digest = hashlib.sha256()
    for name, weight in sorted(network.state_dict().items()):
        flat = weight.detach().flatten()
        some = flat[:: max(1, len(flat) // SAMPLED)].float().cpu()
        digest.update(f"{name}{tuple(weight.shape)}".encode() + some.numpy().tobytes())
    return digest.hexdigest()[:16]


def open_base(reference: str, wanted: str = "") -> Any:
    """Load the network that ``module:callable=SOURCE`` names, and check that it is the one.

    Raises:
        ValueError: it cannot be found, or its weights are others than those trained from.
    """
    network = resolve(reference, "")
    if not isinstance(network, nn.Module):
        raise ValueError(f"{reference}: gives a {type(network).__name__}, not a network")
    found = fingerprint(network)
    if wanted and wanted != found:
        raise ValueError(
            f"{reference}: holds other weights ({found}) than the ones trained from ({wanted})"
        )
    return network


def save_network(
    folder: Path,
    network: nn.Module,
    *,
    base: str,
    added: Sequence[str],
    whole: bool,
    world: Mapping[str, object],
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write what cannot be had from ``base``: all weights, or only what was added to it.

    ``added`` names the parameters that the recipe put into the network; adapters are known by
    themselves. Adapters stay in float32.
    """
    if whole:
        (folder / NET).mkdir(parents=True)
        config = cast(BaseModel, network.config).model_dump_json(indent=2)
        (folder / NET / "config.json").write_text(config + "\n")
        (folder / NET / "world.json").write_text(json.dumps(world, indent=2) + "\n")
        weights = {name: stored(w, dtype) for name, w in network.state_dict().items()}
        write_weights(folder / NET / "model.safetensors", weights)
        return
    if any(isinstance(layer, LoraLinear) for layer in network.modules()):
        save_adapter(folder / ADAPTER, network, base)
    if added:
        weights = {name: w for name, w in network.state_dict().items() if name in set(added)}
        write_weights(folder / PORTS, weights)


def load_network(
    folder: Path, *, base: str, base_fingerprint: str, channels: int, merged: bool = True
) -> Any:
    """Undo :func:`save_network`; adapters are folded into their layers if ``merged``.

    Raises:
        ValueError: another base, or weights that do not fit; all must, and none may be missing.
    """
    if (folder / NET).is_dir():
        return open_base(f"{base.partition('=')[0]}={folder / NET}")
    network = open_base(base, base_fingerprint)
    added = extend(network, channels)
    count = 0
    if added:
        count += load_strictly(network, read_weights(folder / PORTS), added, str(folder / PORTS))
    if (folder / ADAPTER).is_dir():
        names = load_adapter(network, folder / ADAPTER)
        count += 2 * len(names)
        if merged:
            merge(network)
    logger.info("%s: %d/%d keys loaded onto %s", folder, count, count, base)
    return network


def extend(network: Any, channels: int) -> list[str]:
    """Ask the network for further input channels; return the names of what it added."""
    if not channels:
        return []
    before = set(network.state_dict())
    network.extend_input(channels)
    return sorted(set(network.state_dict()) - before)


def load_strictly(
    module: nn.Module, weights: Mapping[str, Tensor], wanted: Sequence[str], what: str
) -> int:
    """Load exactly the parameters ``wanted``; return how many.

    Raises:
        ValueError: names what is missing, unknown, or of another shape.
    """
    missing, unknown = sorted(set(wanted) - set(weights)), sorted(set(weights) - set(wanted))
    if missing or unknown:
        first = f"{missing[0]} is missing" if missing else f"{unknown[0]} is unknown"
        fit = len(set(wanted) & set(weights))
        raise ValueError(f"{what}: {fit}/{len(set(wanted))} keys fit, {first}")
    state = module.state_dict()
    for name, weight in weights.items():
        if state[name].shape != weight.shape:
            raise ValueError(
                f"{what}: {name} is {tuple(weight.shape)}, not {tuple(state[name].shape)}"
            )
    with torch.no_grad():
        for name, weight in weights.items():
            state[name].copy_(weight)
    return len(weights)


def stored(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a weight as it goes to disk."""
    return weight.to(dtype) if weight.is_floating_point() else weight
