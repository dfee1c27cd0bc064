"""A world model: words or frames in, the video that they describe or that follows them out."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from .config import WorldSettings
from .guards import Guards
from .guidance import Guided
from .interfaces import ConditionEncoder, LatentCodec, TextEncoder
from .latents import decode_video, encode_video, fingerprint_of
from .plan import Controls, Plan
from .samplers import SAMPLERS, Progress, SamplerName
from .shortcuts import Shortcuts
from .transformer import DiffusionTransformer
from .video import to_frames, to_model

logger = logging.getLogger(__name__)

Handover = Literal["pixels", "latents"]
FEW_STEPS = 8
"""Steps for one new frame of an action-conditioned model: the past leaves little to decide."""


class WorldModel:
    """Text2world, video2world, and rollouts under controls; keeps the contract WorldModel.

    ``settings`` None takes the ``world.json`` that was loaded with ``net``, or Cosmos 1.0's
    sizes. ``steps``, ``guidance``, ``sampler`` and ``temperature`` are what every call uses
    unless it says otherwise; left out, the settings decide, which may want others where frames
    are given. ``temperature`` is the standard deviation of the noise that sampling starts from:
    below 1 the ends are likelier and vary less. ``shortcuts`` save time and change the answer.
    Networks of image latents imagine frame by frame, one control row each.

    Raises:
        ValueError: a codec other than the one trained with, or parts of other sizes.
    """

    def __init__(  # noqa: PLR0913  the parts of a world, and its four dials
        self,
        net: DiffusionTransformer,
        codec: LatentCodec,
        text_encoder: TextEncoder | None = None,
        condition_encoder: ConditionEncoder | None = None,
        guard: object | Sequence[object] | None = None,
        *,
        settings: WorldSettings | None = None,
        steps: int | None = None,
        guidance: float | int | None = None,
        sampler: SamplerName | None = None,
        temperature: float | int | None = None,
        shortcuts: Shortcuts | None = None,
    ) -> None:
        self.settings = settings or net.world or WorldSettings()
        check_codec(net, codec, self.settings)
        if text_encoder is not None and text_encoder.dim != net.config.text_dim:
            raise ValueError(
                f"the text encoder makes {text_encoder.dim} features, the network takes"
                f" {net.config.text_dim}"
            )
        guards = list(guard) if isinstance(guard, Sequence) else [guard] if guard else []
        if not guards:
            logger.warning("NO GUARD: prompts and videos of this world model go unchecked")
        self.guards = Guards(guards)
        self.net, self.codec = net, codec
        self.text_encoder, self.condition_encoder = text_encoder, condition_encoder
        few = FEW_STEPS if self.settings.latents == "image" else None
        own = few or self.settings.steps
        self.steps = own if steps is None else steps
        given = few or self.settings.steps_given or own
        self.steps_given = given if steps is None else steps
        led = self.settings.guidance_given
        self.guidance = self.settings.guidance if guidance is None else guidance
        self.guidance_given = self.guidance if led is None or guidance is not None else led
        self.sampler: SamplerName = sampler or self.settings.sampler
        self.temperature = self.settings.temperature if temperature is None else temperature
        cool = self.settings.temperature_given if temperature is None else temperature
        self.temperature_given = self.temperature if cool is None else cool
        self.shortcuts = shortcuts or Shortcuts()

    @property
    def past_frames(self) -> int:
        """Frames that a rollout looks back at."""
        return self.settings.past_frames

    @property
    def _device(self) -> torch.device:
        return self.net.embed.weight.device

    @torch.no_grad()
    def text2world(  # noqa: PLR0913  the documented call
        self,
        prompts: Sequence[str],
        *,
        frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        steps: int | None = None,
        guidance: float | int | None = None,
        sampler: SamplerName | None = None,
        temperature: float | int | None = None,
        negative_prompt: str | None = None,
        fps: float | int | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Float[Tensor, "b 3 t h w"]:
        """Imagine one video for each prompt, in [-1, 1].

        None takes the size, frame rate and guidance of the training. The noise is drawn on
        the CPU: a seed gives the same video on every device, up to rounding. Without a
        ``negative_prompt`` guidance leads away from no text at all.

        Raises:
            ValueError: sizes that the codec or the network does not take; a temperature below 0.
            Refused: a guard refuses a prompt or a video.
        """
        s = self.settings
        total = frames or (s.past_frames + s.frames if s.latents == "video" else s.past_frames + 1)
        shape = self.latent_shape(total, height or s.height, width or s.width)
        generator = torch.Generator().manual_seed(seed)
        branches = self.branches(prompts, len(prompts), negative_prompt, fps)
        guided = self._guided(branches, self.guidance if guidance is None else guidance)
        noise = torch.randn(len(prompts), *shape, generator=generator)
        noise = cooled(noise, self.temperature if temperature is None else temperature)
        latents = self.sample(guided, noise, steps, sampler, progress)
        return self.show(self.decode(latents)[:, :, :total])

    @torch.no_grad()
    def video2world(  # noqa: PLR0913  the documented call
        self,
        past: Float[Tensor, "b 3 p h w"],
        prompts: Sequence[str] | None = None,
        *,
        frames: int | None = None,
        steps: int | None = None,
        guidance: float | int | None = None,
        sampler: SamplerName | None = None,
        temperature: float | int | None = None,
        negative_prompt: str | None = None,
        fps: float | int | None = None,
        seed: int = 0,
        progress: Progress | None = None,
        handover: Handover = "pixels",
    ) -> Float[Tensor, "b 3 f h w"]:
        """Return the frames that follow ``past``, the new ones only; one picture will do.

        More frames than were trained on are made stretch by stretch. ``handover`` "pixels" shows
        each stretch the decoded last frames, encoded anew as in training; "latents" its last
        latent frames as they are, and decodes the whole at the end: no loss by the codec, but
        a first latent frame that stands for several frames, which no clip begins with.

        Raises:
            ValueError: sizes that the codec or the network does not take; a temperature below 0.
            Refused: a guard refuses a prompt, the past, or the answer.
        """
        count = self.settings.frames if frames is None else frames
        self._check_past(past, count)
        self.show(past, what="input video")
        branches = self.branches(prompts, len(past), negative_prompt, fps)
        guided = self._guided(branches, self.guidance_given if guidance is None else guidance)
        generator = torch.Generator().manual_seed(seed)
        plan = Plan(guided, generator, steps, sampler, temperature, progress)
        if self.settings.latents == "image":
            return self.show(self._frames(past, count, plan, None))
        if handover == "latents":
            return self.show(self._in_latents(past, count, plan))
        return self.show(torch.cat(list(self._stretches(past, count, plan, None)), dim=2))

    @torch.no_grad()
    def rollout(
        self,
        past: Float[Tensor, "_ 3 p h w"],
        /,
        *,
        frames: int,
        controls: Mapping[str, Tensor] | None = None,
        prompts: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b 3 f h w"]:
        """Return the ``frames`` frames after ``past``, the new ones only.

        The loop of planners and environments: prompts are guarded, frames are not. A batch of
        one ``past`` serves any number of ``controls``. Controls whose second axis is a multiple
        of ``frames`` are spread evenly over the new frames; others count as a whole.

        Raises:
            ValueError: wrong sizes, or controls without a condition encoder.
            Refused: a guard refuses a prompt.
        """
        self._check_past(past, frames)
        controls = dict(controls or {})
        count = max([len(past), *(len(x) for x in controls.values())])
        if len(past) not in (1, count):
            raise ValueError(f"{len(past)} pasts for {count} controls; one, or as many")
        branches = self.branches(prompts, count, None, None)
        generator = generator or torch.Generator().manual_seed(0)
        plan = Plan(self._guided(branches, self.guidance_given), generator)
        control = Controls(controls, frames, self.condition_encoder) if controls else None
        if self.settings.latents == "image":
            return self._frames(past, frames, plan, control)
        past = past.expand(count, -1, -1, -1, -1)
        return torch.cat(list(self._stretches(past, frames, plan, control)), dim=2)

    def _stretches(
        self, past: Tensor, frames: int, plan: Plan, control: Controls | None
    ) -> Iterator[Float[Tensor, "b 3 f h w"]]:
        """Yield stretches as long as in training, each from the last frames so far."""
        ct, s, done = self.codec.compression[0], self.settings, 0
        while done < frames:
            known = min(past.shape[2], s.past_frames)
            known -= (known - 1) % ct
            kept = self._encode(past[:, :, -known:])
            most = max(1, (s.past_frames + s.frames - known) // ct)
            new = min(most, math.ceil((frames - done) / ct))
            stretch = min(ct * new, frames - done)
            guided = plan.guided.with_ports(control.of(done, stretch) if control else {})
            latents = self._continue(kept, new, plan, guided)
            video = self.decode(latents)[:, :, known : known + stretch].to(past)
            past = torch.cat([past, video], dim=2)
            done += stretch
            yield video

    def _in_latents(self, past: Tensor, frames: int, plan: Plan) -> Float[Tensor, "b 3 f h w"]:
        """Go on in latents, stretch by stretch; decode once, at the end."""
        ct, s = self.codec.compression[0], self.settings
        known = min(past.shape[2], s.past_frames)
        known -= (known - 1) % ct
        latents = self._encode(past[:, :, -known:])
        most, wanted = 1 + (s.past_frames - 1) // ct, math.ceil(frames / ct)
        room = max(1, (s.past_frames + s.frames - 1) // ct + 1 - most)
        while (left := 1 + (known - 1) // ct + wanted - latents.shape[2]) > 0:
            kept = latents[:, :, -most:]
            stretch = self._continue(kept, min(room, left), plan, plan.guided)
            latents = torch.cat([latents, stretch[:, :, kept.shape[2] :]], dim=2)
        return self.decode(latents)[:, :, known : known + frames].to(past)

    def _frames(
        self, past: Tensor, frames: int, plan: Plan, control: Controls | None
    ) -> Float[Tensor, "b 3 f h w"]:
        """Imagine frame by frame in latents; decode once, at the end."""
        latents = self._encode(past[:, :, -self.past_frames :])
        latents = latents.expand(plan.guided.batch, -1, -1, -1, -1)
        for i in range(frames):
            guided = plan.guided.with_ports(control.of(i, 1) if control else {})
            window = self._continue(latents[:, :, -self.past_frames :], 1, plan, guided)
            latents = torch.cat([latents, window[:, :, -1:]], dim=2)
        return self.decode(latents[:, :, -frames:]).to(past)

    def _continue(
        self, kept: Float[Tensor, "b c k h w"], new: int, plan: Plan, guided: Guided
    ) -> Float[Tensor, "b c t h w"]:
        """Sample ``new`` latent frames after the kept ones."""
        b, c, k, h, w = kept.shape
        noises = torch.randn(2, b, c, k + new, h, w, generator=plan.generator).to(kept)
        given = kept.new_zeros(b, 1, k + new, h, w)
        given[:, :, :k] = 1
        kept = torch.cat([kept, kept.new_zeros(b, c, new, h, w)], dim=2)
        guided.give(kept, given, noises[1], self.settings.given_sigma)
        steps = self.steps_given if plan.steps is None else plan.steps
        own = self.temperature_given if plan.temperature is None else plan.temperature
        noise = cooled(noises[0], own)
        return self.sample(guided, noise, steps, plan.sampler, plan.progress)

    def sample(
        self,
        guided: Guided,
        noise: Tensor,
        steps: int | None,
        sampler: SamplerName | None,
        progress: Progress | None,
    ) -> Tensor:
        """Return the latents that the sampler makes of the noise; None is this world's own."""
        steps = self.steps if steps is None else steps
        if steps < 2:
            raise ValueError(f"a sampler needs two steps or more, got {steps}")
        name = sampler or self.sampler
        if name not in SAMPLERS:
            raise ValueError(f"no sampler {name!r}; there are {', '.join(SAMPLERS)}")
        noise = noise.to(self._device)
        denoise = self.shortcuts.around(guided, self.net.sigma_data)
        return SAMPLERS[name](denoise, noise, steps, progress=progress).float()

    def branches(
        self,
        prompts: Sequence[str] | None,
        count: int,
        negative_prompt: str | None,
        fps: float | int | None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        """Return the conditions with the prompts' text, and with the negative one's or none."""
        rate = torch.full((count,), float(fps or self.settings.fps), device=self._device)
        base = {"fps": rate}
        if prompts is None:
            return base, None
        if self.text_encoder is None:
            raise ValueError("prompts need a text encoder, and this world model has none")
        if len(prompts) not in (1, count):
            raise ValueError(f"{len(prompts)} prompts for {count} videos; one, or as many")
        for text in (*prompts, *([negative_prompt] if negative_prompt else [])):
            self.guards.check_prompt(text)
        text = self._embed(prompts).expand(count, -1, -1)
        none = torch.zeros_like(text)
        if negative_prompt:
            none = self._embed([negative_prompt]).expand(count, -1, -1)
        return {**base, "text": text}, {**base, "text": none}

    def _embed(self, prompts: Sequence[str]) -> Tensor:
        encoder = cast(TextEncoder, self.text_encoder)
        return encoder.encode(list(prompts))[0].to(self._device)

    def _guided(
        self,
        branches: tuple[dict[str, Tensor], dict[str, Tensor] | None],
        guidance: float | int,
    ) -> Guided:
        interval = self.shortcuts.guidance_interval
        return Guided(self.net, *branches, guidance=float(guidance), interval=interval)

    def _encode(self, video: Tensor) -> Tensor:
        latents = encode_video(self.codec, video, self.settings.latents)
        return latents.float().to(self._device) * self.net.sigma_data

    def decode(self, latents: Tensor) -> Tensor:
        """Return the video of latents in the network's scale."""
        return decode_video(self.codec, latents / self.net.sigma_data, self.settings.latents)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Return c t h w of a video, t rounded up."""
        ct, ch, cw = self.codec.compression
        ct = 1 if self.settings.latents == "image" else ct
        _, ph, pw = self.net.config.patch
        if height % (ch * ph) or width % (cw * pw) or frames < 1:
            raise ValueError(
                f"{frames} frames of {height}x{width}: the height must be a multiple of {ch * ph},"
                f" the width of {cw * pw}, and there must be one frame or more"
            )
        size = (1 + math.ceil((frames - 1) / ct), height // ch, width // cw)
        if any(n > m for n, m in zip(size, self.net.config.max_size, strict=True)):
            raise ValueError(
                f"{frames} frames of {height}x{width} are latents of {size}; the network takes up"
                f" to {self.net.config.max_size}"
            )
        return self.net.config.latent_channels, *size

    def _check_past(self, past: Tensor, frames: int) -> None:
        if not self.net.config.condition_mask:
            raise ValueError("this network is text2world only: it takes no frames")
        if not past.shape[2]:
            raise ValueError("past holds no frame")
        self.latent_shape(frames, *past.shape[-2:])

    def show(
        self, video: Float[Tensor, "b 3 t h w"], *, what: str = "video"
    ) -> Float[Tensor, "b 3 t h w"]:
        """Return the video, clamped, as the guards let it pass."""
        video = video.float().clamp(-1, 1)
        if not self.guards.guards:
            return video
        shown = []
        for sample in video:
            frames = to_frames(sample[None])
            cleared = self.guards.clear(frames, what=what)
            same = torch.equal(cleared, frames)
            shown.append(sample[None] if same else to_model(cleared).to(sample))
        return torch.cat(shown)


def cooled(noise: Tensor, temperature: float | int) -> Tensor:
    """Return noise of that standard deviation.

    Raises:
        ValueError: a temperature below 0.
    """
    if temperature < 0:
        raise ValueError(f"temperature {temperature:g}: must be 0 or more; 1 is as trained")
    return noise * temperature


def check_codec(net: DiffusionTransformer, codec: LatentCodec, settings: WorldSettings) -> None:
    """Refuse a codec that the network was not trained with.

    Raises:
        ValueError: names both.
    """
    if codec.latent_channels != net.config.latent_channels:
        raise ValueError(
            f"the codec makes {codec.latent_channels} latent channels, the network takes"
            f" {net.config.latent_channels}"
        )
    wanted, found = settings.codec_fingerprint, fingerprint_of(codec)
    if wanted and found and wanted != found:
        raise ValueError(
            f"the network was trained with codec {settings.codec or '?'} ({wanted}), this one is"
            f" {found}: their latents differ"
        )
