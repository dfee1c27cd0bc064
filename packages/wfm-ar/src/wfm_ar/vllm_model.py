"""The transformer in vLLM's parts: paged keys and values, continuous batches, tensor parallel.

Tables, norms and rotation are those of the package itself. A token's number in its sequence is
its place on the grid, so the tables are looked up by vLLM's positions.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention
from vllm.distributed import (  # ty: ignore[import-not-found]
    get_tensor_model_parallel_world_size,
)
from vllm.model_executor.layers.activation import SiluAndMul  # ty: ignore[import-not-found]
from vllm.model_executor.layers.attention import Attention  # ty: ignore[import-not-found]
from vllm.model_executor.layers.linear import (  # ty: ignore[import-not-found]
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.logits_processor import (  # ty: ignore[import-not-found]
    LogitsProcessor,
)
from vllm.model_executor.layers.vocab_parallel_embedding import (  # ty: ignore[import-not-found]
    ParallelLMHead,
    VocabParallelEmbedding,
)

from .config import ArConfig
from .layers import RMSNorm, rotate, signed
from .positions import absolute_table, rotary_tables


class SelfAttention(nn.Module):
    """Grouped attention over vLLM's cache."""

    def __init__(self, config: ArConfig, vllm_config: Any, prefix: str) -> None:
        super().__init__()
        quant, parts = vllm_config.quant_config, get_tensor_model_parallel_world_size()
        heads, groups, dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.heads, self.groups, self.dim = heads // parts, max(groups // parts, 1), dim
        self.interleaved = config.rope == "1d-interleaved"
        self.qkv = QKVParallelLinear(
            config.dim, dim, heads, groups, bias=False, quant_config=quant, prefix=f"{prefix}.qkv"
        )
        self.out = RowParallelLinear(
            heads * dim, config.dim, bias=False, quant_config=quant, prefix=f"{prefix}.out"
        )
        self.q_norm = RMSNorm(dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.attend = Attention(
            self.heads, dim, dim**-0.5, num_kv_heads=self.groups,
            cache_config=vllm_config.cache_config, quant_config=quant, prefix=f"{prefix}.attend",
        )  # fmt: skip

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        widths = [self.heads * self.dim, self.groups * self.dim, self.groups * self.dim]
        q, k, v = self.qkv(x)[0].split(widths, -1)
        q = self.q_norm(q.reshape(-1, self.heads, self.dim))
        k = self.k_norm(k.reshape(-1, self.groups, self.dim))
        q, k = (rotate(part, rotation, interleaved=self.interleaved).flatten(1) for part in (q, k))
        return self.out(self.attend(q, k, v))[0]


class CrossAttention(nn.Module):
    """Attention to the one context that this engine serves; its keys are made at loading."""

    def __init__(self, config: ArConfig, vllm_config: Any, prefix: str) -> None:
        super().__init__()
        quant, parts = vllm_config.quant_config, get_tensor_model_parallel_world_size()
        heads, groups, dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.dim = dim

        def column(name: str, inputs: int, outputs: int) -> nn.Module:
            return ColumnParallelLinear(
                inputs, outputs, bias=False, quant_config=quant, prefix=f"{prefix}.{name}"
            )

        if groups % parts:
            raise ValueError(f"tensor parallel {parts} does not divide {groups} key-value heads")
        self.q = column("q", config.dim, heads * dim)
        self.k = column("k", config.context_dim, groups * dim)
        self.v = column("v", config.context_dim, groups * dim)
        self.out = RowParallelLinear(
            heads * dim, config.dim, bias=False, quant_config=quant, prefix=f"{prefix}.out"
        )
        self.q_norm = RMSNorm(dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.context: tuple[Tensor, Tensor] | None = None

    def project(self, context: Tensor) -> None:
        """Make keys and values of a context, slots x features; all slots are attended.

        From the weights themselves: vLLM readies its layers only after all have been loaded.
        """
        slots = len(context)
        k = self.k_norm(linear(context, self.k.get_parameter("weight")).view(slots, -1, self.dim))
        v = linear(context, self.v.get_parameter("weight")).view(slots, -1, self.dim)
        self.context = (k.transpose(0, 1)[None].contiguous(), v.transpose(0, 1)[None].contiguous())

    def forward(self, x: Tensor) -> Tensor:
        if self.context is None:  # the same as an all-zero context
            return torch.zeros_like(x)
        q = self.q_norm(self.q(x)[0].view(len(x), -1, self.dim)).transpose(0, 1)[None]
        found = scaled_dot_product_attention(q, *self.context, enable_gqa=True)
        return self.out(found[0].transpose(0, 1).flatten(1))[0]


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: ArConfig, vllm_config: Any, prefix: str) -> None:
        super().__init__()
        quant = vllm_config.quant_config
        self.gate_up = MergedColumnParallelLinear(
            config.dim, [config.ffn_dim] * 2, bias=False, quant_config=quant,
            prefix=f"{prefix}.gate_up",
        )  # fmt: skip
        self.down = RowParallelLinear(
            config.ffn_dim, config.dim, bias=False, quant_config=quant, prefix=f"{prefix}.down"
        )
        self.gate = SiluAndMul()

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.gate(self.gate_up(x)[0]))[0]


class Block(nn.Module):
    """One layer."""

    def __init__(self, config: ArConfig, vllm_config: Any, layer: int, prefix: str) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = SelfAttention(config, vllm_config, f"{prefix}.attention")
        self.cross = self.cross_norm = None
        if config.has_cross_attention(layer):
            self.cross_norm = RMSNorm(config.dim, config.norm_eps)
            self.cross = CrossAttention(config, vllm_config, f"{prefix}.cross")
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn = FeedForward(config, vllm_config, f"{prefix}.ffn")

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotation)
        if self.cross is not None and self.cross_norm is not None:
            x = x + self.cross(self.cross_norm(x))
        return x + self.ffn(self.ffn_norm(x))


class WfmArForCausalLM(nn.Module):
    """What vLLM serves a folder of :func:`~wfm_ar.serving.write_served` with."""

    cos: Tensor
    sin: Tensor
    absolute: Tensor | None

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        self.config = config = ArConfig.model_validate(vllm_config.model_config.hf_config.wfm)
        stem = f"{prefix}." if prefix else ""
        self.embed = VocabParallelEmbedding(config.embedding_rows, config.dim)
        self.blocks = nn.ModuleList(
            Block(config, vllm_config, i, f"{stem}blocks.{i}") for i in range(config.num_layers)
        )
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.head = ParallelLMHead(
            config.vocab_size, config.dim, quant_config=vllm_config.quant_config,
            prefix=f"{stem}head",
        )  # fmt: skip
        self.scores = LogitsProcessor(config.vocab_size)
        cos, sin = rotary_tables(config)
        sin = signed(sin, interleaved=config.rope == "1d-interleaved")
        like = self.norm.weight
        self.register_buffer("cos", cos[:, None].to(like), persistent=False)
        self.register_buffer("sin", sin[:, None].to(like), persistent=False)
        absolute = absolute_table(config).to(like) if config.absolute_positions else None
        self.register_buffer("absolute", absolute, persistent=False)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        return self.embed(input_ids)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: object = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        x = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        rotation = self.cos[positions], self.sin[positions]
        absolute = None if self.absolute is None else self.absolute[positions]
        for block in self.blocks:
            if absolute is not None:
                x = x + absolute
            x = block(x, rotation)
        return self.norm(x)

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        return self.scores(self.head, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load our own names; what is stacked in them is told apart for tensor parallel."""
        known, loaded, context = dict(self.named_parameters()), set(), None
        for name, tensor in weights:
            if name == "context":
                context = tensor
                continue
            weight = known[name]
            load = getattr(weight, "weight_loader", None)
            loaded.add(name)
            if load is None:
                weight.data.copy_(tensor)
            elif name.endswith(("attention.qkv.weight", "ffn.gate_up.weight")):
                for part, rows in self._stacked(name, tensor):
                    load(weight, rows, part)
            else:
                load(weight, tensor)
        if context is not None:
            for block in self.blocks:
                if isinstance(block, Block) and block.cross is not None:
                    block.cross.project(context.to(self.norm.weight))
        return loaded

    def _stacked(self, name: str, tensor: Tensor) -> Iterable[tuple[str | int, Tensor]]:
        if name.endswith("gate_up.weight"):
            return enumerate(tensor.chunk(2))
        groups = self.config.num_kv_heads * self.config.head_dim
        return zip("qkv", tensor.split([len(tensor) - 2 * groups, groups, groups]), strict=True)
