"""The contracts that this package consumes; anything with the right methods will do.

Letters: b batch, t frames, h height, w width, n tokens, v vocabulary, d embedding, s actions,
a action dimensions. Videos inside the model are float RGB in [-1, 1], laid out ``b 3 t h w``;
frames from or for a file are uint8 RGB, laid out ``t 3 h w``.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor


@runtime_checkable
class DiscreteCodec(Protocol):
    """Video <-> tokens ``0 <= token < vocab_size``; sizes and causality as in LatentCodec."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def compression(self) -> tuple[int, int, int]: ...

    def encode(self, video: Float[Tensor, "b 3 t h w"], /) -> Int64[Tensor, "b tl hl wl"]: ...

    def decode(self, tokens: Int64[Tensor, "b tl hl wl"], /) -> Float[Tensor, "b 3 t h w"]: ...


@runtime_checkable
class Fingerprinted(Protocol):
    """Says which weights it holds: equal fingerprints, equal outputs.

    A world model records the fingerprint of the codec that it was trained with, and
    refuses another. A codec that offers none is taken on trust.
    """

    @property
    def fingerprint(self) -> str: ...


@runtime_checkable
class TextEncoder(Protocol):
    """Prompts -> embeddings and the mask of real tokens; rows are zero where it is False.

    The number of slots ``n`` is fixed, and padding is attended by the networks.
    """

    @property
    def dim(self) -> int: ...

    def encode(
        self, prompts: Sequence[str], /
    ) -> tuple[Float[Tensor, "b n d"], Bool[Tensor, "b n"]]: ...


@runtime_checkable
class ConditionEncoder(Protocol):
    """What a user has -> the condition keys that a network knows.

    Inputs in use: ``action`` (b s a), ``camera_pose`` (b t 4 4) with ``intrinsics``
    (b t 3 3), ``trajectory`` (b t k), ``hint`` (b 3m t h w: m pictures of the scene, such as its
    depth and segmentation) with ``hint_weight`` (b m t h w in [0, 1]), ``view`` (b v).
    """

    def encode(self, inputs: Mapping[str, Tensor], /) -> Mapping[str, Tensor]: ...


@runtime_checkable
class NextTokenModel(Protocol):
    """Tokens so far -> unnormalised log-probabilities; row ``i`` scores token ``i + 1``.

    ``condition`` may hold ``text`` (b m d), the context of cross-attention. ``grid`` is
    the (t, h, w) of the token grid; None is the model's own.
    """

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_tokens(self) -> int: ...

    def logits(
        self,
        tokens: Int64[Tensor, "b n"],
        condition: Mapping[str, Tensor],
        /,
        *,
        grid: tuple[int, int, int] | None = None,
    ) -> Float[Tensor, "b n v"]: ...


@runtime_checkable
class WorldModel(Protocol):
    """Imagine what follows ``past``; the answer holds new frames only.

    ``past`` has at least ``past_frames`` frames, oldest first. ``controls`` are inputs of the
    model's ConditionEncoder; ``controls["action"]`` (b s a) is in the units of the data the
    model was trained on, spread evenly over the new frames (``s`` is a multiple of
    ``frames``). Same inputs and same generator state, same answer.
    """

    @property
    def past_frames(self) -> int: ...

    def rollout(
        self,
        past: Float[Tensor, "b 3 p h w"],
        /,
        *,
        frames: int,
        controls: Mapping[str, Tensor] | None = None,
        prompts: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b 3 f h w"]: ...


@runtime_checkable
class TokenDecoder(Protocol):
    """Tokens of a discrete codec -> video by another way than that codec's decoder."""

    def decode(self, tokens: Int64[Tensor, "b tl hl wl"], /) -> Float[Tensor, "b 3 t h w"]: ...


@runtime_checkable
class Verdict(Protocol):
    """A guard's answer. ``reason`` names what was found; it is empty when safe."""

    @property
    def safe(self) -> bool: ...

    @property
    def reason(self) -> str: ...


@runtime_checkable
class TextGuard(Protocol):
    """Decide whether a prompt may be used; "cannot decide" is an unsafe verdict."""

    def check_text(self, text: str, /) -> Verdict: ...


@runtime_checkable
class VideoGuard(Protocol):
    """Decide whether frames may be shown, and redact what must not be."""

    def check_video(self, frames: UInt8[Tensor, "t 3 h w"], /) -> Verdict: ...

    def redact(self, frames: UInt8[Tensor, "t 3 h w"], /) -> UInt8[Tensor, "t 3 h w"]: ...


@runtime_checkable
class ClipReader(Protocol):
    """Random access to the frames of one clip, at ``fps`` Hz."""

    @property
    def fps(self) -> float: ...

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int, /) -> UInt8[Tensor, "t 3 h w"]: ...


@runtime_checkable
class LabelledClip(Protocol):
    """A ClipReader with what else is known of the clip.

    ``labels`` are arrays cut to the clip: a first axis of ``len`` rows belongs to the
    frames, one of ``len - 1`` rows (``action``) to the steps between them. ``attributes``
    are plain JSON values, such as ``scene``.
    """

    @property
    def fps(self) -> float: ...

    @property
    def caption(self) -> str: ...

    @property
    def attributes(self) -> Mapping[str, object]: ...

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int, /) -> UInt8[Tensor, "t 3 h w"]: ...

    def labels(self) -> Mapping[str, Tensor]: ...


@runtime_checkable
class ClipDataset(Protocol):
    """Random access to labelled clips, in an order that does not change."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> LabelledClip: ...
