"""Prepare a folder that vLLM serves, and say how."""

import json
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from .checkpoint import CONFIG, WEIGHTS, replacing, write_weights
from .model import ArTransformer
from .vllm_plugin import ARCHITECTURE, MODEL_TYPE

# Head sizes that vLLM's attention for CPUs has (0.32).
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)


def write_served(
    lm: ArTransformer,
    folder: str | Path,
    *,
    context: Float[Tensor, "m e"] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write the model as vLLM wants it, whole or not at all.

    ``context`` is the embedded prompt that every request of this engine is answered under;
    None is no prompt. vLLM's requests carry tokens only.

    Raises:
        ValueError: a context for a model without cross-attention, or of another width.
    """
    config = lm.config
    tensors = {name: tensor.to(dtype) for name, tensor in lm.state_dict().items()}
    if context is not None:
        lm.project(context[None])  # refuses what does not fit
        tensors["context"] = context.to(dtype)
    described = {
        "architectures": [ARCHITECTURE],
        "model_type": MODEL_TYPE,
        "hidden_size": config.dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_tokens,
        "tie_word_embeddings": False,
        "dtype": str(dtype).removeprefix("torch."),
        "bos_token_id": None,
        "eos_token_id": None,
        "wfm": config.model_dump(mode="json"),
    }
    with replacing(folder) as partial:
        partial.mkdir()
        (partial / CONFIG).write_text(json.dumps(described, indent=2) + "\n")
        write_weights(partial / WEIGHTS, tensors)


def serve_command(lm: ArTransformer, folder: str | Path, *, port: int = 8000) -> list[str]:
    """Return the command line that answers requests over HTTP on 127.0.0.1.

    Prefixes are not cached: keys and values depend on the context too.
    """
    return [
        "vllm", "serve", str(folder), "--skip-tokenizer-init", "--no-enable-prefix-caching",
        "--max-model-len", str(lm.config.max_tokens),
        "--max-num-batched-tokens", str(max(lm.config.max_tokens, 2048)),
        "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
