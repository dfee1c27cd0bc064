"""NVIDIA's content classifier: a SigLIP encoder and a small head, voting over frames.

The encoder is open_clip's ``ViT-SO400M-14-SigLIP-384`` (extra ``[siglip]``) from a file of yours;
the head is ``safety_filter.pt`` of Cosmos 1.0, or one that :func:`train_head` made.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from .attack import Rate, recall_at
from .sampling import Sampler
from .verdict import Finding, Severity, Stage

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


@dataclass(frozen=True)
class Vote:
    """How many frames must be unsafe: at least ``frames`` and a ``share`` of those looked at.

    A frame is unsafe where the classes but the first have together at least ``threshold``.
    """

    threshold: float = 0.5
    frames: int = 3
    share: float = 0.02


class ContentCheck:
    """The check ``content``: every frame that differs from the last one looked at is judged."""

    name = "content"

    def __init__(
        self, encode: Encoder, head: Head, vote: Vote = Vote(), *, every_frame: bool = False
    ) -> None:
        self.encode, self.head, self.vote = encode, head.eval(), vote
        self.every_frame = every_frame

    def open(self, _stage: Stage, _fps: float, /) -> "_Content":
        """Begin a video."""
        return _Content(self)


class _Content:
    def __init__(self, check: ContentCheck) -> None:
        self.check = check
        self.sampler = None if check.every_frame else Sampler()
        self.unsafe = np.zeros(len(CLASSES), np.int64)
        self.looked = self.runs = self.run = 0
        self.worst = 0.0

    @torch.inference_mode()
    def push(self, frames: Pixels, /) -> Sequence[Finding]:
        """Judge the frames that are new; a still stretch counts by its frames."""
        weights = np.ones(len(frames), np.int64)
        chosen = frames
        if self.sampler is not None:
            picked, weights = self.sampler.pick(frames)
            chosen = frames[picked]
            if self.run >= 0 and weights[0]:  # frames that look like the last one judged before
                self._count(self.run, int(weights[0]))
            weights = weights[1:]
        if len(chosen):
            logits = self.check.head(normalize(self.check.encode(chosen), dim=-1))
            if not torch.isfinite(logits).all():
                raise ValueError("the classifier's numbers are not finite")
            for p, weight in zip(logits.softmax(-1).numpy(), weights, strict=True):
                harm = 1 - float(p[0])
                self.worst = max(self.worst, harm)
                self.run = 1 + int(p[1:].argmax()) if harm >= self.check.vote.threshold else 0
                self._count(self.run, int(weight))
        return ()

    def _count(self, label: int, frames: int) -> None:
        self.looked += frames
        self.unsafe[label] += frames if label else 0

    def close(self) -> Sequence[Finding]:
        """Count the votes; fewer frames than the vote wants must all agree."""
        vote, unsafe = self.check.vote, int(self.unsafe.sum())
        needed = max(min(vote.frames, self.looked), vote.share * self.looked)
        if not unsafe or unsafe < needed:
            return ()
        label = CLASSES[int(self.unsafe.argmax())]
        severity = Severity.SEVERE if label == "sexual_minors" else Severity.EXPLICIT
        rule = f"{unsafe} of {self.looked} frames"
        return (Finding(self.check.name, label, severity, min(1.0, self.worst), rule),)


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
