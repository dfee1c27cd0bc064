"""Instruction following: a sentence says what happens (Cosmos 1.0, section 6.2).

Nothing is added to the network: the embedded instruction takes the caption's place in
cross-attention. So every base model with text can be trained, diffusion or autoregressive.
"""

from typing import ClassVar, Literal

from .steering import Steering


class Instruction(Steering):
    """Do what the caption of the clip says."""

    steers_text: ClassVar[bool] = True

    kind: Literal["instruction"] = "instruction"
