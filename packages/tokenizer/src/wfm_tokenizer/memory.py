"""What a causal network remembers between the chunks of one video."""

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
