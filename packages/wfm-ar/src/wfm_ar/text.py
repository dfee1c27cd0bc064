"""A small text encoder for short captions: hashed words, two transformer layers, 32 slots."""

import json
import re
import zlib
from collections.abc import Sequence
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


# same as: packages/wfm-diffusion/src/wfm_diffusion/text.py
class TextConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    dim: int = Field(128, gt=0, description="features of an embedding")
    slots: int = Field(32, gt=0, description="words at most; the rest is cut off")
    words: int = Field(3072, gt=1, description="rows of the word table, hashes modulo this")
    depth: int = Field(2, gt=0)
    num_heads: int = Field(4, gt=0)


# same as: packages/wfm-diffusion/src/wfm_diffusion/text.py
def split_words(text: str) -> list[str]:
    """Return the lower-case words, numbers and signs of a text."""
    return re.findall(r"[a-z]+|[0-9]+|[^\sa-z0-9]", text.lower())


# same as: packages/wfm-diffusion/src/wfm_diffusion/text.py
def word_number(word: str, words: int) -> int:
    """Return a word's row in a table of ``words`` rows; row 0 is for padding."""
    return 1 + zlib.crc32(word.encode()) % (words - 1)


# same as: packages/wfm-diffusion/src/wfm_diffusion/text.py
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


# same as: packages/wfm-diffusion/src/wfm_diffusion/text.py
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


# same as: packages/wfm-diffusion/src/wfm_diffusion/text.py
def pico_text_encoder() -> PicoTextEncoder:
    """Load the encoder that ships with this package."""
    return PicoTextEncoder.load(
        Path(str(resources.files(str(__package__)))) / "weights" / "pico-text"
    )
