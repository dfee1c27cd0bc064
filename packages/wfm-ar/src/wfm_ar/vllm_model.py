"""The transformer in vLLM's parts: paged keys and values, continuous batches, tensor parallel.

Tables, norms and rotation are those of the package itself. Models with text are served as
encoder-decoders (vllm_context.py). A token's number in its sequence is
its place on the grid, so the tables are looked up by vLLM's positions.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed import (  # ty: ignore[import-not-found]
    get_tensor_model_parallel_world_size,
)
from vllm.model_executor.layers.activation import SiluAndMul  # ty: ignore[import-not-found]
from vllm.model_executor.layers.attention import (  # ty: ignore[import-not-found]
    Attention,
)
from vllm.model_executor.layers.attention import (  # ty: ignore[import-not-found]
    CrossAttention as VllmCrossAttention,
)
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
from vllm.model_executor.models.interfaces import (  # ty: ignore[import-not-found]
    SupportsMultiModal,
)
from vllm.multimodal import MULTIMODAL_REGISTRY  # ty: ignore[import-not-found]

from .config import ArConfig
from .layers import RMSNorm, rotate, signed
from .positions import absolute_table, rotary_tables
from .serving import CONTEXT
from .vllm_context import ContextInfo, ContextProcessor, EmptyContext


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
    """Attention to the context of each request; vLLM keeps its keys and values in pages too."""

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
        self.attend = VllmCrossAttention(
            heads // parts, dim, dim**-0.5, num_kv_heads=groups // parts,
            cache_config=vllm_config.cache_config, quant_config=quant, prefix=f"{prefix}.attend",
        )  # fmt: skip

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Attend; ``context`` has the slots of those requests that begin in this very step."""
        k = v = None
        if context is not None:
            k = self._heads(self.k_norm, self.k(context)[0])
            v = self.v(context)[0]
        return self.out(self.attend(self._heads(self.q_norm, self.q(x)[0]), k, v))[0]

    def _heads(self, norm: nn.Module, x: Tensor) -> Tensor:
        return norm(x.view(len(x), -1, self.dim)).flatten(1)


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

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], context: Tensor | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotation)
        if self.cross is not None and self.cross_norm is not None:
            x = x + self.cross(self.cross_norm(x), context)
        return x + self.ffn(self.ffn_norm(x))


class WfmArForCausalLM(nn.Module):
    """What vLLM serves a model without text with."""

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
        encoder_outputs: Sequence[Tensor] | None = None,
    ) -> Tensor:
        context = torch.cat(list(encoder_outputs)) if encoder_outputs else None
        x = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        rotation = self.cos[positions], self.sin[positions]
        absolute = None if self.absolute is None else self.absolute[positions]
        for block in self.blocks:
            if absolute is not None:
                x = x + absolute
            x = block(x, rotation, context)
        return self.norm(x)

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        return self.scores(self.head, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load our own names; what is stacked in them is told apart for tensor parallel."""
        known, loaded = dict(self.named_parameters()), set()
        for name, tensor in weights:
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
        return loaded

    def _stacked(self, name: str, tensor: Tensor) -> Iterable[tuple[str | int, Tensor]]:
        if name.endswith("gate_up.weight"):
            return enumerate(tensor.chunk(2))
        groups = self.config.num_kv_heads * self.config.head_dim
        return zip("qkv", tensor.split([len(tensor) - 2 * groups, groups, groups]), strict=True)


@MULTIMODAL_REGISTRY.register_processor(
    ContextProcessor, info=ContextInfo, dummy_inputs=EmptyContext
)
class WfmArForConditionalGeneration(WfmArForCausalLM, SupportsMultiModal):
    """What vLLM serves a model with text with: each request has a context of its own."""

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        return None

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Return the contexts as they are: what projects them stands in every layer."""
        return [context.to(self.norm.weight) for context in kwargs[CONTEXT]]

    def embed_input_ids(self, input_ids: Tensor, *_: object, **__: object) -> Tensor:
        return self.embed(input_ids)
