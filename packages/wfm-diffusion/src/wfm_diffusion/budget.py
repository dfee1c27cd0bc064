"""How much memory a sampling takes: the sampler's own code, run on tensors without content.

Nothing here is a formula that could go stale. The network is laid out on the meta device, where
operations compute shapes only, and every tensor that comes and goes is counted.
"""

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from .config import DiffusionConfig
from .samplers import SAMPLERS, SamplerName
from .steady import Steady, Words
from .transformer import DiffusionTransformer

RESIDENT_BLOCKS = 2
"""Blocks on the device at once when they are streamed: the one at work and the next."""
TRACED_BLOCKS = 2
"""Blocks to run: a block leaves nothing behind but the text's keys and values."""


@dataclass(frozen=True)
class Budget:
    """Bytes on the device. ``activations`` is the most that is alive at any time of a step."""

    weights: int
    text: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.text + self.activations


class Peak(TorchDispatchMode):
    """Counts the bytes of tensors made inside: those alive now, and the most there were.

    ``known`` tensors were there before and do not count, nor do their views.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: weakref.WeakKeyDictionary[Any, None] = weakref.WeakKeyDictionary()
        for x in known:
            self._seen[x.untyped_storage()] = None

    def __torch_dispatch__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._count, out)
        return out

    def _count(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        if storage in self._seen:
            return
        self._seen[storage] = None
        size = storage.nbytes()
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size


class _Fused(TorchFunctionMode):
    """Attention as the fused kernels do it: nothing of the size of tokens squared."""

    def __torch_function__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is scaled_dot_product_attention:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


def budget(
    config: DiffusionConfig,
    latents: tuple[int, int, int],
    *,
    dtype: torch.dtype = torch.bfloat16,
    batch: int = 1,
    guided: bool = True,
    text_slots: int = 512,
    sampler: SamplerName = "res2ab",
    offload: bool = False,
) -> Budget:
    """Return what sampling latents of t h w takes, codec and text encoder apart.

    ``text_slots`` are those left when padding is collapsed. ``offload`` streams the blocks.

    Raises:
        ValueError: latents that the network does not take.
    """
    if any(n > most for n, most in zip(latents, config.max_size, strict=True)):
        raise ValueError(f"latents of {latents}; the network takes up to {config.max_size}")
    with torch.device("meta"):
        net = DiffusionTransformer(config).to(dtype).requires_grad_(False)
        text = torch.empty(batch * (1 + guided), text_slots, config.text_dim, dtype=dtype)
        words = Words(text, heard=len(text), known={})
        noise = torch.empty(batch, config.latent_channels, *latents)
        given = torch.empty(batch, 1, *latents) if config.condition_mask else None
    weights = weights_of(net, offload)
    net.blocks = net.blocks[:TRACED_BLOCKS]
    steady, condition = Steady(), {} if given is None else {"given": given}

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        both = net._denoise(x, sigma[:1], condition, words, None, steady)
        cond, uncond = both.chunk(2) if guided else (both, None)
        return cond if uncond is None else cond + (cond - uncond)

    peak = Peak(known=(*net.parameters(), *net.buffers(), text, noise))
    with torch.no_grad(), _Fused(), peak:
        SAMPLERS[sampler](denoise, noise, 2)
    kept = sum(x.nbytes for pair in (words.known or {}).values() for x in pair)
    activations = noise.nbytes + peak.most - kept
    return Budget(weights, text.nbytes + kept * config.depth // len(net.blocks), activations)


def weights_of(net: DiffusionTransformer, offload: bool) -> int:
    """Return the bytes of the weights that are on the device at once."""
    every = bytes_of(net)
    if not offload:
        return every
    blocks = [bytes_of(block) for block in net.blocks]
    return every - sum(blocks) + sum(blocks[:RESIDENT_BLOCKS])


def bytes_of(module: nn.Module) -> int:
    return sum(x.nbytes for x in (*module.parameters(), *module.buffers()))
