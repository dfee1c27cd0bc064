"""Finite scalar quantisation (Mentzer et al. 2023, arXiv 2309.15505), as in Cosmos."""

import torch
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor, nn

MARGIN = 1e-3
"""Widens the range of tanh so that the outermost levels can be reached."""


class FSQ(nn.Module):
    """Round each of d bounded channels to one of its few levels.

    A cell of d codes is one token: its mixed-radix number, first channel fastest.
    ``levels=(8, 8, 8, 5, 5, 5)`` gives 64,000 tokens. Computes in float32 always.
    """

    levels: Int64[Tensor, " d"]
    basis: Int64[Tensor, " d"]

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"every channel needs two levels or more, got {levels}")
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        basis = torch.tensor((1, *levels[:-1])).cumprod(0)
        self.register_buffer("basis", basis, persistent=False)

    def bound(self, z: Float[Tensor, "b d t h w"]) -> Float[Tensor, "b d t h w"]:
        """Squash to the range of the levels; rounding the result picks one of them."""
        z = rearrange(z.float(), "b d t h w -> b t h w d")
        half = (self.levels - 1) * (1 + MARGIN) / 2
        offset = torch.where(self.levels % 2 == 1, 0.0, 0.5)
        bounded = (z + torch.atanh(offset / half)).tanh() * half - offset
        return rearrange(bounded, "b t h w d -> b d t h w")

    def quantize(self, z: Float[Tensor, "b d t h w"]) -> Float[Tensor, "b d t h w"]:
        """Return codes in [-1, 1]; gradients pass the rounding unchanged."""
        bounded = self.bound(z)
        rounded = bounded + (bounded.round() - bounded).detach()
        return (rounded / self._half(z.ndim)).to(z.dtype)

    def to_tokens(self, codes: Float[Tensor, "b d t h w"]) -> Int64[Tensor, "b t h w"]:
        """Number the codes that :meth:`quantize` gives."""
        half = self._half(codes.ndim)
        digits = rearrange(codes.float() * half + half, "b d t h w -> b t h w d")
        return (digits.round().long() * self.basis).sum(-1)

    def to_codes(self, tokens: Int64[Tensor, "b t h w"]) -> Float[Tensor, "b d t h w"]:
        """Undo :meth:`to_tokens`."""
        digits = rearrange(tokens[..., None] // self.basis % self.levels, "b t h w d -> b d t h w")
        half = self._half(digits.ndim)
        return (digits - half) / half

    def _half(self, ndim: int) -> Tensor:
        """Half of each channel's levels, to be broadcast over ``b d ...``."""
        return (self.levels // 2).view(-1, *[1] * (ndim - 2))
