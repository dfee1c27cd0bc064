"""Measure decoding, token by token, beside what its matrices alone cost."""

import statistics
import time
from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from .config import Grid
from .decoding import Sampler, decode
from .model import ArTransformer

MATRICES = ("Linear", "PackedLinear", "HalfLinear", "Int8Linear")


def clock(device: str = "cpu") -> float:
    """Return seconds: of the processor on one CPU thread, else of the wall.

    Processor time counts no wait for other programs, so that a busy machine measures alike.
    """
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


@torch.inference_mode()
def token_seconds(
    lm: ArTransformer,
    prompt: Int64[Tensor, "b p"],
    n: int,
    *,
    context: Float[Tensor, "c m e"] | None = None,
    grid: Grid | None = None,
) -> list[float]:
    """Return the seconds that each of n greedy tokens took, the prompt's pass left out."""
    device, times = str(prompt.device), []
    decode(
        lm, prompt, n + 1, Sampler(), context=context, grid=grid,
        progress=lambda _done, _all: times.append(clock(device)),
    )  # fmt: skip
    return [after - before for before, after in pairwise(times)]


@torch.inference_mode()
def product_seconds(lm: ArTransformer, batch: int = 1) -> float:
    """Return the seconds of one pass over all matrices that a token is multiplied with.

    That is the floor: the same products on the same layout and nothing else. Keys and values
    of the context are made once per prompt, so theirs are left out.
    """
    like = lm.embed.weight
    parts = [
        (part, like.new_ones(batch, part.in_features))
        for name, part in lm.named_modules()
        if type(part).__name__ in MATRICES and not name.endswith(("cross.k", "cross.v"))
    ]
    began = clock(str(like.device))
    for part, x in parts:
        part(x)
    return clock(str(like.device)) - began


def weight_bytes(lm: ArTransformer) -> int:
    """Return the bytes of the matrices that are read for each token."""
    total = 0
    for name, part in lm.named_modules():
        if type(part).__name__ not in MATRICES or name.endswith(("cross.k", "cross.v")):
            continue
        tensors = [*part.parameters(), *part.buffers(), getattr(part, "packed", None)]
        total += sum(_bytes(part, x) for x in tensors if x is not None)
    return total


def _bytes(part: nn.Module, x: Tensor) -> int:
    """Count the numbers and their size; of a packed matrix only the shape is known."""
    dtype = getattr(part, "dtype", x.dtype)
    return x.numel() * torch.empty((), dtype=dtype).element_size()


def medians(calls: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Call everything in turn, so many rounds after one that does not count; return medians."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds + 1):
        for name, call in calls.items():
            seconds = call()
            if i:
                found[name].append(seconds)
    return {name: statistics.median(times) for name, times in found.items()}
