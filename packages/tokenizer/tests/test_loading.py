import json

import pytest
import torch
from conftest import FAMILIES, GOLDEN, make, noise
from safetensors.torch import load_file, save_file
from torch import nn

from wfm_tokenizer import PRESETS, TokenizerConfig, builtins, load
from wfm_tokenizer.loading import _read_nvidia
from wfm_tokenizer.metrics import block_mean, psnr


def golden_state(name):
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    return {k.removeprefix("state_dict."): v for k, v in tensors.items() if "state_dict" in k}


class Archive(nn.Module):
    """A module with given parameter names, to be traced like the published ones."""

    def __init__(self, tensors):
        super().__init__()
        nested = {}
        for name, tensor in tensors.items():
            first, dot, rest = name.partition(".")
            if dot:
                nested.setdefault(first, {})[rest] = tensor
            else:
                self.register_parameter(first, nn.Parameter(tensor, requires_grad=False))
        for name, tree in nested.items():
            self.add_module(name, Archive(tree))

    def forward(self, x):
        return x


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def write_script(path, tensors):
    torch.jit.trace(Archive(tensors), torch.zeros(1)).save(str(path))


@pytest.fixture
def narrow_variant(monkeypatch):
    """The published 8x8x8 tokenizer at 1/16 width, under a published name."""
    name = "Cosmos-1.0-Tokenizer-CV8x8x8"
    monkeypatch.setitem(PRESETS, name, PRESETS[name])
    return name


def test_what_is_saved_is_loaded(family, tmp_path):
    family.save(tmp_path / "model", card="# A model\n")
    loaded = load(tmp_path / "model")
    assert loaded.config == family.config
    assert loaded.fingerprint == family.fingerprint
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    time, high, wide = family.compression
    video = noise(1, 3, 1 + time, high, wide)
    assert torch.equal(loaded.encode(video), family.encode(video))
    assert (tmp_path / "model" / "README.md").read_text() == "# A model\n"


def test_a_copy_in_half_precision_has_the_same_fingerprint(tmp_path):
    tokenizer = make(FAMILIES["CV4x8x8"])
    tokenizer.save(tmp_path / "model", dtype=torch.float16)
    assert load(tmp_path / "model").dtype == torch.float32
    assert load(tmp_path / "model").fingerprint == tokenizer.fingerprint
    assert load(tmp_path / "model", dtype=torch.bfloat16).fingerprint == tokenizer.fingerprint


def test_other_weights_or_statistics_have_another_fingerprint():
    tokenizer = make(FAMILIES["CV4x8x8"])
    before = tokenizer.fingerprint
    tokenizer.to_latent.bias.data += 1
    assert tokenizer.fingerprint != before
    rows = ((0.0,),) * 16
    update = {"latent_mean": rows, "latent_std": rows}
    config = TokenizerConfig.model_validate(tokenizer.config.model_dump() | update)
    assert make(config).fingerprint != before


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_nvidia_folder_is_recognised_by_its_name(tmp_path, narrow_variant):
    state = golden_state("cv_p4_t8_s8")
    folder = tmp_path / narrow_variant
    folder.mkdir()
    halves = {
        "encoder.jit": ("encoder.", "quant_conv."),
        "decoder.jit": ("decoder.", "post_quant_conv."),
    }
    for file, prefixes in halves.items():
        write_script(folder / file, {k: v for k, v in state.items() if k.startswith(prefixes)})
    statistics = load_file(GOLDEN / "latent_stats.safetensors")
    torch.save(
        (statistics["io.mean"].flatten(), statistics["io.std"].flatten()), folder / "mean_std.pt"
    )
    tokenizer = load(folder)
    io = load_file(GOLDEN / "cv_p4_t8_s8.safetensors")
    latent = tokenizer.encode(io["io.input"].float())
    torch.testing.assert_close(tokenizer.to_codes(latent), io["io.latent"], rtol=1e-4, atol=1e-5)
    mean, std = statistics["io.mean"][:, :3], statistics["io.std"][:, :3]
    expected = (io["io.latent"] - mean[..., None, None]) / std[..., None, None]
    torch.testing.assert_close(latent, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_nvidia_folder_of_another_name_needs_its_variant(tmp_path, narrow_variant):
    write_script(tmp_path / "autoencoder.jit", golden_state("cv_p4_t8_s8"))
    with pytest.raises(ValueError, match="variant="):
        load(tmp_path)
    assert load(tmp_path, variant=narrow_variant).config.channels == 8


def test_a_training_checkpoint_gives_its_averaged_weights(tmp_path, narrow_variant):
    state = golden_state("cv_p4_t8_s8")
    model = {f"network.{k}": torch.zeros_like(v) for k, v in state.items()}
    model |= {f"ema.network-{k.replace('.', '-')}": v for k, v in state.items()}
    torch.save({"model": model, "iteration": 1}, tmp_path / "model.pt")
    _, weights = _read_nvidia(tmp_path, narrow_variant)
    assert torch.equal(weights["to_latent.bias"].float(), state["quant_conv.conv3d.bias"].float())


def test_the_vae_folder_of_a_diffusers_model_is_recognised(tmp_path):
    mapping = json.loads((GOLDEN / "cv_p4_t8_s8_diffusers.json").read_text())["config"]
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(json.dumps(mapping))
    path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    save_file(golden_state("cv_p4_t8_s8_diffusers"), path)
    tokenizer = load(tmp_path)
    io = load_file(GOLDEN / "cv_p4_t8_s8_diffusers.safetensors")
    latent = tokenizer.encode(io["io.input"].float())
    torch.testing.assert_close(latent, io["io.latent"], rtol=1e-4, atol=1e-5)


def test_a_missing_or_empty_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no tokenizer here"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match="builtin:tiny: not shipped"):
        load("builtin:tiny")


def test_a_damaged_folder_is_refused(tmp_path):
    make(FAMILIES["CV4x8x8"]).save(tmp_path / "model")
    config, weights = (tmp_path / "model" / n for n in ("config.json", "model.safetensors"))
    whole, text = weights.read_bytes(), config.read_text()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load(tmp_path / "model")
    weights.write_bytes(whole)
    config.write_text(text.replace('"channels": 4', '"channels": 8'))
    with pytest.raises(ValueError, match="do not fit"):
        load(tmp_path / "model")
    config.write_text("{}{")
    with pytest.raises(ValueError, match="not JSON"):
        load(tmp_path / "model")
    config.write_text('{"hidden_size": 3}')
    with pytest.raises(ValueError, match="not a tokenizer's config"):
        load(tmp_path / "model")


@pytest.mark.parametrize("name", builtins() or [pytest.param(None, marks=pytest.mark.skip)])
def test_a_built_in_tokenizer_is_far_better_than_mean_colours(name):
    tokenizer = load(name)
    ramp = torch.linspace(-0.8, 0.5, 64).expand(1, 3, 9, 64, 64).clone()
    for i in range(9):
        ramp[:, 0, i, 20:36, 10 + 2 * i : 26 + 2 * i] = 0.7
    painted = block_mean(ramp, tokenizer.compression)
    assert psnr(tokenizer.reconstruct(ramp), ramp) > psnr(painted, ramp) + 1
