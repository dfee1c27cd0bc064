"""What a training step computes in."""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

Precision = Literal["float32", "bfloat16"]


# same as: packages/wfm-diffusion/src/wfm_diffusion/precision.py
@contextmanager
def computing_in(precision: Precision, device: str) -> Generator[None]:
    """Do matrix products in ``precision``; on a CPU, attention by its definition.

    There the fused kernel's backward pass takes half of a step at a few hundred tokens.
    """
    kind = device.partition(":")[0]
    with ExitStack() as stack:
        if precision == "bfloat16":
            stack.enter_context(torch.autocast(kind, torch.bfloat16))
        if kind == "cpu":
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield
