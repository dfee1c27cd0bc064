"""What the features of a world model know: linear probes, and policies that start from them."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from .env import Picture, frames_of
from .imagination import free_numbers, full_actions
from .interfaces import LatentCodec, TrainableDenoiser
from .plan import Bounds
from .vision import r_squared

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
Encode = Callable[[UInt8[Tensor, "n 3 h w"]], Float[Tensor, "n d"]]


@dataclass(frozen=True)
class Probe:
    """A linear map of standardised features."""

    weight: Float[Tensor, "d k"]
    bias: Float[Tensor, " k"]
    mean: Float[Tensor, " d"]
    scale: Float[Tensor, " d"]

    def predict(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        return (features - self.mean) / self.scale @ self.weight + self.bias


def ridge(features: Float[Tensor, "n d"], targets: Float[Tensor, "n k"], *, fold: int = 5) -> Probe:
    """Fit by ridge regression; the penalty is what does best on every ``fold``-th part held out.

    The parts are consecutive rows, so that neighbours in a video stay together. Penalties count
    in multiples of ``n``.
    """
    held = torch.arange(len(features)) * fold // len(features) == fold - 1
    scores = []
    for penalty in PENALTIES:
        probe = _solve(features[~held], targets[~held], penalty)
        error = (probe.predict(features[held]) - targets[held]) / targets.std(dim=0).clamp_min(1e-6)
        scores.append(error.square().mean().item())
    return _solve(features, targets, PENALTIES[int(np.argmin(scores))])


def _solve(features: Tensor, targets: Tensor, penalty: float) -> Probe:
    """Solve in the smaller of the two forms, primal or dual."""
    mean, scale = features.mean(dim=0), features.std(dim=0).clamp_min(1e-6)
    x, bias = ((features - mean) / scale).double(), targets.mean(dim=0)
    y, load = (targets - bias).double(), penalty * len(features)
    if x.shape[1] <= len(x):
        weight = torch.linalg.solve(x.T @ x + load * torch.eye(x.shape[1]).double(), x.T @ y)
    else:
        weight = x.T @ torch.linalg.solve(x @ x.T + load * torch.eye(len(x)).double(), y)
    return Probe(weight.float(), bias, mean, scale)


class FrameFeatures:
    """Hidden states of a denoiser that looks at single frames, at a noise level.

    Args:
        net: the network of a diffusion world model of image latents (``world.net``).
        codec: its codec.
        layer: block after which to look, from 0.
        sigma: noise level, in units of latents times ``sigma_data``.
        seed: of the noise.
    """

    def __init__(
        self,
        net: TrainableDenoiser,
        codec: LatentCodec,
        *,
        layer: int,
        sigma: float,
        seed: int = 0,
        batch: int = 64,
    ) -> None:
        self.net, self.codec, self.layer, self.sigma = net, codec, layer, sigma
        self.seed, self.batch = seed, batch

    @torch.no_grad()
    def __call__(self, frames: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Return the tokens of every frame, one after another."""
        generator = torch.Generator().manual_seed(self.seed)
        found = []
        for part in frames.split(self.batch):
            video = rearrange(part, "b c h w -> b c 1 h w") / 127.5 - 1
            latent = self.codec.encode(video) * self.net.sigma_data
            noise = torch.randn(latent.shape[1:], generator=generator)
            sigma = torch.full((len(part),), self.sigma)
            noisy = latent + self.sigma * noise
            (tokens,) = self.net.features(noisy, sigma, {}, [self.layer])
            found.append(rearrange(tokens, "b n d -> b (n d)").float())
        return torch.cat(found)


def forgetful(net: nn.Module, *, seed: int = 0) -> nn.Module:
    """Return a copy with random weights of the same mean and spread, matrix by matrix.

    The control of a probe: what the architecture gives without training.
    """
    generator = torch.Generator().manual_seed(seed)
    empty = copy.deepcopy(net)
    with torch.no_grad():
        for weight in empty.parameters():
            if weight.numel() > 1:
                noise = torch.randn(weight.shape, generator=generator).to(weight)
                weight.copy_(weight.mean() + weight.std() * noise)
    return empty


def latent_features(codec: LatentCodec) -> Encode:
    """Return what encodes frames as the codec's latents, the second control."""

    @torch.no_grad()
    def encode(frames: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        parts = [
            codec.encode(rearrange(part, "b c h w -> b c 1 h w") / 127.5 - 1)
            for part in frames.split(64)
        ]
        return torch.cat(parts).flatten(1).float()

    return encode


def pixel_features(side: int = 16) -> Encode:
    """Return what encodes frames as a small picture of ``side`` by ``side`` pixels."""

    def encode(frames: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        return F.adaptive_avg_pool2d(frames / 127.5 - 1, side).flatten(1)

    return encode


def probe(
    encode: Encode,
    train: tuple[UInt8[Tensor, "n 3 h w"], Float[Tensor, "n k"]],
    test: tuple[UInt8[Tensor, "m 3 h w"], Float[Tensor, "m k"]],
) -> Float[Tensor, " k"]:
    """Return the R^2 on ``test`` of a probe fitted on ``train``, number by number."""
    fitted = ridge(encode(train[0]), train[1])
    return r_squared(fitted.predict(encode(test[0])), test[1])


class ProbePolicy:
    """Acts by a linear map of the features of the picture and of the goal's.

    What few demonstrations suffice for shows what the features already know.
    """

    def __init__(self, encode: Encode, fitted: Probe, bounds: Bounds) -> None:
        self.encode, self.fitted, self.bounds = encode, fitted, bounds

    def reset(self, picture: Picture, info: Mapping[str, Any], seed: int, /) -> None:
        goal = torch.from_numpy(np.ascontiguousarray(info["goal_frame"]))
        self._goal = self.encode(goal[None])

    def act(self, picture: Picture, /) -> np.ndarray:
        features = torch.cat([self.encode(frames_of(picture)), self._goal], dim=1)
        return full_actions(self.fitted.predict(features), self.bounds)[0].numpy()


def clone_linear(
    encode: Encode,
    frames: UInt8[Tensor, "n 3 h w"],
    pairs: Sequence[Sequence[int]] | Tensor,
    actions: Float[Tensor, "m a"],
    bounds: Bounds,
) -> ProbePolicy:
    """Clone behaviour on frozen features: rows of (frame, goal frame) and their actions."""
    rows, features = torch.as_tensor(pairs), encode(frames)
    free = free_numbers(bounds)
    together = torch.cat([features[rows[:, 0]], features[rows[:, 1]]], dim=1)
    return ProbePolicy(encode, ridge(together, actions[:, free]), bounds)
