"""Checkpoints of NVIDIA and diffusers -> ours. Names: arXiv 2501.03575's public releases.

NVIDIA's ``model.pt`` holds ``net.blocks.block0.blocks.1.block.attn.to_q.0.weight``, diffusers
``transformer_blocks.0.attn2.to_q.weight``; ours is ``blocks.0.text_attention.q.weight``.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .config import DiffusionConfig

Rules = tuple[tuple[str, str], ...]

_SUBLAYERS = ("self", "text", "mlp")

_FROM_NVIDIA: Rules = (
    (r"x_embedder\.proj\.1\.", "embed."),
    (r"extra_pos_embedder\.pos_emb_([thw])$", r"position.\1"),
    (r"t_embedder\.1\.linear_", "time.linear_"),
    (r"affline_norm\.", "time.norm."),
    (r"blocks\.block(\d+)\.blocks\.(\d)\.", r"blocks.\1.<\2>."),
    (r"final_layer\.adaLN_modulation\.1\.", "final.modulation.down."),
    (r"final_layer\.adaLN_modulation\.2\.", "final.modulation.up."),
    (r"final_layer\.linear\.", "final.linear."),
    (r"view_embeddings\.", "view_embedding."),
    (r"token_embedder\.", "token_embedding."),
    (r"repeat_frame_embedding\.", "repeat_embedding."),
)
_NVIDIA_SUBLAYER: Rules = (
    (r"adaLN_modulation\.1\.", "modulation.down."),
    (r"adaLN_modulation\.2\.", "modulation.up."),
    (r"block\.attn\.to_([qkv])\.0\.", r"attention.\1."),
    (r"block\.attn\.to_([qk])\.1\.", r"attention.\1_norm."),
    (r"block\.attn\.to_out\.0\.", "attention.out."),
    (r"block\.layer1\.", "up."),
    (r"block\.layer2\.", "down."),
)
_FROM_DIFFUSERS: Rules = (
    (r"patch_embed\.proj\.", "embed."),
    (r"learnable_pos_embed\.pos_emb_([thw])$", r"position.\1"),
    (r"time_embed\.t_embedder\.linear_", "time.linear_"),
    (r"time_embed\.norm\.", "time.norm."),
    (r"transformer_blocks\.(\d+)\.attn1\.", r"blocks.\1.<0>.attention."),
    (r"transformer_blocks\.(\d+)\.attn2\.", r"blocks.\1.<1>.attention."),
    (r"transformer_blocks\.(\d+)\.ff\.", r"blocks.\1.<2>."),
    (r"transformer_blocks\.(\d+)\.norm1\.", r"blocks.\1.<0>.modulation."),
    (r"transformer_blocks\.(\d+)\.norm2\.", r"blocks.\1.<1>.modulation."),
    (r"transformer_blocks\.(\d+)\.norm3\.", r"blocks.\1.<2>.modulation."),
    (r"norm_out\.linear_1\.", "final.modulation.down."),
    (r"norm_out\.linear_2\.", "final.modulation.up."),
    (r"proj_out\.", "final.linear."),
)
_DIFFUSERS_SUBLAYER: Rules = (
    (r"attention\.to_([qkv])\.", r"attention.\1."),
    (r"attention\.norm_([qk])\.", r"attention.\1_norm."),
    (r"attention\.to_out\.0\.", "attention.out."),
    (r"modulation\.linear_1\.", "modulation.down."),
    (r"modulation\.linear_2\.", "modulation.up."),
    (r"net\.0\.proj\.", "up."),
    (r"net\.2\.", "down."),
)
_UNCERTAINTY = {
    "logvar.0.freqs": "uncertainty.frequencies",
    "logvar.0.phases": "uncertainty.phases",
    "logvar.1.weight": "uncertainty.linear.weight",
}
_NO_WEIGHT = re.compile(r"(_extra_state|pos_embedder\.(seq|dim_\w+_range))$")


def unwrap(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Take the weights out of a training checkpoint's ``model``, ``module``, ``state_dict``."""
    for key in ("model", "module", "state_dict"):
        if isinstance(checkpoint.get(key), Mapping):
            return unwrap(checkpoint[key])
    return {name: value for name, value in checkpoint.items() if isinstance(value, Tensor)}


def from_nvidia(checkpoint: Mapping[str, Any], *, uncertainty: bool = False) -> dict[str, Tensor]:
    """Rename the weights of NVIDIA's ``model.pt``; ``uncertainty`` keeps the loss's as well.

    Raises:
        ValueError: a name that no such network has.
    """
    state = {}
    for name, tensor in unwrap(checkpoint).items():
        short = name.removeprefix("net.")
        if short in _UNCERTAINTY:
            if uncertainty:
                state[_UNCERTAINTY[short]] = tensor
        elif not _NO_WEIGHT.search(short):
            state[_rename(short, _FROM_NVIDIA, _NVIDIA_SUBLAYER)] = tensor
    return state


def from_diffusers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of diffusers' ``CosmosTransformer3DModel``.

    Raises:
        ValueError: a name that no such network has.
    """
    return {
        _rename(name, _FROM_DIFFUSERS, _DIFFUSERS_SUBLAYER): tensor
        for name, tensor in state_dict.items()
    }


def _rename(name: str, rules: Rules, sublayer_rules: Rules) -> str:
    """Apply the first rule that fits; then, inside a block, the first that fits the rest."""
    renamed = _first(name, rules)
    if renamed is None:
        raise ValueError(f"{name}: no weight of a Cosmos 1.0 diffusion network has this name")
    inside = re.fullmatch(r"(blocks\.\d+\.)<(\d)>\.(.*)", renamed)
    if inside is None:
        return renamed
    block, number, rest = inside.groups()
    rest = _first(rest, sublayer_rules)
    if rest is None or int(number) > 2:
        raise ValueError(f"{name}: no weight of a Cosmos 1.0 diffusion network has this name")
    kind = _SUBLAYERS[int(number)]
    joint = "." if rest.startswith(("up.", "down.")) else "_"
    return f"{block}{kind}{joint}{rest}"


def _first(name: str, rules: Rules) -> str | None:
    for pattern, replacement in rules:
        if re.match(pattern, name):
            return re.sub(f"^{pattern}", replacement, name)
    return None


def config_from_diffusers(mapping: Mapping[str, Any]) -> DiffusionConfig:
    """Read a diffusers ``config.json``; keys that we have no use for are ignored."""
    heads, head_dim = mapping["num_attention_heads"], mapping["attention_head_dim"]
    latents = mapping.get("out_channels", 16)
    return DiffusionConfig(
        latent_channels=latents,
        width=heads * head_dim,
        depth=mapping["num_layers"],
        num_heads=heads,
        mlp_ratio=mapping.get("mlp_ratio", 4.0),
        text_dim=mapping.get("text_embed_dim", 1024),
        adaln_rank=mapping.get("adaln_lora_dim", 256),
        patch=tuple(mapping.get("patch_size", (1, 2, 2))),
        max_size=tuple(mapping.get("max_size", (128, 240, 240))),
        rope_scale=tuple(mapping.get("rope_scale", (2.0, 1.0, 1.0))),
        position="learnable" if mapping.get("extra_pos_embed_type") else "none",
        condition_mask=mapping["in_channels"] > latents,
        padding_mask=mapping.get("concat_padding_mask", True),
    )


def config_from_nvidia(mapping: Mapping[str, Any]) -> DiffusionConfig:
    """Read the arguments of NVIDIA's network; keys that we have no use for are ignored."""
    patch = mapping.get("patch_spatial", 2)
    latents = mapping.get("out_channels", 16)
    extra = mapping.get("extra_per_block_abs_pos_emb", False)
    position = mapping.get("extra_per_block_abs_pos_emb_type", "sincos") if extra else "none"
    ratios = [mapping.get(f"rope_{axis}_extrapolation_ratio", 1.0) for axis in "thw"]
    return DiffusionConfig(
        latent_channels=latents,
        width=mapping["model_channels"],
        depth=mapping["num_blocks"],
        num_heads=mapping["num_heads"],
        mlp_ratio=mapping.get("mlp_ratio", 4.0),
        text_dim=mapping.get("crossattn_emb_channels", 1024),
        adaln_rank=mapping.get("adaln_lora_dim", 256),
        patch=(mapping.get("patch_temporal", 1), patch, patch),
        max_size=tuple(
            mapping.get(key, default)
            for key, default in (("max_frames", 128), ("max_img_h", 240), ("max_img_w", 240))
        ),
        rope_scale=tuple(ratios),
        position=position,
        condition_mask=mapping.get("in_channels", latents) > latents,
        padding_mask=mapping.get("concat_padding_mask", True),
        views=mapping.get("n_views", 0),
        view_channels=mapping.get("view_condition_dim", 6),
        frame_repeat=mapping.get("add_repeat_frame_embedding", False),
        token_vocab=(
            mapping.get("diffusion_decoder_token_condition_voc_size", 64_000)
            if mapping.get("diffusion_decoder_condition_on_token")
            else 0
        ),
        token_channels=mapping.get("diffusion_decoder_token_condition_dim", 32),
        qk_norm_eps=1e-6,
    )


def config_from_weights(state: Mapping[str, Tensor]) -> DiffusionConfig:
    """Read the sizes off converted weights, for a ``model.pt`` that comes without a config.

    What weights do not show is Cosmos 1.0's: patches of 1x2x2, RoPE stretched twice along
    time, along height and width too in the 14B network, and these by half in the decoder.
    """
    width, columns = state["embed.weight"].shape
    views, view_channels = state.get("view_embedding.weight", torch.zeros(0, 6)).shape
    tokens, token_channels = state.get("token_embedding.weight", torch.zeros(0, 32)).shape
    latents = len(state["final.linear.weight"]) // 4
    planes = latents + (view_channels if views else 0) + (token_channels if tokens else 0)
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    stretched = (2.0, 2.0, 2.0) if width == 5120 else (2.0, 1.0, 1.0)
    size = DiffusionConfig().max_size
    if "position.t" in state:
        t, h, w = (len(state[f"position.{axis}"]) for axis in "thw")
        size = (t, 2 * h, 2 * w)
    head_dim = len(state["blocks.0.self_attention.q_norm.weight"])
    return DiffusionConfig(
        latent_channels=latents,
        width=width,
        depth=depth,
        num_heads=width // head_dim,
        mlp_ratio=len(state["blocks.0.mlp.up.weight"]) / width,
        text_dim=state["blocks.0.text_attention.k.weight"].shape[1],
        adaln_rank=len(state["blocks.0.self_modulation.down.weight"]),
        max_size=size,
        rope_scale=(1.0, 1.5, 1.5) if tokens else stretched,
        position="learnable" if "position.t" in state else ("sincos" if views else "none"),
        condition_mask=columns // 4 - planes == 2,
        views=views,
        view_channels=view_channels,
        frame_repeat="repeat_embedding.weight" in state,
        token_vocab=tokens,
        token_channels=token_channels,
        qk_norm_eps=1e-6,
        uncertainty=len(state.get("uncertainty.frequencies", ())),
    )
