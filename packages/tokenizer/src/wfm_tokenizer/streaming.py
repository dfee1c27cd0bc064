"""Exact streaming: a video in chunks gives the latents of the whole, to float32 rounding.

What a stream holds: of each layer with taps in time two frames (one where it resamples),
independent of length; and of each temporal attention (one in the encoder's middle, one in the
decoder's) a vector of that width per latent cell of all the past. At full width, 8x8x8, 720p and
24 frames/s that is 2.7 GB per minute in bfloat16; ``max_context`` bounds it, inexactly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .fused import FusedAttention
from .layers import TimeAttention
from .memory import Memory

if TYPE_CHECKING:
    from .model import Tokenizer


class Stream:
    """What encoder and decoder share: how much is remembered, and taking it to disk and back."""

    def __init__(self, tokenizer: Tokenizer, max_context: int | None = None) -> None:
        if max_context is not None and max_context < 1:
            raise ValueError(f"max_context {max_context}: at least 1 latent frame, or None for all")
        self._tokenizer = tokenizer
        self._memory = Memory(max_context)
        self._done = 0

    @property
    def memory_bytes(self) -> int:
        """How much the layers remember at the moment."""
        return self._memory.nbytes

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that decides how the stream goes on."""
        names = {module: name for name, module in self._tokenizer.named_modules()}
        state = {"done": torch.tensor(self._done)}
        for i, memory in ((-1, self._memory), *self._memory.tiles.items()):
            for layer, number, tensor in memory.parts():
                state[f"memory.{i}.{number:08d}.{names[layer]}"] = tensor
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on where :meth:`state_dict` was taken, by the same tokenizer in the same mode."""
        modules, device = dict(self._tokenizer.named_modules()), self._tokenizer.device
        self._memory.clear()
        for key in sorted(state):  # the parts of the past in their order
            if key.startswith("memory."):
                _, i, _, name = key.split(".", 3)
                memory = self._memory if int(i) < 0 else self._memory.part(int(i))
                layer, tensor = modules[name], state[key].to(device)
                if isinstance(layer, TimeAttention | FusedAttention):
                    memory.past.setdefault(layer, []).append(tensor)
                else:
                    memory[layer] = tensor
        self._done = int(state["done"])


class StreamingEncoder(Stream):
    """Takes frames as they come, gives latents (or tokens) as soon as they are known.

    The first frame makes a latent frame alone, every further ``compression[0]`` frames one
    more. Memory is a few frames per layer, plus the past of the temporal attention, one
    vector per latent cell.
    """

    def __init__(self, tokenizer: Tokenizer, max_context: int | None = None) -> None:
        super().__init__(tokenizer, max_context)
        self._waiting: Tensor | None = None
        self._closed = False

    def state_dict(self) -> dict[str, Tensor]:
        waiting = {} if self._waiting is None else {"waiting": self._waiting}
        return super().state_dict() | waiting

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        self._waiting = state.get("waiting")
        self._closed = False

    @torch.no_grad()
    def push(self, video: Tensor) -> Tensor:
        """Give ``b 3 t h w`` of any t; get ``b c n h w`` (tokens: ``b n h w``), n >= 0."""
        if self._closed:
            raise ValueError("this stream was flushed; a new video needs a new streaming_encoder()")
        check_chunk(self._tokenizer, video)
        if self._waiting is not None:
            video = torch.cat((self._waiting, video), 2)
        time = self._tokenizer.compression[0]
        first = 0 if self._done else min(1, video.shape[2])
        ready = first + (video.shape[2] - first) // time * time
        self._waiting = video[:, :, ready:].clone()
        return self._encode(video[:, :, :ready])

    def flush(self) -> Tensor:
        """End the video: its last frame is repeated until the frames fill a latent frame."""
        if self._closed or self._waiting is None:
            raise ValueError("nothing to flush: no frame was pushed since the start")
        rest = self._waiting
        if rest.shape[2]:
            missing = -rest.shape[2] % self._tokenizer.compression[0]
            latent = self.push(rest[:, :, -1:].expand(-1, -1, missing, -1, -1))
        else:
            latent = self._encode(rest)
        self._closed = True
        return latent

    @torch.no_grad()
    def _encode(self, video: Tensor) -> Tensor:
        """Encode whole groups of frames; none give an empty latent."""
        tokenizer, (_, high, wide) = self._tokenizer, self._tokenizer.compression
        b, _, t, h, w = video.shape
        if t:
            codes = tokenizer.encode_codes(video, self._memory)
        else:
            size = (b, tokenizer.config.latent_channels, 0, h // high, w // wide)
            codes = video.new_empty(size)
        start, self._done = self._done, self._done + codes.shape[2]
        latent = tokenizer.from_codes(codes, start)
        return latent.to(video.dtype) if latent.is_floating_point() else latent


class StreamingDecoder(Stream):
    """Takes latents (or tokens) as they come, gives their frames at once."""

    @torch.no_grad()
    def push(self, latent: Tensor) -> Tensor:
        """Give ``b c n h w`` (tokens: ``b n h w``), n >= 0; get ``b 3 t h w``."""
        tokenizer = self._tokenizer
        if latent.ndim != tokenizer.latent_ndim:
            wanted = (
                "latents (b, c, n, h, w)" if tokenizer.latent_ndim == 5 else "tokens (b, n, h, w)"
            )
            raise ValueError(f"push takes {wanted}, got {tuple(latent.shape)}")
        codes = tokenizer.to_codes(latent, self._done)
        b, _, n, h, w = codes.shape
        _, high, wide = tokenizer.compression
        if not n:
            return codes.new_empty(b, 3, 0, h * high, w * wide)
        self._done += n
        return tokenizer.decode_codes(codes, self._memory).to(codes.dtype)

    def flush(self) -> None:
        """Forget the video; the next push starts a new one."""
        self._memory.clear()
        self._done = 0


def check_chunk(tokenizer: Tokenizer, video: Tensor) -> None:
    """Raise ``ValueError`` unless the chunk is float ``b 3 t h w`` whose sides fit."""
    _, high, wide = tokenizer.compression
    if video.ndim != 5 or video.shape[1] != 3 or not video.is_floating_point():
        raise ValueError(f"a chunk is float (b, 3, t, h, w) in [-1, 1], got {tuple(video.shape)}")
    h, w = video.shape[3:]
    if h % high or w % wide or not h or not w:
        raise ValueError(f"chunk is {h}x{w}; its sides must be multiples of {high} and {wide}")
