"""Weights as int8, one scale for each output: a quarter of float32's memory, and not exact."""

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn
from torch.nn import functional as F

SMALLEST = 64
"""Matrices with fewer inputs stay as they are: little to win, much to lose."""


class Int8Linear(nn.Module):
    """A linear layer whose weights are stored as int8 and widened when they are used."""

    weight: Int8[Tensor, "o i"]
    scale: Float[Tensor, "o 1"]
    bias: Float[Tensor, " o"] | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        scale = weight.float().abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
        self.register_buffer("weight", (weight.float() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale.to(weight.dtype))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        return F.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias)


def to_int8(module: nn.Module) -> nn.Module:
    """Replace the linear layers inside ``module`` by int8 ones, in place; return it.

    For inference only. Embeddings, norms and small matrices keep their precision; of a
    ``DiffusionTransformer`` give the ``blocks``.
    """
    for name, child in module.named_children():
        if type(child) is nn.Linear and child.in_features >= SMALLEST:
            setattr(module, name, Int8Linear(child))
        else:
            to_int8(child)
    return module
