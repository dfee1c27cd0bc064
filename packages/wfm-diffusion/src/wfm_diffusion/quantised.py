"""Weights as int8 or float8, a scale for each output: a quarter of float32's memory, not exact."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Stored = Literal["int8", "fp8"]
SMALLEST = 64
"""Matrices with fewer inputs stay as they are: little to win, much to lose."""
_TYPES = {"int8": (torch.int8, 127.0), "fp8": (torch.float8_e4m3fn, 448.0)}


class QuantisedLinear(nn.Module):
    """A linear layer whose weights are stored in a byte each and widened when they are used.

    int8 has equal steps up to the largest weight of an output; fp8 (e4m3) has steps of a
    sixteenth to an eighth of a weight, small or large.
    """

    weight: Tensor
    scale: Float[Tensor, "o 1"]
    bias: Float[Tensor, " o"] | None

    def __init__(self, linear: nn.Linear, stored: Stored) -> None:
        super().__init__()
        dtype, largest = _TYPES[stored]
        weight = linear.weight.detach()
        scale = weight.float().abs().amax(1, keepdim=True).clamp(min=1e-12) / largest
        scaled = weight.float() / scale
        self.register_buffer("weight", (scaled.round() if stored == "int8" else scaled).to(dtype))
        self.register_buffer("scale", scale.to(weight.dtype))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        return F.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias)


def quantise(module: nn.Module, stored: Stored = "int8") -> nn.Module:
    """Replace the linear layers inside ``module`` by quantised ones, in place; return it.

    For inference only. Embeddings, norms and small matrices keep their precision; of a
    ``DiffusionTransformer`` give the ``blocks``.
    """
    for name, child in module.named_children():
        if type(child) is nn.Linear and child.in_features >= SMALLEST:
            setattr(module, name, QuantisedLinear(child, stored))
        else:
            quantise(child, stored)
    return module
