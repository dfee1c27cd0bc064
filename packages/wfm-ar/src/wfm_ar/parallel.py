"""Several processes share a training: each takes its part of a batch, gradients are averaged.

``torchrun --nproc-per-node=N -m wfm_ar.cli train ...`` starts them. The sum of the parts is the
batch that one process would have, so the run is the same up to rounding. The network stands whole
in each process, or is parted (sharding.py).
"""

import os
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class Ranks:
    """Which process this is, of how many; ``tensor`` of them in a row share their samples."""

    number: int = 0
    count: int = 1
    tensor: int = 1

    @property
    def first(self) -> bool:
        """The process that writes files."""
        return self.number == 0

    @property
    def part(self) -> slice:
        """The rows of a batch that this process takes."""
        return slice(self.number // self.tensor, None, self.groups)

    @property
    def groups(self) -> int:
        """Groups of processes that take samples of their own."""
        return self.count // self.tensor

    def wait(self) -> None:
        """Go on when all processes have come here."""
        if self.count > 1:
            dist.barrier()

    @torch.no_grad()
    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over the processes."""
        if self.count > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)
                tensor /= self.count

    def average_gradients(self, module: nn.Module) -> None:
        self.average(p.grad for p in module.parameters() if p.grad is not None)

    def mean(self, *figures: Float[Tensor, ""]) -> list[float]:
        """Return figures averaged over the processes."""
        stacked = torch.stack([figure.detach().float() for figure in figures])
        self.average([stacked])
        return stacked.tolist()


@contextmanager
def launched(tensor: int = 1) -> Generator[Ranks]:
    """Join the processes that torchrun started, if it did; ``tensor`` share their samples.

    Raises:
        ValueError: ``tensor`` does not divide the processes.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count % tensor:
        raise ValueError(f"tensor_parallel {tensor} does not divide {count} processes (torchrun)")
    if count == 1:
        yield Ranks()
        return
    dist.init_process_group("gloo")
    try:
        yield Ranks(dist.get_rank(), count, tensor)
    finally:
        dist.destroy_process_group()
