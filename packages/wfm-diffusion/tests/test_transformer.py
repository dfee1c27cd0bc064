import pytest
import torch
from fakes import TINY, network, randn

import wfm_diffusion as wd

SIGMA = torch.tensor([0.3, 5.0])


def inputs(b=2, t=3):
    text = randn(b, 4, 8, seed=2)
    given = torch.zeros(b, 1, t, 4, 4)
    given[:, :, 0] = 1
    return randn(b, 3, t, 4, 4, seed=1), {"text": text, "given": given}


def test_an_unknown_condition_is_a_key_error():
    noisy, condition = inputs()
    with pytest.raises(KeyError, match="camera"):
        network().denoise(noisy, SIGMA, {**condition, "camera": noisy})


def test_given_frames_come_back_as_they_were():
    noisy, condition = inputs()
    clean = network().denoise(noisy, SIGMA, condition)
    assert torch.equal(clean[:, :, 0], noisy[:, :, 0])
    assert not torch.equal(clean[:, :, 1:], noisy[:, :, 1:])


def test_given_frames_are_refused_by_a_network_without_the_mask():
    noisy, condition = inputs()
    net = network(TINY.model_copy(update={"condition_mask": False}))
    with pytest.raises(ValueError, match="no given frames"):
        net.denoise(noisy, SIGMA, condition)


def test_the_noise_of_given_frames_sets_their_scale():
    noisy, condition = inputs()
    net = network()
    loud = net.denoise(noisy, SIGMA, {**condition, "given_sigma": torch.tensor([1.0, 1.0])})
    quiet = net.denoise(noisy, SIGMA, condition)
    assert not torch.equal(loud, quiet)


def test_no_text_is_a_text_of_zeros():
    noisy, condition = inputs()
    given = {"given": condition["given"]}
    zeros = {"text": torch.zeros(2, 4, 8), **given}
    net = network()
    torch.testing.assert_close(
        net.denoise(noisy, SIGMA, given), net.denoise(noisy, SIGMA, zeros), rtol=0, atol=1e-6
    )


def test_a_frame_rate_for_each_sample_is_that_sample_alone():
    noisy, condition = inputs()
    net = network()
    both = net.denoise(noisy, SIGMA, {**condition, "fps": torch.tensor([5.0, 30.0])})
    for i, fps in enumerate((5.0, 30.0)):
        one = {name: x[i : i + 1] for name, x in condition.items()}
        alone = net.denoise(noisy[i : i + 1], SIGMA[i : i + 1], {**one, "fps": torch.tensor([fps])})
        torch.testing.assert_close(both[i : i + 1], alone, rtol=0, atol=1e-5)


def test_an_extended_input_changes_nothing_at_first():
    noisy, condition = inputs()
    net = network()
    before = net.denoise(noisy, SIGMA, condition)
    net.extend_input(6)
    channels = randn(2, 6, 3, 4, 4, seed=3)
    assert torch.equal(before, net.denoise(noisy, SIGMA, {**condition, "channels": channels}))
    assert net.config.extra_channels == 6
    wd.DiffusionTransformer(net.config).load_state_dict(net.state_dict())


def test_channels_need_an_extended_input():
    noisy, condition = inputs()
    with pytest.raises(ValueError, match="extend_input"):
        network().denoise(noisy, SIGMA, {**condition, "channels": noisy})


def test_one_row_for_each_frame_may_say_the_same_as_one_for_all():
    noisy, condition = inputs()
    net = network()
    row, shared = randn(2, 24, seed=4), randn(2, 72, seed=5)
    one = net.denoise(noisy, SIGMA, {**condition, "adaln": row, "adaln_shared": shared})
    rows = {"adaln": row[:, None].expand(-1, 3, -1), "adaln_shared": shared[:, None]}
    each = net.denoise(noisy, SIGMA, {**condition, **rows})
    torch.testing.assert_close(one, each, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("key", "width"), [("adaln", 24), ("adaln_shared", 72)])
def test_both_ports_of_an_action_reach_the_output(key, width):
    noisy, condition = inputs()
    action = torch.zeros(2, width, requires_grad=True)
    network().denoise(noisy, SIGMA, {**condition, key: action}).square().sum().backward()
    assert action.grad is not None
    assert action.grad.abs().max() > 1e-4


def test_a_control_branch_changes_nothing_at_first_and_learns():
    noisy, condition = inputs()
    net = network()
    branch = net.control_branch([0, 1])
    assert not {id(p) for p in branch.parameters()} & {id(p) for p in net.parameters()}
    hint = randn(2, 3, 3, 4, 4, seed=6)
    steered = branch.denoise(noisy, SIGMA, {**condition, "hint": hint})
    torch.testing.assert_close(steered, net.denoise(noisy, SIGMA, condition), rtol=0, atol=0)
    steered.square().sum().backward()
    assert all(out.weight.grad.abs().max() > 0 for out in branch.outs)


def test_features_are_the_tokens_after_the_blocks():
    noisy, condition = inputs()
    net = network()
    seen = []
    net.blocks[1].register_forward_hook(lambda *call: seen.append(call[2]))
    (feature,) = net.features(noisy, SIGMA, condition, [1])
    assert torch.equal(feature, seen[0])


def test_a_network_without_learned_uncertainty_has_none():
    net = network(TINY.model_copy(update={"uncertainty": 0}))
    assert torch.equal(net.log_variance(SIGMA), torch.zeros(2))


def test_cameras_differ_by_their_embedding_and_text():
    config = TINY.model_copy(update={"views": 3, "position": "sincos"})
    net = network(config)
    noisy = randn(1, 3, 4, 4, 4, seed=1)
    text = randn(1, 8, 8, seed=2)
    out = {}
    for ids in ([0, 1], [1, 2]):
        condition = {"text": text, "view": torch.tensor([ids])}
        out[tuple(ids)] = net.denoise(noisy, SIGMA[:1], condition)
    assert not torch.equal(out[0, 1], out[1, 2])


def test_the_config_refuses_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="width 25"):
        wd.DiffusionConfig(width=25, num_heads=2)
