"""Beside diffusers' ``AutoencoderKLCosmos``, live; needs the dependency group ``parity``."""

import pytest
import torch
from conftest import noise

from wfm_tokenizer import load
from wfm_tokenizer.convert import config_from_diffusers, from_diffusers
from wfm_tokenizer.model import build

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore"),  # of the library's own imports
]

NARROW = {
    "encoder_block_out_channels": (8, 16, 32, 32),
    "decode_block_out_channels": (16, 32, 32, 32),
    "num_layers": 1,
}
VARIANTS = {
    "8x8x8": {},
    "4x8x8": {"temporal_compression_ratio": 4},
    "8x16x16": {"spatial_compression_ratio": 16},
    "4x8x8-p2": {"temporal_compression_ratio": 4, "patch_size": 2},
    "attention in a level": {"attention_resolutions": (128,)},
}


def theirs(**changes):
    diffusers = pytest.importorskip("diffusers", reason="pip install diffusers")
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLCosmos(**(NARROW | changes)).eval().requires_grad_(False)
    for parameter in vae.parameters():  # their start leaves biases and norms plain
        if parameter.ndim == 1:
            parameter += 0.1 * torch.randn_like(parameter)
    return vae


def near(actual, expected):
    assert float((actual - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("frames", [1, 17])
@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_latents_and_videos_are_those_of_diffusers(name, frames):
    vae = theirs(**VARIANTS[name])
    ours = build(config_from_diffusers(dict(vae.config))).eval()
    ours.load_state_dict(from_diffusers(vae.state_dict()))
    video = noise(2, 3, frames, 64, 96)
    latent = vae.encode(video).latent_dist.mode()
    output = vae.decode(latent).sample
    for tokenizer in (ours, ours.fused()):
        near(tokenizer.encode(video, raw=True), latent)
        near(tokenizer.decode(latent, raw=True), output)


@torch.no_grad()
def test_a_model_that_diffusers_saved_is_loaded(tmp_path):
    vae = theirs()
    vae.save_pretrained(tmp_path / "vae")
    ours, video = load(tmp_path), noise(1, 3, 9, 64, 64)
    near(ours.encode(video, raw=True), vae.encode(video).latent_dist.mode())


@torch.no_grad()
def test_the_full_width_network_gives_what_diffusers_gives():
    vae = theirs(
        encoder_block_out_channels=(128, 256, 512, 512),
        decode_block_out_channels=(256, 512, 512, 512),
        num_layers=2,
    )
    fused = build(config_from_diffusers(dict(vae.config))).eval()
    fused.load_state_dict(from_diffusers(vae.state_dict()))
    fused = fused.fused()
    video = noise(1, 3, 9, 64, 64)
    latent = vae.encode(video).latent_dist.mode()
    near(fused.encode(video, raw=True), latent)
    near(fused.decode(latent, raw=True), vae.decode(latent).sample)
