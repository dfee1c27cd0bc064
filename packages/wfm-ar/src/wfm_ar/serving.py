"""Prepare a folder that vLLM serves, say how, and put requests together."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .checkpoint import CONFIG, WEIGHTS, replacing, write_weights
from .model import ArTransformer
from .vllm_plugin import MODEL_TYPE, WITH_TEXT, WITHOUT_TEXT

# Head sizes that vLLM's attention for CPUs has (0.32).
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
# A context travels as vLLM lets embeddings of pictures travel.
MODALITY, CONTEXT = "image", "image_embeds"


def write_served(
    lm: ArTransformer, folder: str | Path, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write the model as vLLM wants it, whole or not at all."""
    config = lm.config
    described = {
        "architectures": [WITH_TEXT if config.cross_every else WITHOUT_TEXT],
        "model_type": MODEL_TYPE,
        "is_encoder_decoder": config.cross_every > 0,
        "max_source_positions": config.text_slots,
        "decoder_start_token_id": 0,  # asked for, never used: requests bring the first token
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
        tensors = {name: tensor.to(dtype) for name, tensor in lm.state_dict().items()}
        write_weights(partial / WEIGHTS, tensors)


def serve_command(lm: ArTransformer, folder: str | Path, *, port: int = 8000) -> list[str]:
    """Return the command line that answers requests over HTTP on 127.0.0.1.

    Prefixes are not cached: keys and values depend on the context too.
    """
    text = ["--enable-mm-embeds", "--enable-scale-out"] if lm.config.cross_every else []
    return [
        "vllm", "serve", str(folder), "--skip-tokenizer-init", "--no-enable-prefix-caching",
        "--max-model-len", str(lm.config.max_tokens),
        "--max-num-batched-tokens", str(max(lm.config.max_tokens, 2048)),
        *text, "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip


def engine_prompt(
    tokens: Sequence[int], context: Float[Tensor, "m e"] | None = None
) -> dict[str, Any]:
    """Return what ``vllm.LLM.generate`` takes: tokens, under their own embedded text."""
    prompt: dict[str, Any] = {"prompt_token_ids": list(tokens)}
    if context is not None:
        prompt["multi_modal_data"] = {MODALITY: context[None]}
    return prompt


def request_body(
    tokens: Sequence[int], context: Float[Tensor, "m e"], **sampling: object
) -> dict[str, Any]:
    """Return the JSON of a request with text, for ``POST /inference/v1/generate``.

    ``sampling`` are vLLM's sampling parameters. The answer is in ``choices[0]["token_ids"]``.
    """
    from vllm.entrypoints.scale_out.token_in_token_out.mm_serde import (  # ty: ignore[import-not-found]
        encode_mm_kwargs_item,
    )
    from vllm.multimodal.inputs import (  # ty: ignore[import-not-found]
        MultiModalBatchedField,
        MultiModalFieldElem,
        MultiModalKwargsItem,
    )

    context = context.detach().contiguous()
    element = MultiModalFieldElem(data=context, field=MultiModalBatchedField())
    mark = hashlib.sha256(context.float().numpy().tobytes()).hexdigest()
    features = {
        "mm_hashes": {MODALITY: [mark]},
        "mm_placeholders": {MODALITY: [{"offset": 0, "length": len(context)}]},
        "kwargs_data": {
            MODALITY: [encode_mm_kwargs_item(MultiModalKwargsItem({CONTEXT: element}))]
        },
    }
    settings = {"ignore_eos": True, "detokenize": False} | sampling
    return {"token_ids": list(tokens), "features": features, "sampling_params": settings}
