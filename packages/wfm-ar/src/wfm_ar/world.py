"""A world model: frames that were, then the frames that may follow, through tokens."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor

from .config import WorldSettings
from .decoding import Sampler, decode
from .interfaces import (
    ConditionEncoder,
    DiscreteCodec,
    Fingerprinted,
    TextEncoder,
    TokenDecoder,
)
from .model import ArTransformer
from .pretrained import load
from .references import resolve


class WorldModel:
    """Continues videos; keeps the contract WorldModel.

    Args:
        lm: scores tokens.
        codec: the tokenizer that ``lm`` was trained with.
        text_encoder: turns prompts into the context of cross-attention.
        condition_encoder: turns controls (actions, poses) into that context instead.
        token_decoder: paints the pixels in place of the codec's decoder.
        settings: sizes and mode; None takes those stored with ``lm``, or else the sizes of its
            grid in mode "video".
        temperature: of sampling; 0 takes the likeliest token.
        top_p: part of the probability that is sampled from.

    Raises:
        ValueError: the codec has other tokens, or is not the one of the training.
    """

    def __init__(
        self,
        lm: ArTransformer,
        codec: DiscreteCodec,
        text_encoder: TextEncoder | None = None,
        condition_encoder: ConditionEncoder | None = None,
        token_decoder: TokenDecoder | None = None,
        *,
        settings: WorldSettings | None = None,
        temperature: float | int = 1.0,
        top_p: float | None = 0.8,
    ) -> None:
        if lm.config.grid is None:
            raise ValueError("a world model needs a language model on a grid (t, h, w)")
        if codec.vocab_size != lm.vocab_size:
            raise ValueError(f"the codec has {codec.vocab_size} tokens; the model {lm.vocab_size}")
        self.lm, self.codec, self.grid = lm, codec, lm.config.grid
        self.settings = settings or lm.world or _settings_of(codec, self.grid)
        _check_fingerprint(codec, self.settings)
        self.text_encoder, self.condition_encoder = text_encoder, condition_encoder
        self.decoder: TokenDecoder = token_decoder or codec
        self.temperature, self.top_p = temperature, top_p

    @property
    def past_frames(self) -> int:
        """Frames that a rollout looks back at."""
        return self.settings.past_frames

    def video2world(
        self,
        past: Float[Tensor, "b 3 p h w"],
        prompts: Sequence[str] | None = None,
        *,
        frames: int | None = None,
        seed: int = 0,
    ) -> Float[Tensor, "b 3 f h w"]:
        """Return the frames after ``past``, as many as in the training or ``frames``.

        In mode "video" the last 1 + 8 k frames of ``past`` that fit are used: one picture will
        do. Values are in [-1, 1].

        Raises:
            ValueError: wrong sizes, or prompts without a text encoder.
        """
        generator = torch.Generator().manual_seed(seed)
        count = self.settings.frames if frames is None else frames
        return self.rollout(past, frames=count, prompts=prompts, generator=generator)

    @torch.no_grad()
    def rollout(
        self,
        past: Float[Tensor, "b 3 p h w"],
        /,
        *,
        frames: int,
        controls: Mapping[str, Tensor] | None = None,
        prompts: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b 3 f h w"]:
        """Return the ``frames`` frames after ``past``, the new ones only.

        Beyond the length of the training the model goes on from its own last frames. Without
        a generator the noise is that of seed 0. Controls whose second axis is a multiple of
        ``frames`` are spread evenly over the new frames; others count as a whole.

        Raises:
            ValueError: wrong sizes, prompts or controls that the model cannot take.
        """
        self._check(past, frames)
        text = self._embed(prompts, past, controls)
        sampler = Sampler(
            self.temperature,
            top_p=self.top_p if self.temperature else None,
            generator=generator or torch.Generator().manual_seed(0),
        )
        follow = self._frames if self.settings.latents == "image" else self._clips
        return torch.cat(list(follow(past, frames, controls, text, sampler)), 2)

    def _clips(
        self,
        past: Float[Tensor, "b 3 p h w"],
        frames: int,
        controls: Mapping[str, Tensor] | None,
        text: Tensor | None,
        sampler: Sampler,
    ) -> Iterator[Float[Tensor, "b 3 f h w"]]:
        """Yield stretches as long as the grid allows, each from the last frames so far."""
        (ct, _, _), (t, _, _), done = self.codec.compression, self.grid, 0
        while done < frames:
            known = min(past.shape[2], self.past_frames)
            known -= (known - 1) % ct
            given = self.codec.encode(past[:, :, -known:])
            missing = min(t - given.shape[1], math.ceil((frames - done) / ct))
            stretch = min(ct * missing, frames - done)
            context = self._control(controls, done, stretch, frames, text)
            tokens = self._extend(given, missing, context, sampler)
            new = self.decoder.decode(tokens)[:, :, known : known + stretch]
            past = torch.cat([past, new.to(past)], 2)
            done += stretch
            yield past[:, :, -stretch:]

    def _frames(
        self,
        past: Float[Tensor, "b 3 p h w"],
        frames: int,
        controls: Mapping[str, Tensor] | None,
        text: Tensor | None,
        sampler: Sampler,
    ) -> Iterator[Float[Tensor, "b 3 f h w"]]:
        """Yield single frames, each from the tokens of the frames before it."""
        tokens = self.encode_frames(past)
        for i in range(frames):
            context = self._control(controls, i, 1, frames, text)
            tokens, frame = self.next_frame(tokens, context, sampler)
            yield frame.to(past)

    def encode_frames(self, past: Float[Tensor, "b 3 p h w"]) -> Int64[Tensor, "b t y x"]:
        """Return the tokens of the last ``past_frames`` frames, each encoded alone."""
        alone = rearrange(past[:, :, -self.past_frames :], "b c t h w -> (b t) c 1 h w")
        return rearrange(self.codec.encode(alone), "(b t) 1 h w -> b t h w", b=len(past))

    def next_frame(
        self, tokens: Int64[Tensor, "b t h w"], context: Tensor | None, sampler: Sampler
    ) -> tuple[Int64[Tensor, "b u h w"], Float[Tensor, "b 3 1 y x"]]:
        """Return the tokens with those of the next frame behind them, and that frame."""
        tokens = self._extend(tokens[:, -self.past_frames :], 1, context, sampler)
        return tokens, self.decoder.decode(tokens[:, -1:])

    def context_of(self, controls: Mapping[str, Tensor]) -> Float[Tensor, "b m e"] | None:
        """Return the context that controls become.

        Raises:
            ValueError: this world model has no condition encoder.
        """
        if self.condition_encoder is None:
            raise ValueError("controls need a condition encoder, and this world model has none")
        return self.lm.context_of(self.condition_encoder.encode(controls))

    def _extend(
        self,
        tokens: Int64[Tensor, "b t h w"],
        missing: int,
        context: Tensor | None,
        sampler: Sampler,
    ) -> Int64[Tensor, "b u h w"]:
        """Add so many latent frames."""
        _, t, h, w = tokens.shape
        prompt = rearrange(tokens, "b t h w -> b (t h w)")
        if self.lm.bov_token is not None:
            prompt = torch.cat([torch.full_like(prompt[:, :1], self.lm.bov_token), prompt], 1)
        grid = (max(t + missing, self.grid[0]), h, w)
        new = decode(self.lm, prompt, missing * h * w, sampler, context=context, grid=grid)
        return torch.cat([tokens, rearrange(new, "b (t h w) -> b t h w", h=h, w=w)], 1)

    def _embed(
        self,
        prompts: Sequence[str] | None,
        past: Float[Tensor, "b 3 p h w"],
        controls: Mapping[str, Tensor] | None,
    ) -> Float[Tensor, "b m e"] | None:
        if prompts is None:
            return None
        if controls is not None:
            raise ValueError("prompts and controls exclude each other: both are the context")
        if self.text_encoder is None:
            raise ValueError("prompts need a text encoder, and this world model has none")
        if len(prompts) not in (1, len(past)):
            raise ValueError(f"{len(prompts)} prompts for {len(past)} videos")
        text, _ = self.text_encoder.encode(list(prompts))
        return text.expand(len(past), -1, -1).to(past.device)

    def _control(
        self,
        controls: Mapping[str, Tensor] | None,
        start: int,
        count: int,
        frames: int,
        text: Tensor | None,
    ) -> Float[Tensor, "b m e"] | None:
        """Return the context of the new frames ``start`` to ``start + count``."""
        if controls is None:
            return text
        parts = {}
        for name, tensor in controls.items():
            spread = tensor.ndim > 1 and tensor.shape[1] and tensor.shape[1] % frames == 0
            rate = tensor.shape[1] // frames if spread else 0
            parts[name] = tensor[:, start * rate : (start + count) * rate] if spread else tensor
            if name == "action" and not spread:
                raise ValueError(f"{tensor.shape[1]} actions do not spread over {frames} frames")
        return self.context_of(parts)

    def _check(self, past: Float[Tensor, "b 3 p h w"], frames: int) -> None:
        if frames < 1:
            raise ValueError(f"frames must be 1 or more, got {frames}")
        if not past.shape[2]:
            raise ValueError("past holds no frame")
        _, ch, cw = self.codec.compression
        size, trained = past.shape[-2:], (self.grid[1] * ch, self.grid[2] * cw)
        if tuple(size) != trained:
            raise ValueError(
                f"past is {size[0]}x{size[1]}; the model was made for {trained[0]}x{trained[1]}"
            )


def load_world(
    source: str | Path,
    *,
    codec: DiscreteCodec | str | None = None,
    text_encoder: TextEncoder | str | None = None,
    condition_encoder: ConditionEncoder | str | None = None,
    token_decoder: TokenDecoder | str | None = None,
    device: str = "cpu",
) -> WorldModel:
    """Return the world model of a folder, with the parts that its ``world.json`` names.

    A part may be given as an object, or by name or ``module:callable``.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: no ``world.json``, a part that is not installed, or another codec.
    """
    lm = load(source, device=device)
    settings = lm.world
    if settings is None:
        raise ValueError(f"{source}: holds no world.json; a world model needs one")
    if text_encoder is None and lm.config.cross_every:
        text_encoder = settings.text_encoder
    parts = (
        _part(codec or settings.codec, "wfm.codecs", DiscreteCodec),
        _part(text_encoder, "wfm.text_encoders", TextEncoder),
        _part(condition_encoder, "wfm.condition_encoders", ConditionEncoder),
        _part(token_decoder, "wfm.token_decoders", TokenDecoder),
    )
    for part in parts:
        if isinstance(part, torch.nn.Module):
            part.to(device)
    return WorldModel(lm, *parts, settings=settings)


def pico_ar() -> WorldModel:
    """Return the built-in world model."""
    return load_world("builtin:pico-ar")


def _part(part: object, group: str, contract: type) -> Any:
    """Resolve a reference; check that the part keeps the contract."""
    found = resolve(part, group) if isinstance(part, str) else part
    if found is not None and not isinstance(found, contract):
        raise ValueError(f"{part}: a {type(found).__name__}, not a {contract.__name__}")
    return found


def _settings_of(codec: DiscreteCodec, grid: tuple[int, int, int]) -> WorldSettings:
    """Take the sizes from the model's grid: a past of two latent frames where there is room."""
    (ct, ch, cw), (t, h, w) = codec.compression, grid
    past = 1 + ct if t > 2 else 1
    frames = max(1 + ct * (t - 1) - past, 1)
    return WorldSettings(past_frames=past, frames=frames, height=h * ch, width=w * cw)


def _check_fingerprint(codec: DiscreteCodec, settings: WorldSettings) -> None:
    """Refuse a codec other than that of the training; one without fingerprint is trusted."""
    wanted = settings.codec_fingerprint
    if wanted and isinstance(codec, Fingerprinted) and codec.fingerprint != wanted:
        raise ValueError(
            f"this world model was trained with codec {settings.codec} ({wanted}); "
            f"the one given is {codec.fingerprint}"
        )
