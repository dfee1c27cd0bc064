"""A training loop: seeded, resumable to the bit, and quiet about what it trains."""

import json
import logging
import math
import pickle
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from .checkpoint import replacing, write_weights
from .muon import Muon
from .parallel import (
    Ranks,
    average_gradients,
    clip_gradients,
    load_state,
    local,
    save_state,
    shard,
    whole_state,
)
from .precision import computing_in

logger = logging.getLogger(__name__)

STATE, STATES, METRICS, SETTINGS = "state.pt", "state", "metrics.jsonl", "config.json"
AVERAGE = "average.safetensors"
"""The averaged weights that several processes leave."""

Log = Callable[[int, Mapping[str, object]], None]


class FitConfig(BaseModel):
    """How long, how fast, and what is kept."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(2000, gt=0, description="optimiser steps")
    batch: int = Field(16, gt=0, description="windows at once, on each process")
    accumulate: int = Field(1, gt=0, description="batches per step, on each process")
    context: int = Field(1, gt=0, description="processes that share the tokens of each clip")
    recompute: bool = Field(
        False, description="keep no activations inside blocks: less memory, a third more time"
    )
    optimizer: Literal["adamw", "muon"] = Field("adamw", description="muon learns in fewer steps")
    lr: float = Field(4e-4, gt=0, description="peak learning rate")
    warmup: int = Field(50, ge=0, description="steps of linear warm-up")
    final_lr: float = Field(0.05, ge=0, le=1, description="share of lr left after the cosine")
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    ema: float = Field(0.995, ge=0, lt=1, description="decay of the averaged weights")
    checkpoint_every: int = Field(500, gt=0, description="steps between checkpoints")
    log_every: int = Field(20, gt=0, description="steps between lines of metrics.jsonl")
    check_every: int = Field(200, gt=0, description="steps between looks at held-out clips")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of matrix products in training; the weights stay float32"
    )
    seed: int = 0


def step_generator(seed: int, step: int, part: int = 0) -> torch.Generator:
    """Give each step, and each ``part`` of its batch, its own randomness.

    So a resumed run needs no generator state, and several processes draw what one would.
    """
    # The CPU's generator looks at 32 bits of the seed only.
    number = seed * 1_000_003 + step + part * 999_999_937
    return torch.Generator().manual_seed(number % 2**32)


def fit(
    module: nn.Module,
    loss: Callable[[torch.Generator], Tensor],
    config: FitConfig,
    run: Path,
    *,
    check: Callable[[], Mapping[str, float]] | None = None,
    log: Log | None = None,
    progress: Callable[[int, int], None] | None = None,
    ranks: Ranks | None = None,
) -> None:
    """Train ``module`` in place, from the run's checkpoint if it has one; end on averaged weights.

    ``loss`` draws a batch with the generator of the step; what ``check`` finds goes into the
    metrics. Writes ``metrics.jsonl`` and ``state.pt`` into ``run``. With several ``ranks`` the
    part ``module.network`` is split over them, the checkpoint is the folder ``state``, and the
    averaged weights go to ``average.safetensors`` instead of into ``module``.

    Raises:
        FloatingPointError: the loss is no longer a number.
        ValueError: a damaged checkpoint, or Muon with several processes.
    """
    ranks = ranks or Ranks()
    optimizer = _prepare(module, config, ranks)
    average = {name: value.detach().clone() for name, value in module.state_dict().items()}
    done = _restore(run, module, optimizer, average)
    if ranks.first:
        _trim(run / METRICS, done)
    meter = _Meter(config, ranks.groups)
    module.train()
    for step in range(done + 1, config.steps + 1):
        lr = config.lr * _schedule(step, config)
        for group in optimizer.param_groups:
            group["lr"] = lr
        value, norm = _step(module, loss, optimizer, config, ranks, step)
        _update(average, module, min(config.ema, step / (step + 9)))
        meter.note(step, value)
        last = step == config.steps
        look = check is not None and (last or step % config.check_every == 0)
        if look or last or step % config.log_every == 0:
            line = {"step": step, **meter.read(), "lr": lr, "grad_norm": norm}
            line |= check() if check and look else {}
            _report(run, ranks, line, log)
        if last or step % config.checkpoint_every == 0:
            _save(run, ranks, step, module, optimizer, average)
        if progress:
            progress(step, config.steps)
    if ranks.count == 1:
        module.load_state_dict(average)
    else:
        average = whole_state(average)
        if ranks.first:
            write_weights(run / AVERAGE, average)
        ranks.wait()
    module.eval()


def _prepare(module: nn.Module, config: FitConfig, ranks: Ranks) -> torch.optim.Optimizer:
    """Split the network over the processes, if there are several; return an optimiser."""
    if config.recompute:
        recompute_blocks(module)
    if ranks.count > 1:
        if config.optimizer == "muon":
            raise ValueError("muon needs whole matrices; with several processes use adamw")
        shard(module.get_submodule("network"), next(module.parameters()).device.type, ranks)
    return _optimizer(module, config)


def _step(
    module: nn.Module,
    loss: Callable[[torch.Generator], Tensor],
    optimizer: torch.optim.Optimizer,
    config: FitConfig,
    ranks: Ranks,
    step: int,
) -> tuple[float, float]:
    """Update the weights by one batch; return its loss and the norm of the gradient."""
    device = next(module.parameters()).device.type
    optimizer.zero_grad()
    value = 0.0
    for i in range(config.accumulate):
        generator = step_generator(config.seed, step, i * ranks.groups + ranks.group)
        with computing_in(config.precision, device):
            part = loss(generator) / config.accumulate
        part.backward()
        value += part.item()
    if ranks.count == 1:
        norm = nn.utils.clip_grad_norm_(module.parameters(), config.clip)
    else:
        average_gradients(module, ranks.count)
        norm = clip_gradients(module.parameters(), config.clip)
    optimizer.step()
    return value, float(norm)


def _report(run: Path, ranks: Ranks, line: Mapping[str, Any], log: Log | None) -> None:
    """Note a line of metrics, once for all processes."""
    if ranks.first:
        write_line(run, line)
        if log:
            log(line["step"], line)


def recompute_blocks(module: nn.Module) -> None:
    """Let the blocks of every part forget their activations and do them again for gradients."""
    for part in module.modules():
        blocks = getattr(part, "blocks", None)
        if isinstance(blocks, nn.ModuleList):
            for block in blocks:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)


class _Meter:
    """Mean loss and speed since the last reading."""

    def __init__(self, config: FitConfig, processes: int) -> None:
        self.batch = config.batch * config.accumulate * processes
        self._restart()

    def note(self, step: int, loss: float) -> None:
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} at step {step}; lower lr")
        self.losses.append(loss)

    def read(self) -> dict[str, float]:
        seconds = time.perf_counter() - self.since
        mean, rate = sum(self.losses) / len(self.losses), len(self.losses) * self.batch / seconds
        self._restart()
        return {"loss": mean, "windows_per_s": rate}

    def _restart(self) -> None:
        self.losses: list[float] = []
        self.since = time.perf_counter()


def write_line(run: Path, line: Mapping[str, object]) -> None:
    """Append one JSON object to the run's metrics."""
    with (run / METRICS).open("a") as file:
        file.write(json.dumps(line) + "\n")


def start_run(run: Path, settings: BaseModel, *, resume: bool) -> None:
    """Make the run's folder and note its settings, or check that they are still the same.

    Raises:
        FileExistsError: the folder holds a run already and ``resume`` was not asked for. A run
            that has no checkpoint yet has nothing to lose and is begun anew.
        ValueError: it was, but the settings differ, or there is nothing to resume.
    """
    noted, text = run / SETTINGS, settings.model_dump_json(indent=2) + "\n"
    if resume:
        if not noted.is_file():
            raise ValueError(f"{run}: no run to resume here")
        changed = sorted(_differences(json.loads(noted.read_text()), json.loads(text)))
        if changed:
            raise ValueError(f"{run}: was started with other settings ({', '.join(changed)})")
        return
    if (run / STATE).exists() or (run / STATES).exists():
        raise FileExistsError(f"{run}: holds a run already; resume it, or choose another folder")
    run.mkdir(parents=True, exist_ok=True)
    with replacing(noted) as partial:
        partial.write_text(text)


def _differences(a: Mapping, b: Mapping, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of settings that are not the same."""
    for key in a.keys() | b.keys():
        here, there = a.get(key), b.get(key)
        if isinstance(here, dict) and isinstance(there, dict):
            yield from _differences(here, there, f"{prefix}{key}.")
        elif here != there:
            yield f"{prefix}{key}"


def _optimizer(module: nn.Module, config: FitConfig) -> torch.optim.Optimizer:
    """Decay matrices only. Embeddings and what is as tall as they are (a head) are no matrices."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        split = any(isinstance(p, DTensor) for p in trained)
        each = False if split else None  # split and whole parameters cannot be fused together
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, foreach=each)
    tables = {m.weight.shape for m in module.modules() if isinstance(m, nn.Embedding)}
    ends = [p for p in groups[0]["params"] if p.shape in tables]
    groups[0]["params"] = [p for p in groups[0]["params"] if p.shape not in tables]
    groups.append({"params": ends, "weight_decay": config.weight_decay, "matrices": False})
    return Muon(groups, lr=config.lr, dtype=getattr(torch, config.precision))


def _schedule(step: int, config: FitConfig) -> float:
    """Linear warm-up, then a cosine down to ``final_lr``."""
    if step <= config.warmup:
        return step / max(config.warmup, 1)
    gone = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return config.final_lr + (1 - config.final_lr) * (1 + math.cos(math.pi * gone)) / 2


@torch.no_grad()
def _update(average: dict[str, Tensor], module: nn.Module, decay: float) -> None:
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            local(average[name]).lerp_(local(value), 1 - decay)
        else:
            average[name].copy_(value)


def _save(
    run: Path,
    ranks: Ranks,
    step: int,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: dict,
) -> None:
    if ranks.count > 1:
        save_state(run / STATES, ranks, step, module, optimizer, average)
        return
    state = {
        "step": step,
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average,
    }
    with replacing(run / STATE) as partial:
        torch.save(state, partial)


def _restore(run: Path, module: nn.Module, optimizer: torch.optim.Optimizer, average: dict) -> int:
    """Load the last checkpoint, if any; return the number of steps done."""
    if (run / STATES).is_dir():
        step = load_state(run / STATES, module, optimizer, average)
        logger.info("resuming after step %d", step)
        return step
    if (run / STATE).is_file() and any(isinstance(p, DTensor) for p in module.parameters()):
        raise ValueError(f"{run}: was begun on one process; go on with one, or begin a new run")
    if not (run / STATE).is_file():
        return 0
    try:
        state = torch.load(run / STATE, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as e:
        raise ValueError(f"{run / STATE}: damaged, cannot be resumed from ({e})") from e
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    for name, value in state["average"].items():
        average[name].copy_(value)
    logger.info("resuming after step %d", state["step"])
    return state["step"]


def _trim(path: Path, step: int) -> None:
    """Drop lines of steps that will be done again."""
    if not path.is_file():
        return
    lines = [x for x in path.read_text().splitlines() if json.loads(x)["step"] <= step]
    path.write_text("".join(f"{line}\n" for line in lines))
