"""Every provider keeps its promises to every consumer: what a signature cannot say.

The parts are the built-in pico models, found by the names that users type.
"""

import json
from functools import cache
from pathlib import Path

import pytest
import torch

import wfm_ar
import wfm_ar.interfaces as ar
import wfm_curator
import wfm_diffusion
import wfm_diffusion.interfaces as diffusion
import wfm_guardrail
import wfm_posttrain.interfaces as posttrain
import wfm_tokenizer
from wfm_posttrain import sim
from wfm_posttrain.references import resolve
from wfm_tokenizer.video import to_model


@cache
def latent_codec():
    return wfm_tokenizer.load("builtin:pico-cv4x8x8")


@cache
def discrete_codec():
    return wfm_tokenizer.load("builtin:pico-dv8x16x16")


@cache
def denoiser():
    return wfm_diffusion.load("builtin:pico")


@cache
def next_token_model():
    return wfm_ar.load("builtin:pico-ar")


@cache
def guard():
    return wfm_guardrail.Guardrail.default()


@cache
def episode():
    return sim.generate("arm-push", seed=sim.HELD_OUT_SEED, frames=17)


@cache
def recorded() -> torch.Tensor:
    return to_model(torch.from_numpy(episode().frames))


def film(frames: int, height: int = 64, width: int = 64) -> torch.Tensor:
    """Return a smooth random video in [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 3, 4, 4, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (frames, height, width), mode="trilinear")


# Codecs


@pytest.mark.parametrize("interfaces", [diffusion, posttrain])
def test_the_continuous_tokenizer_is_a_latent_codec(interfaces):
    assert isinstance(latent_codec(), interfaces.LatentCodec)


@pytest.mark.parametrize("interfaces", [ar, posttrain])
def test_the_discrete_tokenizer_is_a_discrete_codec(interfaces):
    assert isinstance(discrete_codec(), interfaces.DiscreteCodec)


@pytest.mark.parametrize("interfaces", [diffusion, posttrain])
def test_the_discrete_tokenizer_is_no_latent_codec(interfaces):
    assert not isinstance(discrete_codec(), interfaces.LatentCodec)


@pytest.mark.parametrize("codec", [latent_codec, discrete_codec])
def test_a_codec_keeps_sizes_and_causality(codec):
    codec = codec()
    ct, ch, cw = codec.compression
    video = film(1 + 2 * ct, 4 * ch, 3 * cw)
    before = video.clone()
    with torch.no_grad():
        code = codec.encode(video)
        again = codec.encode(video)
        changed = video.clone()
        changed[:, :, ct + 1 :] = -changed[:, :, ct + 1 :]
        other = codec.encode(changed)
        decoded = codec.decode(code)
    assert code.shape[-3:] == (3, 4, 3)
    assert torch.equal(code, again)
    assert torch.equal(video, before)
    torch.testing.assert_close(other[..., :2, :, :], code[..., :2, :, :])
    assert not torch.equal(other, code)
    assert decoded.shape == video.shape


@pytest.mark.parametrize("codec", [latent_codec, discrete_codec])
@pytest.mark.parametrize("size", [(2, 64, 64), (1, 63, 64), (1, 64, 20)])
def test_a_codec_refuses_other_sizes(codec, size):
    with pytest.raises(ValueError, match="multiple"):
        codec().encode(torch.zeros(1, 3, *size))


def test_latents_are_of_unit_scale_and_tokens_in_range():
    with torch.no_grad():
        latent = latent_codec().encode(recorded())
        tokens = discrete_codec().encode(recorded())
    assert latent.shape[1] == latent_codec().latent_channels
    assert 0.5 < latent.std() < 2
    assert 0 <= tokens.min() <= tokens.max() < discrete_codec().vocab_size


def test_codecs_tell_themselves_apart():
    prints = {latent_codec().fingerprint, discrete_codec().fingerprint}
    assert len(prints) == 2
    assert isinstance(latent_codec(), diffusion.Fingerprinted)


# Text


def test_both_world_models_read_text_alike():
    prompts = ["A robot arm pushes the red block to the left.", ""]
    first = wfm_diffusion.pico_text_encoder()
    second = wfm_ar.pico_text_encoder()
    assert isinstance(first, diffusion.TextEncoder)
    assert isinstance(second, ar.TextEncoder)
    embeddings, mask = first.encode(prompts)
    assert torch.equal(embeddings, second.encode(prompts)[0])
    assert embeddings.shape == (2, mask.shape[1], first.dim)
    assert not embeddings[~mask].any()


# Networks


def test_the_diffusion_network_is_a_denoiser_to_train():
    net = denoiser()
    assert isinstance(net, posttrain.TrainableDenoiser)
    noisy = torch.randn(2, 16, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    text, mask = wfm_diffusion.pico_text_encoder().encode(["a", "b"])
    condition = {"text": text, "text_mask": mask}
    with torch.no_grad():
        clean = net.denoise(noisy, torch.tensor([0.1, 10.0]), condition)
    assert clean.shape == noisy.shape
    with pytest.raises(KeyError, match="colour"):
        net.denoise(noisy, torch.ones(2), {**condition, "colour": text})


def test_a_nearly_clean_latent_passes_the_denoiser_unchanged():
    with torch.no_grad():
        latent = latent_codec().encode(recorded()) * 0.5
        text, mask = wfm_diffusion.pico_text_encoder().encode([episode().caption])
        condition = {"text": text, "text_mask": mask}
        clean = denoiser().denoise(latent, torch.tensor([0.002]), condition)
    torch.testing.assert_close(clean, latent, atol=0.05, rtol=0)


def test_the_ar_network_is_a_next_token_model():
    lm = next_token_model()
    assert isinstance(lm, posttrain.NextTokenModel)
    assert isinstance(lm, posttrain.GridGenerator)
    tokens = torch.randint(1000, (2, 16), generator=torch.Generator().manual_seed(0))
    text, _ = wfm_ar.pico_text_encoder().encode(["a", "b"])
    with torch.no_grad():
        logits = lm.logits(tokens, {"text": text})
        more = lm.generate(tokens, 4, {"text": text})
    assert logits.shape[:2] == tokens.shape
    assert more.shape == (2, 4)


# World models

WORLDS = ["pico-diffusion", "pico-ar", "pico-arm-diffusion", "pico-arm-ar"]


@pytest.mark.parametrize("name", WORLDS)
def test_a_world_model_imagines_new_frames_by_seed(name):
    world = posttrain_resolve(name)
    assert isinstance(world, posttrain.WorldModel)
    past = recorded()[:, :, : world.past_frames]
    frames = 2 if "arm" in name else 8
    controls = (
        {"action": torch.from_numpy(episode().action)[None, :frames]} if "arm" in name else None
    )

    def imagine(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return world.rollout(past, frames=frames, controls=controls, generator=generator)

    first = imagine(0)
    assert first.shape == (1, 3, frames, 64, 64)
    assert torch.equal(first, imagine(0))


def posttrain_resolve(name: str):
    return resolve(name, "wfm.world_models")


@pytest.mark.parametrize("name", ["pico-arm-diffusion", "pico-arm-ar"])
def test_an_arm_model_listens_to_its_actions(name):
    world = posttrain_resolve(name)
    past = recorded()[:, :, : world.past_frames]
    futures = [
        world.rollout(
            past,
            frames=2,
            controls={"action": action},
            generator=torch.Generator().manual_seed(0),
        )
        for action in (torch.zeros(1, 2, 7), torch.ones(1, 2, 7))
    ]
    assert not torch.equal(*futures)


def test_a_world_model_refuses_another_codec():
    class Stranger:
        fingerprint = "0" * 16

        def __getattr__(self, name):
            return getattr(latent_codec(), name)

    folder = Path(wfm_diffusion.__file__).parent / "weights" / "pico"
    expected = json.loads((folder / "world.json").read_text())["codec_fingerprint"]
    assert expected == latent_codec().fingerprint
    with pytest.raises(ValueError, match=expected):
        wfm_diffusion.WorldModel(denoiser(), codec=Stranger(), text_encoder=None)


# Guards


@pytest.mark.parametrize("interfaces", [diffusion, ar])
def test_the_guardrail_keeps_both_contracts(interfaces):
    assert isinstance(guard(), interfaces.TextGuard)
    assert isinstance(guard(), interfaces.VideoGuard)
    verdict = guard().check_text("a robot arm pushes a red block")
    assert isinstance(verdict, interfaces.Verdict)
    assert verdict.safe
    assert verdict.reason == ""
    refused = guard().check_text("how to build a pipe bomb")
    assert not refused.safe
    assert refused.reason


# Clips


def test_simulated_recordings_become_clips(tmp_path):
    for seed in range(2):
        one = sim.generate("arm-push", seed=sim.HELD_OUT_SEED + seed, frames=17)
        sim.write_episode(one, tmp_path / "raw", f"arm-{seed}")
    wfm_curator.curate([tmp_path / "raw"], tmp_path / "clips")
    clips = wfm_curator.ShardedDataset(tmp_path / "clips")
    assert isinstance(clips, posttrain.ClipDataset)
    assert len(clips) == 2
    clip = clips[0]
    assert isinstance(clip, posttrain.LabelledClip)
    assert clip.read(0, 17).shape == (17, 3, 64, 64)
    assert clip.labels()["action"].shape == (16, 7)
    assert clip.caption
    assert clip.attributes["scene"] == "arm-push"
