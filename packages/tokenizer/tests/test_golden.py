"""Outputs of NVIDIA's and diffusers' own networks, float32, narrow; weights as they name them."""

import json

import pytest
import torch
from conftest import GOLDEN
from safetensors.torch import load_file

from wfm_tokenizer import convert
from wfm_tokenizer.fsq import FSQ
from wfm_tokenizer.model import ContinuousTokenizer, DiscreteTokenizer, build
from wfm_tokenizer.wavelet import Patcher, Unpatcher

CONTINUOUS = sorted(p.stem for p in GOLDEN.glob("c[vi]_*.json"))
DISCRETE = sorted(p.stem for p in GOLDEN.glob("d[vi]_*.json"))


def read(name):
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    state = {k.removeprefix("state_dict."): v.float() for k, v in tensors.items() if "state" in k}
    io = {k.removeprefix("io."): v for k, v in tensors.items() if k.startswith("io.")}
    return json.loads((GOLDEN / f"{name}.json").read_text())["config"], state, io


def open_golden(name):
    mapping, state, io = read(name)
    if "encoder_block_out_channels" in mapping:
        tokenizer = build(convert.config_from_diffusers(mapping))
        tokenizer.load_state_dict(convert.from_diffusers(state))
    else:
        tokenizer = build(convert.config_from_nvidia(mapping, state))
        tokenizer.load_state_dict(convert.from_nvidia(state))
    if io["input"].ndim == 4:  # images become videos of one frame
        io = {key: value.unsqueeze(1 if key == "indices" else 2) for key, value in io.items()}
    return tokenizer.eval().requires_grad_(False), io


def assert_near(actual, golden, *, relative):
    error = float((actual - golden).norm() / golden.norm())
    assert error < relative


@pytest.mark.parametrize("name", CONTINUOUS)
def test_latents_and_videos_are_those_of_the_published_code(name):
    tokenizer, io = open_golden(name)
    assert isinstance(tokenizer, ContinuousTokenizer)
    # Both sides compute in float32; their own float64 runs differ by 1e-6.
    assert_near(tokenizer.encode(io["input"].float(), raw=True), io["latent"], relative=1e-5)
    assert_near(tokenizer.decode(io["latent"], raw=True), io["reconstruction"], relative=1e-5)


@pytest.mark.parametrize("name", DISCRETE)
def test_tokens_and_videos_are_those_of_the_published_code(name):
    tokenizer, io = open_golden(name)
    assert isinstance(tokenizer, DiscreteTokenizer)
    tokens = tokenizer.encode(io["input"].float())
    assert torch.equal(tokens, io["indices"].long())
    torch.testing.assert_close(tokenizer.to_codes(tokens), io["codes"])
    assert_near(tokenizer.decode(tokens), io["reconstruction"], relative=1e-5)


@pytest.mark.parametrize("name", ["cv_p4_t8_s8", "dv_p4_t8_s16_std_levels", "ci_p4_s8"])
def test_settings_alone_describe_the_network(name):
    mapping, state, _ = read(name)
    build(convert.config_from_nvidia(mapping)).load_state_dict(convert.from_nvidia(state))


def test_every_published_name_has_a_place():
    names = json.loads((GOLDEN / "key_map_cv_3level.json").read_text())
    names = names.get("map", names)
    pairs = {n: d for n, d in names.items() if isinstance(d, str) and "." in n}
    assert len(pairs) > 300
    one = {name: torch.zeros(1, 1) for name in pairs}
    other = {name: torch.zeros(1, 1) for name in pairs.values()}
    assert convert.from_nvidia(one).keys() == convert.from_diffusers(other).keys()


@pytest.mark.parametrize("method", ["haar", "rearrange"])
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_wavelet_is_the_published_one(dims, size, method):
    tensors = load_file(GOLDEN / "wavelet.safetensors")
    key = f"io.{dims}d.{method}.p{size}."
    video, bands = tensors[key + "input"], tensors[key + "patched"]
    if dims == 2:
        video, bands = video.unsqueeze(2), bands.unsqueeze(2)
    patched = Patcher(size, method, image=dims == 2)(video)
    torch.testing.assert_close(patched.movedim(-1, 1), bands, rtol=1e-5, atol=1e-6)
    restored = Unpatcher(size, method, image=dims == 2)(patched)
    torch.testing.assert_close(restored, video, rtol=1e-5, atol=1e-6)


def test_the_wavelet_of_a_single_frame_is_the_published_one():
    tensors = load_file(GOLDEN / "wavelet.safetensors")
    patched = Patcher(4, "haar", image=False)(tensors["io.3d.haar.p4.T1.input"])
    golden = tensors["io.3d.haar.p4.T1.patched"]
    torch.testing.assert_close(patched.movedim(-1, 1), golden, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", ["std", "even", "odd", "two"])
def test_quantisation_is_the_published_one(case):
    tensors = {
        key.removeprefix(f"io.{case}."): value
        for key, value in load_file(GOLDEN / "fsq.safetensors").items()
    }
    fsq = FSQ(tuple(tensors["levels"].tolist()))
    z = tensors["z"].clone().requires_grad_()
    codes = fsq.quantize(z)
    torch.testing.assert_close(fsq.bound(z), tensors["bounded"])
    torch.testing.assert_close(codes, tensors["codes"])
    assert torch.equal(fsq.to_tokens(codes), tensors["indices"].long())
    codes.sum().backward()
    assert z.grad is not None
    torch.testing.assert_close(z.grad[:, :, :1], tensors["grad_of_sum"])


def test_latent_statistics_are_applied_as_published():
    tensors = load_file(GOLDEN / "latent_stats.safetensors")
    mean, std = (tensors[f"io.{key}"].flatten().tolist() for key in ("mean", "std"))
    config = convert.config_from_diffusers(
        {"encoder_block_out_channels": (4, 4, 4, 4), "latents_mean": mean, "latents_std": std}
    )
    tokenizer = ContinuousTokenizer(config)
    latent = tensors["io.latent"]
    normal = tokenizer.from_codes(latent)
    golden = tensors["io.normalised_float32"] / 0.5  # theirs includes the network's sigma_data
    torch.testing.assert_close(normal, golden, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tokenizer.to_codes(normal), latent)
