"""Our networks -> the layout of diffusers' ``CosmosTransformer3DModel``."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import CARD, CONFIG, replacing, write_weights
from .config import DiffusionConfig
from .transformer import DiffusionTransformer

FOLDER, WEIGHTS = "transformer", "diffusion_pytorch_model.safetensors"

_RULES = (
    (r"embed\.", r"patch_embed.proj."),
    (r"position\.([thw])$", r"learnable_pos_embed.pos_emb_\1"),
    (r"time\.linear_", r"time_embed.t_embedder.linear_"),
    (r"time\.norm\.", r"time_embed.norm."),
    (r"final\.modulation\.", r"norm_out.<modulation>."),
    (r"final\.linear\.", r"proj_out."),
    (r"blocks\.(\d+)\.self_attention\.", r"transformer_blocks.\1.attn1.<attention>."),
    (r"blocks\.(\d+)\.text_attention\.", r"transformer_blocks.\1.attn2.<attention>."),
    (r"blocks\.(\d+)\.self_modulation\.", r"transformer_blocks.\1.norm1.<modulation>."),
    (r"blocks\.(\d+)\.text_modulation\.", r"transformer_blocks.\1.norm2.<modulation>."),
    (r"blocks\.(\d+)\.mlp_modulation\.", r"transformer_blocks.\1.norm3.<modulation>."),
    (r"blocks\.(\d+)\.mlp\.up\.", r"transformer_blocks.\1.ff.net.0.proj."),
    (r"blocks\.(\d+)\.mlp\.down\.", r"transformer_blocks.\1.ff.net.2."),
)
_PARTS = {
    "<modulation>.down": "linear_1",
    "<modulation>.up": "linear_2",
    "<attention>.out": "to_out.0",
    **{f"<attention>.{x}_norm": f"norm_{x}" for x in "qk"},
    **{f"<attention>.{x}": f"to_{x}" for x in "qkv"},
}


def to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename our weights; those of the learned loss weight are left out.

    Raises:
        ValueError: a weight that diffusers' network does not have.
    """
    return {
        _rename(name): tensor
        for name, tensor in state.items()
        if not name.startswith("uncertainty.")
    }


def _rename(name: str) -> str:
    for pattern, replacement in _RULES:
        renamed, found = re.subn(f"^{pattern}", replacement, name)
        if found:
            for ours, theirs in _PARTS.items():
                renamed = renamed.replace(f"{ours}.", f"{theirs}.")
            return renamed
    raise ValueError(f"{name}: diffusers' network has no such weight")


def config_to_diffusers(config: DiffusionConfig) -> dict[str, Any]:
    """Return the ``config.json`` of diffusers' network.

    Raises:
        ValueError: the network has something that diffusers' has not.
    """
    plain = DiffusionConfig()
    for key in ("views", "extra_channels", "token_vocab", "base_fps"):
        if getattr(config, key) != getattr(plain, key):
            raise ValueError(
                f"{key} is {getattr(config, key)}: diffusers' network has no such thing"
            )
    if config.position == "sincos":
        raise ValueError("position is sincos: diffusers' network has no such thing")
    return {
        "_class_name": "CosmosTransformer3DModel",
        "in_channels": config.latent_channels + config.condition_mask,
        "out_channels": config.latent_channels,
        "num_attention_heads": config.num_heads,
        "attention_head_dim": config.head_dim,
        "num_layers": config.depth,
        "mlp_ratio": config.mlp_ratio,
        "text_embed_dim": config.text_dim,
        "adaln_lora_dim": config.adaln_rank,
        "max_size": list(config.max_size),
        "patch_size": list(config.patch),
        "rope_scale": list(config.rope_scale),
        "concat_padding_mask": config.padding_mask,
        "extra_pos_embed_type": "learnable" if config.position == "learnable" else None,
    }


def save_diffusers(
    net: DiffusionTransformer, folder: str | Path, *, card: str, dtype: torch.dtype | None = None
) -> None:
    """Write ``folder/transformer`` for ``CosmosTransformer3DModel.from_pretrained``.

    diffusers normalises queries and keys with eps 1e-5; a network trained with 1e-6 differs
    there by about one part in 100,000. ``dtype`` None keeps the weights' own.

    Raises:
        ValueError: the network has something that diffusers' has not.
    """
    config = config_to_diffusers(net.config)
    state = to_diffusers(net.state_dict())
    with replacing(folder) as partial:
        place = partial / FOLDER
        place.mkdir(parents=True)
        (partial / CARD).write_text(card)
        (place / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        write_weights(place / WEIGHTS, {k: x.to(dtype or x.dtype) for k, x in state.items()})
