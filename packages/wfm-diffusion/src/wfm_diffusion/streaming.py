"""Blocks that wait in the host's memory and come to the device one ahead of their turn.

A 7B network is 14.5 GB in bfloat16; streamed, two of its 28 blocks are on the device, 1 GB. While
a block works the next one is copied on a stream of its own.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .transformer import DiffusionTransformer


class _Stream:
    """Where the weights of each block lie, and which are on the device."""

    def __init__(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        self.device = device
        self.blocks = [list(block.parameters()) for block in blocks]
        cuda = device.type == "cuda"
        for parameter in (p for block in self.blocks for p in block):
            kept = parameter.data.cpu()
            parameter.data = kept.pin_memory() if cuda else kept
        self.kept = [[p.data for p in block] for block in self.blocks]
        self.side = torch.cuda.Stream(device) if cuda else None
        self.here: dict[int, list[Tensor]] = {}
        for i, block in enumerate(blocks):
            block.register_forward_pre_hook(lambda *_, i=i: self.enter(i))
            block.register_forward_hook(lambda *_, i=i: self.leave(i))

    def fetch(self, i: int) -> None:
        """Start copying a block's weights."""
        if i in self.here:
            return
        if self.side is None:
            self.here[i] = [x.to(self.device, copy=True) for x in self.kept[i]]
            return
        self.side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.side):
            self.here[i] = [x.to(self.device, non_blocking=True) for x in self.kept[i]]

    def enter(self, i: int) -> None:
        """Wait for the block's weights, and send for the next block's."""
        self.fetch(i)
        if self.side is not None:
            work = torch.cuda.current_stream(self.device)
            work.wait_stream(self.side)
            for x in self.here[i]:
                x.record_stream(work)
        for parameter, x in zip(self.blocks[i], self.here[i], strict=True):
            parameter.data = x
        self.fetch((i + 1) % len(self.blocks))

    def leave(self, i: int) -> None:
        """Let go of the block's copy."""
        for parameter, x in zip(self.blocks[i], self.kept[i], strict=True):
            parameter.data = x
        del self.here[i]


def offload(net: DiffusionTransformer, device: str | torch.device) -> DiffusionTransformer:
    """Keep the blocks in the host's memory and stream them through ``device``; return ``net``.

    For inference: the answers are the same. All else of the network moves to the device.

    Raises:
        ValueError: the network streams already, or has a single block.
    """
    if hasattr(net, "streaming"):
        raise ValueError("the blocks of this network are streamed already")
    if len(net.blocks) < 2:
        raise ValueError("a network of one block has nothing to stream")
    blocks = net.blocks
    net.blocks = nn.ModuleList()
    net.to(device)
    net.blocks = blocks
    net.requires_grad_(False)
    object.__setattr__(net, "streaming", _Stream(list(blocks), torch.device(device)))
    return net
