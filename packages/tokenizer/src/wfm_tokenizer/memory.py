"""What a causal network remembers between the chunks of one video."""

from torch import Tensor, nn

Memory = dict[nn.Module, Tensor]
"""The frames each layer needs of the past. A layer that is not in it sees its first chunk."""
