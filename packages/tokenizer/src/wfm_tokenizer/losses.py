"""What a reconstruction is trained for: pixels, edges, features, textures, motion.

The paper's recipe (arXiv 2501.03575, section 4) takes L1 and a perceptual loss, then an optical
flow and a Gram-matrix loss, at last an adversarial one (``adversary.py``). Feature and flow
networks are the user's. Without a feature network, differences of neighbouring pixels at several
scales stand in for its features: their error weighs edges, their Gram matrix (a structure tensor)
textures.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from .references import resolve

SATURATED = 1.5

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""ImageNet's colours in [-1, 1], to which torchvision's and timm's networks are used."""

VGG_WEIGHTS = (1 / 2.6, 1 / 4.8, 1 / 3.7, 1 / 5.6, 10 / 1.5)
"""Of VGG's five stages, in NVIDIA's published training code."""

FLOW_SCALE = 2
"""Motion is compared at this fraction of the size, as there."""

NETWORK = (
    "FILE.pt (TorchScript), torchvision:NAME=FILE or timm:NAME=FILE (weights in FILE), "
    "or module:callable=ARGUMENT"
)


class LossConfig(BaseModel):
    """Weights of the terms, and the step each of the later ones starts at."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    l1: float = 1.0
    l2: float = Field(2.0, description="squared error: what PSNR measures")
    gradient: float = Field(0.5, description="differences of neighbours in x, y and t: edges")
    scales: int = Field(3, ge=1, description="the gradient term is taken at 1, 1/2, 1/4 ... size")
    saturation: float = Field(0.2, description="of FSQ inputs, see saturation_loss")
    network: str | None = Field(None, description=f"frames -> feature maps: {NETWORK}")
    perceptual: float = Field(0.1, ge=0, description="difference of features, given a network")
    gram: float = Field(0.0, ge=0, description="difference of the features' Gram matrices")
    gram_from: int = Field(0, ge=0, description="step")
    flow_network: str | None = Field(None, description=f"(frames, next frames) -> flow: {NETWORK}")
    flow: float = Field(0.01, ge=0, description="difference of the flows, if there is a network")
    flow_from: int = Field(0, ge=0, description="step")
    adversarial: float = Field(0.0, ge=0, description="of a discriminator trained along")
    adversarial_from: int = Field(0, ge=0, description="step")


class Loss:
    """The sum of all terms but the adversarial one."""

    def __init__(self, config: LossConfig, device: str) -> None:
        self.config = config
        self.features: Callable[[Tensor], Sequence[Tensor]] | None = None
        self.flow: Callable[[Tensor, Tensor], Any] | None = None
        if config.network is not None:
            self.features = open_network(config.network, device)
        if config.flow_network is not None:
            self.flow = open_network(config.flow_network, device)

    def __call__(
        self, output: Float[Tensor, "b 3 t h w"], target: Float[Tensor, "b 3 t h w"], step: int
    ) -> Float[Tensor, ""]:
        """Return the weighted sum of the terms that count at this step."""
        config = self.config
        loss = reconstruction_loss(output, target, config)
        perceptual = config.perceptual if self.features is not None else 0.0
        gram = config.gram if step >= config.gram_from else 0.0
        if perceptual or gram:
            with torch.no_grad():
                wanted = self._maps(target)
            maps = self._maps(output)
            if perceptual:
                loss = loss + perceptual * perceptual_loss(maps, wanted)
            if gram:
                loss = loss + gram * gram_loss(maps, wanted, output.shape[2])
        moves = self.flow is not None and output.shape[2] > 1 and step >= config.flow_from
        if self.flow is not None and moves and config.flow:
            loss = loss + config.flow * flow_loss(self.flow, output, target)
        return loss

    def _maps(self, video: Float[Tensor, "b 3 t h w"]) -> list[Tensor]:
        """Return the feature maps ``(b t) c h w`` of all frames."""
        frames = rearrange(video.float(), "b c t h w -> (b t) c h w")
        if self.features is None:
            return differences(frames, self.config.scales)
        shift, scale = (torch.tensor(v).to(frames).view(3, 1, 1) for v in (SHIFT, SCALE))
        maps = self.features((frames - shift) / scale)
        return [maps] if isinstance(maps, Tensor) else list(maps)


def reconstruction_loss(
    output: Float[Tensor, "b 3 t h w"], target: Float[Tensor, "b 3 t h w"], config: LossConfig
) -> Float[Tensor, ""]:
    """Return the mean of |e|, e**2, and |differences of e| at several scales, weighted.

    ``e`` is the error. The differences between neighbours in x, y and t weigh edges and motion,
    which a plain error blurs; at the coarser scales, made by averaging 2x2 pixels, they weigh
    larger structures. They stand in for a perceptual network, which would have to be
    downloaded.
    """
    error = (output - target).float()
    loss = config.l1 * error.abs().mean() + config.l2 * error.square().mean()
    if not config.gradient:
        return loss
    for scale in range(config.scales):
        if scale:
            error = error.unflatten(-2, (-1, 2)).unflatten(-1, (-1, 2)).mean((-3, -1))
        axes = (-1, -2) if error.shape[2] == 1 else (-1, -2, -3)
        terms = [error.diff(dim=axis).abs().mean() for axis in axes]
        loss = loss + config.gradient / config.scales * torch.stack(terms).mean()
    return loss


def saturation_loss(features: Float[Tensor, "b c t h w"]) -> Float[Tensor, ""]:
    """Return the mean square of what exceeds 1.5 in the quantiser's inputs.

    There its tanh is well inside the outermost level. Without this term inputs drift on, the
    gradient through the tanh dies, and training collapses to a handful of tokens.
    """
    return (features.float().abs() - SATURATED).relu().square().mean()


def perceptual_loss(maps: Sequence[Tensor], wanted: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Return the mean absolute difference of feature maps, weighted as VGG's five if they are."""
    weights = VGG_WEIGHTS if len(maps) == len(VGG_WEIGHTS) else [1 / len(maps)] * len(maps)
    terms = [w * (a - b).abs().mean() for w, a, b in zip(weights, maps, wanted, strict=True)]
    return torch.stack(terms).sum()


def gram_loss(maps: Sequence[Tensor], wanted: Sequence[Tensor], frames: int) -> Float[Tensor, ""]:
    """Return the mean squared difference of Gram matrices, each over all places of a clip."""

    def gram(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "b c c"]:
        x = rearrange(x, "(b t) c h w -> b c (t h w)", t=frames)
        return x @ x.mT / x.shape[2]

    terms = [F.mse_loss(gram(a), gram(b)) for a, b in zip(maps, wanted, strict=True)]
    return torch.stack(terms).mean()


def flow_loss(
    network: Callable[[Tensor, Tensor], Any],
    output: Float[Tensor, "b 3 t h w"],
    target: Float[Tensor, "b 3 t h w"],
) -> Float[Tensor, ""]:
    """Return the mean absolute difference of motion, forwards and backwards, in pixels.

    ``network`` takes two batches of frames in [-1, 1] and gives ``n 2 h w``, or a list of
    estimates of which the last is the best (as RAFT).
    """

    def flows(video: Tensor) -> Tensor:
        frames = rearrange(video.float(), "b c t h w -> (b t) c h w")
        frames = F.interpolate(frames, scale_factor=1 / FLOW_SCALE, mode="area")
        frames = rearrange(frames, "(b t) c h w -> b t c h w", t=video.shape[2])
        first, second = frames[:, :-1].flatten(0, 1), frames[:, 1:].flatten(0, 1)
        flow = network(torch.cat((first, second)), torch.cat((second, first)))
        return (flow if isinstance(flow, Tensor) else flow[-1]) * FLOW_SCALE

    with torch.no_grad():
        wanted = flows(target)
    return (flows(output) - wanted).abs().mean()


def differences(frames: Float[Tensor, "n 3 h w"], scales: int) -> list[Float[Tensor, "n 6 _ _"]]:
    """Return the differences to the right and to below at 1, 1/2, 1/4 ... size."""
    maps = []
    for scale in range(scales):
        if scale:
            frames = F.avg_pool2d(frames, 2)
        right, below = frames.diff(dim=-1)[..., :-1, :], frames.diff(dim=-2)[..., :-1]
        maps.append(torch.cat((right, below), 1))
    return maps


class BeforePools(nn.Module):
    """The maps of a plain stack of layers, such as VGG's, before each pooling."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> list[Tensor]:
        maps = []
        for layer in self.layers:
            if isinstance(layer, nn.MaxPool2d):
                maps.append(x)
            x = layer(x)
        return maps


def open_network(reference: str, device: str) -> Any:
    """Open the network that a training run names, frozen.

    Raises:
        FileNotFoundError: no such file of weights.
        ImportError: torchvision or timm is named, and not installed.
        ValueError: the reference is of none of the known forms.
    """
    kind, _, rest = reference.partition(":")
    name, _, file = rest.partition("=")
    if kind in ("torchvision", "timm") or reference.endswith((".pt", ".jit", ".ts")):
        path = Path(file if kind in ("torchvision", "timm") else reference).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"{reference}: no such file of weights ({path})")
        network = _from_file(kind, name, path)
    else:
        network = resolve(reference, "wfm.feature_networks")
    if isinstance(network, nn.Module):
        network.eval().to(device)
        for parameter in network.parameters():
            parameter.requires_grad_(False)
    if not callable(network):
        raise ValueError(f"{reference}: a {type(network).__name__} is no network")
    return network


def _from_file(kind: str, name: str, path: Path) -> nn.Module:
    if kind == "timm":
        try:
            import timm  # ty: ignore[import-not-found]
        except ImportError as e:
            raise ImportError(f"timm:{name} needs: pip install timm") from e
        return timm.create_model(name, features_only=True, checkpoint_path=str(path))
    if kind == "torchvision":
        try:
            from torchvision.models import get_model  # ty: ignore[import-not-found]
        except ImportError as e:
            raise ImportError(f"torchvision:{name} needs: pip install torchvision") from e
        network = get_model(name)
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        stack = getattr(network, "features", None)
        return BeforePools(stack) if isinstance(stack, nn.Sequential) else network
    return torch.jit.load(str(path), map_location="cpu")
