"""Several processes that train together, as ``torchrun`` starts them.

They take parts of each batch. Each holds all of the weights, or a part of them (FSDP2).
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from .model import Tokenizer
from .muon import Muon
from .network import Level, Middle


class Processes(NamedTuple):
    """How many there are, and which one this is."""

    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls, device: str) -> "Processes":
        """Meet the others, if torchrun started this process; else be alone."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        on_gpu = device.startswith("cuda")
        if on_gpu:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        if not dist.is_initialized():
            dist.init_process_group("nccl" if on_gpu else "gloo")
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

    def split(self, training: "TrainingPass") -> None:
        """Split the weights over the processes; each level is whole only while it computes."""
        if self.count > 1:
            mesh = init_device_mesh(training.model.device.type, (self.count,))
            for module in training.modules():
                if isinstance(module, Level | Middle):
                    fully_shard(module, mesh=mesh)
            fully_shard(training, mesh=mesh)

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean over all processes."""
        if self.count > 1:
            dist.all_reduce(x)
            x = x / self.count
        return x

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace the gradients by their means. All processes have gradients of the same ones.

        Those of weights that are split are means already.
        """
        every = [p.grad for p in parameters if p.grad is not None]
        grads = [grad for grad in every if not isinstance(grad, DTensor)]
        if self.count > 1 and grads:
            flat = self.mean(torch.cat([grad.flatten() for grad in grads]))
            for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
                grad.copy_(part.view_as(grad))

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.count > 1:
            dist.barrier()


class TrainingPass(nn.Module):
    """Video -> the encoder's features, and what the decoder makes of them.

    One module: weights that are split are gathered around its ``forward``.
    """

    def __init__(self, model: Tokenizer) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, video: Float[Tensor, "b 3 t h w"]
    ) -> tuple[Float[Tensor, "b c tl hl wl"], Float[Tensor, "b 3 t h w"]]:
        features = self.model.features(video)
        return features, self.model.decode_codes(self.model.quantize(features))


class SplitMuon(Muon):
    """Muon for weights that may be split: the step of a whole matrix, of which each its part."""

    def _matrix(self, state: dict[str, Any], grad: Tensor, momentum: float, _: float) -> Tensor:
        if not isinstance(grad, DTensor):
            return super()._matrix(state, grad, momentum, _)
        every = {key: whole(x) for key, x in state.items()}
        update = super()._matrix(every, whole(grad), momentum, _)
        state |= {key: laid_out_as(grad, x) for key, x in every.items()}
        return laid_out_as(grad, update)


def whole(x: Tensor) -> Tensor:
    """Return all of a tensor that may be split; all processes must ask."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def laid_out_as(example: Tensor, x: Tensor) -> Tensor:
    """Split a whole tensor, and order it in memory, as another is; all processes must ask."""
    if isinstance(example, DTensor):
        x = x.to(example.device)
        return distribute_tensor(x, example.device_mesh, example.placements)
    return torch.empty_like(example).copy_(x)
