"""Train a network on clips: EDM with learned uncertainty, text2world and video2world at once.

arXiv 2501.03575, section 5.1.3. Everything a step draws follows from the seed and the step's
number, so that a run that was cut off and resumed ends with the same bits.
"""

import copy
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from einops import repeat
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor

from .checkpoint import load, save_network, write_weights
from .config import TrainConfig, WorldSettings
from .edm import draw_sigma, edm_error, uncertain
from .ema import Ema
from .interfaces import DiscreteCodec, LatentCodec, TextEncoder
from .latents import Latents, fingerprint_of, open_clips, prepare
from .muon import Muon
from .precision import computing_in
from .references import resolve
from .transformer import DiffusionTransformer

logger = logging.getLogger(__name__)
Log = Callable[[int, Mapping[str, float]], None]

BUCKETS = (0.1, 0.4, 1.6, 6.4, 25.6)
"""Noise levels at which the validation error is measured."""
VALIDATED_AT_MOST = 32
_MAY_CHANGE = {"out", "cache", "validate_every", "save_every", "log_every", "device", "recompute"}


@dataclass(frozen=True)
class Batch:
    """What one step needs, in the network's units: latents of standard deviation sigma_data."""

    clean: Float[Tensor, "b c t h w"]
    sigma: Float[Tensor, " b"]
    noise: Float[Tensor, "b c t h w"]
    given_noise: Float[Tensor, "b c t h w"]
    condition: dict[str, Tensor]

    def to(self, device: str) -> "Batch":
        condition = {key: value.to(device) for key, value in self.condition.items()}
        tensors = (self.clean, self.sigma, self.noise, self.given_noise)
        return Batch(*(x.to(device) for x in tensors), condition)


def train(
    config: TrainConfig,
    *,
    codec: LatentCodec | None = None,
    text_encoder: TextEncoder | None = None,
    token_codec: DiscreteCodec | None = None,
    resume: bool = False,
    log: Log | None = None,
) -> Path:
    """Train, and return the folder ``OUT/model``: a world model of averaged float16 weights.

    Codecs and text encoder are those that the config names, unless they are passed.
    ``OUT`` also gets ``metrics.jsonl``, ``config.json``, ``latents.safetensors`` and the newest
    ``checkpoint.safetensors``, from which ``resume`` goes on.

    Raises:
        ValueError: settings or parts that do not fit; OUT holds a run and ``resume`` is False.
    """
    out = Path(config.out)
    if (out / "checkpoint.safetensors").is_file() and not resume:
        raise ValueError(f"{out}: holds a run already; resume it, or choose another folder")
    clips = open_clips(config.clips)
    if codec is None:
        codec = cast(LatentCodec, resolve(config.codec, "wfm.codecs"))
    if text_encoder is None and config.text_encoder is not None:
        text_encoder = cast(TextEncoder, resolve(config.text_encoder, "wfm.text_encoders"))
    if token_codec is None and config.token_codec is not None:
        token_codec = cast(DiscreteCodec, resolve(config.token_codec, "wfm.codecs"))
    out.mkdir(parents=True, exist_ok=True)
    data = prepare(clips, config, codec, text_encoder, token_codec)
    (out / "config.json").write_text(config.model_dump_json(indent=2) + "\n")
    run = Run(config, data, log)
    run.resume(out / "checkpoint.safetensors")
    run.to_the_end()
    net = run.averaged()
    world = describe_world(config, data, codec, token_codec)
    save_network(net, out / "model", card=write_card(config, net, run.last_validation), world=world)
    return out / "model"


class Run:
    """A training run's state, and its loop."""

    def __init__(self, config: TrainConfig, data: Latents, log: Log | None = None) -> None:
        self.config, self.data, self.log = config, data, log
        self.net = new_network(config).to(config.device).train()
        self.net.recompute = config.recompute
        self.ema = Ema(self.net, length=config.ema_length, decay=config.ema_decay)
        self.optimizer = new_optimizer(self.net, config)
        self.step = 0
        self.to_train, self.to_validate = data.split(config.held_out)
        self.metrics = Path(config.out) / "metrics.jsonl"
        self.last_validation: dict[str, float] = {}

    def to_the_end(self) -> None:
        """Train up to the last step, with metrics, validation and checkpoints on the way."""
        config = self.config
        start = time.monotonic()
        first = self.step
        while self.step < config.steps:
            numbers = self.one_step()
            self.step += 1
            if self.step % config.log_every == 0 or self.step == config.steps:
                seconds = (time.monotonic() - start) / (self.step - first)
                self.record({**numbers, "seconds_per_step": seconds})
            if self.step % config.validate_every == 0 or self.step == config.steps:
                self.validate()
            if self.step % config.save_every == 0 or self.step == config.steps:
                self.save()

    def one_step(self) -> dict[str, float]:
        """Update the weights by one batch."""
        config = self.config
        rate = learning_rate(config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        generator = torch.Generator().manual_seed(config.seed * 2**32 + self.step)
        batch = draw_batch(self.data, self.to_train, config, generator).to(config.device)
        with computing_in(config.precision, config.device):
            error = edm_error(
                self.net,
                batch.clean,
                batch.sigma,
                batch.noise,
                batch.condition,
                given_noise=batch.given_noise,
            )
        loss = uncertain(error, self.net.log_variance(batch.sigma))
        self.optimizer.zero_grad()
        with computing_in("float32", config.device):  # the kernels of the forward pass, if again
            loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), config.clip_norm)
        if torch.isfinite(norm):
            self.optimizer.step()
        else:
            logger.warning("step %d: gradient is not finite, skipped", self.step)
        self.ema.update(self.net, self.step)
        error, loss = error.detach().mean(), loss.detach()
        return {"loss": float(loss), "error": float(error), "grad_norm": float(norm), "rate": rate}

    def averaged(self) -> DiffusionTransformer:
        """Return a copy of the network with the averaged weights."""
        net = copy.deepcopy(self.net)
        net.load_state_dict(self.ema.state_dict(), strict=False)
        return net.eval()

    def validate(self) -> None:
        """Measure the error at fixed noise levels and fixed noise on the held-out clips."""
        if not len(self.to_validate):
            return
        found = validation_error(self.averaged(), self.data, self.to_validate, self.config)
        self.last_validation = found
        self.record(found)

    def record(self, numbers: Mapping[str, float]) -> None:
        """Append a line to metrics.jsonl, and tell the log."""
        with self.metrics.open("a") as file:
            file.write(json.dumps({"step": self.step, **numbers}) + "\n")
        if self.log is not None:
            self.log(self.step, numbers)

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        tensors = {f"net.{name}": x for name, x in self.net.state_dict().items()}
        tensors |= {f"ema.{name}": x for name, x in self.ema.state_dict().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{key}": x for key, x in state.items()}
        metadata = {"step": str(self.step), "config": lasting(self.config)}
        metadata["validation"] = json.dumps(self.last_validation)
        path = Path(self.config.out) / "checkpoint.safetensors"
        write_weights(path, tensors, metadata=metadata)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint, if there is one.

        Raises:
            ValueError: the checkpoint is of a run with other settings.
        """
        if not path.is_file():
            self.metrics.unlink(missing_ok=True)
            return
        with safe_open(path, "pt", device=self.config.device) as file:
            metadata = file.metadata()
            if not same_run(metadata["config"], self.config):
                raise ValueError(f"{path}: is of a run with other settings; choose another folder")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.step = int(metadata["step"])
        self.last_validation = json.loads(metadata["validation"])
        self.net.load_state_dict(below(tensors, "net."))
        self.ema.load_state_dict(below(tensors, "ema."))
        state = self.optimizer.state_dict()
        for name, tensor in below(tensors, "optimizer.").items():
            i, key = name.split(".")
            state["state"].setdefault(int(i), {})[key] = tensor.cpu() if key == "step" else tensor
        self.optimizer.load_state_dict(state)
        lines = self.metrics.read_text().splitlines() if self.metrics.is_file() else []
        kept = [line for line in lines if json.loads(line)["step"] <= self.step]
        self.metrics.write_text("".join(f"{line}\n" for line in kept))
        logger.info("resumed at step %d", self.step)


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the entries whose names start with the prefix, without it."""
    return {k.removeprefix(prefix): x for k, x in tensors.items() if k.startswith(prefix)}


def same_run(stored: str, config: TrainConfig) -> bool:
    """Tell whether a checkpoint's settings are these; fields newer than it had their defaults."""
    theirs = {"out": config.out, **json.loads(stored)}
    return lasting(TrainConfig.model_validate(theirs)) == lasting(config)


def lasting(config: TrainConfig) -> str:
    """Return the settings that a resumed run must share with its beginning."""
    return config.model_dump_json(exclude=_MAY_CHANGE)


def new_network(config: TrainConfig) -> DiffusionTransformer:
    """Make the network: loaded, or initialised from the seed; the global generator is kept."""
    if config.init is not None:
        return load(config.init)
    state = torch.random.get_rng_state()
    torch.manual_seed(config.seed)
    net = DiffusionTransformer(config.model)
    torch.random.set_rng_state(state)
    return net


def new_optimizer(net: DiffusionTransformer, config: TrainConfig) -> torch.optim.Optimizer:
    """Return AdamW as in the paper, or Muon for the matrices."""
    decay = config.weight_decay
    if config.optimizer == "muon":
        dtype = getattr(torch, config.precision)
        return Muon(net.parameters(), lr=config.rate, weight_decay=decay, dtype=dtype)
    return torch.optim.AdamW(
        net.parameters(),
        lr=config.rate,
        betas=(0.9, 0.99),
        eps=1e-10,
        weight_decay=decay,
        fused=True,
    )


def learning_rate(config: TrainConfig, step: int) -> float:
    """Warm up linearly, then fall along half a cosine to ``final_rate`` of the highest."""
    if step < config.warmup:
        return config.rate * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * done))
    return config.rate * (config.final_rate + (1 - config.final_rate) * cosine)


def draw_batch(
    data: Latents, pool: Tensor, config: TrainConfig, generator: torch.Generator
) -> Batch:
    """Draw samples, noise levels, noise, and which frames are given.

    A batch is of videos or, by ``image_fraction``, of their first frames alone: the codec is
    causal, so the first latent frame is that of an image.
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    index = pool[torch.randint(len(pool), (config.batch,), generator=generator)]
    clean = data.latents[index].float() * config.model.sigma_data
    if uniform(1) < config.image_fraction:
        clean = clean[:, :, :1]
    frames = clean.shape[2]
    most = min(config.given_max, frames - 1) if config.model.condition_mask else 0
    count = torch.randint(most + 1, (config.batch,), generator=generator)
    mean, std = config.given_log_sigma
    given_sigma = (mean + std * torch.randn(config.batch, generator=generator)).exp()
    condition = conditions(data, index, count, clean, given_sigma)
    dropped = uniform(config.batch, 1, 1) < config.text_dropout
    condition["text"] = condition["text"].masked_fill(dropped, 0)
    if "tokens" in condition:
        dropped = uniform(config.batch, 1, 1, 1) < config.token_dropout
        condition["tokens"] = condition["tokens"].masked_fill(dropped, 0)
    if not most:
        del condition["given"], condition["given_sigma"]
    sigma = draw_sigma(
        config.batch,
        mean=config.log_sigma_mean,
        std=config.log_sigma_std,
        frames=frames if config.scale_noise_by_frames else 1,
        generator=generator,
    )
    noise, given_noise = torch.randn(2, *clean.shape, generator=generator)
    return Batch(clean, sigma, noise, given_noise, condition)


def conditions(
    data: Latents, index: Tensor, count: Tensor, clean: Tensor, given_sigma: Tensor
) -> dict[str, Tensor]:
    """Return the condition of some samples, the first ``count`` latent frames given."""
    t, h, w = clean.shape[2:]
    given = (torch.arange(t) < count[:, None]).float()
    tokens = {}
    if len(data.tokens):
        tokens["tokens"] = data.tokens[index][:, : None if t > 1 else 1].long()
    return {
        **tokens,
        "text": data.embeddings[data.text[index]].float(),
        "fps": data.fps[index],
        "given": repeat(given, "b t -> b 1 t h w", h=h, w=w),
        "given_sigma": given_sigma,
    }


@torch.no_grad()
def validation_error(
    net: DiffusionTransformer, data: Latents, pool: Tensor, config: TrainConfig
) -> dict[str, float]:
    """Return the weighted error for each noise level, from text and after one given frame."""
    index = pool[:: max(1, len(pool) // VALIDATED_AT_MOST)][:VALIDATED_AT_MOST]
    clean = data.latents[index].float() * config.model.sigma_data
    generator = torch.Generator().manual_seed(config.seed)
    found = {}
    tasks = {"text": 0, "given": 1} if config.model.condition_mask else {"text": 0}
    for task, count in tasks.items():
        for sigma in BUCKETS:
            noise = torch.randn(clean.shape, generator=generator)
            sigmas = torch.full((len(index),), sigma)
            counts = torch.full((len(index),), count)
            condition = conditions(data, index, counts, clean, torch.full_like(sigmas, 0.001))
            if not count:
                del condition["given"], condition["given_sigma"]
            batch = Batch(clean, sigmas, noise, noise, condition).to(config.device)
            error = edm_error(net, batch.clean, batch.sigma, batch.noise, batch.condition)
            found[f"validation/{task}/sigma_{sigma:g}"] = float(error.mean())
    found["validation/mean"] = sum(found.values()) / len(found)
    return found


def describe_world(
    config: TrainConfig, data: Latents, codec: LatentCodec, token_codec: DiscreteCodec | None
) -> WorldSettings:
    """Return what the network was trained with, and how it is to be rolled out."""
    given = max(1, min(config.given_max, data.latents.shape[2] - 1))
    past = 1 + (given - 1) * codec.compression[0]
    frames = config.frames - past
    if config.latents == "image":
        past, frames = max(1, min(config.given_max, config.frames - 1)), 1
    return WorldSettings(
        codec=config.codec,
        codec_fingerprint=fingerprint_of(codec),
        token_codec=config.token_codec or "",
        token_compression=token_codec.compression if token_codec else (8, 16, 16),
        latents=config.latents,
        past_frames=past,
        frames=frames,
        height=config.height,
        width=config.width,
        fps=float(data.fps.median()),
        text_encoder=config.text_encoder,
        guidance=1.0,
        steps=config.sampling_steps,
        sampler=config.sampler,
    )


def write_card(
    config: TrainConfig, net: DiffusionTransformer, validation: Mapping[str, float]
) -> str:
    """Return the model card of a run."""
    weights = sum(p.numel() for p in net.parameters()) / 1e6
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in validation.items())
    return f"""---
license: apache-2.0
library_name: wfm-diffusion
tags: [world-model, video-generation, diffusion]
---
# A diffusion world model of {weights:.1f} M weights

Text2world and video2world in one network, {config.frames} frames of {config.height}x{config.width},
{config.latents} latents of `{config.codec}`.

Trained for {config.steps} steps of {config.batch} samples, seed {config.seed}, by `wfm-diffusion
train`; `world.json` names the codec and its fingerprint. Weights are a moving average, float16.

Error on held-out clips, weighted by noise level (0 is perfect, 1 is no better than the mean
at high noise):

| measure | value |
| --- | --- |
{rows}

```python
import wfm_diffusion
world = wfm_diffusion.load_world("FOLDER")
video = world.text2world(["a gripper pushes a red cube"])
```

It imagines the kind of clips that it was trained on, and nothing else; small things blur.
"""
