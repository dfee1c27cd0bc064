"""Published checkpoints -> this package's names: NVIDIA's TorchScript and ``.pt``, diffusers."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from .config import TokenizerConfig

_BUFFERS = re.compile(r"wavelets$|_arange$|patch_size_buffer$|^(inv_quant\.)?quantizer\.")

_NVIDIA = (
    (r"\.conv3d\.", "."),
    (r"(norm\w*)\.norm\.", r"\1."),
    (r"^post_quant_conv\.", "from_latent."),
    (r"^quant_conv\.", "to_latent."),
    (r"\.down\.(\d+)\.", r".levels.\1."),
    (r"\.block\.", ".blocks."),
    (r"\.mid\.block_1\.", ".middle.blocks.0."),
    (r"\.mid\.block_2\.", ".middle.blocks.1."),
    (r"\.attn\.(\d+)\.", r".attentions.\1."),
    (r"\.mid\.attn_1\.", ".middle.attention."),
    (r"\.(attention|attentions\.\d+)\.(?=norm|[qkv]\.|proj)", r".\1.space."),
    (r"\.(attention|attentions\.\d+|conv_in|conv_out|conv[12])\.0\.", r".\1.space."),
    (r"\.(attention|attentions\.\d+|conv_in|conv_out|conv[12])\.1\.", r".\1.time."),
    (r"\.(conv_in|conv_out|conv[12])\.(weight|bias)$", r".\1.space.\2"),
    (r"\.downsample\.conv1\.space\.", ".resample.space."),
    (r"\.downsample\.conv2\.space\.", ".resample.time."),
    (r"\.upsample\.conv1\.space\.", ".resample.time."),
    (r"\.upsample\.conv2\.space\.", ".resample.space."),
    (r"\.(down|up)sample\.conv3\.", ".resample.mix."),
    (r"\.(down|up)sample\.conv\.", ".resample.space."),
    (r"\.nin_shortcut\.", ".shortcut."),
    (r"\.proj_out\.", ".out."),
)

_DIFFUSERS = (
    (r"(norm\w*)\.norm\.", r"\1."),
    (r"^post_quant_conv\.", "from_latent."),
    (r"^quant_conv\.", "to_latent."),
    (r"\.(down|up)_blocks\.", ".levels."),
    (r"\.mid_block\.", ".middle."),
    (r"\.resnets\.", ".blocks."),
    (r"\.middle\.attentions\.0\.", ".middle.attention.space."),
    (r"\.middle\.temp_attentions\.0\.", ".middle.attention.time."),
    (r"\.temp_attentions\.(\d+)\.", r".attentions.\1.time."),
    (r"\.attentions\.(\d+)\.(?=norm|to_)", r".attentions.\1.space."),
    (r"\.downsamplers\.0\.conv1\.", ".resample.space."),
    (r"\.downsamplers\.0\.conv2\.", ".resample.time."),
    (r"\.upsamplers\.0\.conv1\.", ".resample.time."),
    (r"\.upsamplers\.0\.conv2\.", ".resample.space."),
    (r"\.(down|up)samplers\.0\.conv3\.", ".resample.mix."),
    (r"\.conv_s\.", ".space."),
    (r"\.conv_t\.", ".time."),
    (r"\.conv_shortcut\.", ".shortcut."),
    (r"\.to_out\.0\.", ".out."),
    (r"\.to_([qkv])\.", r".\1."),
)


def from_nvidia(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and reshape the weights of a published NVIDIA tokenizer, video or image.

    Takes the dict of an ``autoencoder.jit``, of ``encoder.jit`` and ``decoder.jit`` together,
    or of a training checkpoint's ``model`` entry. Wavelet and quantiser buffers are dropped:
    they carry no information.
    """
    weights = {name.removeprefix("network."): tensor for name, tensor in state_dict.items()}
    weights = {name: t for name, t in weights.items() if not name.startswith("ema.")}
    last = max(
        (int(n) for name in weights for n in re.findall(r"^decoder\.up\.(\d+)", name)), default=0
    )
    ours = {}
    for name, tensor in weights.items():
        if _BUFFERS.search(name):
            continue
        # Their level 0 is the finest, ours the first to run.
        name = re.sub(r"\.up\.(\d+)\.", lambda m: f".levels.{last - int(m[1])}.", name)
        ours[_rename(name, _NVIDIA)] = _flatten_kernel(tensor)
    return ours


def from_diffusers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and reshape the weights of diffusers' ``AutoencoderKLCosmos``."""
    return {
        _rename(name, _DIFFUSERS): _flatten_kernel(tensor)
        for name, tensor in state_dict.items()
        if not _BUFFERS.search(name)
    }


def _rename(name: str, rules: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _flatten_kernel(weight: Tensor) -> Tensor:
    """Drop a convolution's axes of size 1: (o, i, 1, 3, 3) becomes (o, i, 3, 3)."""
    return weight.reshape(*weight.shape[:2], *(k for k in weight.shape[2:] if k > 1))


def config_from_nvidia(
    mapping: Mapping[str, Any], state_dict: Mapping[str, Tensor] | None = None
) -> TokenizerConfig:
    """Read NVIDIA's settings; unknown keys are ignored.

    With a ``state_dict`` the settings that its shapes show are taken from there.
    """
    image = "temporal_compression" not in mapping or str(mapping.get("name", ""))[1:2] == "I"
    mult = tuple(mapping.get("channels_mult", (2, 4, 4)))
    channels = mapping.get("channels", 128)
    levels = tuple(mapping["levels"]) if mapping.get("embedding_dim") else ()
    widths = [channels * m for m in (1, *mult)]
    # Their image networks have 32 groups unless told; where 32 cannot be, it was one.
    groups = 1 if any(width % 32 for width in widths) else 32
    if int(mapping.get("z_factor", 1)) != 1 or mapping.get("formulation", "AE") != "AE":
        raise ValueError("only plain autoencoders are published: formulation AE, z_factor 1")
    if mapping.get("quantizer", "FSQ") != "FSQ":
        raise ValueError(f"quantizer {mapping['quantizer']}: only FSQ is published")
    patch_size, spatial = mapping.get("patch_size", 4), mapping.get("spatial_compression", 8)
    if not image:  # some settings ask for more than their levels do; the network does what it can
        spatial = min(spatial, patch_size * 2 ** (len(mult) - 1))
    config = TokenizerConfig(
        name=str(mapping.get("name", "unnamed")),
        kind="discrete" if levels else "continuous",
        network="image" if image else "video",
        temporal_compression=1 if image else mapping["temporal_compression"],
        spatial_compression=spatial,
        patch_size=patch_size,
        patch_method=mapping.get("patch_method", "haar"),
        channels=channels,
        channels_mult=mult,
        num_res_blocks=mapping.get("num_res_blocks", 2),
        attention_resolutions=tuple(mapping.get("attn_resolutions", (32,))),
        resolution=mapping.get("resolution", 1024),
        z_channels=mapping.get("z_channels", 16),
        latent_channels=len(levels) or mapping.get("latent_channels", 16),
        levels=levels,
        norm_groups=mapping.get("num_groups", groups) if image else 1,
        legacy_upsample=mapping.get("legacy_mode", False),
    )
    return config if state_dict is None else fit_config(config, from_nvidia(state_dict))


def config_from_diffusers(mapping: Mapping[str, Any]) -> TokenizerConfig:
    """Read the ``vae/config.json`` of diffusers; unknown keys are ignored."""
    first, *widths = mapping.get("encoder_block_out_channels", (128, 256, 512, 512))
    decoder = mapping.get("decode_block_out_channels", (*widths, widths[-1]))[: len(widths)]
    mult, decoder_mult = (tuple(width // first for width in side) for side in (widths, decoder))
    mean, std = mapping.get("latents_mean"), mapping.get("latents_std")
    latent_channels = mapping.get("latent_channels", 16)
    return TokenizerConfig(
        name=str(mapping.get("name", "unnamed")),
        temporal_compression=mapping.get("temporal_compression_ratio", 8),
        spatial_compression=mapping.get("spatial_compression_ratio", 8),
        patch_size=mapping.get("patch_size", 4),
        patch_method=mapping.get("patch_type", "haar"),
        channels=first,
        channels_mult=mult,
        decoder_channels_mult=decoder_mult if decoder_mult != mult else None,
        num_res_blocks=mapping.get("num_layers", 2),
        attention_resolutions=tuple(mapping.get("attention_resolutions", (32,))),
        resolution=mapping.get("resolution", 1024),
        z_channels=latent_channels,
        latent_channels=latent_channels,
        latent_mean=statistics_rows(mean, latent_channels),
        latent_std=statistics_rows(std, latent_channels),
    )


def statistics_rows(
    values: Iterable[float] | None, channels: int
) -> tuple[tuple[float, ...], ...] | None:
    """Cut the flat list of published statistics into one row per channel."""
    if values is None:
        return None
    flat = [float(value) for value in values]
    length = len(flat) // channels
    return tuple(tuple(flat[i * length : (i + 1) * length]) for i in range(channels))


def fit_config(config: TokenizerConfig, weights: Mapping[str, Tensor]) -> TokenizerConfig:
    """Correct a config by what the shapes of the weights (under our names) show."""
    needed = ("encoder.conv_in.space.weight", "to_latent.weight", "decoder.conv_in.space.weight")
    missing = [name for name in needed if name not in weights]
    if missing:
        raise ValueError(f"not a whole tokenizer: there is no {', '.join(missing)}")
    channels, bands = weights["encoder.conv_in.space.weight"].shape[:2]
    latent_channels, z_channels = weights["to_latent.weight"].shape
    cube = 2 if config.network == "image" else 3
    mult, decoder_mult = (_level_widths(weights, side, channels) for side in ("encoder", "decoder"))
    decoder_mult = decoder_mult[::-1]
    blocks = {n for n in weights if re.match(r"encoder\.levels\.0\.blocks\.\d+\.norm1\.weight", n)}
    return TokenizerConfig.model_validate(
        config.model_dump()
        | {
            "patch_size": round((bands / 3) ** (1 / cube)),
            "channels": channels,
            "channels_mult": mult,
            "decoder_channels_mult": decoder_mult if decoder_mult != mult else None,
            "num_res_blocks": len(blocks),
            "z_channels": z_channels,
            "latent_channels": latent_channels,
        }
    )


def _level_widths(weights: Mapping[str, Tensor], side: str, channels: int) -> tuple[int, ...]:
    """Each level's width in units of ``channels``, in order of execution."""
    widths = []
    while (name := f"{side}.levels.{len(widths)}.blocks.0.norm2.weight") in weights:
        widths.append(len(weights[name]) // channels)
    return tuple(widths)
