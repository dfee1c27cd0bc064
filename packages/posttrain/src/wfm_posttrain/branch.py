"""A control branch: copied blocks that read a hint and steer a frozen network.

ControlNet (arXiv 2302.05543) as Cosmos-Transfer1 (arXiv 2503.14492) has it. The branch is fed
like the network itself; the embedded hint is added after its first block; the answers of its
blocks pass a linear layer that starts at zero and are added after blocks of the network. It
needs no more of a network than the ``blocks`` of the contract, each called with the tokens
(b n d) first and whatever else behind them.
"""

import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

HIDDEN = (16, 16, 32, 32, 96, 96, 256)
"""Features between the layers that embed the hint."""


class BranchConfig(BaseModel):
    """How large a branch is, and where its answers go."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    blocks: int = Field(3, gt=0, description="number of copied blocks")
    placement: Literal["first", "spread"] = Field(
        "first", description="add after the first blocks, or after blocks spread over all"
    )

    def layers(self, depth: int) -> list[int]:
        """Return the blocks to copy, and to add after.

        Raises:
            ValueError: there are not so many.
        """
        if self.blocks > depth:
            raise ValueError(f"{self.blocks} control blocks for a network of {depth} blocks")
        if self.placement == "first":
            return list(range(self.blocks))
        return [i * depth // self.blocks for i in range(self.blocks)]


class ControlBranch(nn.Module):
    """The trained part: embeds ``hint_channels`` of latents by patches, and steers ``layers``."""

    def __init__(
        self,
        network: Any,
        config: BranchConfig,
        *,
        hint_channels: int,
        patch: tuple[int, int, int],
    ) -> None:
        super().__init__()
        self.layers, self.patch, self.hint_channels = (
            config.layers(len(network.blocks)), patch, hint_channels,
        )  # fmt: skip
        width = network.width
        self.blocks = nn.ModuleList(copy.deepcopy(network.blocks[i]) for i in self.layers)
        self.blocks.requires_grad_(True)
        self.embed = nn.Conv3d(hint_channels, width, patch, stride=patch, bias=False)
        sizes = (width, *HIDDEN, width)
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(sizes):
            layers += [nn.SiLU(), nn.Linear(a, b)]
        self.mlp = nn.Sequential(*layers[1:])
        self.outs = nn.ModuleList(nn.Linear(width, width) for _ in self.layers)
        for layer in (self.mlp[-1], *self.outs):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)
        first = next(network.blocks.parameters())
        self.to(device=first.device, dtype=first.dtype)

    def answers(
        self,
        hint: Float[Tensor, "b c t h w"],
        weight: Float[Tensor, "b t h w"] | None,
        tokens: Float[Tensor, "b n d"],
        *rest: Any,
        **named: Any,
    ) -> list[Float[Tensor, "b n d"]]:
        """Return what to add after each of ``layers``, for the network's own first input."""
        embedded = self.embed(hint.to(self.embed.weight.dtype))
        embedded = self.mlp(rearrange(embedded, "b d t h w -> b (t h w) d"))
        strength = None
        if weight is not None:
            pooled = F.avg_pool3d(weight[:, None].to(tokens.dtype), self.patch)
            strength = rearrange(pooled, "b 1 t h w -> b (t h w) 1")
        found, state = [], tokens
        for i, (block, out) in enumerate(zip(self.blocks, self.outs, strict=True)):
            state = block(state, *rest, **named)
            if i == 0:
                state = state + embedded.to(state.dtype)
            found.append(out(state) if strength is None else strength * out(state))
        return found


class Controlled(nn.Module):
    """A network with one control branch or several; satisfies Denoiser.

    Further condition keys: ``hint`` (b c t h w; the branches' latents one after another along
    c) and ``hint_weight`` (b m t h w; how strong each of m branches is, and where; absent: 1).
    Where weights sum to more than 1 they are brought down to 1. Without ``hint`` the network
    answers alone.
    """

    def __init__(self, network: nn.Module, branches: Sequence[ControlBranch]) -> None:
        super().__init__()
        self.network, self.branches = network, nn.ModuleList(branches)
        self._now: tuple[Tensor, Tensor | None] | None = None
        self._added: dict[int, Tensor] = {}
        blocks: Any = self.network.blocks
        blocks[0].register_forward_pre_hook(self._enter, with_kwargs=True)
        for i in sorted({i for branch in branches for i in branch.layers}):
            blocks[i].register_forward_hook(self._adder(i))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)

    def denoise(
        self,
        noisy: Float[Tensor, "b c t h w"],
        sigma: Float[Tensor, " b"],
        condition: Mapping[str, Tensor],
        /,
    ) -> Float[Tensor, "b c t h w"]:
        """Denoise as the network does, steered by the hint."""
        network: Any = self.network
        rest = {k: v for k, v in condition.items() if k not in ("hint", "hint_weight")}
        if "hint" in condition:
            hint = condition["hint"]
            self._check(hint, noisy)
            self._now = hint, _bounded(condition.get("hint_weight"), len(self.branches))
        try:
            return network.denoise(noisy, sigma, rest)
        finally:
            self._now, self._added = None, {}

    def _check(self, hint: Tensor, noisy: Tensor) -> None:
        channels = sum(branch.hint_channels for branch in self._each())
        if hint.shape[1] != channels or hint.shape[2:] != noisy.shape[2:]:
            raise ValueError(
                f"hint latents are {tuple(hint.shape[1:])}; "
                f"they must be {(channels, *noisy.shape[2:])}"
            )

    def _each(self) -> list[ControlBranch]:
        return [branch for branch in self.branches if isinstance(branch, ControlBranch)]

    def _enter(self, _: nn.Module, args: tuple, named: dict) -> None:
        """Run the branches on what enters the network's first block."""
        if self._now is None:
            return
        hint, weight = self._now
        start, self._added = 0, {}
        for m, branch in enumerate(self._each()):
            part = hint[:, start : start + branch.hint_channels]
            start += branch.hint_channels
            found = branch.answers(part, None if weight is None else weight[:, m], *args, **named)
            for i, value in zip(branch.layers, found, strict=True):
                self._added[i] = self._added[i] + value if i in self._added else value

    def _adder(self, i: int) -> Any:
        def add(_: nn.Module, __: tuple, out: Tensor) -> Tensor | None:
            return out + self._added[i] if i in self._added else None

        return add


def _bounded(weight: Tensor | None, count: int) -> Tensor | None:
    """Scale weights down where their sum over the branches is more than 1.

    Raises:
        ValueError: not one weight for each branch, or a negative one.
    """
    if weight is None:
        return None
    if weight.ndim != 5 or weight.shape[1] != count or (weight < 0).any():
        raise ValueError(
            f"hint_weight is {tuple(weight.shape)}; it must be b {count} t h w, not negative"
        )
    return weight / weight.sum(dim=1, keepdim=True).clamp_min(1)
