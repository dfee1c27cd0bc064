"""A network over several processes: FSDP2 parts every weight, tensor parallelism parts the heads.

The two make a mesh: processes side by side in ``tensor`` hold parts of the same matrices and see
the same samples; across it each process keeps a share of the weights, and of the optimiser's state,
and gathers a layer only while it works on it (Zhao et al. 2023, arXiv 2304.11277). Between them
stands Megatron's scheme (Shoeybi et al. 2019, arXiv 1909.08053): matrices into the heads and the
hidden channels are cut by rows, those out of them by columns.
"""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from .layers import Block, CrossAttention, RMSNorm, SelfAttention
from .model import ArTransformer

FUSED = re.compile(r"(.*\.(?:qkv|gate_up))\.(\d)\.weight")


class Stacked(nn.ModuleList):
    """A matrix as its parts one above the other, each of which is cut for itself."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self], -1)


class Copied(torch.autograd.Function):
    """The weight itself; on the way back the sum of what all processes of a group ask of it."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # ty: ignore[incompatible-method-override]
        grad = grad.contiguous()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


def part(lm: ArTransformer, tensor: int = 1, device: str = "cpu") -> None:
    """Part a network, in place, among all processes; ``tensor`` of them share each matrix.

    All processes hold the same weights before. It is for training: there is no cache for parted
    heads.

    Raises:
        ValueError: the processes or the heads do not divide.
    """
    count = dist.get_world_size()
    if count % tensor or lm.config.num_kv_heads % tensor or lm.config.ffn_dim % tensor:
        raise ValueError(
            f"tensor_parallel {tensor} must divide {count} processes, {lm.config.num_kv_heads} "
            f"key-value heads and ffn_dim {lm.config.ffn_dim}"
        )
    mesh = init_device_mesh(device, (count // tensor, tensor), mesh_dim_names=("data", "tensor"))
    if tensor > 1:
        part_heads(lm, mesh["tensor"])
    for block in lm.blocks:
        cross = cast(Block, block).cross
        if cross is not None:  # its keys and values are made outside of the block's own pass
            fully_shard(cross, mesh=mesh["data"])
            register_fsdp_forward_method(cross, "project")
        fully_shard(block, mesh=mesh["data"])
    fully_shard(lm, mesh=mesh["data"])


def part_heads(lm: ArTransformer, mesh: DeviceMesh) -> None:
    """Cut the matrices of attention, feed-forward and head among the processes of a mesh."""
    rows, columns = ColwiseParallel(), RowwiseParallel()
    plan: dict[str, Any] = {
        "embed": RowwiseParallel(input_layouts=Replicate(), output_layouts=Replicate()),
        "head": ColwiseParallel(output_layouts=Replicate()),
    }
    for name, module in list(lm.named_modules()):
        if isinstance(module, SelfAttention):
            width = module.groups * module.head_dim
            module.qkv = stacked(module.qkv, [module.heads * module.head_dim, width, width])
            module.heads //= mesh.size()
            module.groups //= mesh.size()
            plan |= {f"{name}.qkv.{i}": rows for i in range(3)} | {f"{name}.out": columns}
        elif isinstance(module, CrossAttention):
            plan |= {f"{name}.{each}": rows for each in "qkv"} | {f"{name}.out": columns}
        elif name.endswith(".ffn"):
            fused = cast(nn.Linear, module.gate_up)
            module.gate_up = stacked(fused, [lm.config.ffn_dim] * 2)
            plan |= {f"{name}.gate_up.{i}": rows for i in range(2)} | {f"{name}.down": columns}
        elif isinstance(module, RMSNorm) and name.endswith(("q_norm", "k_norm")):
            # Each process norms its own heads only, with weights that all heads share.
            module.shared = partial(_copied, group=mesh.get_group())
    parallelize_module(lm, mesh, plan)


def _copied(weight: Tensor, *, group: dist.ProcessGroup) -> Tensor:
    return Copied.apply(weight, group)


def stacked(linear: nn.Module, heights: list[int]) -> Stacked:
    """Take a fused matrix apart."""
    parts = []
    for weight in cast(nn.Linear, linear).weight.detach().split(heights):
        single = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        single.weight = nn.Parameter(weight.clone())
        parts.append(single)
    return Stacked(parts)


def whole(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors as one process has them, under their usual names; all must call this."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        match = FUSED.fullmatch(name)
        if match:
            name = f"{match[1]}.weight"
            full = torch.cat([found[name], full]) if name in found else full
        found[name] = full
    return found


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def clip(module: nn.Module, limit: float) -> Tensor:
    """Scale all gradients to a common length of ``limit`` or less; return what it was."""
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    lengths = [torch.linalg.vector_norm(grad) for grad in grads]
    length = torch.stack([whole({"": x})[""] for x in lengths]).norm()
    factor = (limit / (length + 1e-6)).clamp(max=1.0)
    for grad in grads:
        local(grad).mul_(factor)
    return length
