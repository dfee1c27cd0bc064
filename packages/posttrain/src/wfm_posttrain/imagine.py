"""Clips imagined by a fine-tuned network: a WorldModel over a Denoiser or a NextTokenModel."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor

from .clips import Codec
from .interfaces import Denoiser, LatentCodec, TextEncoder
from .moments import encode_video
from .multiview import from_there, points
from .steering import ConditionNet, Place, Steering

HIGHEST, LOWEST, RHO = 80.0, 0.002, 7.0
"""Noise levels of EDM (arXiv 2206.00364), equation 5."""


@dataclass(frozen=True)
class Stretch:
    """Latent frames ``known`` of each camera are given, the others up to ``frames`` are new."""

    known: int
    frames: int


class ClipWorld:
    """Imagine what follows, steered by ``controls``; keeps the contract WorldModel.

    Several cameras stand one after another along time, in ``past`` and in the answer, in the
    order of ``controls["view"]`` (b v). Controls that belong to frames (poses, hints) have a row
    for each frame of ``past`` and each new one; actions belong to the new frames alone.
    """

    def __init__(  # noqa: PLR0913  the parts of a world, and its dials
        self,
        network: Any,
        codec: Codec,
        encoder: ConditionNet,
        steering: Steering,
        place: Place,
        *,
        text_encoder: TextEncoder | None,
        past_frames: int,
        frames: int,
        fps: float,
        steps: int = 8,
        guidance: float = 0.0,
        temperature: float = 1.0,
    ) -> None:
        self.network, self.codec, self.encoder = network, codec, encoder
        self.steering, self.place, self.text_encoder = steering, place, text_encoder
        self.past_frames, self.frames, self.fps = past_frames, frames, fps
        self.steps, self.guidance, self.temperature = steps, guidance, temperature

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return next(self.network.parameters()).device

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
        """Return the ``frames`` new frames of each camera.

        One prompt serves all, or there is one for each sample, or for each camera of each.

        Raises:
            ValueError: sizes, controls or prompts that do not fit.
            KeyError: unknown controls.
        """
        controls = {k: x.to(self.device) for k, x in (controls or {}).items()}
        views = controls["view"].shape[1] if "view" in controls else 1
        self._check(past, frames, controls, views)
        text = self._embed(prompts, len(past), views)
        generator = generator or torch.Generator().manual_seed(0)
        video = rearrange(past.to(self.device), "b c (v p) h w -> b v c p h w", v=views)
        new = list(self._stretches(video, frames, controls, text, generator))
        return rearrange(torch.cat(new, dim=3), "b v c f h w -> b c (v f) h w").to(past)

    def _stretches(
        self,
        video: Float[Tensor, "b v 3 p h w"],
        frames: int,
        controls: Mapping[str, Tensor],
        text: Tensor | None,
        generator: torch.Generator,
    ) -> Iterator[Float[Tensor, "b v 3 f h w"]]:
        """Yield stretches no longer than those trained on, each from the last frames so far."""
        ct, past, done = self.place.compression[0], video.shape[3], 0
        b = len(video)
        while done < frames:
            known = min(video.shape[3], self.past_frames)
            known -= (known - 1) % ct
            new = most = (self.frames - known) // ct
            if not self.steering.whole_clips:
                new = min(most, math.ceil((frames - done) / ct))
            stretch = Stretch(1 + (known - 1) // ct, 1 + (known - 1) // ct + new)
            shown = rearrange(video[:, :, :, -known:], "b v c t h w -> (b v) c t h w")
            kept = self._encode(shown, b)
            window = (past + done - known, known + ct * new)
            rows = {k: self._rows(k, x, window, done, past) for k, x in controls.items()}
            condition = self.encoder.encode(rows)
            if isinstance(self.codec, LatentCodec):
                codes = self._denoise(kept, stretch, condition, text, generator)
            else:
                codes = self._continue(kept, stretch, condition, text, generator)
            count = min(ct * new, frames - done)
            answer = self._decode(codes, b)[:, :, :, known : known + count]
            answer = answer.clamp(-1, 1)
            video = torch.cat([video, answer], dim=3)
            done += count
            yield answer

    def _rows(self, name: str, x: Tensor, window: tuple[int, int], done: int, past: int) -> Tensor:
        """Cut a control to a window of frames; past its end its last row is repeated."""
        start, length = window
        axis = self.steering.framewise.get(name)
        if axis is not None:
            x = x.narrow(axis, start, min(length, x.shape[axis] - start))
            last = x.narrow(axis, x.shape[axis] - 1, 1)
            return torch.cat([x, *[last] * (length - x.shape[axis])], dim=axis)
        if name == "trajectory" and start:
            return torch.stack([from_there(way, points(start, self.fps)) for way in x])
        if name != "action":
            return x
        # Steps of the window before the first new frame of the rollout are unknown.
        unknown = x.new_full((len(x), past - 1, x.shape[2]), torch.nan)
        steps = torch.cat([unknown, x], dim=1)[:, start : start + length - 1]
        return F.pad(steps, (0, 0, 0, length - 1 - steps.shape[1]), value=torch.nan)

    def _denoise(
        self,
        kept: Float[Tensor, "b v c k h w"],
        stretch: Stretch,
        condition: Mapping[str, Tensor],
        text: Tensor | None,
        generator: torch.Generator,
    ) -> Float[Tensor, "b v c t h w"]:
        """Sample the new latent frames by Euler's method, the kept ones given."""
        b, v = kept.shape[:2]
        kept = F.pad(
            kept * self.network.sigma_data, (0, 0, 0, 0, 0, stretch.frames - stretch.known)
        )
        kept = rearrange(kept, "b v c t h w -> b c (v t) h w")
        given = given_frames(torch.full((b,), stretch.known), stretch.frames, v)
        given = given[:, None, :, None, None].to(kept).expand_as(kept[:, :1]).contiguous()
        condition = {
            **spread(condition, kept.shape, v),
            "fps": torch.full((b,), self.fps, device=kept.device),
            "given": given,
        }
        noise = torch.randn(kept.shape, generator=generator).to(kept) * self.temperature
        guided = Guided(self.network, condition, text, self.guidance)
        x = euler(guided, noise, kept, given, self.steps)
        return rearrange(x / self.network.sigma_data, "b c (v t) h w -> b v c t h w", v=v)

    def _continue(
        self,
        kept: Int64[Tensor, "b v k h w"],
        stretch: Stretch,
        condition: Mapping[str, Tensor],
        text: Tensor | None,
        generator: torch.Generator,
    ) -> Int64[Tensor, "b v t h w"]:
        """Add the tokens of the new latent frames."""
        h, w = kept.shape[3:]
        prompt = rearrange(kept, "b 1 t h w -> b (t h w)")
        total = stretch.frames * h * w
        begin = getattr(self.network, "bov_token", None)
        if begin is not None:
            prompt, total = F.pad(prompt, (1, 0), value=begin), total + 1
        grid = None if total <= self.network.max_tokens else (stretch.frames, h, w)
        condition = dict(condition) if text is None else {"text": text}
        count = (stretch.frames - stretch.known) * h * w
        new = self.network.generate(prompt, count, condition, grid=grid, generator=generator)
        return torch.cat([kept, rearrange(new, "b (t h w) -> b 1 t h w", h=h, w=w)], dim=2)

    def _encode(self, video: Float[Tensor, "n 3 t h w"], b: int) -> Tensor:
        codes = encode_video(self.codec, video, alone=self.place.compression[0] == 1)
        return rearrange(codes, "(b v) ... -> b v ...", b=b)

    def _decode(self, codes: Tensor, b: int) -> Float[Tensor, "b v 3 t h w"]:
        flat = rearrange(codes, "b v ... -> (b v) ...")
        if self.place.compression[0] > 1:
            return rearrange(self.codec.decode(flat), "(b v) ... -> b v ...", b=b)
        t = codes.shape[-3]
        pattern = "n c t h w -> (n t) c 1 h w" if codes.ndim == 6 else "n t h w -> (n t) 1 h w"
        video = self.codec.decode(rearrange(flat, pattern))
        return rearrange(video, "(b v t) c 1 h w -> b v c t h w", b=b, t=t)

    def _embed(
        self, prompts: Sequence[str] | None, count: int, views: int
    ) -> Float[Tensor, "b n d"] | None:
        """Embed prompts, those of a sample's cameras one after another."""
        if prompts is None:
            return None
        if self.text_encoder is None:
            raise ValueError("prompts need a text encoder, and this world model has none")
        if len(prompts) not in (1, count, count * views):
            raise ValueError(f"{len(prompts)} prompts for {count} samples of {views} views")
        text, _ = self.text_encoder.encode(list(prompts))
        text = text.repeat_interleave(count * views // len(prompts), dim=0)
        return rearrange(text, "(b v) n d -> b (v n) d", b=count).to(self.device)

    def _check(self, past: Tensor, frames: int, controls: Mapping[str, Tensor], views: int) -> None:
        if frames < 1:
            raise ValueError(f"frames must be 1 or more, got {frames}")
        if past.shape[-2:] != self.place.size:
            h, w = self.place.size
            raise ValueError(
                f"past is {past.shape[-2]}x{past.shape[-1]}; the model was trained at {h}x{w}"
            )
        count, rest = divmod(past.shape[2], views)
        if rest or not count:
            raise ValueError(f"past has {past.shape[2]} frames for {views} cameras")
        if self.steering.grouped and "view" not in controls:
            raise ValueError('a model of several cameras needs controls={"view": b v}')
        for name, axis in self.steering.framewise.items():
            if name in controls and controls[name].shape[axis] != count + frames:
                raise ValueError(
                    f"{name} has {controls[name].shape[axis]} rows; it needs {count + frames}, "
                    f"one for each of {count} past and {frames} new frames"
                )
        if "action" in controls and controls["action"].shape[1] != frames:
            raise ValueError(f"{controls['action'].shape[1]} actions for {frames} new frames")


class Guided:
    """A denoiser with its condition: ``x0 = cond + guidance (cond - uncond)``, uncond textless."""

    def __init__(
        self,
        network: Denoiser,
        condition: Mapping[str, Tensor],
        text: Tensor | None,
        guidance: float,
    ) -> None:
        self.network, self.condition = network, dict(condition)
        self.guidance = guidance if text is not None else 0.0
        if text is not None:
            self.condition["text"] = text
        if self.guidance:
            both = {k: torch.cat([x, x]) for k, x in self.condition.items()}
            both["text"] = torch.cat([text, torch.zeros_like(text)])  # ty: ignore[invalid-argument-type]
            self.condition = both

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        if not self.guidance:
            return self.network.denoise(x, sigma, self.condition)
        both = self.network.denoise(torch.cat([x, x]), torch.cat([sigma, sigma]), self.condition)
        cond, uncond = both.chunk(2)
        return cond + self.guidance * (cond - uncond)


def euler(
    denoise: Guided,
    noise: Float[Tensor, "b c t h w"],
    kept: Float[Tensor, "b c t h w"],
    given: Float[Tensor, "b 1 t h w"],
    steps: int,
) -> Float[Tensor, "b c t h w"]:
    """Follow EDM's ordinary differential equation from noise to clean latents."""
    first, last = HIGHEST ** (1 / RHO), LOWEST ** (1 / RHO)
    levels = [(first + i / max(steps - 1, 1) * (last - first)) ** RHO for i in range(steps)]
    x = noise * HIGHEST
    for now, after in zip(levels, [*levels[1:], 0.0], strict=True):
        x = torch.where(given > 0, kept, x)
        clean = denoise(x, torch.full((len(x),), now, device=x.device)).float()
        x = clean + (x - clean) * (after / now)
    return torch.where(given > 0, kept, x)


def given_frames(known: Int64[Tensor, " b"], frames: int, views: int) -> Float[Tensor, "b n"]:
    """Return 1 for the first ``known`` latent frames of each camera, 0 for the others."""
    given = (torch.arange(frames) < known[:, None]).float()
    return given.repeat(1, views)


def spread(condition: Mapping[str, Tensor], shape: Sequence[int], views: int) -> dict[str, Tensor]:
    """Repeat planes of ``channels`` (b k v 1 1), one for each camera, over its latents."""
    found = dict(condition)
    if "channels" in found and found["channels"].shape[2:] != tuple(shape[2:]):
        planes = found["channels"].repeat_interleave(shape[2] // views, dim=2)
        found["channels"] = planes.expand(-1, -1, -1, *shape[3:])
    return found
