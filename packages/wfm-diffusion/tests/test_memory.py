import pytest
import torch
from fakes import TINY, network, randn
from torch.profiler import ProfilerActivity, profile

import wfm_diffusion as wd
from wfm_diffusion.budget import Peak, budget, bytes_of
from wfm_diffusion.guidance import Guided
from wfm_diffusion.streaming import offload

SMALL = {
    "pico": (wd.PRESETS["pico"], (3, 8, 8), 32),
    "nano, two blocks": (wd.PRESETS["nano"].model_copy(update={"depth": 2}), (3, 8, 16), 64),
}


def measured(config, latents, slots, sampler):
    """The most bytes that torch's allocator had given out during a sampling."""
    torch.manual_seed(0)
    net = wd.DiffusionTransformer(config).requires_grad_(False).eval()
    texts = [{"text": randn(1, slots, config.text_dim, seed=i)} for i in (1, 2)]
    noise = randn(1, config.latent_channels, *latents)
    guided = Guided(net, *texts, guidance=2.0)
    given = torch.zeros(1, 1, *latents)
    guided.give(torch.zeros_like(noise), given, torch.zeros_like(noise))
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p:
        wd.SAMPLERS[sampler](guided, noise, 2)
    now = most = 0
    for event in p.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def noise_bytes(config, latents):
    """Bytes of what was there before the sampling began."""
    return 4 * config.latent_channels * latents[0] * latents[1] * latents[2]


@pytest.mark.parametrize(
    ("case", "sampler"), [("pico", "res2ab"), ("pico", "euler"), ("nano, two blocks", "res2ab")]
)
def test_the_estimate_is_what_the_allocator_gave_out(case, sampler):
    config, latents, slots = SMALL[case]
    expected = budget(config, latents, dtype=torch.float32, text_slots=slots, sampler=sampler)
    found = measured(config, latents, slots, sampler)
    text = 2 * slots * config.text_dim * 4
    estimate = expected.activations + expected.text - text - noise_bytes(config, latents)
    assert estimate == pytest.approx(found, rel=0.1)


def test_weights_count_as_stored_and_streaming_keeps_two_blocks():
    config = wd.PRESETS["super-text2world"]
    latents = (16, 88, 160)
    whole = budget(config, latents)
    assert whole.weights == 2 * 7_236_192_256
    streamed = budget(config, latents, offload=True)
    assert streamed.activations == whole.activations
    assert streamed.weights < 0.12 * whole.weights


def test_more_of_everything_takes_more():
    one = budget(TINY, (2, 4, 4), text_slots=8).activations
    assert budget(TINY, (2, 4, 4), text_slots=8, guided=False).activations < one
    assert budget(TINY, (4, 8, 8), text_slots=8).activations > 2 * one
    with pytest.raises(ValueError, match="takes up to"):
        budget(TINY, (2, 4, 40))


def test_the_peak_forgets_what_is_gone():
    with Peak() as peak:
        for _ in range(3):
            torch.zeros(1000)
        kept = torch.zeros(10)
    assert (peak.most, peak.now) == (4000, 40)
    assert kept.sum() == 0


@torch.no_grad()
def test_streamed_blocks_give_the_same_answer_two_at_a_time():
    config = TINY.model_copy(update={"depth": 4})
    plain, net = network(config), network(config)
    offload(net, "cpu")
    most = []
    for block in net.blocks:
        block.register_forward_hook(lambda *_: most.append(len(net.streaming.here)))
    condition = {"text": randn(1, 4, 8, seed=1)}
    for seed in (1, 2):
        noisy, sigma = randn(1, 3, 2, 4, 4, seed=seed), torch.tensor([1.0])
        assert torch.equal(
            net.denoise(noisy, sigma, condition), plain.denoise(noisy, sigma, condition)
        )
    assert max(most) == 1  # the one at work has just left; the next is here
    assert net.state_dict().keys() == plain.state_dict().keys()
    assert bytes_of(net) == bytes_of(plain)


def test_streaming_twice_is_refused():
    net = offload(network(), "cpu")
    with pytest.raises(ValueError, match="already"):
        offload(net, "cpu")
    with pytest.raises(ValueError, match="one block"):
        offload(network(TINY.model_copy(update={"depth": 1})), "cpu")
