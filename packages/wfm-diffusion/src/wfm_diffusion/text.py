"""A small text encoder for short captions: hashed words, two transformer layers, 32 slots.

It is trained from captions and the attributes they speak of (``train_text_encoder``): captions
of equal attributes are paraphrases, drawn together, and the attributes can be read off by
linear layers. This file needs nothing else of its package.
"""

import json
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int64
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

PADDING = 0
Pair = tuple[str, Mapping[str, object]]


class TextConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    dim: int = Field(128, gt=0, description="features of an embedding")
    slots: int = Field(32, gt=0, description="words at most; the rest is cut off")
    words: int = Field(3072, gt=1, description="rows of the word table, hashes modulo this")
    depth: int = Field(2, gt=0)
    num_heads: int = Field(4, gt=0)


def split_words(text: str) -> list[str]:
    """Return the lower-case words, numbers and signs of a text."""
    return re.findall(r"[a-z]+|[0-9]+|[^\sa-z0-9]", text.lower())


def word_number(word: str, words: int) -> int:
    """Return a word's row in a table of ``words`` rows; row 0 is for padding."""
    return 1 + zlib.crc32(word.encode()) % (words - 1)


class TextLayer(nn.Module):
    """Attention among the real words, then an MLP, both behind a norm."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_1, self.norm_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(
        self, x: Float[Tensor, "b n d"], mask: Bool[Tensor, "b n"]
    ) -> Float[Tensor, "b n d"]:
        qkv = self.qkv(self.norm_1(x))
        q, k, v = rearrange(qkv, "b n (s k d) -> s b k n d", s=3, k=self.num_heads)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        x = x + self.out(rearrange(y, "b k n d -> b n (k d)"))
        return x + self.mlp(self.norm_2(x))


class PicoTextEncoder(nn.Module):
    """Prompts -> 32 embeddings of unit variance each, zero where there is no word."""

    def __init__(self, config: TextConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or TextConfig()
        self.table = nn.Embedding(c.words, c.dim)
        self.place = nn.Parameter(torch.randn(c.slots, c.dim) * 0.1)
        self.layers = nn.ModuleList(TextLayer(c.dim, c.num_heads) for _ in range(c.depth))

    @property
    def dim(self) -> int:
        return self.config.dim

    def numbers(self, prompts: Sequence[str]) -> Int64[Tensor, "b n"]:
        """Return the word numbers of each prompt, padded with 0 to the number of slots."""
        rows = torch.full((len(prompts), self.config.slots), PADDING)
        for row, prompt in zip(rows, prompts, strict=True):
            words = split_words(prompt)[: self.config.slots]
            found = [word_number(word, self.config.words) for word in words]
            row[: len(found)] = torch.tensor(found, dtype=torch.long)
        return rows

    def forward(self, numbers: Int64[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
        mask = numbers != PADDING
        x = self.table(numbers) + self.place
        # A text without a word attends to its padding: no row of softmax may be empty.
        attended = mask | ~mask.any(dim=1, keepdim=True)
        for layer in self.layers:
            x = layer(x, attended)
        return F.layer_norm(x, (self.dim,)) * mask[..., None]

    @torch.no_grad()
    def encode(
        self, prompts: Sequence[str], /
    ) -> tuple[Float[Tensor, "b n d"], Bool[Tensor, "b n"]]:
        """Return the embeddings and the mask of real words; rows are zero where it is False."""
        numbers = self.numbers(prompts).to(self.place.device)
        return self(numbers), numbers != PADDING

    def save(self, folder: str | Path, card: str = "") -> None:
        """Write ``config.json``, ``model.safetensors`` (float16) and the card."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(self.config.model_dump_json(indent=2) + "\n")
        (folder / "README.md").write_text(card)
        state = {name: x.detach().cpu().half() for name, x in self.state_dict().items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    @classmethod
    def load(cls, folder: str | Path) -> "PicoTextEncoder":
        """Read what :meth:`save` wrote, in float32.

        Raises:
            FileNotFoundError: the folder holds no text encoder.
        """
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{folder}: holds no text encoder (no config.json)")
        encoder = cls(TextConfig(**json.loads((folder / "config.json").read_text())))
        state = load_file(folder / "model.safetensors")
        encoder.load_state_dict({name: x.float() for name, x in state.items()})
        return encoder.eval()


def pico_text_encoder() -> PicoTextEncoder:
    """Load the encoder that ships with this package."""
    return PicoTextEncoder.load(
        Path(str(resources.files(str(__package__)))) / "weights" / "pico-text"
    )


def flat_attributes(attributes: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Return the attributes that a caption may speak of: text, truth values, whole numbers.

    Nested ones are named ``objects.0.colour``. The seed and the frame rate are left out.
    """
    found = {}
    for key, value in attributes.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flat_attributes(value, f"{name}.")
        elif isinstance(value, list | tuple):
            found |= flat_attributes({str(i): x for i, x in enumerate(value)}, f"{name}.")
        elif isinstance(value, str | bool | int) and name not in ("caption", "seed", "fps"):
            found[name] = str(value)
    return found


def label_classes(
    attributes: Sequence[Mapping[str, str]], most: int = 64
) -> dict[str, dict[str, int]]:
    """Return the classes of each attribute that has from 2 to ``most`` values."""
    values = defaultdict(set)
    for row in attributes:
        for key, value in row.items():
            values[key].add(value)
    return {
        key: {value: i for i, value in enumerate(sorted(found))}
        for key, found in sorted(values.items())
        if 2 <= len(found) <= most
    }


class _Objective(nn.Module):
    """One linear reader for each attribute, and InfoNCE between paraphrases."""

    def __init__(self, dim: int, classes: Mapping[str, Mapping[str, int]]) -> None:
        super().__init__()
        self.readers = nn.ModuleList(nn.Linear(dim, len(names)) for names in classes.values())
        self.project = nn.Linear(dim, dim)

    def forward(
        self,
        first: Float[Tensor, "b d"],
        second: Float[Tensor, "b d"],
        labels: Int64[Tensor, "b k"],
        same: Bool[Tensor, "b b"],
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return the contrastive and the attribute loss; ``same`` marks equal attributes."""
        a, b = (F.normalize(self.project(x), dim=-1) for x in (first, second))
        scores = (a @ b.T) / 0.1
        twins = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
        scores = scores.masked_fill(twins, float("-inf"))
        contrast = F.cross_entropy(scores, torch.arange(len(scores), device=scores.device))
        losses = [
            F.cross_entropy(reader(first), labels[:, i], ignore_index=-1)
            for i, reader in enumerate(self.readers)
            if (labels[:, i] >= 0).any()
        ]
        attributes = torch.stack(losses).mean() if losses else contrast.new_zeros(())
        return contrast, attributes


def pooled(encoder: PicoTextEncoder, numbers: Int64[Tensor, "b n"]) -> Float[Tensor, "b d"]:
    """Return the mean embedding of the real words."""
    count = (numbers != PADDING).sum(1, keepdim=True).clamp(min=1)
    return encoder(numbers).sum(1) / count


def train_text_encoder(
    pairs: Sequence[Pair],
    *,
    config: TextConfig | None = None,
    steps: int = 1200,
    batch: int = 64,
    rate: float = 1e-3,
    seed: int = 0,
    log: Callable[[int, Mapping[str, float]], None] | None = None,
) -> PicoTextEncoder:
    """Train an encoder from (caption, attributes) pairs; minutes on one core.

    Two views of a sample go in: its caption and another of equal attributes (itself, if there
    is none), each word dropped with probability 0.1.

    Raises:
        ValueError: fewer than two different captions.
    """
    if len({caption for caption, _ in pairs}) < 2:
        raise ValueError("training a text encoder takes two or more different captions")
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    encoder = PicoTextEncoder(config)
    flat = [flat_attributes(attributes) for _, attributes in pairs]
    classes = label_classes(flat)
    objective = _Objective(encoder.dim, classes)
    torch.random.set_rng_state(state)

    numbers = encoder.numbers([caption for caption, _ in pairs])
    labels = torch.tensor(
        [[names.get(row.get(key, ""), -1) for key, names in classes.items()] for row in flat]
    ).reshape(len(pairs), len(classes))
    group, choose_twin = _paraphrases(labels, numbers)

    parameters = [*encoder.parameters(), *objective.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        index = torch.randint(len(pairs), (batch,), generator=generator)
        views = [numbers[index], numbers[choose_twin(index, generator)]]
        dropped = [torch.rand(view.shape, generator=generator) < 0.1 for view in views]
        first, second = (
            pooled(encoder, view.masked_fill(drop, PADDING))
            for view, drop in zip(views, dropped, strict=True)
        )
        same = group[index][:, None] == group[index]
        contrast, attributes = objective(first, second, labels[index], same)
        optimizer.zero_grad()
        (contrast + attributes).backward()
        optimizer.step()
        schedule.step()
        if log is not None and (step + 1) % 50 == 0:
            log(step + 1, {"contrast": contrast.item(), "attributes": attributes.item()})
    return encoder.eval()


def _paraphrases(
    labels: Int64[Tensor, "m k"], numbers: Int64[Tensor, "m n"]
) -> tuple[Tensor, Callable[[Tensor, torch.Generator], Tensor]]:
    """Group samples of equal attributes; return the groups, and how to draw from one's own."""
    keys = labels if labels.shape[1] else numbers
    group = torch.unique(keys, dim=0, return_inverse=True)[1]
    order = group.argsort(stable=True)
    sizes = torch.bincount(group)
    starts = sizes.cumsum(0) - sizes

    def choose(index: Tensor, generator: torch.Generator) -> Tensor:
        mine = group[index]
        draw = torch.rand(len(index), generator=generator)
        return order[starts[mine] + (draw * sizes[mine]).long()]

    return group, choose


def load_text_encoder(folder: str) -> PicoTextEncoder:
    """Load an encoder from a folder, for references of the form ``module:callable=FOLDER``."""
    return PicoTextEncoder.load(folder)
