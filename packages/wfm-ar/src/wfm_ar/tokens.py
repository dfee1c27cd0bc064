"""Clips as tokens: every clip goes through the codec once, and the tokens are kept in a file."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from .checkpoint import read_weights, write_weights
from .clips import every, fit
from .config import Grid
from .interfaces import ClipDataset, DiscreteCodec, Fingerprinted, TextEncoder

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


class Windows(NamedTuple):
    """How a clip is cut: ``frames`` frames at ``fps`` Hz, a window every ``stride`` frames.

    ``latents`` "video": a window goes through the causal codec as one video. "image": each
    frame goes through alone, and has the tokens of an image.
    """

    latents: str
    frames: int
    stride: int
    fps: float
    height: int
    width: int


class TokenSet(NamedTuple):
    """The tokens of all windows, and the text of the clip that each was cut from."""

    tokens: Int[Tensor, "n t h w"]
    clip: Int[Tensor, " n"]
    text: Float[Tensor, "c m e"] | None

    @property
    def grid(self) -> Grid:
        _, t, h, w = self.tokens.shape
        return t, h, w

    def split(self, holdout: float) -> tuple["TokenSet", "TokenSet"]:
        """Part train from held-out windows, by whole clips, evenly spread over the set.

        One clip or more is held out; a lone clip is on both sides.
        """
        clips = self.clip.unique()
        apart = max(round(1 / holdout), 2) if holdout > 0 else len(clips) + 1
        held = torch.isin(
            self.clip, clips[apart - 1 :: apart] if len(clips) >= apart else clips[-1:]
        )
        if held.all():
            return self, self
        return self._only(~held), self._only(held)

    def _only(self, rows: Tensor) -> "TokenSet":
        return self._replace(tokens=self.tokens[rows], clip=self.clip[rows])


def tokenize(
    clips: ClipDataset,
    codec: DiscreteCodec,
    windows: Windows,
    *,
    text_encoder: TextEncoder | None = None,
    progress: Progress | None = None,
) -> TokenSet:
    """Encode every window of every clip; clips shorter than a window are left out.

    Raises:
        ValueError: no clip is long enough.
    """
    tokens, owners, captions = [], [], []
    for i in range(len(clips)):
        clip = clips[i]
        kept = every(len(clip), clip.fps, windows.fps)
        if len(kept) >= windows.frames:
            frames = fit(clip.read(0, len(clip))[kept], windows.height, windows.width)
            found = _encode(frames, codec, windows)
            tokens.append(found)
            owners.append(torch.full((len(found),), len(captions), dtype=torch.int32))
            captions.append(clip.caption)
        if progress is not None:
            progress(i + 1, len(clips))
    if not tokens:
        raise ValueError(
            f"none of {len(clips)} clips has {windows.frames} frames at {windows.fps:g} Hz"
        )
    text = None
    if text_encoder is not None:
        batches = [captions[i : i + 64] for i in range(0, len(captions), 64)]
        text = torch.cat([text_encoder.encode(batch)[0].detach().half() for batch in batches])
    return TokenSet(torch.cat(tokens), torch.cat(owners), text)


@torch.no_grad()
def _encode(
    frames: Float[Tensor, "f 3 h w"], codec: DiscreteCodec, windows: Windows
) -> Int[Tensor, "n t hl wl"]:
    starts = range(0, len(frames) - windows.frames + 1, windows.stride)
    if windows.latents == "image":
        alone = rearrange(frames, "f c h w -> f c 1 h w")
        tokens = torch.cat([codec.encode(part) for part in alone.split(64)])[:, 0].int()
        return torch.stack([tokens[s : s + windows.frames] for s in starts])
    cut = torch.stack([frames[s : s + windows.frames] for s in starts])
    videos = rearrange(cut, "n t c h w -> n c t h w")
    return torch.cat([codec.encode(part) for part in videos.split(8)]).int()


def cached_tokens(
    path: Path,
    clips: ClipDataset,
    codec: DiscreteCodec,
    windows: Windows,
    *,
    about: Sequence[str] = (),
    text_encoder: TextEncoder | None = None,
    progress: Progress | None = None,
) -> TokenSet:
    """Read the tokens from ``path`` if they were made of the same things, else make them.

    ``about`` names what the windows do not say, such as where the clips come from.
    """
    mark = codec.fingerprint if isinstance(codec, Fingerprinted) else ""
    said = json.dumps([*about, len(clips), mark, codec.vocab_size, list(windows)])
    if text_encoder is not None:
        said += str(text_encoder.encode(["a red cube"])[0].flatten().tolist())
    key = hashlib.sha256(said.encode()).hexdigest()[:16]
    if path.is_file():
        stored = read_weights(path)
        if bytes(stored["key"].tolist()).decode() == key:
            logger.info("tokens: %s windows from %s", len(stored["tokens"]), path)
            return TokenSet(stored["tokens"], stored["clip"], stored.get("text"))
        logger.info("tokens: %s is of other clips, codec or settings; made anew", path)
    made = tokenize(clips, codec, windows, text_encoder=text_encoder, progress=progress)
    found = {"tokens": made.tokens, "clip": made.clip}
    found |= {} if made.text is None else {"text": made.text}
    key_tensor = torch.tensor(list(key.encode()), dtype=torch.uint8)
    write_weights(path, found | {"key": key_tensor})
    logger.info("tokens: %s windows of %s clips in %s", len(made.tokens), len(clips), path)
    return made
