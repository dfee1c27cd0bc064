"""A discriminator that is trained along, and what a reconstruction loses to it."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

LEARNING_RATE = 4e-4
"""The discriminator's, in the settings of NVIDIA's published training code."""


class Discriminator(nn.Module):
    """Patches of space and time -> how real each looks (Isola et al. 2017, arXiv 1611.07004)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv(3, width), nn.LeakyReLU(0.2)]
        for factor in (1, 2):
            layers += [
                conv(factor * width, 2 * factor * width),
                nn.GroupNorm(8, 2 * factor * width),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv3d(4 * width, 1, 3, padding=1))

    def forward(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 1 t h8 w8"]:
        return self.layers(video)


def conv(c_in: int, c_out: int) -> nn.Conv3d:
    """Halve space, keep time."""
    return nn.Conv3d(c_in, c_out, (3, 4, 4), stride=(1, 2, 2), padding=1)


class Adversary:
    """Discriminator and optimiser."""

    def __init__(self, device: str) -> None:
        self.model = Discriminator().to(device)
        self.parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, LEARNING_RATE, (0.5, 0.999))

    def loss(self, output: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, ""]:
        """Return what the reconstruction loses: how made it looks."""
        return -self.model(output.float()).mean()

    def own_loss(
        self, output: Float[Tensor, "b 3 t h w"], target: Float[Tensor, "b 3 t h w"]
    ) -> Float[Tensor, ""]:
        """Return what the discriminator loses: hinges at 1 for real videos, at -1 for made ones."""
        real, made = self.model(target.float()), self.model(output.detach().float())
        return (F.relu(1 - real).mean() + F.relu(1 + made).mean()) / 2
