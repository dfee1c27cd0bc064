import pytest
import torch
from fakes import TINY, network, randn

import wfm_diffusion as wd
from wfm_diffusion.guidance import Guided


def ideal(x, sigma):
    """D(x; sigma) of data that is normal with standard deviation 0.5."""
    variance = sigma.view(-1, 1, 1, 1, 1).double() ** 2
    return (x.double() * 0.25 / (variance + 0.25)).float()


def error(name, steps):
    """Distance from the exact end of the ODE, which maps sigma to a known scale."""
    noise = randn(1, 3, 2, 4, 4)
    exact = noise * 80 * 0.5 / (80**2 + 0.25) ** 0.5
    return (wd.SAMPLERS[name](ideal, noise, steps) - exact).abs().max().item()


def test_more_steps_are_nearer_and_res2ab_is_nearest():
    assert error("res2ab", 35) < error("res2ab", 12)
    assert error("res2ab", 35) < 0.5 * error("euler", 36)
    assert error("res2ab", 35) < 0.5 * error("nvidia", 35)


@pytest.mark.parametrize(("name", "calls"), [("res2ab", 11), ("euler", 9), ("nvidia", 10)])
def test_no_network_call_is_wasted(name, calls):
    count = 0

    def counted(x, sigma):
        nonlocal count
        count += 1
        return ideal(x, sigma)

    wd.SAMPLERS[name](counted, randn(1, 3, 2, 4, 4), 10)
    assert count == calls


def test_guidance_is_one_call_whose_branches_part_at_the_text():
    net = network()
    x, sigma = randn(2, 3, 2, 4, 4), torch.tensor([1.0, 1.0])
    cond, uncond = {"text": randn(2, 4, 8, seed=1)}, {"text": torch.zeros(2, 4, 8)}
    batches = []
    for module in (net.embed, net.blocks[0].mlp, net.blocks[1].self_attention.q):
        module.register_forward_hook(lambda *call: batches.append(len(call[2])))
    guided = Guided(net, cond, uncond, guidance=3.0)(x, sigma)
    assert batches == [2, 4, 4]
    first, second = net.denoise(x, sigma, cond), net.denoise(x, sigma, uncond)
    torch.testing.assert_close(guided, first + 3 * (first - second), rtol=0, atol=1e-4)


def test_another_network_gets_a_batch_of_both_branches():
    class Foreign:
        sigma_data = 0.5

        def denoise(self, noisy, sigma, condition, /):
            assert len(noisy) == len(sigma) == len(condition["text"]) == len(condition["fps"])
            return noisy + condition["text"].mean((1, 2))[:, None, None, None, None]

    x, sigma = randn(2, 3, 2, 4, 4), torch.tensor([1.0, 1.0])
    rate = torch.tensor([5.0, 10.0])
    cond, uncond = {"text": torch.ones(2, 4, 8), "fps": rate}, {"text": torch.zeros(2, 4, 8)}
    guided = Guided(Foreign(), cond, uncond, guidance=3.0)(x, sigma)
    torch.testing.assert_close(guided, x + 4, rtol=0, atol=1e-6)


def test_branches_may_differ_in_more_than_text():
    net, x, sigma = network(), randn(1, 3, 2, 4, 4), torch.tensor([1.0])
    cond, uncond = ({"text": randn(1, 4, 8), "fps": torch.tensor([r])} for r in (5.0, 60.0))
    guided = Guided(net, cond, uncond, guidance=3.0)(x, sigma)
    first, second = net.denoise(x, sigma, cond), net.denoise(x, sigma, uncond)
    torch.testing.assert_close(guided, first + 3 * (first - second), rtol=0, atol=1e-4)


def test_without_guidance_the_unconditional_branch_is_not_run():
    net = network()
    x, sigma = randn(2, 3, 2, 4, 4), torch.tensor([1.0, 1.0])
    batches = []
    net.embed.register_forward_hook(lambda *call: batches.append(len(call[2])))
    condition = {"text": randn(2, 4, 8, seed=1)}
    Guided(net, condition, condition, guidance=0.0)(x, sigma)
    assert batches == [2]


def test_sampling_ends_with_the_given_frames():
    kept = randn(1, 3, 3, 4, 4, seed=5)
    given = torch.zeros(1, 1, 3, 4, 4)
    given[:, :, :2] = 1
    guided = Guided(network(TINY), {}).give(kept, given, torch.zeros_like(kept))
    out = wd.SAMPLERS["res2ab"](guided, randn(1, 3, 3, 4, 4), 4)
    assert torch.equal(out[:, :, :2], kept[:, :, :2])
