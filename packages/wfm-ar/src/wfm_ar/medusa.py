"""Medusa heads: small layers on a frozen model that guess several tokens ahead.

As in Cosmos 1.0 (arXiv 2501.03575, section 5.1.4): one layer with SiLU and a residual for each
head, their matrices merged into one, the model's own head behind them all. There the last two
layers are trained too; here the model stays as it is, so that its answers do.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, silu

from .checkpoint import fingerprint, read_weights, write_weights
from .model import ArTransformer
from .precision import Precision, computing_in
from .tokens import TokenSet

logger = logging.getLogger(__name__)

FILE = "medusa.safetensors"
Log = Callable[[int, Mapping[str, float]], None]


class MedusaHeads(nn.Module):
    """Guess the ``count`` tokens after the next one from what the next is made of."""

    def __init__(self, lm: ArTransformer, count: int = 4) -> None:
        super().__init__()
        if count < 1:
            raise ValueError(f"count must be 1 or more, got {count}")
        self.count = count
        self.merged = nn.Linear(lm.config.dim, count * lm.config.dim, bias=False)
        nn.init.zeros_(self.merged.weight)  # at first every head repeats the model's own guess
        self._head = [lm.head]  # in a list: the model's head is not ours to save or train

    def forward(self, hidden: Float[Tensor, "*b c"]) -> Float[Tensor, "*b k v"]:
        """Score the tokens 2, 3, ... positions ahead of the last one that was read."""
        ahead = rearrange(silu(self.merged(hidden)), "... (k c) -> ... k c", k=self.count)
        return self._head[0](hidden[..., None, :] + ahead)

    @torch.no_grad()
    def propose(
        self, tokens: Int64[Tensor, "b n"], hidden: Float[Tensor, "b c"], /
    ) -> Int64[Tensor, "b k"]:
        return self(hidden).argmax(-1)

    def loss(
        self, hidden: Float[Tensor, "b n c"], tokens: Int64[Tensor, "b m"], ignore: int
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " k"]]:
        """Return the mean cross-entropy, and how often each head's likeliest token is right.

        Row i of ``hidden`` has read token i; head k answers for token i + 1 + k. Rows whose
        next token is one of the first ``ignore`` do not count.
        """
        losses, right = [], []
        scores = self(hidden)
        for k in range(self.count):
            answers = tokens[:, max(ignore, 1) + 1 + k :]
            start = max(ignore, 1) - 1
            guess = scores[:, start : start + answers.shape[1], k]
            losses.append(cross_entropy(guess.flatten(0, 1), answers.flatten()))
            right.append((guess.detach().argmax(-1) == answers).float().mean())
        return torch.stack(losses).mean(), torch.stack(right)

    def save(self, folder: str | Path, lm: ArTransformer) -> None:
        """Write the heads and the fingerprint of their model."""
        metadata = {"model": model_fingerprint(lm), "count": str(self.count)}
        write_weights(Path(folder) / FILE, {"merged": self.merged.weight.half()}, metadata=metadata)


def model_fingerprint(lm: ArTransformer) -> str:
    """Return what tells the models apart that heads were trained on."""
    return fingerprint(lm.config.model_dump_json(), {"embed": lm.embed.weight})


def load_heads(folder: str | Path, lm: ArTransformer) -> MedusaHeads:
    """Read what :meth:`MedusaHeads.save` wrote.

    Raises:
        FileNotFoundError: no heads there.
        ValueError: heads of another model.
    """
    from safetensors import safe_open

    file = Path(folder) / FILE
    weight = read_weights(file)["merged"]
    with safe_open(file, "pt") as stored:
        about = stored.metadata() or {}
    if about.get("model") != model_fingerprint(lm):
        raise ValueError(f"{file}: heads of another model")
    heads = MedusaHeads(lm, len(weight) // lm.config.dim)
    heads.merged.weight.data = weight.to(lm.embed.weight)
    return heads.eval()


def train_heads(  # noqa: PLR0913
    lm: ArTransformer,
    data: TokenSet,
    *,
    count: int = 4,
    steps: int = 500,
    batch: int = 16,
    lr: float = 1e-3,
    holdout: float = 0.1,
    condition_latents: int = 1,
    seed: int = 0,
    precision: Precision = "float32",
    log: Log | None = None,
) -> tuple[MedusaHeads, list[float]]:
    """Train heads on a frozen model; return them and each head's held-out accuracy.

    Raises:
        ValueError: the model has fewer tokens, or is laid out for decoding.
    """
    if data.tokens.max() >= lm.vocab_size:
        raise ValueError(f"tokens up to {int(data.tokens.max())}; the model has {lm.vocab_size}")
    if not isinstance(lm.head, nn.Linear):
        raise ValueError("heads are trained on the model itself, not on a copy for decoding")
    learnt, held = data.split(holdout)
    heads = MedusaHeads(lm, count)
    optimizer = torch.optim.AdamW(heads.parameters(), lr=lr, weight_decay=0.0)
    _, h, w = data.grid
    ignore = condition_latents * h * w + bool(lm.config.bov)
    for step in range(steps):
        draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rows = torch.randint(len(learnt.tokens), (batch,), generator=draw)
        with computing_in(precision, str(lm.embed.weight.device)):
            loss, right = heads.loss(*_states(lm, learnt, rows), ignore)
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (steps - step) / (0.2 * steps))
        # The heads' gradient only: nothing is left behind in the model.
        (heads.merged.weight.grad,) = torch.autograd.grad(loss, [heads.merged.weight])
        optimizer.step()
        if log is not None and ((step + 1) % 50 == 0 or step + 1 == steps):
            accuracy = {f"accuracy_{k + 2}": a for k, a in enumerate(right.tolist())}
            log(step + 1, {"loss": loss.item()} | accuracy)
    with torch.no_grad():
        parts = torch.arange(min(len(held.tokens), 256)).split(32)
        right = [heads.loss(*_states(lm, held, part), ignore)[1] * len(part) for part in parts]
    return heads.eval(), (torch.stack(right).sum(0) / sum(map(len, parts))).tolist()


@torch.no_grad()
def _states(lm: ArTransformer, data: TokenSet, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the frozen model's head sees, and the tokens, of some windows."""
    tokens = rearrange(data.tokens[rows], "b t h w -> b (t h w)").long()
    if lm.bov_token is not None:
        tokens = torch.cat([torch.full_like(tokens[:, :1], lm.bov_token), tokens], 1)
    context = None if data.text is None else data.text[data.clip[rows].long()].float()
    return lm.states(tokens, context, grid=data.grid), tokens
