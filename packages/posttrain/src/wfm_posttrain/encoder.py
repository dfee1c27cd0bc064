"""Actions of a robot -> what a network takes as its condition."""

from collections.abc import Mapping
from pathlib import Path

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor, nn

Condition = dict[str, Tensor]


class ActionEncoder(nn.Module):
    """Normalised actions -> two vectors beside the noise level's (general_dit_action of Cosmos).

    One MLP (a -> 4d -> d) is added to the noise-level embedding that every block modulates
    with, the other (a -> 4d -> 3d) to the shift, scale and gate that all blocks share. Their
    last layers start at zero, so an untrained encoder leaves the network as it was.
    """

    mean: Float[Tensor, " a"]
    scale: Float[Tensor, " a"]

    def __init__(self, action_dim: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(action_dim))
        self.register_buffer("scale", torch.ones(action_dim))
        gelu = nn.GELU(approximate="tanh")
        self.adaln = zero_last(mlp(action_dim, 4 * width, width, gelu))
        self.adaln_shared = zero_last(mlp(action_dim, 4 * width, 3 * width, gelu))

    def encode(self, inputs: Mapping[str, Tensor], /) -> Condition:
        """Return ``adaln`` and ``adaln_shared``: per sample (b d) for one action, else b s d.

        Raises:
            KeyError: an input other than ``action``.
            ValueError: no action, or one of another dimension.
        """
        action = (_action(inputs, self.mean) - self.mean) / self.scale
        if action.shape[1] == 1:
            action = action[:, 0]
        return {"adaln": self.adaln(action), "adaln_shared": self.adaln_shared(action)}


class ActionTokens(nn.Module):
    """Normalised actions -> context of cross-attention (cosmos_action_control of Cosmos).

    The MLP (a -> e/4 -> e) turns one action into one vector, repeated a times along the
    context. Several actions follow each other.
    """

    mean: Float[Tensor, " a"]
    scale: Float[Tensor, " a"]

    def __init__(self, action_dim: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(action_dim))
        self.register_buffer("scale", torch.ones(action_dim))
        self.context = mlp(action_dim, max(width // 4, 1), width, nn.ReLU())

    def encode(self, inputs: Mapping[str, Tensor], /) -> Condition:
        """Return ``text``: the action's vector a times, for each action.

        Raises:
            KeyError: an input other than ``action``.
            ValueError: no action, or one of another dimension.
        """
        action = (_action(inputs, self.mean) - self.mean) / self.scale
        return {"text": repeat(self.context(action), "b s e -> b (s n) e", n=len(self.mean))}


def fit_scaling(
    encoder: ActionEncoder | ActionTokens, actions: Float[Tensor, "n a"], *, floor: float = 1e-4
) -> None:
    """Set the encoder's mean and scale to those of the training actions.

    A dimension that hardly varies (standard deviation below ``floor``) is left unscaled: to
    blow up its rounding noise would drown the others.
    """
    spread = actions.std(dim=0, correction=0)
    encoder.mean.copy_(actions.mean(dim=0))
    encoder.scale.copy_(torch.where(spread < floor, torch.ones_like(spread), spread))


def action_encoder(
    source: str | Path = "builtin:pico-arm-diffusion",
) -> ActionEncoder | ActionTokens:
    """Load the action encoder of a saved recipe."""
    from .saved import read_encoder

    return read_encoder(source)


def mlp(a: int, hidden: int, out: int, activation: nn.Module) -> nn.Sequential:
    """Return two linear layers with an activation between."""
    return nn.Sequential(nn.Linear(a, hidden), activation, nn.Linear(hidden, out))


def zero_last(layers: nn.Sequential) -> nn.Sequential:
    """Set the last layer to zero, so that the others say nothing until they are trained."""
    for parameter in layers[-1].parameters():
        nn.init.zeros_(parameter)
    return layers


def _action(inputs: Mapping[str, Tensor], mean: Tensor) -> Float[Tensor, "b s a"]:
    """Take the actions out of what the user gave, on the encoder's device."""
    if unknown := sorted(set(inputs) - {"action"}):
        raise KeyError(f"the action encoder does not know {', '.join(unknown)}")
    if "action" not in inputs:
        raise ValueError('an action-conditioned model needs controls={"action": b s a}')
    action = inputs["action"]
    if action.ndim != 3 or action.shape[-1] != len(mean):
        raise ValueError(
            f"actions have shape {tuple(action.shape)}; the model takes b s {len(mean)}"
        )
    return action.to(mean)
