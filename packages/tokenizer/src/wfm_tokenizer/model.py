"""The two tokenizers: video <-> continuous latents, video <-> tokens."""

import re
from copy import copy, deepcopy
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor, nn

from .checkpoint import CONFIG, WEIGHTS, fingerprint, replacing, write_weights
from .config import TokenizerConfig
from .fsq import FSQ
from .fused import Compiled, FusedDecoder, FusedEncoder, compiled
from .fused_layers import Space
from .layers import Mix
from .memory import Memory
from .network import Decoder, Encoder
from .streaming import StreamingDecoder, StreamingEncoder
from .tiling import Tiled

T = TypeVar("T", bound="Tokenizer")


class Tokenizer(nn.Module):
    """What both kinds share: the networks, sizes, reconstruction, streaming, saving.

    Videos are RGB in [-1, 1]. Image tokenizers, ``compression[0] == 1``, treat the frames of a
    video one by one.
    """

    latent_ndim: int

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder: Encoder | FusedEncoder | Tiled = Encoder(config)
        self.to_latent: Mix | nn.Identity = Mix(config.z_channels, config.latent_channels)
        self.from_latent = Mix(config.latent_channels, config.z_channels)
        self.decoder: Decoder | FusedDecoder | Tiled = Decoder(config)
        self.loaded_fingerprint: str | None = None
        self.register_load_state_dict_pre_hook(_drop_unused_resamplers)

    @property
    def compression(self) -> tuple[int, int, int]:
        """Frames, rows and columns of video per cell of the latent."""
        return self.config.compression

    @property
    def dtype(self) -> torch.dtype:
        return self.from_latent.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.from_latent.weight.device

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that stand for the config and the weights, as loaded."""
        if self.loaded_fingerprint is not None:
            return self.loaded_fingerprint
        return fingerprint(self.config.identity(), self.state_dict())

    def features(
        self, video: Float[Tensor, "b 3 t h w"], memory: Memory | None = None
    ) -> Float[Tensor, "b c tl hl wl"]:
        """Return the encoder's output, before any quantisation or statistics."""
        latent = self.to_latent(self.encoder(video.to(self.dtype), memory))
        return rearrange(latent, "b t h w c -> b c t h w")

    def quantize(self, features: Float[Tensor, "b c tl hl wl"]) -> Float[Tensor, "b c tl hl wl"]:
        """Return the features as they are; a discrete tokenizer rounds them to codes."""
        return features

    def encode_codes(
        self, video: Float[Tensor, "b 3 t h w"], memory: Memory | None = None
    ) -> Float[Tensor, "b c tl hl wl"]:
        """Return what the decoder needs: latents without statistics, or quantised codes."""
        return self.quantize(self.features(video, memory))

    def from_codes(self, codes: Float[Tensor, "b c tl hl wl"], start: int = 0) -> Tensor:
        """Return what :meth:`encode` gives for codes, whose first frame has number ``start``."""
        raise NotImplementedError

    def to_codes(self, latent: Tensor, start: int = 0) -> Float[Tensor, "b c tl hl wl"]:
        """Undo :meth:`from_codes`."""
        raise NotImplementedError

    def decode_codes(
        self, codes: Float[Tensor, "b c tl hl wl"], memory: Memory | None = None
    ) -> Float[Tensor, "b 3 t h w"]:
        """Undo :meth:`encode_codes`. Values may leave [-1, 1] a little."""
        latent = rearrange(codes.to(self.dtype), "b c t h w -> b t h w c")
        return self.decoder(self.from_latent(latent), memory)

    def forward(self, video: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 3 t h w"]:
        """Encode and decode, with gradients through the rounding: the training pass."""
        return self.decode_codes(self.encode_codes(video))

    @torch.no_grad()
    def reconstruct(self, video: Tensor) -> Tensor:
        """Encode and decode a video of any size: padded by its last frame, row and column."""
        check_video(video)
        _, _, t, h, w = video.shape
        padded = pad_to_fit(video, self.compression)
        return self(padded)[:, :, :t, :h, :w].to(video.dtype)

    @torch.no_grad()
    def fused(self: T, dtype: torch.dtype | None = None, *, compile: bool = False) -> T:
        """Return a copy for inference that computes the same, faster.

        Outputs are equal to float32 rounding; gradients stop. ``dtype`` is that of the copy:
        ``torch.bfloat16`` is the fast and inexact mode. Long videos go through in pieces by
        themselves. The copy cannot be trained or saved; the original stays as it is.

        ``compile``: by torch.compile between the attentions, on a GPU as CUDA graphs. Each new size
        of video or chunk is compiled when it first comes, which takes a minute or more; a
        stream of equal chunks has two sizes, its first and the others. Pays where the same sizes
        come again and again; on a CPU, where the plain fused mode multiplies by hand, measure.
        """
        encoder, to_latent, decoder = self.encoder, self.to_latent, self.decoder
        if not (
            isinstance(encoder, Encoder)
            and isinstance(to_latent, Mix)
            and isinstance(decoder, Decoder)
        ):
            raise ValueError(
                "this tokenizer is fused or tiled already; call fused() on the original"
            )
        other = copy(self)
        other._modules = {
            name: deepcopy(module)
            for name, module in self._modules.items()
            if name not in ("encoder", "to_latent", "decoder")
        }
        other._buffers = dict(self._buffers)
        other.loaded_fingerprint = self.fingerprint
        other.encoder = FusedEncoder(encoder, to_latent, self.config)
        other.to_latent = nn.Identity()
        other.decoder = FusedDecoder(decoder, self.config)
        other.to(dtype or self.dtype).eval().requires_grad_(False)
        if compile:
            for network in (other.encoder, other.decoder):
                network.layers = compiled(network.layers)
            return other
        for module in other.modules():
            if isinstance(module, Space):
                module.choose()
        return other

    def tiled(self: T, size: int, overlap: int | None = None) -> T:
        """Return a copy that works on huge frames in tiles; inexact, and for inference.

        ``size``: the tiles' sides in pixels; ``overlap``: how much neighbours share, a quarter
        if not given. Both are rounded down to latent cells. The weights are shared.

        Raises:
            ValueError: tiles of less than two cells, or an overlap of half a tile or more.
        """
        sides = self.compression[1:]
        cells = (size // sides[0], size // sides[1])
        shared = (size // 4 if overlap is None else overlap) // max(sides)
        if min(cells) < 2 or shared < 0 or 2 * shared >= min(cells):
            raise ValueError(
                f"tiles of {size} pixels that share {overlap or size // 4}: take at least "
                f"{2 * max(sides)} pixels, and an overlap of less than half a tile"
            )
        other = copy(self)
        other._modules, other._buffers = dict(self._modules), dict(self._buffers)
        other.loaded_fingerprint = self.fingerprint
        for encodes, name in ((True, "encoder"), (False, "decoder")):
            options = {"cells": cells, "overlap": shared, "compression": self.compression}
            setattr(other, name, Tiled(getattr(self, name), encodes=encodes, **options))
        return other

    @property
    def way(self) -> str:
        """How this copy computes, in words."""
        network, tiles = self.encoder, ""
        if isinstance(network, Tiled):
            network, tiles = network.network, f" tiles {network.cells} {network.overlap}"
        fused = "fused" if isinstance(network, FusedEncoder) else "reference"
        if any(isinstance(module, Compiled) for module in network.modules()):
            fused = "compiled"
        return f"{fused} {self.dtype} {self.device}{tiles}"

    def streaming_encoder(self, *, max_context: int | None = None) -> StreamingEncoder:
        """Encode a video that comes in pieces: ``push(video)``, at the end ``flush()``.

        ``max_context``: let the temporal attention see that many latent frames only. This bounds
        the memory, and is inexact from that frame on.
        """
        return StreamingEncoder(self, max_context)

    def streaming_decoder(self, *, max_context: int | None = None) -> StreamingDecoder:
        """Decode latents or tokens that come in pieces: ``push(latents)``."""
        return StreamingDecoder(self, max_context)

    def save(self, folder: str | Path, *, card: str = "", dtype: torch.dtype | None = None) -> None:
        """Write ``config.json``, ``model.safetensors`` and, if given, a model card."""
        if not isinstance(self.encoder, Encoder):
            raise ValueError("a fused or tiled tokenizer cannot be saved; save the original")
        weights = {name: t.to(dtype or t.dtype) for name, t in self.state_dict().items()}
        with replacing(folder) as partial:
            partial.mkdir()
            (partial / CONFIG).write_text(self.config.model_dump_json(indent=1) + "\n")
            if card:
                (partial / "README.md").write_text(card)
            write_weights(partial / WEIGHTS, weights)


class ContinuousTokenizer(Tokenizer):
    """Video <-> latents of zero mean and unit variance (over the training data)."""

    latent_ndim = 5
    mean: Float[Tensor, "c n"]
    std: Float[Tensor, "c n"]

    def __init__(self, config: TokenizerConfig) -> None:
        if config.kind != "continuous":
            raise ValueError(f"{config.name} is {config.kind}; use DiscreteTokenizer")
        super().__init__(config)
        mean = config.latent_mean or [[0.0]] * config.latent_channels
        std = config.latent_std or [[1.0]] * config.latent_channels
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    @property
    def latent_channels(self) -> int:
        return self.config.latent_channels

    def encode(self, video: Tensor, raw: bool = False) -> Tensor:
        """Return latents ``b c tl hl wl``. ``raw``: as the network makes them, not normalised.

        Raises:
            ValueError: the sizes do not fit the compression; the text names the nearest.
        """
        check_video(video)
        check_fits(video, self.compression)
        codes = self.encode_codes(video)
        return (codes if raw else self.from_codes(codes)).to(video.dtype)

    def decode(self, latent: Tensor, raw: bool = False) -> Tensor:
        """Return video ``b 3 t h w``; undo :meth:`encode`."""
        check_latent(latent, 5, self.latent_channels)
        return self.decode_codes(latent if raw else self.to_codes(latent)).to(latent.dtype)

    def from_codes(
        self, codes: Float[Tensor, "b c t h w"], start: int = 0
    ) -> Float[Tensor, "b c t h w"]:
        """Apply the statistics. ``start``: the number of the first latent frame at hand."""
        mean, std = self._statistics(start, codes.shape[2])
        return ((codes - mean) / std).to(codes.dtype)

    def to_codes(
        self, latent: Float[Tensor, "b c t h w"], start: int = 0
    ) -> Float[Tensor, "b c t h w"]:
        mean, std = self._statistics(start, latent.shape[2])
        return (latent * std + mean).to(latent.dtype)

    def _statistics(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        """Pick each frame's column; frames past the last one share the last column."""
        frames = torch.arange(start, start + count, device=self.mean.device)
        frames = frames.clamp(max=self.mean.shape[1] - 1)
        mean, std = (rows.float()[:, frames] for rows in (self.mean, self.std))
        return rearrange(mean, "c t -> c t 1 1"), rearrange(std, "c t -> c t 1 1")


class DiscreteTokenizer(Tokenizer):
    """Video <-> tokens ``0 <= token < vocab_size``."""

    latent_ndim = 4

    def __init__(self, config: TokenizerConfig) -> None:
        if config.kind != "discrete":
            raise ValueError(f"{config.name} is {config.kind}; use ContinuousTokenizer")
        super().__init__(config)
        self.fsq = FSQ(config.levels)

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    def quantize(self, features: Float[Tensor, "b c tl hl wl"]) -> Float[Tensor, "b c tl hl wl"]:
        return self.fsq.quantize(features)

    def encode(self, video: Tensor, raw: bool = False) -> Tensor:
        """Return tokens ``b tl hl wl``. ``raw`` changes nothing: tokens have no statistics.

        Raises:
            ValueError: the sizes do not fit the compression; the text names the nearest.
        """
        check_video(video)
        check_fits(video, self.compression)
        return self.from_codes(self.encode_codes(video))

    def decode(self, tokens: Tensor, raw: bool = False) -> Tensor:
        """Return video ``b 3 t h w``; undo :meth:`encode`."""
        check_latent(tokens, 4, None)
        return self.decode_codes(self.to_codes(tokens))

    def from_codes(
        self, codes: Float[Tensor, "b c t h w"], start: int = 0
    ) -> Int64[Tensor, "b t h w"]:
        """Number the codes."""
        return self.fsq.to_tokens(codes)

    def to_codes(
        self, latent: Int64[Tensor, "b t h w"], start: int = 0
    ) -> Float[Tensor, "b c t h w"]:
        """Return the codes that tokens stand for.

        Raises:
            ValueError: a token is not in the vocabulary.
        """
        if latent.numel() and not 0 <= int(latent.min()) <= int(latent.max()) < self.vocab_size:
            raise ValueError(
                f"tokens are {int(latent.min())} to {int(latent.max())}; "
                f"this tokenizer has 0 to {self.vocab_size - 1}"
            )
        return self.fsq.to_codes(latent.long())


def build(config: TokenizerConfig) -> ContinuousTokenizer | DiscreteTokenizer:
    """Make the tokenizer that a config describes, with random weights."""
    if config.kind == "discrete":
        return DiscreteTokenizer(config)
    return ContinuousTokenizer(config)


def check_video(video: Tensor) -> None:
    """Raise ``ValueError`` for what is not a non-empty float video ``b 3 t h w``."""
    if video.ndim != 5 or video.shape[1] != 3 or not video.is_floating_point():
        kind = f"{str(video.dtype).removeprefix('torch.')} {tuple(video.shape)}"
        raise ValueError(f"a video is float (b, 3, t, h, w) in [-1, 1], got {kind}")
    if not video.numel():
        raise ValueError(f"the video is empty: {tuple(video.shape)}")


def check_fits(video: Tensor, compression: tuple[int, int, int]) -> None:
    """Raise ``ValueError`` with the nearest sizes when a video does not fit the compression."""
    _, _, t, h, w = video.shape
    time, high, wide = compression
    frames = 1 + time * round((t - 1) / time)
    rows, columns = max(high, round(h / high) * high), max(wide, round(w / wide) * wide)
    if (frames, rows, columns) != (t, h, w):
        raise ValueError(
            f"video is {t} frames of {h}x{w}; compression {time}x{high}x{wide} needs "
            f"1 + {time}k frames and sides in multiples of {high}: the nearest is {frames} frames "
            f"of {rows}x{columns} (reconstruct() pads and crops by itself)"
        )


def check_latent(latent: Tensor, ndim: int, channels: int | None) -> None:
    """Raise ``ValueError`` for what this tokenizer's encoder cannot have made."""
    wrong_type = latent.is_floating_point() != (ndim == 5)
    if latent.ndim != ndim or wrong_type or (channels and latent.shape[1] != channels):
        wanted = f"float latents (b, {channels}, t, h, w)" if channels else "tokens (b, t, h, w)"
        kind = f"{str(latent.dtype).removeprefix('torch.')} {tuple(latent.shape)}"
        raise ValueError(f"decode takes {wanted}, got {kind}")
    if not latent.numel():
        raise ValueError(f"nothing to decode: {tuple(latent.shape)}")


def pad_to_fit(
    video: Float[Tensor, "b 3 t h w"], compression: tuple[int, int, int]
) -> Float[Tensor, "b 3 t2 h2 w2"]:
    """Repeat the last frame, row and column until the sizes fit."""
    _, _, t, h, w = video.shape
    time, high, wide = compression
    return F.pad(video, (0, -w % wide, 0, -h % high, 0, (1 - t) % time), mode="replicate")


def _drop_unused_resamplers(
    module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object
) -> None:
    """Forget convolutions that some published files carry and no network runs."""
    known = module.state_dict()
    unused = re.compile(re.escape(prefix) + r"(en|de)coder\.levels\.\d+\.resample\.")
    for name in [n for n in state if unused.match(n) and n.removeprefix(prefix) not in known]:
        del state[name]
