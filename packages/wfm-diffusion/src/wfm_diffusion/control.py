"""A trainable branch that steers a frozen network by a hint."""

import copy
from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor, nn

from .layers import Context
from .transformer import DiffusionTransformer


class ControlBranch(nn.Module):
    """Copied blocks that read a hint and add to the frozen network (ControlNet, 2302.05543).

    Satisfies Denoiser, with one more condition key, ``hint``: latents of the control video.
    Its output layers start at zero, so that the network's answers are unchanged at first.
    The network itself is held by reference: it is in no state dict of the branch.
    """

    def __init__(self, net: DiffusionTransformer, layers: Sequence[int]) -> None:
        super().__init__()
        self._net = (net,)
        self.layers = tuple(layers)
        c = net.config
        self.embed = nn.Linear(
            c.latent_channels * c.patch[0] * c.patch[1] * c.patch[2], c.width, bias=False
        )
        self.blocks = nn.ModuleList(copy.deepcopy(net.blocks[i]) for i in self.layers)
        self.outs = nn.ModuleList(nn.Linear(c.width, c.width, bias=False) for _ in self.layers)
        for weight in self.outs.parameters():
            nn.init.zeros_(weight)
        self.to(device=net.embed.weight.device, dtype=net.embed.weight.dtype)

    @property
    def sigma_data(self) -> float:
        return self._net[0].sigma_data

    def denoise(
        self,
        noisy: Float[Tensor, "b c t h w"],
        sigma: Float[Tensor, " b"],
        condition: Mapping[str, Tensor],
        /,
    ) -> Float[Tensor, "b c t h w"]:
        """Denoise as the network does, steered by ``condition["hint"]``."""
        net = self._net[0]
        hint = self.embed(net.patchify(condition["hint"].to(self.embed.weight.dtype)))
        rest = {key: value for key, value in condition.items() if key != "hint"}
        state: list[Tensor] = []

        def steer(i: int, tokens: Tensor, context: Context) -> Tensor:
            if i not in self.layers:
                return tokens.new_zeros(())
            place = self.layers.index(i)
            entering = state[-1] if state else tokens + hint
            state.append(self.blocks[place](entering, context))
            return self.outs[place](state[-1])

        return net.denoise(noisy, sigma, rest, residual=steer)
