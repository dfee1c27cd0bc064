"""Training over several processes: the network sharded (FSDP2), clips shared where wanted.

``torchrun --nproc-per-node=N --no-python wfm-diffusion train ...`` starts them. Of N processes
``context`` at a time look at the same clips, each at its share of the tokens; the batch is spread
over the N / context groups. Weights, averages and the optimiser's state are split over all N.
"""

import os
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from .muon import Muon
from .transformer import DiffusionTransformer

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among all: its number, and how many share a clip."""

    number: int = 0
    count: int = 1
    context: int = 1

    @property
    def first(self) -> bool:
        return self.number == 0

    @property
    def share(self) -> slice:
        """The samples of a batch that this process looks at: every so-many-th one."""
        return slice(self.number // self.context, None, self.count // self.context)

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

    def add_up(self, numbers: Iterable[float]) -> list[float]:
        """Return the sums over all processes."""
        found = torch.tensor(list(numbers), dtype=torch.float64)
        if self.count > 1:
            device = torch.device("cuda") if dist.get_backend() == "nccl" else found.device
            found = found.to(device)
            dist.all_reduce(found)
        return found.tolist()

    def spread(self, net: DiffusionTransformer) -> "Whole":
        """Split a network over all processes, block by block; share clips among some."""
        whole = Whole(net)
        if self.count == 1:
            return whole
        if self.context > 1:
            starts = range(0, self.count, self.context)
            groups = [dist.new_group([*range(i, i + self.context)]) for i in starts]
            net.over_processes(groups[self.number // self.context])
        mesh = init_device_mesh(net.embed.weight.device.type, (self.count,))
        for block in net.blocks:
            fully_shard(block, mesh=mesh)
        # Resharded even after a pass without gradients: the weights may be swapped for averages.
        fully_shard(whole, mesh=mesh, reshard_after_forward=True)
        return whole


class Whole(nn.Module):
    """A network and the work done with it: FSDP gathers the weights around ``forward``."""

    def __init__(self, net: DiffusionTransformer) -> None:
        super().__init__()
        self.net = net

    def forward(self, work: Callable[..., T], *inputs: Any) -> T:
        return work(self.net, *inputs)


@contextmanager
def launched(device: str, context: int) -> Generator[tuple[Processes, str]]:
    """Join the processes that torchrun started, if it did; yield them and this one's device.

    Raises:
        ValueError: processes that do not divide into groups of ``context``.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count % context:
        raise ValueError(f"context_parallel {context}: does not divide {count} processes")
    if count == 1:
        yield Processes(), device
        return
    kind = device.partition(":")[0]
    if kind == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield Processes(dist.get_rank(), count, context), device
    finally:
        dist.destroy_process_group()


class ShardedMuon(Muon):
    """Muon whose matrices may be split over processes: each takes its part of a whole update."""

    def _matrix(self, state: dict[str, Any], grad: Tensor, momentum: float, _: float) -> Tensor:
        update = super()._matrix(state, grad, momentum, _)
        if isinstance(grad, DTensor) and isinstance(update, DTensor):
            return update.redistribute(grad.device_mesh, grad.placements)
        return update


def local(x: Tensor) -> Tensor:
    """Return this process's part of a tensor; all of it, where it is not split."""
    return x.to_local() if isinstance(x, DTensor) else x


def gathered(x: Tensor) -> Tensor:
    """Return all of a tensor, on the CPU; every process must ask."""
    return (x.full_tensor() if isinstance(x, DTensor) else x).detach().cpu()
