"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685): inject, save, merge.

Key names in the network are those of PEFT, ``blocks.0.q.lora_A.default.weight``, and a saved
adapter is a folder that PEFT loads.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from .checkpoint import read_weights, write_weights

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""Before each name in a file of PEFT's."""


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
        self.base, self.rank, self.scale = base.requires_grad_(False), rank, alpha / rank
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
        adapt(network, name, rank, float(alpha or rank))
    return names


def adapt(network: nn.Module, name: str, rank: int, alpha: float) -> None:
    """Put a new adapter around one linear layer.

    Raises:
        ValueError: the network has no linear layer of that name.
    """
    parent, _, leaf = name.rpartition(".")
    try:
        owner, base = network.get_submodule(parent), network.get_submodule(name)
    except AttributeError as e:
        raise ValueError(f"the network has no layer {name}") from e
    if not isinstance(base, nn.Linear):
        raise ValueError(f"{name} is a {type(base).__name__}, not a linear layer")
    setattr(owner, leaf, LoraLinear(base, rank, alpha))


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


def save_adapter(folder: Path, network: nn.Module, base: str) -> None:
    """Write the adapters as PEFT does: ``adapter_config.json``, ``adapter_model.safetensors``."""
    layers = {n: x for n, x in network.named_modules() if isinstance(x, LoraLinear)}
    ranks = {x.rank for x in layers.values()}
    alphas = {x.scale * x.rank for x in layers.values()}
    if len(ranks) != 1 or len(alphas) != 1:
        raise ValueError(f"adapters of ranks {sorted(ranks)}; one configuration holds one rank")
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "r": ranks.pop(),
        "lora_alpha": alphas.pop(),
        "lora_dropout": 0.0,
        "target_modules": sorted(layers),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    weights = {PREFIX + k.replace(".default.", "."): w for k, w in adapters(network).items()}
    write_weights(folder / ADAPTER_WEIGHTS, weights)


def load_adapter(network: nn.Module, folder: Path) -> list[str]:
    """Put the adapters of a PEFT folder around the network's layers; return their names.

    The layers are those that the weights name, so that folders written by PEFT load too.

    Raises:
        FileNotFoundError: no adapter in the folder.
        ValueError: an adapter of another kind, or one that does not fit the network.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        raise FileNotFoundError(f"{folder}: holds no {ADAPTER_CONFIG}")
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    unknown = [
        name
        for name in ("use_dora", "use_rslora", "alpha_pattern", "rank_pattern", "modules_to_save")
        if config.get(name)
    ]
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or unknown:
        raise ValueError(
            f"{folder / ADAPTER_CONFIG}: only plain LoRA can be loaded"
            f" (found {', '.join(unknown) or config.get('peft_type')})"
        )
    weights = read_weights(folder / ADAPTER_WEIGHTS)
    ours = {
        re.sub(r"\.(lora_[AB])\.weight$", r".\1.default.weight", k.removeprefix(PREFIX)): w
        for k, w in weights.items()
    }
    names = sorted({k.partition(".lora_")[0] for k in ours})
    for name in names:
        adapt(network, name, int(config["r"]), float(config["lora_alpha"]))
    load_adapters(network, ours)
    return names
