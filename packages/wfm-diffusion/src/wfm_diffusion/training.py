"""Train a network on clips: EDM with learned uncertainty, text2world and video2world at once.

arXiv 2501.03575, section 5.1.3. Everything a step draws follows from the seed and the step's
number, so that a run that was cut off and resumed ends with the same bits; and of any number of
processes each draws its part of what one would, so that they learn the same.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from .batches import Batch, Batches
from .cards import describe_world, write_card
from .checkpoint import find_source, load, read_config, save_network
from .config import DiffusionConfig, TrainConfig
from .edm import edm_error, uncertain
from .ema import Ema
from .interfaces import DiscreteCodec, LatentCodec, TextEncoder
from .latents import Latents, decode_video, open_clips, prepare
from .precision import computing_in
from .processes import Processes, ShardedMuon, gathered, launched
from .references import resolve
from .runstate import load_state, newest, read_facts, save_state, state_of
from .transformer import DiffusionTransformer
from .validation import sample_rows, validation_error
from .video import to_frames, write_sheet

logger = logging.getLogger(__name__)
Log = Callable[[int, Mapping[str, float]], None]

_MAY_CHANGE = {
    "out", "cache", "validate_every", "sample_every", "save_every", "log_every", "device",
    "recompute", "context_parallel",
}  # fmt: skip


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

    Codecs and text encoder are those that the config names, unless they are passed. Under
    torchrun all processes train together. ``OUT`` also gets ``metrics.jsonl``, ``config.json``,
    ``latents.safetensors``, ``samples/STEP.png`` (four clips: as they are, from their text, after
    their first frame) and the newest checkpoint, from which ``resume`` goes on.

    Raises:
        ValueError: settings or parts that do not fit; OUT holds a run and ``resume`` is False.
    """
    out = Path(config.out)
    if newest(out) is not None and not resume:
        raise ValueError(f"{out}: holds a run already; resume it, or choose another folder")
    clips = open_clips(config.clips)
    if codec is None:
        codec = cast(LatentCodec, resolve(config.codec, "wfm.codecs"))
    if text_encoder is None and config.text_encoder is not None:
        text_encoder = cast(TextEncoder, resolve(config.text_encoder, "wfm.text_encoders"))
    if token_codec is None and config.token_codec is not None:
        token_codec = cast(DiscreteCodec, resolve(config.token_codec, "wfm.codecs"))
    config = config.model_copy(update={"model": sizes_of(config)})
    with launched(config.device, config.context_parallel) as (processes, device):
        config = config.model_copy(update={"device": device})
        out.mkdir(parents=True, exist_ok=True)
        with processes.first_alone():
            data = prepare(clips, config, codec, text_encoder, token_codec)
            if processes.first:
                (out / "config.json").write_text(config.model_dump_json(indent=2) + "\n")
        run = Run(config, data, log, codec=codec, processes=processes)
        run.resume()
        run.to_the_end()
        net = run.averaged()
        if processes.first:
            world = describe_world(config, data[-1], codec, token_codec)
            weights = sum(p.numel() for p in net.parameters())
            card = write_card(config, weights, run.last_validation)
            save_network(net, out / "model", card=card, world=world)
        processes.wait()
    return out / "model"


class Run:
    """A training run's state, and its loop. ``data`` has one entry for each of config.sizes.

    Pictures of samples need a ``codec``.

    Raises:
        ValueError: a batch that the processes cannot share.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: Sequence[Latents],
        log: Log | None = None,
        *,
        codec: LatentCodec | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.config, self.data, self.log, self.codec = config, data, log, codec
        self.processes = processes or Processes()
        groups = self.processes.count // self.processes.context
        for size in config.sizes:
            if (size.batch or config.batch) % groups:
                raise ValueError(
                    f"{size.batch or config.batch} samples do not divide over {groups} processes"
                )
        self.batches = Batches(config, data)
        self.net = new_network(config).to(config.device).train()
        self.net.recompute = config.recompute
        self.whole = self.processes.spread(self.net)
        self.parallel = self.net.parallel
        self.ema = Ema(self.net, length=config.ema_length, decay=config.ema_decay)
        self.optimizer = new_optimizer(self.net, config)
        self.step = 0
        self.metrics = Path(config.out) / "metrics.jsonl"
        self.last_validation: dict[str, float] = {}

    def to_the_end(self) -> None:
        """Train up to the last step, with metrics, validation and checkpoints on the way."""
        config = self.config
        start, first = time.monotonic(), self.step
        while self.step < config.steps:
            numbers = self.one_step()
            self.step += 1
            if self._is_due(config.log_every):
                seconds = (time.monotonic() - start) / (self.step - first)
                self.record({**self._mean(numbers), "seconds_per_step": seconds})
            if self._is_due(config.validate_every):
                self.validate()
            if config.sample_every and self._is_due(config.sample_every):
                self.show_samples()
            if self._is_due(config.save_every):
                self.save()

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.config.steps

    def _mean(self, numbers: Mapping[str, float], weight: float = 1.0) -> dict[str, float]:
        """Return the means over all processes."""
        *sums, total = self.processes.add_up(
            [*(x * weight for x in numbers.values()), float(weight)]
        )
        return {name: x / total for name, x in zip(numbers, sums, strict=True)}

    def one_step(self) -> dict[str, float]:
        """Update the weights by one batch."""
        config = self.config
        rate = learning_rate(config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch = self.batches.at(self.step, self.processes.share).to(config.device)
        # A single frame is too little to share: every process then has all of it.
        self.net.parallel = self.parallel if batch.clean.shape[2] > 1 else None
        loss, error = self.whole(objective, batch, config)
        self.net.parallel = self.parallel
        self.optimizer.zero_grad()
        with computing_in("float32", config.device):  # the kernels of the forward pass, if again
            loss.backward()
        norm = gathered(torch.nn.utils.clip_grad_norm_(self.net.parameters(), config.clip_norm))
        if torch.isfinite(norm):
            self.optimizer.step()
        else:
            logger.warning("step %d: gradient is not finite, skipped", self.step)
        self.ema.update(self.step)
        error, loss = error.detach(), loss.detach()
        return {"loss": float(loss), "error": float(error), "grad_norm": float(norm), "rate": rate}

    def averaged(self) -> DiffusionTransformer:
        """Return a network of the averaged weights, whole; all processes must ask."""
        with self.ema.in_place():
            state = {name: gathered(x).clone() for name, x in self.net.state_dict().items()}
        with torch.device("meta"):
            net = DiffusionTransformer(self.net.config)
        net.load_state_dict(state, assign=True)
        return net.eval()

    def validate(self) -> None:
        """Measure the averaged weights at fixed noise on held-out clips of the last stage."""
        data, pool = self.data[-1], self.batches.held_out[-1]
        if not len(pool):
            return
        with self.ema.in_place():
            found, count = self.whole(
                validation_error, data, pool, self.config, self.processes.share
            )
        found = self._mean(found, float(count))
        found["validation/mean"] = sum(found.values()) / len(found)
        self.last_validation = found
        self.record(found)

    @torch.no_grad()
    def show_samples(self) -> None:
        """Draw a picture of samples, of held-out clips if there are any."""
        if self.codec is None:
            return
        data, pool = self.data[-1], self.batches.held_out[-1]
        pool = pool if len(pool) else self.batches.pools[-1]
        with self.ema.in_place():
            rows = self.whole(sample_rows, data, pool, self.config)
        if self.processes.first:
            video = decode_video(self.codec, rows, self.config.latents)
            path = Path(self.config.out) / "samples" / f"{self.step:09d}.png"
            write_sheet(path, [to_frames(row[None]) for row in video])

    def record(self, numbers: Mapping[str, float]) -> None:
        """Append a line to metrics.jsonl, and tell the log; the first process does."""
        if not self.processes.first:
            return
        with self.metrics.open("a") as file:
            file.write(json.dumps({"step": self.step, **numbers}) + "\n")
        if self.log is not None:
            self.log(self.step, numbers)

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        facts = {"config": lasting(self.config), "validation": self.last_validation}
        state = state_of(self.whole, self.optimizer, self.ema.shadow)
        save_state(Path(self.config.out), self.step, self.processes, state, facts)

    def resume(self) -> None:
        """Go on from the newest checkpoint, if there is one.

        Raises:
            ValueError: the checkpoint is of a run with other settings.
        """
        folder = newest(Path(self.config.out))
        if folder is None:
            if self.processes.first:
                self.metrics.unlink(missing_ok=True)
            return
        facts = read_facts(folder)
        if not same_run(facts["config"], self.config):
            raise ValueError(f"{folder}: is of a run with other settings; choose another folder")
        load_state(folder, self.whole, self.optimizer, self.ema.shadow)
        self.step, self.last_validation = facts["step"], facts["validation"]
        if self.processes.first:
            lines = self.metrics.read_text().splitlines() if self.metrics.is_file() else []
            kept = [line for line in lines if json.loads(line)["step"] <= self.step]
            self.metrics.write_text("".join(f"{line}\n" for line in kept))
        logger.info("resumed at step %d", self.step)


def objective(
    net: DiffusionTransformer, batch: Batch, config: TrainConfig
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the loss to go down, and the plain weighted error."""
    with computing_in(config.precision, config.device):
        error = edm_error(
            net,
            batch.clean,
            batch.sigma,
            batch.noise,
            batch.condition,
            given_noise=batch.given_noise,
        )
    return uncertain(error, net.log_variance(batch.sigma)), error.mean()


def same_run(stored: Mapping[str, Any], config: TrainConfig) -> bool:
    """Tell whether a checkpoint's settings are these; fields newer than it had their defaults."""
    return lasting(TrainConfig.model_validate({"out": config.out, **stored})) == lasting(config)


def lasting(config: TrainConfig) -> dict[str, Any]:
    """Return the settings that a resumed run must share with its beginning."""
    return config.model_dump(mode="json", exclude=_MAY_CHANGE)


def sizes_of(config: TrainConfig) -> DiffusionConfig:
    """Return the network's sizes: those to start from, if there are any."""
    if config.init is None:
        return config.model
    start = read_config(find_source(config.init))
    mask = start.condition_mask or config.model.condition_mask
    return start.model_copy(update={"condition_mask": mask})


def new_network(config: TrainConfig) -> DiffusionTransformer:
    """Make the network: loaded, or initialised from the seed; the global generator is kept."""
    if config.init is not None:
        net = load(config.init, dtype=torch.float32)
        return net if net.config == config.model else with_given_frames(net)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return DiffusionTransformer(config.model)


def with_given_frames(net: DiffusionTransformer) -> DiffusionTransformer:
    """Return a network that also takes given frames; without any it answers as before.

    From text2world to video2world (arXiv 2501.03575, section 5.1.4): the mask's input channel
    comes before that of the padding, with weights of zero.
    """
    config = net.config.model_copy(update={"condition_mask": True})
    patch = math.prod(config.patch)
    before = patch * (config.latent_channels + bool(config.token_vocab) * config.token_channels)
    state = net.state_dict()
    weight = state["embed.weight"]
    mask = weight.new_zeros(len(weight), patch)
    state["embed.weight"] = torch.cat([weight[:, :before], mask, weight[:, before:]], dim=1)
    with torch.device("meta"):
        wider = DiffusionTransformer(config)
    wider.load_state_dict(state, assign=True)
    wider.world = net.world
    return wider


def new_optimizer(net: DiffusionTransformer, config: TrainConfig) -> torch.optim.Optimizer:
    """Return AdamW as in the paper, or Muon for the matrices."""
    decay = config.weight_decay
    if config.optimizer == "muon":
        dtype = getattr(torch, config.precision)
        return ShardedMuon(net.parameters(), lr=config.rate, weight_decay=decay, dtype=dtype)
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
