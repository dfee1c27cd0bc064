"""Several processes that train together, as ``torchrun`` starts them.

They hold equal weights, and take parts of each batch.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Processes(NamedTuple):
    """How many there are, and which one this is."""

    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls, device: str) -> "Processes":
        """Meet the others, if torchrun started this process; else be alone."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def first(self) -> bool:
        """Does this process write the files?"""
        return self.rank == 0

    def device(self, name: str) -> str:
        """Return the device of this process: of several, each takes a GPU of its own."""
        if name == "cuda" and self.count > 1:
            return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        return name

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean over all processes."""
        if self.count > 1:
            dist.all_reduce(x)
            x = x / self.count
        return x

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace the gradients by their means. All processes have gradients of the same ones."""
        grads = [p.grad for p in parameters if p.grad is not None]
        if self.count > 1:
            flat = self.mean(torch.cat([grad.flatten() for grad in grads]))
            for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
                grad.copy_(part.view_as(grad))

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.count > 1:
            dist.barrier()
