"""Train a tokenizer on videos and images together: ``train(TrainConfig(...))``.

A run is a folder: ``config.json``, ``metrics.jsonl``, ``checkpoint.safetensors`` while it goes on,
and at the end ``model``, which ``load`` opens. Each step's batch depends on the seed and the
number of the step only, so a resumed run is bit for bit the uninterrupted one.
"""

import json
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import cos, log10, pi
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .adversary import Adversary
from .checkpoint import named, part, read_weights, write_weights
from .data import ClipCache
from .evaluation import evaluate_clips, held_out_clips
from .export import export, finish, write_samples
from .loading import load
from .losses import Loss, saturation_loss
from .model import ContinuousTokenizer, DiscreteTokenizer, build
from .processes import Processes, SplitMuon, TrainingPass, laid_out_as, whole
from .train_config import TrainConfig, open_run

logger = logging.getLogger(__name__)

Log = Callable[[int, Mapping[str, float]], None]


def train(
    config: TrainConfig, *, resume: bool = False, log: Log | None = None
) -> ContinuousTokenizer | DiscreteTokenizer:
    """Train, and return the exported tokenizer, which is also at ``config.out / "model"``.

    ``log(step, metrics)`` is called with every line of ``metrics.jsonl``. Started by torchrun,
    the processes share the batches and take the same steps; the first writes the files.

    Raises:
        ValueError: no usable clips, a run is already there, or ``resume`` of another config.
    """
    processes = Processes.join(config.device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    torch.set_flush_denormal(True)
    if processes.first:
        open_run(config, resume=resume)
    processes.wait()
    cache = ClipCache.read(config.sources)
    if config.held_out:
        held_out = ClipCache.read(config.held_out)
    else:
        cache, held_out = cache.hold_out(20)
    run = Run(config, log, processes)
    if resume:
        run.restore()
    clips = held_out_clips(held_out, config.evaluate_clips, config.model.compression, run.box)
    for step in run.steps():
        run.update(step, cache)
        if (step + 1) % config.evaluate_every == 0:
            average = run.averaged()
            if processes.first:
                run.record(step + 1, evaluate_clips(average, clips).summary())
                write_samples(config.out / f"samples/step_{step + 1:06d}.png", average, clips)
        if (step + 1) % config.checkpoint_every == 0:
            run.save(step + 1)
    run.save(run.done)
    tokenizer = finish(run.averaged(), config, cache)
    if processes.first:
        report = evaluate_clips(tokenizer, clips).everything()
        figures = {**report, "steps": run.done, "seconds": round(run.seconds)}
        export(config, tokenizer, figures)
    processes.wait()
    return tokenizer


class Run:
    """The state of a training: weights, their average, the optimiser, the clock."""

    def __init__(self, config: TrainConfig, log: Log | None, processes: Processes) -> None:
        self.config = config
        self.log = log
        self.processes = processes
        for shape in config.shapes:
            if shape.batch % processes.count:
                raise ValueError(
                    f"shapes: a batch of {shape.batch} clips cannot be shared by {processes.count} "
                    f"processes; take a multiple"
                )
        device = processes.device(config.device)
        self.box = (config.evaluate_frames, config.evaluate_size)
        torch.manual_seed(config.seed)
        self.model = build(config.model).to(device)
        if config.start:
            self.model.load_state_dict(load(config.start).state_dict())
        if config.freeze_encoder:
            self.model.encoder.requires_grad_(False)
            self.model.to_latent.requires_grad_(False)
        self.forward = TrainingPass(self.model)
        if config.shard:
            processes.split(self.forward)
        for parameter in self.model.parameters():
            if parameter.ndim == 4 and not isinstance(parameter, DTensor):  # the fast layout
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self.average = {
            name: parameter.detach().clone() for name, parameter in self.model.named_parameters()
        }
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = new_optimizer(self.parameters, config)
        self.loss = Loss(config.loss, device)
        self.adversary = Adversary(device) if config.loss.adversarial else None
        self.start = 0
        self.seconds = 0.0
        self.done = 0

    def steps(self) -> Iterator[int]:
        """Count from where the run stands to its end, or until the time is up."""
        began, before = time.monotonic(), self.seconds
        for step in range(self.start, self.config.steps):
            yield step
            self.done = step + 1
            self.seconds = before + time.monotonic() - began
            limit = self.config.max_minutes
            if limit is not None and self._late(60 * limit):
                logger.warning("stopped after %.0f minutes, at step %d", limit, self.done)
                return

    def _late(self, seconds: float) -> bool:
        """Is the time up for one process? Then all stop, at the same step."""
        late = torch.tensor(float(self.seconds > seconds), device=self.model.device)
        return bool(self.processes.mean(late) > 0)

    def update(self, step: int, cache: ClipCache) -> None:
        """Take one step."""
        config = self.config
        dice = random.Random(f"{config.seed}:{step}")
        shape = dice.choices(config.shapes, [shape.weight for shape in config.shapes])[0]
        own = slice(self.processes.rank, None, self.processes.count)
        video = cache.batch(shape, dice, own).to(self.model.device)
        rate = learning_rate(config, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(video.device.type, torch.bfloat16, config.precision == "bfloat16"):
            features, output = self.forward(video)
        loss = self.loss(output, video, step)
        if isinstance(self.model, DiscreteTokenizer):
            loss = loss + config.loss.saturation * saturation_loss(features)
        adversary = self.adversary if step >= config.loss.adversarial_from else None
        if adversary is not None:
            loss = loss + config.loss.adversarial * adversary.loss(output)
        norm = self._descend(loss, self.optimizer, self.parameters, step)
        if adversary is not None:
            own_loss = adversary.own_loss(output, video)
            self._descend(own_loss, adversary.optimizer, adversary.parameters, step)
        decay = min(config.ema, (1 + step) / (10 + step))
        for mean, parameter in zip(self.average.values(), self.model.parameters(), strict=True):
            mean.lerp_(parameter.detach(), 1 - decay)
        if (step + 1) % config.log_every == 0:
            mse = (output.detach() - video).square().mean()
            total, mse = self.processes.mean(torch.stack((loss.detach(), mse))).tolist()
            self.record(
                step + 1,
                {
                    "loss": total,
                    "psnr_batch": 10 * log10(4 / max(mse, 1e-12)),
                    "frames": float(shape.frames),
                    "lr": rate,
                    "grad_norm": float(norm),
                    "seconds": round(self.seconds, 1),
                },
            )

    def _descend(
        self,
        loss: Tensor,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[nn.Parameter],
        step: int,
    ) -> Tensor:
        """Step along the gradient of all processes; return its norm before it was clipped."""
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.processes.average_gradients(parameters)
        norm = whole(nn.utils.clip_grad_norm_(parameters, self.config.clip_norm))
        if not torch.isfinite(norm):
            raise FloatingPointError(f"step {step}: the gradient is not finite; lower lr")
        optimizer.step()
        return norm

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append a line to ``metrics.jsonl``."""
        if not self.processes.first:
            return
        line = {"step": step, **{k: round(v, 6) for k, v in metrics.items()}}
        with (self.config.out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        if self.log is not None:
            self.log(step, metrics)

    def averaged(self) -> ContinuousTokenizer | DiscreteTokenizer:
        """Return a tokenizer of the averaged weights; all processes must ask."""
        tokenizer = build(self.config.model).to(self.model.device).eval().requires_grad_(False)
        for name, parameter in tokenizer.named_parameters():
            parameter.copy_(whole(self.average[name]))
        return tokenizer

    def save(self, step: int) -> None:
        """Write the checkpoint, whole or not at all; all processes must come here."""
        tensors = state_of(self.model, self.optimizer)
        tensors |= named("average", self.average)
        if self.adversary is not None:
            state = state_of(self.adversary.model, self.adversary.optimizer)
            tensors |= named("adversary", state)
        every = ((name, whole(tensor)) for name, tensor in tensors.items())
        tensors = {name: tensor.cpu() for name, tensor in every if self.processes.first}
        if not self.processes.first:
            return
        metadata = {"step": str(step), "seconds": repr(self.seconds)}
        write_weights(self.config.out / "checkpoint.safetensors", tensors, metadata=metadata)

    def restore(self) -> None:
        """Take up the checkpoint, and forget metrics of later steps."""
        path = self.config.out / "checkpoint.safetensors"
        tensors = read_weights(path)
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        restore_state(self.model, self.optimizer, tensors)
        for name, mean in self.average.items():
            mean.copy_(laid_out_as(mean, tensors[f"average.{name}"]))
        if self.adversary is not None:
            state = part(tensors, "adversary")
            restore_state(self.adversary.model, self.adversary.optimizer, state)
        self.start = self.done = int(metadata["step"])
        self.seconds = float(metadata["seconds"])
        if not self.processes.first:
            return
        metrics = self.config.out / "metrics.jsonl"
        lines = metrics.read_text().splitlines() if metrics.is_file() else []
        kept = [line for line in lines if json.loads(line)["step"] <= self.start]
        metrics.write_text("".join(line + "\n" for line in kept))


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return weights and the optimiser's state, by name."""
    tensors = named("model", model.state_dict())
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        # Steps are counted per parameter: image batches do not reach all of them.
        tensors |= {f"{key}.{name}": torch.as_tensor(x) for key, x in state.items()}
    return tensors


def restore_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    """Undo :func:`state_of`."""
    weights = part(tensors, "model")
    moments = {key: part(tensors, key) for key in ("exp_avg", "exp_avg_sq")}
    steps = part(tensors, "step")
    for name, parameter in model.named_parameters():
        parameter.detach().copy_(laid_out_as(parameter, weights[name]))
        state: dict[str, Any] = {
            key: laid_out_as(parameter.detach(), values[name])
            for key, values in moments.items()
            if name in values
        }
        if name in steps:
            state["step"] = steps[name]
        optimizer.state[parameter] = state


def new_optimizer(parameters: Sequence[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """Return Muon, or AdamW as in the paper."""
    rate, betas, decay = config.lr, config.betas, config.weight_decay
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, rate, betas, weight_decay=decay)
    return SplitMuon(parameters, rate, betas, decay, getattr(torch, config.precision))


def learning_rate(config: TrainConfig, step: int) -> float:
    """Rise linearly, then fall along half a cosine."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    way = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * (config.final_lr + (1 - config.final_lr) * (1 + cos(pi * way)) / 2)
