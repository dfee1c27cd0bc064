"""Checkpoints of NVIDIA's Cosmos autoregressive models: their keys and configs into ours.

Two layouts are known: the plain one of the released ``model.pt`` files, and the one of the
TransformerEngine training code. Both become ours, with q, k, v in one matrix and the two
input matrices of the feed-forward in another.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .config import PRESETS, ArConfig, Yarn

_LAYER = re.compile(r"layers\.(\d+)\.(.+)")

# TransformerEngine name -> plain name; fc1 holds w1 and w3 and is cut apart by itself.
_ENGINE = {
    "self_attention.layernorm_qkv.layer_norm_weight": "attention_norm.weight",
    "self_attention.layernorm_qkv.query_weight": "attention.wq.weight",
    "self_attention.layernorm_qkv.key_weight": "attention.wk.weight",
    "self_attention.layernorm_qkv.value_weight": "attention.wv.weight",
    "self_attention.proj.weight": "attention.wo.weight",
    "self_attention.q_norm.weight": "attention.q_norm.weight",
    "self_attention.k_norm.weight": "attention.k_norm.weight",
    "layernorm_mlp.layer_norm_weight": "ffn_norm.weight",
    "layernorm_mlp.fc2_weight": "feed_forward.w2.weight",
    "inter_attention.layernorm_query.layer_norm_weight": "cross_attention_norm.weight",
    "inter_attention.layernorm_query.query_weight": "cross_attention.wq.weight",
    "inter_attention.key_value.key_weight": "cross_attention.wk.weight",
    "inter_attention.key_value.value_weight": "cross_attention.wv.weight",
    "inter_attention.proj.weight": "cross_attention.wo.weight",
    "inter_attention.q_norm.weight": "cross_attention.q_norm.weight",
    "inter_attention.k_norm.weight": "cross_attention.k_norm.weight",
}
_ENGINE_FC1 = "layernorm_mlp.fc1_weight"

# Plain name of a layer's weight -> ours, one to one.
_PLAIN = {
    "attention_norm.weight": "attention_norm.weight",
    "attention.wqkv.weight": "attention.qkv.weight",
    "attention.wo.weight": "attention.out.weight",
    "attention.q_norm.weight": "attention.q_norm.weight",
    "attention.k_norm.weight": "attention.k_norm.weight",
    "cross_attention_norm.weight": "cross_norm.weight",
    "cross_attention.wq.weight": "cross.q.weight",
    "cross_attention.wk.weight": "cross.k.weight",
    "cross_attention.wv.weight": "cross.v.weight",
    "cross_attention.wo.weight": "cross.out.weight",
    "cross_attention.q_norm.weight": "cross.q_norm.weight",
    "cross_attention.k_norm.weight": "cross.k_norm.weight",
    "ffn_norm.weight": "ffn_norm.weight",
    "feed_forward.w2.weight": "ffn.down.weight",
}
# Ours -> the plain names whose rows it stacks.
_STACKED = {
    "attention.qkv.weight": ("attention.wq.weight", "attention.wk.weight", "attention.wv.weight"),
    "ffn.gate_up.weight": ("feed_forward.w1.weight", "feed_forward.w3.weight"),
}
_ENDS = {
    "tok_embeddings.weight": "embed.weight",
    "norm.weight": "norm.weight",
    "output.weight": "head.weight",
}


def from_nvidia(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return our state dict of NVIDIA's, plain or TransformerEngine layout.

    A wrapping ``{"model": ...}``, a leading ``model.`` and ``_extra_state`` entries go.

    Raises:
        ValueError: a key that neither layout has, or a matrix of which a part is missing.
    """
    ours: dict[str, Tensor] = {}
    parts: dict[str, Tensor] = {}
    for name, tensor in plain(state_dict).items():
        if name in _ENDS:
            ours[_ENDS[name]] = tensor
        elif (layer := _LAYER.fullmatch(name)) is None:
            raise ValueError(f"{name}: not a weight of a Cosmos autoregressive model")
        elif layer[2] in _PLAIN:
            ours[f"blocks.{layer[1]}.{_PLAIN[layer[2]]}"] = tensor
        else:
            parts[name] = tensor
    for number in sorted({int(m[1]) for name in parts if (m := _LAYER.fullmatch(name))}):
        for stacked, names in _STACKED.items():
            keys = [f"layers.{number}.{name}" for name in names]
            if not any(key in parts for key in keys):
                continue
            if missing := [key for key in keys if key not in parts]:
                raise ValueError(f"{missing[0]}: missing beside its sisters")
            ours[f"blocks.{number}.{stacked}"] = torch.cat([parts.pop(key) for key in keys])
    if parts:
        raise ValueError(f"{min(parts)}: not a weight of a Cosmos autoregressive model")
    return ours


def to_nvidia(state_dict: Mapping[str, Tensor], config: ArConfig) -> dict[str, Tensor]:
    """Undo :func:`from_nvidia`, into the plain layout."""
    ends = {ours: theirs for theirs, ours in _ENDS.items()}
    single = {ours: theirs for theirs, ours in _PLAIN.items()}
    groups = config.num_kv_heads * config.head_dim
    widths = {
        "attention.qkv.weight": [config.num_heads * config.head_dim, groups, groups],
        "ffn.gate_up.weight": [config.ffn_dim] * 2,
    }
    theirs: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        if name in ends:
            theirs[ends[name]] = tensor
            continue
        _, number, rest = name.split(".", 2)
        if rest in _STACKED:
            cut = tensor.split(widths[rest])
            named = zip(_STACKED[rest], cut, strict=True)
            theirs |= {f"layers.{number}.{part}": rows for part, rows in named}
        else:
            theirs[f"layers.{number}.{single[rest]}"] = tensor
    return theirs


def plain(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return NVIDIA's plain layout of either of its layouts, wrappings removed."""
    inner = state_dict.get("model")
    if isinstance(inner, Mapping):
        state_dict = inner
    result: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        name = key.removeprefix("model.")
        if "_extra_state" in name:
            continue
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{key}: a {type(tensor).__name__}, not a tensor")
        layer = _LAYER.fullmatch(name)
        if layer and layer[2] == _ENGINE_FC1:
            w1, w3 = tensor.chunk(2)
            result[f"layers.{layer[1]}.feed_forward.w1.weight"] = w1
            result[f"layers.{layer[1]}.feed_forward.w3.weight"] = w3
        elif layer and layer[2] in _ENGINE:
            result[f"layers.{layer[1]}.{_ENGINE[layer[2]]}"] = tensor
        else:
            result[name] = tensor
    return result


def config_from_nvidia(mapping: Mapping[str, Any]) -> ArConfig:
    """Return our config of NVIDIA's; keys that say nothing about the network are ignored.

    Where ``training_type`` is absent, a model on a grid with cross-attention is taken for
    ``text_to_video``: its sequences begin with the begin-of-video token.
    """
    get = mapping.get
    on_grid = (get("rope_dim") or "3D") == "3D"
    cross = bool(get("insert_cross_attn"))
    kind = get("training_type") or ("text_to_video" if on_grid and cross else "video_to_video")
    line = "1d-interleaved" if get("pytorch_rope_version") == "v1" else "1d"
    heads = int(mapping["n_heads"])
    grid = get("video_latent_shape")
    return ArConfig(
        vocab_size=mapping["vocab_size"],
        dim=mapping["dim"],
        num_layers=mapping["n_layers"],
        num_heads=heads,
        num_kv_heads=get("n_kv_heads") or heads,
        head_dim=get("head_dim") or int(mapping["dim"]) // heads,
        ffn_dim=mapping["ffn_hidden_size"],
        norm_eps=get("norm_eps") or 1e-5,
        qk_norm=bool(get("use_qk_normalization")),
        rope="3d" if on_grid else line,
        rope_theta=get("rope_theta") or 500_000,
        yarn=_yarn(mapping) if get("apply_yarn") else None,
        absolute_positions=bool(get("apply_abs_pos_emb")),
        grid=tuple(grid) if on_grid and grid else None,
        max_positions=mapping["max_seq_len"],
        bov=kind == "text_to_video",
        embedding_multiple=get("pad_to_multiple_of") or 64,
        cross_every=(get("insert_cross_attn_every_k_layers") or 1) if cross else 0,
        context_dim=get("context_dim") or 1024,
    )


def _yarn(mapping: Mapping[str, Any]) -> Yarn:
    shape = mapping.get("original_latent_shape")
    return Yarn(
        scale=mapping["yarn_scale"],
        beta_fast=mapping["yarn_beta_fast"],
        beta_slow=mapping["yarn_beta_slow"],
        original_grid=tuple(shape) if shape else None,
        original_length=mapping.get("original_seq_len") or 8192,
    )


def config_from_weights(state_dict: Mapping[str, Tensor]) -> ArConfig:
    """Recognise a released model by the shapes in our layout: their folders name no config.

    Raises:
        ValueError: no released model has these shapes.
    """
    rows, dim = state_dict["embed.weight"].shape if "embed.weight" in state_dict else (0, 0)
    layers = sum(name.endswith("attention_norm.weight") for name in state_dict)
    cross = "blocks.0.cross.q.weight" in state_dict
    for config in PRESETS.values():
        shape = config.embedding_rows, config.dim, config.num_layers, config.cross_every > 0
        if shape == (rows, dim, layers, cross):
            return config
    raise ValueError(
        f"no released model has {layers} layers of width {dim} and {rows} tokens; "
        "put its config.json beside the weights"
    )
