"""Matrix products, 3x3 convolutions and attention of the fused mode, fast on CPUs.

A 3x3 convolution of pixels that are taken in squares of 2x2 needs 16 products of a 4x4 square
instead of 36, at the price of a few additions (Winograd's F(2x2, 3x3); Lavin and Gray 2016,
arXiv 1509.09308). With some hundred channels these products are 16 matrix products.
"""

import mmap
from math import prod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

SCRATCH = 2**16
"""2x2 squares times channels at once: what they need stays in a core's caches."""

KERNEL = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))


QUERIES = 256
"""Pixels that look at all pixels at once."""

LARGE = 2**20
"""Bytes from which an activation is not left to the C library's heap."""

ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(
    x: Float[Tensor, "*n c"],
    weight: Float[Tensor, "k c"],
    bias: Float[Tensor, " k"] | None = None,
) -> Float[Tensor, "*n k"]:
    """Return ``x @ weight.T + bias``.

    ``F.linear`` hands float32 to MKL, which takes its slower instructions on processors of other
    makers; oneDNN, which does the convolutions, takes the same ones everywhere.
    """
    if _prefers_onednn(x):
        # Any other layout of the weight is computed by its reference, a thousand times slower.
        return torch.ops.mkldnn._linear_pointwise(x, weight.contiguous(), bias, "none", [], "")
    # In two dimensions: a strided x of more would have a copy of the weight for each of its rows.
    return F.linear(x.flatten(0, -2), weight, bias).view(*x.shape[:-1], -1)


def _prefers_onednn(x: Tensor) -> bool:
    return ONEDNN and by_hand(x) and x.dtype == torch.float32


def by_hand(x: Tensor) -> bool:
    """Is memory looked after here: on a CPU, unless a compiler does it?"""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def winograd_weight(weight: Float[Tensor, "k c 3 3"]) -> Float[Tensor, "4 4 k c"]:
    """Transform a kernel: one matrix for each column and row of a 4x4 square."""
    kernel = torch.tensor(KERNEL, dtype=torch.float64, device=weight.device)
    square = torch.einsum("ir, kcrs, js -> jikc", kernel, weight.double(), kernel)
    return square.to(weight.dtype).contiguous()


def winograd(
    x: Float[Tensor, "n h w c"],
    weight: Float[Tensor, "4 4 k c"],
    bias: Float[Tensor, " k"],
    out: Float[Tensor, "n h w k"],
) -> None:
    """Write the 3x3 convolution, padded by one zero, to ``out``."""
    n, h, w, c = x.shape
    if h % 2 or w % 2:
        even = x.new_empty(n, h + h % 2, w + w % 2, weight.shape[2])
        winograd(F.pad(x, (0, 0, 0, w % 2, 0, h % 2)), weight, bias, even)
        out.copy_(even[:, :h, :w])
        return
    tiles = max(1, SCRATCH // max(c, weight.shape[2]))
    rows = 2 * min(h // 2, max(1, 2 * tiles // w))
    count = max(1, 4 * tiles // (h * w))
    size = min(count, n) * rows * (w + 2) * c
    scratch = room(x, 2 * size), room(x, 4 * size)  # for all bands; the last one may be smaller
    for frames, target in zip(x.split(count), out.split(count), strict=True):
        for top in range(0, h, rows):
            bottom = min(top + rows, h)
            above, below = top > 0, bottom < h
            band = frames[:, top - above : bottom + below]
            padded = F.pad(band, (0, 0, 1, 1, 1 - above, 1 - below))
            _squares(padded, weight, bias, target[:, top:bottom], scratch)


def _squares(
    padded: Float[Tensor, "n h2 w2 c"],
    weight: Float[Tensor, "4 4 k c"],
    bias: Float[Tensor, " k"],
    out: Float[Tensor, "n h w k"],
    scratch: tuple[Tensor, Tensor],
) -> None:
    """Convolve a band of rows."""
    n, height, width, c = padded.shape
    h, w, k = height // 2 - 1, width // 2 - 1, weight.shape[2]
    lines = scratch[0][: 4 * n * h * width * c].view(4, n, h, width, c)
    _differences([padded[:, i : i + 2 * h - 1 : 2] for i in range(4)], lines)
    # By column and row of a square:
    squares = scratch[1][: 16 * n * h * w * c].view(4, 4, n, h, w, c)
    _differences([lines[..., j : j + 2 * w - 1 : 2, :] for j in range(4)], squares)
    halves: tuple[list[Tensor], list[Tensor]] = ([], [])
    for i in range(4):
        a, b, c_, d = (
            # The bias at this one place comes out once in every pixel.
            linear(squares[j, i].view(-1, c), weight[j, i], bias if i == j == 1 else None)
            for j in range(4)
        )
        halves[0].append(a.add_(b).add_(c_))
        halves[1].append(b.sub_(c_).sub_(d))
    for j, half in enumerate(halves):
        a, b, c_, d = (part.view(n, h, w, k) for part in half)
        torch.add(a.add_(b), c_, out=out[:, 0::2, j::2])
        torch.sub(b.sub_(c_), d, out=out[:, 1::2, j::2])


def _differences(x: list[Tensor], out: Tensor) -> None:
    """Combine four neighbours as Winograd's transform of the input does."""
    torch.sub(x[0], x[2], out=out[0])
    torch.add(x[1], x[2], out=out[1])
    torch.sub(x[2], x[1], out=out[2])
    torch.sub(x[1], x[3], out=out[3])


def room(x: Tensor, *shape: int) -> Tensor:
    """Return an empty tensor of ``x``'s type; a large one on a CPU straight from the system.

    In the C library's heap, what lies between large blocks keeps their room from being used
    again: there the peak was more than twice of what was in use.
    """
    size = prod(shape) * x.element_size()
    if not by_hand(x) or size < LARGE:
        return x.new_empty(shape)
    return torch.frombuffer(mmap.mmap(-1, size), dtype=x.dtype).view(shape)


def attend(
    query: Float[Tensor, "n m c"], content: Float[Tensor, "n m c"]
) -> Float[Tensor, "n m c"]:
    """Softmax attention of one head, whose keys and values are both ``content``."""
    if not _prefers_onednn(query):
        query, content = query[:, None], content[:, None]
        return F.scaled_dot_product_attention(query, content, content)[:, 0]
    out = room(query, *query.shape)
    for q, keys, o in zip(query * query.shape[-1] ** -0.5, content, out, strict=True):
        values = keys.T.contiguous()
        for i in range(0, len(q), QUERIES):
            scores = linear(q[i : i + QUERIES], keys)
            o[i : i + QUERIES] = linear(scores.softmax(-1), values)
    return out
