"""The state of a training run on disk: torch's distributed checkpoints, whole or not at all.

They load on any number of processes, whatever number wrote them.
"""

import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim import Optimizer

from .processes import Processes

PREFIX, FACTS = "checkpoint-", "run.json"


def newest(out: Path) -> Path | None:
    """Return the newest checkpoint of a run's folder."""
    return max(out.glob(f"{PREFIX}*"), default=None)


def save_state(
    out: Path,
    step: int,
    processes: Processes,
    state: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> None:
    """Write a checkpoint, each process its own part; then remove the older ones."""
    folder = out / f"{PREFIX}{step:09d}"
    partial = out / f".{folder.name}.part"
    if processes.first and partial.exists():
        shutil.rmtree(partial)
    processes.wait()
    with quietly_alone():
        dcp.save(dict(state), checkpoint_id=partial)
    processes.wait()
    if processes.first:
        (partial / FACTS).write_text(json.dumps({"step": step, **facts}, indent=2) + "\n")
        older = [path for path in out.glob(f"{PREFIX}*") if path != folder]
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
        for path in older:
            shutil.rmtree(path)
    processes.wait()


def read_facts(folder: Path) -> dict[str, Any]:
    """Return what was written beside the tensors: step, config, last validation."""
    return json.loads((folder / FACTS).read_text())


def state_of(
    module: nn.Module, optimizer: Optimizer, average: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Return the tensors of a run, by name."""
    weights, moments = get_state_dict(module, optimizer)
    return {"weights": weights, "optimizer": moments, "average": dict(average)}


def load_state(
    folder: Path, module: nn.Module, optimizer: Optimizer, average: Mapping[str, Tensor]
) -> None:
    """Load a checkpoint into the parts of a run, in place."""
    state = state_of(module, optimizer, average)
    with quietly_alone():
        dcp.load(state, checkpoint_id=folder)
    set_state_dict(
        module,
        optimizer,
        model_state_dict=state["weights"],
        optim_state_dict=state["optimizer"],
    )


def quietly_alone() -> warnings.catch_warnings:
    """Let torch not warn of a checkpoint that a single process writes or reads, as is meant."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)
