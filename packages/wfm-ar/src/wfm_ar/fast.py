"""The same network with its matrices laid out for decoding: packed, in bfloat16, or in int8."""

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn
from torch.nn import functional

from .compiled import CompiledTransformer
from .layers import RMSNorm, SelfAttention, lean_norm, leaned
from .model import ArTransformer

WEIGHTS = ("float32", "bfloat16", "int8")
# oneDNN lays a matrix out for so many rows; that serves one token and thousands equally.
PACKED_ROWS = 16
# From so many rows on, int8 matrices are widened once instead of inside the product.
WIDENED_ROWS = 16


class LeanNorm(nn.Module):
    """The norm by :func:`~wfm_ar.layers.lean_norm`."""

    def __init__(self, norm: RMSNorm) -> None:
        super().__init__()
        self.weight: Tensor
        self.least: Tensor
        for name, tensor in zip(("weight", "least"), leaned(norm.weight, norm.eps), strict=True):
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        return lean_norm(x, self.weight, self.least)


class PackedLinear(nn.Module):
    """A matrix in oneDNN's own layout: on many CPUs twice as fast as the plain product."""

    def __init__(self, weight: Float[Tensor, "o i"]) -> None:
        super().__init__()
        self.in_features, self.dtype = weight.shape[1], weight.dtype
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), PACKED_ROWS)

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        y = torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.packed, None, "none", [], "")
        return y.to(x.dtype)


class HalfLinear(nn.Module):
    """A matrix of another dtype than what it is multiplied with."""

    def __init__(self, weight: Float[Tensor, "o i"]) -> None:
        super().__init__()
        self.in_features = weight.shape[1]
        self.register_buffer("weight", weight.detach(), persistent=False)

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        weight = self.get_buffer("weight")
        return functional.linear(x.to(weight.dtype), weight).to(x.dtype)


class Int8Linear(nn.Module):
    """A matrix of 8-bit integers, one scale for each output; products are in bfloat16."""

    def __init__(self, weight: Float[Tensor, "o i"]) -> None:
        super().__init__()
        self.in_features = weight.shape[1]
        numbers, scale = quantize(weight)
        self.register_buffer("numbers", numbers, persistent=False)
        self.register_buffer("scale", scale.bfloat16(), persistent=False)

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        numbers, scale = self.get_buffer("numbers"), self.get_buffer("scale")
        rows = x.reshape(-1, x.shape[-1]).bfloat16()
        if x.is_cpu and len(rows) < WIDENED_ROWS:
            y = torch._weight_int8pack_mm(rows, numbers, scale)
        else:
            y = functional.linear(rows, numbers.bfloat16()) * scale
        return y.view(*x.shape[:-1], -1).to(x.dtype)


def quantize(weight: Float[Tensor, "o i"]) -> tuple[Int8[Tensor, "o i"], Float[Tensor, " o"]]:
    """Return 8-bit integers and the scale of each row: ``numbers * scale`` is near ``weight``."""
    wide = weight.detach().float()
    scale = wide.abs().amax(1).clamp(min=1e-12) / 127
    return (wide / scale[:, None]).round().to(torch.int8), scale


def for_decoding(
    lm: ArTransformer, *, weights: str | None = None, compiled: bool = False
) -> ArTransformer:
    """Return a copy of ``lm`` that decodes faster; it cannot be trained or saved.

    Norms, embedding and position tables are shared with ``lm``; only matrices are laid out anew.

    Args:
        lm: the model; it stays as it is.
        weights: of the matrices. None keeps their precision: the same scores up to rounding,
            on CPUs with oneDNN in half the time. ``bfloat16`` and ``int8`` (one scale a row,
            products in bfloat16) read 2 and 4 times less than float32 and change the scores.
        compiled: run every token as one compiled function (CUDA graphs on CUDA): faster after
            the seconds to minutes that the first token takes. Needs a C++ compiler on the CPU.

    Raises:
        ValueError: unknown ``weights``.
    """
    if weights not in (None, *WEIGHTS):
        raise ValueError(f"weights {weights!r}: there are {', '.join(WEIGHTS)}")
    with torch.device("meta"):
        fast = (CompiledTransformer if compiled else ArTransformer)(lm.config)
    fast.load_state_dict(lm.state_dict(), assign=True)
    fast.world = lm.world
    fast.requires_grad_(False)
    for name, part in list(fast.named_modules()):
        if isinstance(part, nn.Linear):
            fast.set_submodule(name, _laid_out(part.weight, weights, packs=not compiled))
        elif isinstance(part, SelfAttention):
            part.stack_norms()
        elif isinstance(part, RMSNorm) and part.weight.dtype == torch.float32:
            fast.set_submodule(name, LeanNorm(part))
    if isinstance(fast, CompiledTransformer):
        cuda = fast.embed.weight.is_cuda
        fast.compile_steps(**{"mode": "reduce-overhead"} if cuda else {})
    return fast.eval()


def _laid_out(weight: Tensor, weights: str | None, *, packs: bool) -> nn.Module:
    if weights == "int8":
        return Int8Linear(weight)
    if weights is not None:
        weight = weight.to(getattr(torch, weights))
    packs &= weight.is_cpu and torch.backends.mkldnn.is_available()
    if packs and weight.dtype in (torch.float32, torch.bfloat16):
        try:
            return PackedLinear(weight)
        except (RuntimeError, AttributeError):  # a build of torch without these operators
            pass
    return HalfLinear(weight)
