"""The state of a run on disk: written by all processes that hold a part of it, read by any number.

PyTorch's distributed checkpoint (DCP): every process writes its own parts, and what is read is
parted anew. One process alone writes and reads the same.
"""

import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import FileSystemReader

from .parallel import Ranks

OPTIMIZER = "optimizer"


def write_state(
    folder: Path,
    step: int,
    network: nn.Module,
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    ranks: Ranks,
) -> None:
    """Write a folder, whole or not at all; all processes of ``ranks`` call this together."""
    fresh = folder.with_name(f".{folder.name}.part")
    if ranks.first:
        shutil.rmtree(fresh, ignore_errors=True)
    ranks.wait()
    state = _state(step, network, average, optimizer)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.save(state, checkpoint_id=fresh, no_dist=ranks.count == 1)
    ranks.wait()
    if ranks.first:
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    ranks.wait()


@torch.no_grad()
def read_state(
    folder: Path,
    network: nn.Module,
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> int:
    """Read into network, average and optimiser, in place; return the step."""
    parameters = dict(network.named_parameters())
    for key in FileSystemReader(folder).read_metadata().state_dict_metadata:
        part, _, rest = key.partition(".")
        name, _, field = rest.rpartition(".")
        if part == OPTIMIZER:
            empty = torch.zeros(()) if field == "step" else torch.zeros_like(parameters[name])
            optimizer.state[parameters[name]][field] = empty
    state = _state(0, network, average, optimizer)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(state, checkpoint_id=folder, no_dist=not torch.distributed.is_initialized())
    return int(state["step"])


def _state(
    step: int, network: nn.Module, average: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    moments = {
        name: dict(optimizer.state[parameter])
        for name, parameter in network.named_parameters()
        if parameter in optimizer.state
    }
    return {
        "step": torch.tensor(step),
        "model": network.state_dict(),
        "average": average,
        OPTIMIZER: moments,
    }
