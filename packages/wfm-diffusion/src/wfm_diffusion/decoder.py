"""Tokens of a discrete codec -> video, by diffusion in the latents of a continuous one.

The diffusion decoder of Cosmos 1.0 (arXiv 2501.03575, section 5.2): a text2world network that
sees the embedded tokens as further input channels.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from .config import WorldSettings
from .guidance import Condition, Guided
from .interfaces import LatentCodec, TextEncoder
from .samplers import Denoise, nvidia
from .transformer import DiffusionTransformer
from .world import check_codec

PROMPT = "high quality, 4k, high definition, smooth video"
"""What the release tells its decoder when nobody wrote a prompt."""


class DiffusionDecoder:
    """A TokenDecoder: sharper than the discrete codec's own, at the price of some network calls.

    ``guidance`` leads away from no text and token 0 everywhere, as the release does. Clips of
    more than ``window`` frames of tokens are denoised in windows of that length whose answers are
    averaged where they overlap, at every noise level, and decoded in one piece: there is no
    seam. (The release blends two pixel frames of windows that share two latent frames, which
    jitters.) The noise is drawn on the CPU from ``seed``.

    Raises:
        ValueError: a network that takes no tokens, or a codec other than the one trained with.
    """

    def __init__(  # noqa: PLR0913  two parts and the dials of a sampler
        self,
        net: DiffusionTransformer,
        codec: LatentCodec,
        text_encoder: TextEncoder | None = None,
        *,
        prompt: str | None = PROMPT,
        steps: int = 15,
        guidance: float = 1.8,
        window: int = 8,
        overlap: int = 2,
        seed: int = 0,
    ) -> None:
        if not net.config.token_vocab:
            raise ValueError("this network takes no tokens: its config has no token_vocab")
        if not 0 < overlap < window:
            raise ValueError(f"windows of {window} frames of tokens cannot overlap by {overlap}")
        self.settings = net.world or WorldSettings()
        check_codec(net, codec, self.settings)
        self.net, self.codec = net, codec
        self.steps, self.guidance, self.seed = steps, guidance, seed
        self.window, self.overlap = window, overlap
        self.scale = tuple(
            a // b for a, b in zip(self.settings.token_compression, codec.compression, strict=True)
        )
        self.text: Tensor | None = None
        if text_encoder is not None and prompt is not None:
            self.text = text_encoder.encode([prompt])[0].to(net.embed.weight.device)

    @torch.no_grad()
    def decode(self, tokens: Int64[Tensor, "b tl hl wl"], /) -> Float[Tensor, "b 3 t h w"]:
        """Return the video, in [-1, 1].

        Raises:
            ValueError: tokens that the network does not know.
        """
        return self.codec.decode(self.latents(tokens) / self.net.sigma_data).clamp(-1, 1)

    @torch.no_grad()
    def latents(self, tokens: Int64[Tensor, "b tl hl wl"]) -> Float[Tensor, "b c t h w"]:
        """Sample the latents of a clip."""
        if tokens.min() < 0 or tokens.max() >= self.net.config.token_vocab:
            raise ValueError(
                f"tokens from {int(tokens.min())} to {int(tokens.max())}; the network knows 0 to"
                f" {self.net.config.token_vocab - 1}"
            )
        tokens = tokens.to(self.net.embed.weight.device)
        (b, t, h, w), (rt, rh, rw) = tokens.shape, self.scale
        generator = torch.Generator().manual_seed(self.seed)
        shape = (b, self.net.config.latent_channels, 1 + rt * (t - 1), rh * h, rw * w)
        noise = torch.randn(shape, generator=generator)
        parts = windows(t, self.window, self.overlap)
        denoise = Windowed(
            [self._guided(tokens[:, part]) for part in parts],
            [slice(rt * part.start, rt * (part.stop - 1) + 1) for part in parts],
        )
        return nvidia(denoise, noise.to(tokens.device), self.steps, sigma_min=0.02).float()

    def _guided(self, tokens: Int64[Tensor, "b tl hl wl"]) -> Guided:
        rate = torch.full((len(tokens),), self.settings.fps, device=tokens.device)
        condition: Condition = {"tokens": tokens, "fps": rate}
        without: Condition = {"tokens": torch.zeros_like(tokens)}
        if self.text is not None:
            text = self.text.expand(len(tokens), -1, -1)
            condition, without = (
                {**condition, "text": text},
                {**without, "text": torch.zeros_like(text)},
            )
        return Guided(self.net, condition, without, guidance=self.guidance)


class Windowed:
    """Denoise a clip window by window; where windows overlap the nearer middle counts more."""

    def __init__(self, denoisers: Sequence[Denoise], parts: Sequence[slice]) -> None:
        self.denoisers, self.parts = denoisers, parts

    def __call__(
        self, x: Float[Tensor, "b c t h w"], sigma: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c t h w"]:
        if len(self.parts) == 1:
            return self.denoisers[0](x, sigma)
        total, weight = torch.zeros_like(x), x.new_zeros(x.shape[2], 1, 1)
        for denoise, part in zip(self.denoisers, self.parts, strict=True):
            ramp = hat(part.stop - part.start).to(x)[:, None, None]
            total[:, :, part] += ramp * denoise(x[:, :, part], sigma)
            weight[part] += ramp
        return total / weight


def windows(frames: int, length: int, overlap: int) -> list[slice]:
    """Cover ``frames`` with windows of at most ``length`` that share ``overlap`` or more."""
    if frames <= length:
        return [slice(0, frames)]
    starts = [*range(0, frames - length, length - overlap), frames - length]
    return [slice(start, start + length) for start in starts]


def hat(length: int) -> Float[Tensor, " n"]:
    """Return weights that rise to the middle and fall again: 1, 2, ..., 2, 1."""
    place = torch.arange(length)
    return torch.minimum(place + 1, length - place).float()
