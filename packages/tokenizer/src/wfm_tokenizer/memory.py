"""What a causal network remembers between the chunks of one video; what a process holds."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn


class Memory(dict[nn.Module, Tensor]):
    """The frames each layer needs of the past. A layer that is not in it sees its first chunk.

    ``max_context``: how many latent frames the temporal attention sees, its own included.
    None: all there were, which is what the networks are; a number bounds the memory and
    changes the output.
    """

    def __init__(self, max_context: int | None = None) -> None:
        super().__init__()
        self.max_context = max_context
        self.past: dict[nn.Module, list[Tensor]] = {}
        """Of each temporal attention the frames that it has seen, chunk by chunk: ``p 1 t c``."""

        self.tiles: dict[int, Memory] = {}

    def part(self, tile: int) -> "Memory":
        """Return what belongs to one of the tiles of a picture."""
        return self.tiles.setdefault(tile, Memory(self.max_context))

    def parts(self) -> Iterator[tuple[nn.Module, int, Tensor]]:
        """Go through all but the tiles: the layer, the number of its part, and that."""
        for layer, tensor in self.items():
            yield layer, 0, tensor
        for layer, parts in self.past.items():
            for number, tensor in enumerate(parts):
                yield layer, number, tensor

    @property
    def nbytes(self) -> int:
        own = sum(tensor.nbytes for _, _, tensor in self.parts())
        return own + sum(tile.nbytes for tile in self.tiles.values())

    def clear(self) -> None:
        super().clear()
        self.past.clear()
        self.tiles.clear()


PROCESS = Path("/proc/self")


def forget_peak(device: torch.device) -> None:
    """Begin a new measurement, where the system lets us: else the peak is that since the start."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif PROCESS.is_dir():
        with suppress(OSError):
            (PROCESS / "clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Return the most that tensors held on a GPU, or the process in the computer's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if PROCESS.is_dir():
        lines = (PROCESS / "status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
