"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685): inject, save, merge.

Key names are those of PEFT: ``blocks.0.q.lora_A.default.weight``.
"""

import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn


class LoraConfig(BaseModel):
    """Which layers get an adapter, and how large."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    targets: str = Field("attention|cross|mlp|ffn", description="regular expression of layer names")
    rank: int = Field(16, gt=0)
    alpha: float | None = Field(None, gt=0, description="strength; None: the rank")


class LoraLinear(nn.Module):
    """A frozen linear layer plus ``alpha / rank * B A``, in float32; B starts at zero."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base, self.scale = base.requires_grad_(False), alpha / rank
        device = base.weight.device
        down = nn.Linear(base.in_features, rank, bias=False, device=device)
        up = nn.Linear(rank, base.out_features, bias=False, device=device)
        nn.init.zeros_(up.weight)
        self.lora_A = nn.ModuleDict({"default": down})
        self.lora_B = nn.ModuleDict({"default": up})

    @property
    def weight(self) -> Float[Tensor, "o i"]:
        """The merged weight, so that code which asks a layer for its dtype or device goes on."""
        up, down = (m["default"].get_parameter("weight") for m in (self.lora_B, self.lora_A))
        change = self.scale * up @ down
        return self.base.weight + change.to(self.base.weight.dtype)

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        change = self.lora_B["default"](self.lora_A["default"](x.float())) * self.scale
        return F.linear(x, self.base.weight, self.base.bias) + change.to(x.dtype)


def inject(
    network: nn.Module, targets: str, *, rank: int = 16, alpha: float | int | None = None
) -> list[str]:
    """Freeze the network and give an adapter to every linear layer whose name matches.

    ``targets`` is a regular expression searched in the full name; ``alpha`` defaults to
    ``rank``. Returns the names of the adapted layers.

    Raises:
        ValueError: no layer matches: an adapter that adapts nothing is a mistake.
    """
    network.requires_grad_(False)
    names = [
        name
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear) and re.search(targets, name)
    ]
    if not names:
        raise ValueError(f"no linear layer's name matches {targets!r}")
    for name in names:
        parent, _, leaf = name.rpartition(".")
        owner, base = network.get_submodule(parent), network.get_submodule(name)
        assert isinstance(base, nn.Linear)
        setattr(owner, leaf, LoraLinear(base, rank, float(alpha or rank)))
    return names


def adapters(network: nn.Module) -> dict[str, Tensor]:
    """Return the adapters' weights only."""
    return {name: w for name, w in network.state_dict().items() if ".lora_" in name}


def load_adapters(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load what :func:`adapters` gave; all of it must fit, and nothing may be missing.

    Raises:
        ValueError: names the first weight that does not fit.
    """
    here = adapters(network)
    for name in sorted(here.keys() ^ weights.keys()):
        raise ValueError(f"{name} is {'missing' if name in here else 'unknown'}")
    with torch.no_grad():
        for name, weight in weights.items():
            if here[name].shape != weight.shape:
                raise ValueError(f"{name} is {tuple(weight.shape)}, not {tuple(here[name].shape)}")
            here[name].copy_(weight)


def merge(network: nn.Module) -> None:
    """Fold every adapter into its layer; the network is then an ordinary one again."""
    for name, layer in list(network.named_modules()):
        if isinstance(layer, LoraLinear):
            parent, _, leaf = name.rpartition(".")
            with torch.no_grad():
                layer.base.weight.copy_(layer.weight)
            setattr(network.get_submodule(parent), leaf, layer.base.requires_grad_(True))
