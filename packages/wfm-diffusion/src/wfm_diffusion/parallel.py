"""One clip over several processes: each keeps its share of the tokens (context parallelism).

Everything but self-attention looks at one token at a time. For self-attention the processes swap:
each gets all tokens of its share of the heads (DeepSpeed-Ulysses, arXiv 2309.14509), so that
the result is that of one process.
"""

import torch
import torch.distributed as dist
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from .config import DiffusionConfig


class ContextParallel:
    """The processes that share the tokens of a clip; ``group`` None is all of them.

    Every process calls the network with the same inputs and gets the same, whole answer. In
    training each weight's gradient is then the mean of what the processes have, as FSDP takes
    it, or :meth:`average_gradients`.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.size, self.rank = dist.get_world_size(group), dist.get_rank(group)

    def checked(self, config: DiffusionConfig) -> "ContextParallel":
        """Return self, if a network of these sizes can be shared.

        Raises:
            ValueError: heads that do not divide, or several cameras.
        """
        if config.num_heads % self.size or config.views:
            raise ValueError(
                f"{config.num_heads} heads and {config.views} cameras do not divide over"
                f" {self.size} processes"
            )
        return self

    def share(self, x: Tensor, dim: int = 1) -> Tensor:
        """Return this process's part of the tokens.

        Raises:
            ValueError: tokens that do not divide.
        """
        if x.shape[dim] % self.size:
            raise ValueError(f"{x.shape[dim]} tokens do not divide over {self.size} processes")
        return x.chunk(self.size, dim)[self.rank]

    def whole(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b m d"]:
        """Put the parts of all processes together."""
        return _Gather.apply(x.contiguous(), self)

    def to_heads(self, x: Float[Tensor, "b n k d"]) -> Float[Tensor, "b m j d"]:
        """Give away tokens for heads: all tokens of this process's share of the heads."""
        parts = rearrange(x, "b n (p k) d -> p b n k d", p=self.size)
        return rearrange(_Swap.apply(parts, self.group), "p b n k d -> b (p n) k d")

    def to_tokens(self, x: Float[Tensor, "b m j d"]) -> Float[Tensor, "b n k d"]:
        """Undo :meth:`to_heads`."""
        parts = rearrange(x, "b (p n) k d -> p b n k d", p=self.size)
        return rearrange(_Swap.apply(parts, self.group), "p b n k d -> b n (p k) d")

    def average_gradients(self, net: nn.Module) -> None:
        """Turn every process's gradients into those of one process."""
        for parameter in net.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad, group=self.group)
                parameter.grad /= self.size


class _Swap(torch.autograd.Function):
    """Part i goes to process i; its own inverse."""

    @staticmethod
    def forward(ctx, parts: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        out = torch.empty_like(parts := parts.contiguous())
        dist.all_to_all_single(out, parts, group=group)
        return out

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, None]:
        return _Swap.apply(grads[0], ctx.group), None


class _Gather(torch.autograd.Function):
    """All parts in order; each process takes its own part of the gradient, times their number.

    So the mean over the processes is the gradient of a weight, whether it sees some tokens in
    each of them or, as the loss weight's, every process computes all of it.
    """

    @staticmethod
    def forward(ctx, x: Tensor, parallel: ContextParallel) -> Tensor:
        ctx.parallel = parallel
        parts = [torch.empty_like(x) for _ in range(parallel.size)]
        dist.all_gather(parts, x, group=parallel.group)
        return torch.cat(parts, dim=1)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.parallel.share(grads[0]) * ctx.parallel.size, None
