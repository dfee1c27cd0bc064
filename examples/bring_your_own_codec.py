"""A codec of your own: a class with the right methods, and nothing to inherit or import.

python examples/bring_your_own_codec.py trains a tiny world model on block means.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d, interpolate

import wfm_diffusion as wd
from wfm_posttrain import sim


class BlockMeans:
    """Every 8x8 block of every frame becomes its mean colour; see contracts/interfaces.py."""

    latent_channels = 16
    compression = (1, 8, 8)

    def encode(self, video: Tensor, /) -> Tensor:
        means = avg_pool3d(video, (1, 8, 8))
        return torch.cat([means, means.new_zeros(len(means), 13, *means.shape[2:])], dim=1)

    def decode(self, latent: Tensor, /) -> Tensor:
        return interpolate(latent[:, :3], scale_factor=(1, 8, 8), mode="trilinear")


def main(out: Path, steps: int = 20) -> None:
    for seed in range(3):
        sim.write_episode(sim.generate("dominoes", seed=seed, frames=9), out / "recordings")
    config = wd.TrainConfig(
        out=str(out / "run"), clips=str(out / "recordings"), text_encoder=None,
        frames=9, steps=steps, batch=4, held_out=0.34,
    )  # fmt: skip
    model = wd.train(config, codec=BlockMeans())
    world = wd.WorldModel(wd.load(model), codec=BlockMeans())
    print(world.rollout(torch.zeros(1, 3, 1, 64, 64), frames=4).shape)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/own-codec"))
