"""Huge frames in overlapping tiles: bounded memory, and inexact.

Norms and attention see a tile, not the frame, so tiles differ where they overlap; there they are
blended. What goes over them in time is kept for each tile.
"""

from collections.abc import Sequence
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .memory import Memory


class Tiled(nn.Module):
    """A network applied to tiles of its input's two sides, its outputs blended.

    Sides are counted in latent cells. ``scale_in`` and ``scale_out`` are the steps of input and
    output for one cell; ``axis_in`` and ``axis_out`` the places of the height.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        cells: tuple[int, int],
        overlap: int,
        encodes: bool,
        compression: tuple[int, int, int],
    ) -> None:
        super().__init__()
        self.network, self.cells, self.overlap = network, cells, overlap
        one, many = (1, 1), compression[1:]
        self.axis_in, self.axis_out = (3, 2) if encodes else (2, 3)
        self.scale_in, self.scale_out = (many, one) if encodes else (one, many)

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        sides = [x.shape[self.axis_in + i] // self.scale_in[i] for i in (0, 1)]
        spans = [spread(sides[i], self.cells[i], self.overlap) for i in (0, 1)]
        if len(spans[0]) * len(spans[1]) == 1:
            return self.network(x, memory)
        out = total = None
        for number, place in enumerate(product(*spans)):
            part = memory.part(number) if memory is not None else None
            y = self.network(cut(x, place, self.axis_in, self.scale_in), part)
            if out is None or total is None:
                size = list(y.shape)
                for i in (0, 1):
                    size[self.axis_out + i] = sides[i] * self.scale_out[i]
                out, total = y.new_zeros(size), y.new_zeros(size[self.axis_out :][:2])
            weight = self._weight(place).to(y)
            cut(total, place, 0, self.scale_out).add_(weight)
            weight = weight.unflatten(1, (-1, *[1] * (y.ndim - self.axis_out - 2)))
            cut(out, place, self.axis_out, self.scale_out).add_(y * weight)
        assert out is not None
        assert total is not None
        return out.div_(total.unflatten(1, (-1, *[1] * (out.ndim - self.axis_out - 2))))

    def _weight(self, place: Sequence[slice]) -> Float[Tensor, "h w"]:
        """Weigh a tile's middle fully, and its edges less and less."""
        ramps = []
        for span, scale in zip(place, self.scale_out, strict=True):
            n, edge = (span.stop - span.start) * scale, self.overlap * scale
            steps = torch.arange(n)
            ramps.append(
                torch.minimum(steps, n - 1 - steps).add(1).clamp(max=edge + 1) / (edge + 1)
            )
        return ramps[0][:, None] * ramps[1]


def cut(x: Tensor, place: Sequence[slice], axis: int, scale: tuple[int, int]) -> Tensor:
    """Return a view of a place that is given in cells."""
    for i in (0, 1):
        length = place[i].stop - place[i].start
        x = x.narrow(axis + i, place[i].start * scale[i], length * scale[i])
    return x


def spread(length: int, tile: int, overlap: int) -> list[slice]:
    """Spread tiles evenly over a length, so that neighbours overlap by ``overlap`` or more."""
    if length <= tile:
        return [slice(0, length)]
    count = -(-(length - overlap) // (tile - overlap))
    starts = [i * (length - tile) // (count - 1) for i in range(count)]
    return [slice(start, start + tile) for start in starts]
