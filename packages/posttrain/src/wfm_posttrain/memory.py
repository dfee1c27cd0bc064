"""How much memory a training takes, before it takes it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


@dataclass(frozen=True)
class Memory:
    """Bytes on one process: what stays through the training, and what one step adds."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.average + self.activations

    def __str__(self) -> str:
        parts = ("weights", "gradients", "optimizer", "average", "activations")
        found = ", ".join(f"{name} {_read(getattr(self, name))}" for name in parts)
        return f"{_read(self.total)}: {found}"


def estimate(
    module: nn.Module,
    loss: Callable[[], Tensor],
    *,
    states: int = 2,
    processes: int = 1,
    sharded: nn.Module | None = None,
) -> Memory:
    """Count the bytes of a training step; ``loss`` runs forward once and goes no further.

    ``states`` is how many numbers the optimiser keeps for each weight. Of ``sharded`` (the
    network) each process holds its share; the activations are those of ``loss`` itself, so give
    it the batch of one process. Buffers of libraries and the allocator's waste come on top.
    """
    split = {id(p) for p in sharded.parameters()} if sharded is not None else set()

    def share(p: Tensor) -> int:
        size = p.numel() * p.element_size()
        return -(-size // processes) if id(p) in split else size

    every = [*module.parameters(), *module.buffers()]
    trained = [p for p in module.parameters() if p.requires_grad]
    weights, gradients = sum(map(share, every)), sum(map(share, trained))
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=states * gradients,
        average=weights,
        activations=saved_for_backward(module, loss),
    )


def saved_for_backward(module: nn.Module, loss: Callable[[], Tensor]) -> int:
    """Return the bytes that autograd keeps between forward and backward, weights left out."""
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []

    def note(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(x)  # or its address would be given to another
        return x

    with torch.enable_grad(), saved_tensors_hooks(note, lambda x: x):
        loss()
    return sum(kept.values())


def _read(size: int) -> str:
    """Write bytes as a person would."""
    value, unit = float(size), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.3g} {unit}"
