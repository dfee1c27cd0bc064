"""NVIDIA's content classifier: a SigLIP encoder and a small head, voting over frames.

The encoder is open_clip's ``ViT-SO400M-14-SigLIP-384`` (extra ``[siglip]``) from a file of yours;
the head is ``safety_filter.pt`` of Cosmos 1.0, or one that :func:`train_head` made.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from .attack import Rate, recall_at
from .content import VOTE, FrameCheck, Vote

CLASSES = ["safe", "sexual", "violence", "drugs", "sexual_minors", "hate", "self_harm"]
WIDTH = 1152
MODEL = "ViT-SO400M-14-SigLIP-384"

Pixels = UInt8[np.ndarray, "t 3 h w"]
Encoder = Callable[[Pixels], Float[Tensor, "t d"]]


class _Network(nn.Module):
    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(width, 512), nn.BatchNorm1d(512), nn.ReLU()),
            *(nn.Linear(512, 256), nn.BatchNorm1d(256), nn.ReLU()),
            nn.Linear(256, classes),
        )


class Head(nn.Module):
    """Three layers on a frame's embedding, under the key names of ``safety_filter.pt``."""

    def __init__(self, width: int = WIDTH, classes: int = len(CLASSES)) -> None:
        super().__init__()
        self.network = _Network(width, classes)

    def forward(self, embedding: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Return logits; class 0 is safe."""
        return self.network.layers(embedding)


def load_head(path: str | Path) -> Head:
    """Load a head: a state dict, or one under ``model``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: its keys or sizes are others.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such head")
    data: Any = torch.load(path, map_location="cpu", weights_only=True)
    state = data.get("model", data)
    try:
        head = Head(state["network.layers.0.weight"].shape[1])
        head.load_state_dict(state)
    except (KeyError, RuntimeError) as e:
        raise ValueError(f"{path}: not a head of safety_filter.pt's layout") from e
    return head.eval()


def open_clip_encoder(weights: str | Path, *, device: str = "cpu", batch: int = 8) -> Encoder:
    """Return an encoder of frames, from a file that open_clip reads; nothing is downloaded.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: open_clip is missing.
    """
    if not Path(weights).is_file():
        raise FileNotFoundError(f"{weights}: no such file; nothing is downloaded here")
    try:
        import open_clip  # ty: ignore[import-not-found]
    except ImportError as e:
        raise ImportError('the encoder needs: pip install "wfm-guardrail[siglip]"') from e
    net = open_clip.create_model(MODEL, pretrained=str(weights), device=device).eval()

    @torch.inference_mode()
    def encode(frames: Pixels) -> Float[Tensor, "t d"]:
        parts = prepared(frames).to(device).split(batch)
        return torch.cat([net.encode_image(part).float().cpu() for part in parts])

    return encode


def prepared(frames: Pixels, side: int = 384) -> Float[Tensor, "t 3 s s"]:
    """Squeeze frames to a square in [-1, 1], as SigLIP's processor does."""
    x = torch.from_numpy(np.ascontiguousarray(frames)).float()
    x = interpolate(x, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
    return x.clamp(0, 255).round() / 127.5 - 1


class ContentCheck(FrameCheck):
    """The check ``content``: an encoder and a head judge the frames."""

    def __init__(
        self, encode: Encoder, head: Head, vote: Vote = VOTE, *, every_frame: bool = False
    ) -> None:
        head.eval()

        @torch.inference_mode()
        def judge(frames: Pixels) -> Float[np.ndarray, "t k"]:
            return head(normalize(encode(frames), dim=-1)).softmax(-1).numpy()

        super().__init__("content", judge, CLASSES, vote, every_frame=every_frame)


def train_head(
    embeddings: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
    *,
    epochs: int = 30,
    seed: int = 0,
) -> tuple[Head, Rate, float]:
    """Train a head; return it, its held-out recall at 1 % false alarms, and that threshold.

    ``groups`` are the numbers of the videos that frames come from: every fifth video is held
    out whole, for frames of one video are no test of each other.

    Raises:
        ValueError: the held-out videos lack safe or unsafe frames.
    """
    held = np.isin(groups, np.unique(groups)[::5])
    if not (labels[held] == 0).any() or not (labels[held] > 0).any():
        raise ValueError("the held-out fifth of the videos needs both safe and unsafe frames")
    torch.manual_seed(seed)
    x = normalize(torch.from_numpy(embeddings).float(), dim=-1)
    y = torch.from_numpy(labels)
    head = Head(x.shape[1])
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=1e-2)
    for rows in _batches(np.flatnonzero(~held), epochs, seed):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(x[rows]), y[rows]).backward()
        optimizer.step()
    head.eval()
    with torch.inference_mode():
        harm = (1 - head(x[torch.from_numpy(held)]).softmax(-1)[:, 0]).numpy()
    rate, limit = recall_at(harm[labels[held] > 0].tolist(), harm[labels[held] == 0].tolist())
    return head, rate, limit


def _batches(rows: Int[np.ndarray, " n"], epochs: int, seed: int) -> Iterator[Tensor]:
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(rows)
        for start in range(0, len(order) - 1, 64):
            if len(order[start : start + 64]) > 1:  # a norm over one row is nothing
                yield torch.from_numpy(order[start : start + 64])
