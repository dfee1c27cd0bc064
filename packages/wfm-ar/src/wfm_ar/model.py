"""The autoregressive transformer: video tokens in, scores of the next tokens out."""

import math
from collections.abc import Mapping
from typing import cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from .config import ArConfig, Grid, WorldSettings
from .layers import Block, KeyValue, LayerCache, RMSNorm, signed
from .positions import absolute_table, rotary_tables

Tables = tuple[Tensor, Tensor, Tensor | None]


class Cache:
    """What a sequence has shown so far: its keys and values, and those of its context."""

    def __init__(self, layers: list[LayerCache], context: list[KeyValue | None]) -> None:
        self.layers, self.context = layers, context

    @property
    def used(self) -> int:
        """Tokens seen."""
        return self.layers[0].used

    def forget(self, count: int) -> None:
        """Take back the last ``count`` tokens; their rows are written over."""
        for layer in self.layers:
            layer.used -= count


class ArTransformer(nn.Module):
    """Scores ``0 <= token < vocab_size`` for each position from all tokens before it.

    Keeps the contracts NextTokenModel and GridGenerator. Tokens are the flattened (t h w)
    grid, w fastest; with ``config.bov`` the begin-of-video token stands before them.
    """

    def __init__(self, config: ArConfig) -> None:
        super().__init__()
        self.config = config
        self.world: WorldSettings | None = None  # how it was trained, where that is known
        self.embed = nn.Embedding(config.embedding_rows, config.dim)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.num_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.head = nn.Linear(config.dim, config.vocab_size, bias=False)
        self._tables: dict[tuple[object, ...], Tables] = {}

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def max_tokens(self) -> int:
        """Longest sequence on the model's own grid, the begin-of-video token included."""
        return self.config.max_tokens

    @property
    def bov_token(self) -> int | None:
        """The token to begin with, or None where sequences begin with the video's first."""
        return self.config.vocab_size if self.config.bov else None

    def logits(
        self,
        tokens: Int64[Tensor, "b n"],
        condition: Mapping[str, Tensor] | None = None,
        *,
        grid: Grid | None = None,
    ) -> Float[Tensor, "b n v"]:
        """Score every next token; row ``i`` scores token ``i + 1``.

        ``condition["text"]`` (b m d) is the context of cross-attention; all its rows are
        attended, zero rows too. Without it the answer is that of an all-zero context.

        Raises:
            KeyError: a condition that the network does not know.
            ValueError: more tokens than the grid has, or a context of another width.
        """
        return self(tokens, self.context_of(condition), grid=grid)

    def generate(
        self,
        tokens: Int64[Tensor, "b p"],
        n: int,
        condition: Mapping[str, Tensor] | None = None,
        *,
        grid: Grid | None = None,
        generator: torch.Generator | None = None,
    ) -> Int64[Tensor, "b n"]:
        """Return the n tokens that follow, by cached decoding.

        Without a generator the likeliest token is taken each time; with one, tokens are drawn
        at temperature 1 from the likeliest 80 % of the probability, as the original does.
        """
        from .decoding import Sampler, decode

        sampler = Sampler(1.0 if generator else 0.0, top_p=0.8, generator=generator)
        return decode(self, tokens, n, sampler, context=self.context_of(condition), grid=grid)

    def context_of(self, condition: Mapping[str, Tensor] | None) -> Tensor | None:
        """Take the context out of a condition.

        Raises:
            KeyError: a condition that the network does not know.
        """
        condition = condition or {}
        if unknown := set(condition) - {"text"}:
            raise KeyError(f"unknown condition {', '.join(sorted(unknown))}; the network has: text")
        return condition.get("text")

    def forward(
        self,
        tokens: Int64[Tensor, "b n"],
        context: Float[Tensor, "b m e"] | None = None,
        *,
        grid: Grid | None = None,
    ) -> Float[Tensor, "b n v"]:
        return self.head(self.states(tokens, context, grid=grid))

    def states(
        self,
        tokens: Int64[Tensor, "b n"],
        context: Float[Tensor, "b m e"] | None = None,
        *,
        grid: Grid | None = None,
    ) -> Float[Tensor, "b n c"]:
        """Return what the head makes its scores from."""
        tables = self._rows(grid, 0, tokens.shape[1])
        return self.norm(self._run(tokens, self.project(context), tables))

    def step(
        self, tokens: Int64[Tensor, "b n"], cache: Cache, *, grid: Grid | None = None
    ) -> Float[Tensor, "b v"]:
        """Read further tokens into the cache; score the one after the last."""
        return self.head(self.hidden(tokens, cache, grid=grid)[:, -1])

    def hidden(
        self, tokens: Int64[Tensor, "b n"], cache: Cache, *, grid: Grid | None = None
    ) -> Float[Tensor, "b n c"]:
        """Read further tokens into the cache; return what the head scores those after from."""
        tables = self._rows(grid, cache.used, cache.used + tokens.shape[1])
        return self.norm(self._run(tokens, cache.context, tables, cache.layers))

    def new_cache(
        self, batch: int, length: int, context: Float[Tensor, "b m e"] | None = None
    ) -> Cache:
        """Make room for ``batch`` sequences of ``length`` tokens under one context each."""
        config, like = self.config, self.embed.weight
        shape = (2, batch, config.num_kv_heads, length, config.head_dim)
        with torch.no_grad():
            layers = [LayerCache(*like.new_empty(shape)) for _ in self.blocks]
            return Cache(layers, self.project(context))

    def project(self, context: Float[Tensor, "b m e"] | None) -> list[KeyValue | None]:
        """Return each layer's keys and values of a context, None where it has none."""
        if context is None:
            return [None] * len(self.blocks)
        if not self.config.cross_every:
            raise ValueError("this model has no cross-attention: it takes no text")
        if context.shape[-1] != self.config.context_dim:
            raise ValueError(
                f"text has {context.shape[-1]} features; the model wants {self.config.context_dim}"
            )
        context = context.to(self.embed.weight.dtype)
        crosses = (cast(Block, block).cross for block in self.blocks)
        return [cross.project(context) if cross is not None else None for cross in crosses]

    def initialize(self, generator: torch.Generator) -> None:
        """Draw new weights with the spreads of the original training (section 5.1.3)."""
        for name, weight in self.named_parameters():
            if weight.ndim == 1:
                nn.init.ones_(weight)
            elif name == "embed.weight":
                nn.init.normal_(weight, generator=generator)
            elif name == "head.weight":
                std = self.config.dim**-0.5
                nn.init.trunc_normal_(weight, 0, std, -3 * std, 3 * std, generator=generator)
            else:
                nn.init.trunc_normal_(weight, 0, self._spread(name), generator=generator)

    def _spread(self, name: str) -> float:
        """Standard deviation of a layer's matrix: less for those that write to the stream."""
        layer, part = int(name.split(".")[1]), name.split(".")[-2]
        return 0.02 / math.sqrt(2 * (layer + 1)) if part in ("out", "down") else 0.02

    def _run(
        self,
        tokens: Int64[Tensor, "b n"],
        contexts: list[KeyValue | None],
        tables: Tables,
        caches: list[LayerCache] | None = None,
    ) -> Float[Tensor, "b n c"]:
        x = self.embed(tokens)
        cos, sin, absolute = tables
        for i, block in enumerate(self.blocks):
            if absolute is not None:
                x = x + absolute
            x = block(x, (cos, sin), contexts[i], caches[i] if caches else None)
        return x

    def _rows(self, grid: Grid | None, start: int, stop: int) -> Tables:
        """Return the rows of the position tables for tokens ``start`` to ``stop``."""
        config, like = self.config, self.embed.weight
        if grid is not None and config.grid is None:
            raise ValueError("this model counts tokens in one line: it takes no grid")
        room = config.max_tokens if grid is None else config.bov + math.prod(grid)
        if stop > room:
            raise ValueError(f"{stop} tokens; grid {grid or config.grid} has room for {room}")
        key = (grid, like.device, like.dtype)
        if key not in self._tables:
            # Outside of any inference mode: a training may want the same tables.
            with torch.inference_mode(mode=False), torch.no_grad():
                cos, sin = rotary_tables(config, grid)
                sin = signed(sin, interleaved=config.rope == "1d-interleaved")
                absolute = absolute_table(config, grid) if config.absolute_positions else None
            self._tables[key] = (
                cos.to(like),
                sin.to(like),
                absolute if absolute is None else absolute.to(like),
            )
        cos, sin, absolute = self._tables[key]
        rows = slice(start, stop)
        return cos[rows], sin[rows], absolute if absolute is None else absolute[rows]
