"""RetinaFace on ResNet-50 (Deng et al. 2019, arXiv 1905.00641), for ``Resnet50_Final.pth``.

The modules bear the names of the public checkpoint, which is loaded strictly. Needs ``[torch]``.
"""

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.functional import interpolate

from .faces import Boxes, apart

MIN_SIZES, STEPS = ((16, 32), (64, 128), (256, 512)), (8, 16, 32)
MEAN = (104.0, 117.0, 123.0)  # of blue, green, red
_CENTRE, _SIZE = 0.1, 0.2  # scale of the regressed offsets


class Bottleneck(nn.Module):
    """Block of ResNet-50."""

    def __init__(self, inner: int, width: int, stride: int, *, first: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = None
        if first:
            skip = nn.Conv2d(inner, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(skip, nn.BatchNorm2d(4 * width))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        """Add three convolutions to the input."""
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        skip = x if self.downsample is None else self.downsample(x)
        return (self.bn3(self.conv3(y)) + skip).relu()


def _stage(inner: int, width: int, count: int, stride: int) -> nn.Sequential:
    rest = (Bottleneck(4 * width, width, 1, first=False) for _ in range(count - 1))
    return nn.Sequential(Bottleneck(inner, width, stride, first=True), *rest)


class Body(nn.Module):
    """ResNet-50 without its last layers; the outputs of its last three stages."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = _stage(64, 64, 3, 1)
        self.layer2 = _stage(256, 128, 4, 2)
        self.layer3 = _stage(512, 256, 6, 2)
        self.layer4 = _stage(1024, 512, 3, 2)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Return features at an eighth, a sixteenth and a thirty-second."""
        x = self.layer1(self.pool(self.bn1(self.conv1(x)).relu()))
        x2 = self.layer2(x)
        x3 = self.layer3(x2)
        return [x2, x3, self.layer4(x3)]


def _conv(inner: int, outer: int, size: int = 3, *, act: bool = True) -> nn.Sequential:
    layers = [nn.Conv2d(inner, outer, size, padding=size // 2, bias=False), nn.BatchNorm2d(outer)]
    return nn.Sequential(*layers, nn.ReLU()) if act else nn.Sequential(*layers)


class Pyramid(nn.Module):
    """Bring the three scales together, from the coarsest to the finest."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.output1, self.output2, self.output3 = (_conv(c, width, 1) for c in (512, 1024, 2048))
        self.merge1, self.merge2 = _conv(width, width), _conv(width, width)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Return three maps of one width."""
        fine, middle, coarse = self.output1(features[0]), self.output2(features[1]), features[2]
        coarse = self.output3(coarse)
        middle = self.merge2(middle + interpolate(coarse, size=middle.shape[-2:], mode="nearest"))
        fine = self.merge1(fine + interpolate(middle, size=fine.shape[-2:], mode="nearest"))
        return [fine, middle, coarse]


class Context(nn.Module):
    """Three receptive fields side by side. The last name has its small x in the checkpoint."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.conv3X3 = _conv(width, width // 2, act=False)
        self.conv5X5_1 = _conv(width, width // 4)
        self.conv5X5_2 = _conv(width // 4, width // 4, act=False)
        self.conv7X7_2 = _conv(width // 4, width // 4)
        self.conv7x7_3 = _conv(width // 4, width // 4, act=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Put them together."""
        half = self.conv5X5_1(x)
        parts = [self.conv3X3(x), self.conv5X5_2(half), self.conv7x7_3(self.conv7X7_2(half))]
        return torch.cat(parts, dim=1).relu()


class Head(nn.Module):
    """So many numbers for each of two priors at each place."""

    def __init__(self, numbers: int, width: int = 256) -> None:
        super().__init__()
        self.numbers = numbers
        self.conv1x1 = nn.Conv2d(width, 2 * numbers, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n k"]:
        """Return them in the order of :func:`priors`."""
        return self.conv1x1(x).permute(0, 2, 3, 1).reshape(len(x), -1, self.numbers)


class RetinaFace(nn.Module):
    """The network: boxes, scores and landmarks for each prior."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fpn = Body(), Pyramid()
        self.ssh1, self.ssh2, self.ssh3 = Context(), Context(), Context()
        self.ClassHead = nn.ModuleList(Head(2) for _ in STEPS)
        self.BboxHead = nn.ModuleList(Head(4) for _ in STEPS)
        self.LandmarkHead = nn.ModuleList(Head(10) for _ in STEPS)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return offsets (4), probabilities of none and of a face, and landmarks (10)."""
        maps = self.fpn(self.body(x))
        maps = [ssh(m) for ssh, m in zip((self.ssh1, self.ssh2, self.ssh3), maps, strict=True)]
        heads = (self.BboxHead, self.ClassHead, self.LandmarkHead)
        boxes, classes, marks = (
            torch.cat([head(m) for head, m in zip(group, maps, strict=True)], dim=1)
            for group in heads
        )
        return boxes, classes.softmax(-1), marks


def priors(height: int, width: int) -> Float[Tensor, "n 4"]:
    """Return the prior boxes in pixels (centre x, centre y, w, h): by level, row, column, size."""
    out = []
    for step, sizes in zip(STEPS, MIN_SIZES, strict=True):
        rows, columns = -(-height // step), -(-width // step)
        out += [
            ((j + 0.5) * step, (i + 0.5) * step, size, size)
            for i, j, size in product(range(rows), range(columns), sizes)
        ]
    return torch.tensor(out, dtype=torch.float32)


def load_retinaface(path: str | Path) -> RetinaFace:
    """Load a checkpoint: a state dict, or one under ``state_dict``, with or without ``module.``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a key is missing or too many; a partial network would find nothing.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    data: Any = torch.load(path, map_location="cpu", weights_only=True)
    state: Mapping[str, Tensor] = data.get("state_dict", data)
    net = RetinaFace()
    try:
        net.load_state_dict({key.removeprefix("module."): v for key, v in state.items()})
    except RuntimeError as e:
        raise ValueError(f"{path}: not RetinaFace-R50 ({str(e).splitlines()[1].strip()})") from e
    return net.eval()


class RetinaFaceDetector:
    """A :class:`FaceDetector` for ``Guardrail(detector=...)``; frames of any size."""

    name = "retinaface"
    threshold, overlap = 0.7, 0.4

    def __init__(
        self, net: RetinaFace, *, device: str = "cpu", threshold: float = threshold
    ) -> None:
        self.net, self.device, self.threshold = net.to(device), device, threshold
        self._priors: dict[tuple[int, int], Tensor] = {}

    @torch.inference_mode()
    def detect(self, frame: UInt8[np.ndarray, "3 h w"], /) -> Boxes:
        """Find faces."""
        _, height, width = frame.shape
        x = torch.from_numpy(np.ascontiguousarray(frame[::-1])).to(self.device).float()[None]
        x = x - torch.tensor(MEAN, device=self.device).view(3, 1, 1)
        offsets, scores, _ = self.net(x)
        if (height, width) not in self._priors:
            self._priors = {(height, width): priors(height, width).to(self.device)}
        prior = self._priors[height, width]
        kept = scores[0, :, 1] > self.threshold
        if not torch.isfinite(scores).all():
            raise ValueError("the face detector's numbers are not finite")
        prior, moved = prior[kept], offsets[0][kept]
        centre = prior[:, :2] + moved[:, :2] * _CENTRE * prior[:, 2:]
        size = prior[:, 2:] * (moved[:, 2:] * _SIZE).exp()
        corners = torch.cat([centre - size / 2, centre + size / 2, scores[0, kept, 1:]], dim=1)
        return apart(corners.cpu().numpy().astype(np.float64), self.overlap)
