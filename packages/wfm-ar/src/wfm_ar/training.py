"""Train a model to predict the next token: resumable bit by bit, by one process or several."""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Int64
from torch import Tensor

from .checkpoint import replacing
from .config import ArConfig
from .interfaces import DiscreteCodec, TextEncoder
from .loss import Loss, next_token_loss
from .model import ArTransformer
from .parallel import Ranks, launched
from .precision import computing_in
from .pretrained import CARD, WORLD, begin_from, load, write_folder
from .references import resolve
from .sharding import clip, local, part, whole
from .tokens import TokenSet
from .train_config import TrainConfig
from .train_parts import (
    card,
    claim,
    find_network,
    find_tokens,
    learning_rate,
    make_optimizer,
    world_of,
)
from .train_state import read_state, write_state

logger = logging.getLogger(__name__)

Log = Callable[[int, Mapping[str, float]], None]
STATE, METRICS, MODEL = "state", "metrics.jsonl", "model"


def train(
    config: TrainConfig,
    *,
    codec: DiscreteCodec | None = None,
    text_encoder: TextEncoder | None = None,
    log: Log | None = None,
    stop_after: int | None = None,
) -> Path:
    """Run the training to its end, or on from where it stopped; return the model's folder.

    A run that is stopped and resumed ends bit by bit where an uninterrupted one does: the
    samples of a step depend on nothing but the seed and the step's number.

    Args:
        config: the run; the folder ``config.out`` holds an earlier part of it or nothing.
        codec: instead of the one that ``config.codec`` names.
        text_encoder: instead of the one that ``config.text_encoder`` names.
        log: told step and figures whenever a line of ``metrics.jsonl`` is written.
        stop_after: stop at this step, with a checkpoint.

    Raises:
        FileNotFoundError: no such clips.
        ValueError: parts that do not fit together, or ``out`` holds another run.
    """
    if config.tensor_parallel > 1 and not config.sharding:
        raise ValueError("tensor_parallel needs sharding=true")
    if config.sharding and config.optimizer == "muon":
        raise ValueError("muon needs whole matrices; train with sharding by adamw")
    with launched(config.tensor_parallel) as ranks:
        if config.batch % ranks.groups:
            raise ValueError(
                f"a batch of {config.batch} does not part among {ranks.groups} processes"
            )
        if not ranks.first:  # the first one makes the files that the others then find
            ranks.wait()
        claim(config)
        codec = codec or _codec(config.codec)
        if text_encoder is None and config.text_encoder is not None:
            text_encoder = _text_encoder(config.text_encoder)
        data = find_tokens(config, codec, text_encoder)
        if ranks.first:
            ranks.wait()
        run = _Run(config, find_network(config, codec, text_encoder, data), data, log, ranks)
        last = min(config.steps, stop_after or config.steps)
        while run.step < last:
            run.advance()
        run.save()
        run.export(codec)
        ranks.wait()
        return config.out / MODEL


class _Run:
    """The state of a training: network, average, optimiser, step."""

    def __init__(
        self,
        config: TrainConfig,
        network: ArConfig,
        data: TokenSet,
        log: Log | None,
        ranks: Ranks,
    ) -> None:
        self.config, self.log, self.step, self.ranks = config, log, 0, ranks
        self.data, self.held = data.split(config.holdout)
        self.lm = ArTransformer(network)
        self.lm.initialize(torch.Generator().manual_seed(config.seed))
        if config.init is not None:
            begin_from(self.lm, load(config.init), config.init)
        self.parted = config.sharding and ranks.count > 1
        if self.parted:
            part(self.lm, config.tensor_parallel)
        self.average = {k: v.detach().clone() for k, v in self.lm.state_dict().items()}
        self.optimizer = make_optimizer(self.lm, config)
        self.seen, self.since = 0, time.perf_counter()
        if (config.out / STATE).is_dir():
            self.step = read_state(config.out / STATE, self.lm, self.average, self.optimizer)
            logger.info("resumed at step %s", self.step)
        self._trim_metrics()

    def advance(self) -> None:
        """Take one step; log, evaluate and save when it is time."""
        config = self.config
        rate = learning_rate(self.step, config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self._loss()
        loss.total.backward()
        if not self.parted:  # where it is, the gradients come averaged
            self.ranks.average_gradients(self.lm)
        norm = clip(self.lm, config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._average()
        self.step += 1
        if self.step % config.log_every == 0 or self.step == config.steps:
            total, entropy, z, accuracy = self.ranks.mean(*loss)
            if not math.isfinite(total):
                raise ValueError(f"the loss is {total} at step {self.step}; lower lr")
            took, self.since = time.perf_counter() - self.since, time.perf_counter()
            self._write(
                {"loss": total, "cross_entropy": entropy, "accuracy": accuracy, "z": z}
                | {"lr": rate}
                | {"grad_norm": norm.item(), "tokens_per_s": self.ranks.groups * self.seen / took}
            )
            self.seen = 0
        due = self.step % config.eval_every == 0 or self.step == config.steps
        if due and (self.parted or self.ranks.first):
            self._write(self.evaluate())
        if self.step % config.save_every == 0:
            self.save()

    def _loss(self) -> Loss:
        """Draw the samples of this step and score them."""
        config = self.config
        draw = torch.Generator().manual_seed(config.seed * 1_000_003 + self.step)
        t, h, w = self.data.grid
        images = config.image_every > 0 and self.step % config.image_every == config.image_every - 1
        count = config.batch * t if images else config.batch
        rows = torch.randint(len(self.data.tokens), (count,), generator=draw)
        tokens, context = self._batch(self.data, rows[self.ranks.part])
        if context is not None:
            kept = torch.rand(count, 1, 1, generator=draw) >= config.text_dropout
            context = context * kept[self.ranks.part]
        ignore = config.condition_latents * h * w
        if images:
            t, ignore = 1, 0
            tokens = tokens[:, : h * w]
        wrong = torch.rand(tokens.shape, generator=draw) < config.token_noise
        random = torch.randint(self.lm.vocab_size, tokens.shape, generator=draw)
        seen = torch.where(wrong, random, tokens)
        return self._score(tokens, context, (t, h, w), ignore, seen)

    def _batch(self, data: TokenSet, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        tokens = rearrange(data.tokens[rows], "b t h w -> b (t h w)").long()
        if data.text is None:
            return tokens, None
        return tokens, data.text[data.clip[rows].long()].float()

    def _score(
        self,
        tokens: Int64[Tensor, "b n"],
        context: Tensor | None,
        grid: tuple[int, int, int],
        ignore: int,
        seen: Int64[Tensor, "b n"] | None = None,
    ) -> Loss:
        """Predict each token from those before it, or from what is ``seen`` of them.

        The first ``ignore`` tokens are given.
        """
        before = (tokens if seen is None else seen)[:, :-1]
        self.seen += tokens.numel()
        bov = self.lm.bov_token
        if bov is None:
            inputs, labels, ignore = before, tokens[:, 1:], max(ignore - 1, 0)
        else:
            first = torch.full_like(tokens[:, :1], bov)
            inputs, labels = torch.cat([first, before], 1), tokens
        with computing_in(self.config.precision, tokens.device.type):
            scores = self.lm(inputs, context, grid=grid)
        return next_token_loss(scores, labels, ignore=ignore, z_loss=self.config.z_loss)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Return loss and accuracy of the averaged network on held-out windows."""
        t, h, w = self.held.grid
        spread = torch.linspace(0, len(self.held.tokens) - 1, self.config.eval_windows)
        rows = spread.round().long().unique()
        current = {k: v.clone() for k, v in self.lm.state_dict().items()}
        seen = self.seen
        self.lm.load_state_dict(self.average)
        entropy = accuracy = 0.0
        for some in rows.split(32):
            tokens, context = self._batch(self.held, some)
            loss = self._score(tokens, context, (t, h, w), self.config.condition_latents * h * w)
            entropy += loss.cross_entropy.item() * len(some) / len(rows)
            accuracy += loss.accuracy.item() * len(some) / len(rows)
        self.lm.load_state_dict(current)
        self.seen = seen
        return {"held_out_loss": entropy, "held_out_accuracy": accuracy}

    @torch.no_grad()
    def _average(self) -> None:
        """Move the average towards the network; faster in the first steps."""
        weight = 1 - min(self.config.ema, (1 + self.step) / (10 + self.step))
        state = self.lm.state_dict()
        for name, tensor in self.average.items():
            local(tensor).lerp_(local(state[name]), weight)

    def _write(self, figures: Mapping[str, float]) -> None:
        if not self.ranks.first:
            return
        with (self.config.out / METRICS).open("a") as file:
            file.write(json.dumps({"step": self.step, **figures}) + "\n")
        if self.log is not None:
            self.log(self.step, figures)

    def _trim_metrics(self) -> None:
        """Forget the lines after the checkpoint: they will be written again."""
        if not self.ranks.first:
            return
        path = self.config.out / METRICS
        lines = path.read_text().splitlines() if path.is_file() else []
        kept = [line for line in lines if json.loads(line)["step"] <= self.step]
        with replacing(path) as partial:
            partial.write_text("".join(f"{line}\n" for line in kept))

    def save(self) -> None:
        """Write the state of the run, whole or not at all."""
        if self.parted or self.ranks.first:  # or else all have the same
            ranks = self.ranks if self.parted else Ranks()
            folder = self.config.out / STATE
            write_state(folder, self.step, self.lm, self.average, self.optimizer, ranks)

    def export(self, codec: DiscreteCodec) -> None:
        """Write the averaged network as a model folder: float16, world.json, card."""
        if not (self.parted or self.ranks.first):
            return
        config, figures, weights = self.config, self.evaluate(), whole(self.average)
        if not self.ranks.first:
            return
        count = sum(tensor.numel() for tensor in weights.values())
        files = {
            WORLD: world_of(config, codec, text=self.data.text is not None),
            CARD: card(config, count, self.step, figures),
        }
        half = {name: tensor.half() for name, tensor in weights.items()}
        write_folder(self.lm.config, half, config.out / MODEL, files=files)


def _codec(reference: str) -> DiscreteCodec:
    codec = resolve(reference, "wfm.codecs")
    if not isinstance(codec, DiscreteCodec):
        raise ValueError(f"{reference}: a {type(codec).__name__}, not a codec of tokens")
    return codec


def _text_encoder(reference: str) -> TextEncoder:
    encoder = resolve(reference, "wfm.text_encoders")
    if not isinstance(encoder, TextEncoder):
        raise ValueError(f"{reference}: a {type(encoder).__name__}, not a text encoder")
    return encoder
