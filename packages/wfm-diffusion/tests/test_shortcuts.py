import pytest
import torch
from fakes import TINY, Codec, Text, network, randn
from test_world import VIDEO, past, world

import wfm_diffusion as wd
from wfm_diffusion.guidance import Guided
from wfm_diffusion.shortcuts import Shortcuts, StepCache


def ideal(x, sigma):
    """D(x; sigma) of data that is -0.5 or 0.5."""
    return 0.5 * torch.tanh(0.5 * x / sigma.view(-1, 1, 1, 1, 1) ** 2)


@torch.no_grad()
def test_outside_its_interval_guidance_is_left_out():
    net, x = network(), randn(1, 3, 2, 4, 4)
    cond, uncond = {"text": randn(1, 4, 8, seed=1)}, {"text": torch.zeros(1, 4, 8)}
    partly = Guided(net, cond, uncond, guidance=3.0, interval=(0.5, 2.0))
    whole, alone = Guided(net, cond, uncond, guidance=3.0), Guided(net, cond)
    for sigma, expected in ((1.0, whole), (0.4, alone), (3.0, alone)):
        level = torch.tensor([sigma])
        assert torch.equal(partly(x, level), expected(x, level))


def test_a_step_cache_saves_calls_and_a_threshold_of_nothing_none():
    noise = randn(1, 3, 2, 4, 4)
    exact = wd.SAMPLERS["res2ab"](ideal, noise, 20)
    errors = []
    for threshold in (1e-12, 0.1, 1.0):
        cached = StepCache(ideal, threshold, 0.5)
        out = wd.SAMPLERS["res2ab"](cached, noise, 20)
        errors.append(((out - exact).abs().max().item(), cached.calls))
    assert errors[0] == (0.0, 21)
    assert errors[0][1] > errors[1][1] > errors[2][1] > 1
    assert errors[1][0] < 1e-3


def test_a_world_takes_shortcuts_and_says_no_to_strange_ones():
    plain = world().video2world(past(), ["a cube"], frames=8)
    for shortcuts in (Shortcuts(guidance_interval=(0.1, 1.0)), Shortcuts(step_cache=50.0)):
        short = world(shortcuts=shortcuts).video2world(past(), ["a cube"], frames=8)
        assert short.isfinite().all()
        assert not torch.equal(short, plain)
    found = Shortcuts.parse(["guidance-interval=0.3:10", "step-cache=0.1", "int8"])
    assert found == Shortcuts((0.3, 10.0), 0.1, "int8")
    for word in ("int4", "step-cache=x", "guidance-interval=1", "guidance-interval=2:1"):
        with pytest.raises(ValueError, match="guidance"):
            Shortcuts.parse([word])
    with pytest.raises(ValueError, match="below 0"):
        Shortcuts(step_cache=-1.0)


@pytest.mark.parametrize(("stored", "off"), [("int8", 0.01), ("fp8", 0.04)])
def test_quantised_blocks_are_loaded_by_name_and_near(tmp_path, stored, off):
    wide = TINY.model_copy(update={"width": 64})
    wd.save_network(network(wide), tmp_path / "m", card="card", world=VIDEO)
    parts = {"codec": Codec(), "text_encoder": Text()}
    w = wd.load_world(tmp_path / "m", **parts, shortcuts=Shortcuts(weights=stored))
    exact, small = wd.load(tmp_path / "m"), w.net
    layer = small.blocks[0].mlp.up
    assert layer.weight.element_size() == 1
    x, text = randn(1, 3, 2, 4, 4), randn(1, 4, 8, seed=1)
    answers = [net.denoise(x, torch.ones(1), {"text": text}) for net in (exact, small)]
    distance = (answers[1] - answers[0]).norm() / answers[0].norm()
    assert 1e-4 < distance < off
    assert w.text2world(["a cube"], steps=2).isfinite().all()


@pytest.mark.parametrize("frames", [3, 8, 20])
def test_latents_are_handed_over_and_decoded_once(frames, monkeypatch):
    decoded, decode = [], Codec.decode

    def watched(self, latent, /):
        decoded.append(latent.shape[2])
        return decode(self, latent)

    monkeypatch.setattr(Codec, "decode", watched)
    video = world().video2world(past(), ["a cube"], frames=frames, handover="latents")
    assert video.shape == (1, 3, frames, 32, 32)
    assert decoded == [2 + -(-frames // 8)]


def test_one_stretch_is_the_same_by_either_hand_over():
    a, b = (world().video2world(past(), ["a"], frames=8, handover=h) for h in ("pixels", "latents"))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
