"""Train on several processes: the network sharded (FSDP2), all else replicated.

``torchrun --nproc-per-node=N --no-python wfm-posttrain train ...`` starts them. The network's
blocks and the rest of it are split over the processes; encoders and control branches are small,
so that each has its own copy, kept equal by averaging gradients. Checkpoints are torch's
distributed ones, which load on any number of processes. Where the network can share the tokens
of a clip (``over_processes``), ``fit.context`` processes at a time look at the same clips.
"""

import logging
import os
import shutil
import warnings
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

logger = logging.getLogger(__name__)

CALLED = ("denoise", "logits")
"""What losses call in place of ``forward``."""


@dataclass(frozen=True)
class Ranks:
    """This process, how many there are, and how many of them share a clip."""

    number: int = 0
    count: int = 1
    context: int = 1

    @property
    def group(self) -> int:
        """The number of this process's batch among those of a step."""
        return self.number // self.context

    @property
    def groups(self) -> int:
        """How many batches there are at once."""
        return self.count // self.context

    @property
    def first(self) -> bool:
        return self.number == 0

    def wait(self) -> None:
        """Go on when all processes have come here."""
        if self.count > 1:
            dist.barrier()

    @contextmanager
    def first_alone(self) -> Generator[None]:
        """Let the first process do the body before the others, which then find its files."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()


@contextmanager
def launched(device: str, context: int = 1) -> Generator[tuple[Ranks, str]]:
    """Join the processes that torchrun started, if it did; yield them and this one's device.

    Raises:
        ValueError: processes that do not divide into groups of ``context``.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count % context:
        raise ValueError(f"fit.context {context} does not divide {count} processes; see torchrun")
    if count == 1:
        yield Ranks(), device
        return
    kind = device.partition(":")[0]
    if kind == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    began = not dist.is_initialized()
    if began:
        dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield Ranks(dist.get_rank(), count, context), device
    finally:
        if began:
            dist.destroy_process_group()


def shard(network: Any, device: str, ranks: Ranks) -> None:
    """Split a network over all processes, block by block, in place.

    Raises:
        ValueError: clips are to be shared, and the network cannot.
    """
    if ranks.context > 1:
        if not hasattr(network, "over_processes"):
            raise ValueError(f"{type(network).__name__}: cannot share a clip; use fit.context=1")
        starts = range(0, ranks.count, ranks.context)
        groups = [dist.new_group([*range(i, i + ranks.context)]) for i in starts]
        network.over_processes(groups[ranks.group])
    kind = device.partition(":")[0]
    mesh = init_device_mesh(kind, (dist.get_world_size(),))
    for block in getattr(network, "blocks", ()):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
    for name in CALLED:
        if hasattr(network, name):
            register_fsdp_forward_method(network, name)


@torch.no_grad()
def average_gradients(module: nn.Module, count: int) -> None:
    """Make the gradients of replicated parameters equal; sharded ones are so already."""
    for parameter in module.parameters():
        if parameter.grad is not None and not isinstance(parameter, DTensor):
            dist.all_reduce(parameter.grad)
            parameter.grad /= count


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale gradients down to a norm of ``limit`` over all processes; return the norm."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    split = [g.to_local() for g in gradients if isinstance(g, DTensor)]
    whole = [g for g in gradients if not isinstance(g, DTensor)]
    total = torch.zeros((), device=(split or whole)[0].device)
    for gradient in split:
        total += gradient.float().square().sum()
    dist.all_reduce(total)
    for gradient in whole:
        total += gradient.float().square().sum()
    norm = total.sqrt()
    scale = (limit / (norm + 1e-6)).clamp(max=1.0)
    for gradient in (*split, *whole):
        gradient.mul_(scale)
    return norm


def local(x: Tensor) -> Tensor:
    """Return this process's part of a tensor; all of it, where it is not split."""
    return x.to_local() if isinstance(x, DTensor) else x


def whole_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gather split tensors; all processes must call this."""
    return {
        name: (x.full_tensor() if isinstance(x, DTensor) else x).detach().cpu()
        for name, x in state.items()
    }


def save_state(
    folder: Path,
    ranks: Ranks,
    step: int,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict[str, Tensor],
) -> None:
    """Write a distributed checkpoint, whole or not at all; each process its own part."""
    partial = folder.with_name(f".{folder.name}.part")
    if ranks.first and partial.exists():
        shutil.rmtree(partial)
    ranks.wait()
    weights, moments = get_state_dict(module, optimizer)
    state = {"step": step, "module": weights, "optimizer": moments, "average": average}
    dcp.save(state, checkpoint_id=partial)
    ranks.wait()
    if ranks.first:
        if folder.exists():
            shutil.rmtree(folder)
        partial.replace(folder)
    ranks.wait()


def load_state(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, Tensor]
) -> int:
    """Load a distributed checkpoint onto however many processes there are; return its step.

    Raises:
        ValueError: it lacks a weight of the module.
    """
    weights, moments = get_state_dict(module, optimizer)
    state: dict[str, Any] = {"step": 0, "module": weights, "optimizer": moments, "average": average}
    alone = not dist.is_initialized()
    with warnings.catch_warnings():
        if alone:  # as is meant
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        found = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
        wanted = {f"{part}.{name}" for part in ("module", "average") for name in state[part]}
        if missing := sorted(wanted - found.keys()):
            raise ValueError(f"{folder}: {missing[0]} is missing; it is of another model")
        # The optimiser has no moments of weights that the training never used.
        planner = DefaultLoadPlanner(allow_partial_load=True)
        dcp.load(state, checkpoint_id=folder, planner=planner, no_dist=alone)
    set_state_dict(
        module, optimizer, model_state_dict=state["module"], optim_state_dict=state["optimizer"]
    )
    return state["step"]
