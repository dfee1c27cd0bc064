"""Blocks compiled by torch.compile, one graph for all of them: fast to compile, exact."""

from typing import Any

from .transformer import DiffusionTransformer


def compile_blocks(net: DiffusionTransformer, **options: Any) -> DiffusionTransformer:
    """Compile each block in place; return the network. ``options`` are torch.compile's.

    The blocks are alike, so that one graph serves all; the first, where the branches of guidance
    part, has its own. A compiled block computes the text's keys and values at every step: what is
    remembered from step to step would make every block a graph of its own.
    """
    for block in net.blocks:
        block.compile(**{"fullgraph": True, **options})
    return net
