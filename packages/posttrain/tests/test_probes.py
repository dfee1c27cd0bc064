import numpy as np
import pytest
import torch
from fakes import PatchCodec, SmallDenoiser, square_video
from hypothesis import given
from hypothesis import strategies as st

from wfm_posttrain.plan import Bounds
from wfm_posttrain.probes import (
    FrameFeatures,
    clone_linear,
    forgetful,
    latent_features,
    pixel_features,
    probe,
    ridge,
)

BOUNDS = Bounds(torch.full((2,), -4.0), torch.full((2,), 4.0))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def squares(count, seed):
    places = 8 + 16 * torch.rand(count, 2, generator=seeded(seed))
    return torch.cat([square_video(torch.zeros(0, 2), start=p)[0] for p in places]), places


class Featured(SmallDenoiser):
    """Shows its first layer, as a sequence of tokens."""

    def features(self, noisy, sigma, condition, layers, /):
        x = torch.cat([noisy, torch.zeros_like(noisy[:, :1])], 1)
        return [self.inner(x)[:, :, :1].flatten(2).transpose(1, 2) for _ in layers]


@given(seed=st.integers(0, 50))
def test_a_linear_truth_is_found(seed):
    features = torch.randn(200, 12, generator=seeded(seed))
    weight = torch.zeros(12, 2)
    weight[:3] = torch.randn(3, 2, generator=seeded(seed + 1))
    targets = features @ weight + 5
    fitted = ridge(features, targets)
    error = (fitted.predict(features) - targets).square().mean() / targets.var()
    assert error < 1e-3


def test_the_two_forms_agree():
    from wfm_posttrain import probes

    x, y = torch.randn(30, 30, generator=seeded()), torch.randn(30, 1, generator=seeded(1))
    primal = probes._solve(x, y, 0.1)
    dual = probes._solve(torch.cat([x, torch.zeros(30, 5)], 1), y, 0.1)
    torch.testing.assert_close(primal.weight, dual.weight[:30], atol=1e-4, rtol=1e-3)


def test_features_that_know_score_and_features_that_do_not_fail():
    train, test = squares(120, 0), squares(40, 1)
    assert (probe(pixel_features(16), train, test) > 0.8).all()
    blind = probe(lambda frames: torch.randn(len(frames), 20, generator=seeded()), train, test)
    assert (blind < 0.2).all()
    assert (probe(latent_features(PatchCodec()), train, test) > 0.5).all()


def test_frames_are_seen_at_a_noise_level():
    torch.manual_seed(0)
    frames = squares(6, 0)[0]
    clean, noisy = (
        FrameFeatures(Featured(), PatchCodec(), layer=0, sigma=s)(frames) for s in (0.0, 5.0)
    )
    assert clean.shape == noisy.shape == (6, 16 * 12)
    assert not torch.allclose(clean, noisy)
    torch.manual_seed(0)
    again = FrameFeatures(Featured(), PatchCodec(), layer=0, sigma=5.0, batch=6)(frames)
    assert again.shape == noisy.shape


def test_the_untrained_control_keeps_shapes_and_scales_only():
    net = Featured()
    empty = forgetful(net)
    before, after = (dict(n.named_parameters()) for n in (net, empty))
    name = "inner.weight"
    assert not torch.allclose(before[name], after[name])
    assert after[name].std().item() == pytest.approx(before[name].std().item(), rel=0.3)
    assert net is not empty


def test_a_policy_is_cloned_on_frozen_features():
    frames, places = squares(60, 0)
    pairs = [(i, j) for i in range(0, 60, 2) for j in range(1, 60, 7)]
    actions = torch.stack([(places[j] - places[i]).clamp(-4, 4) for i, j in pairs])
    policy = clone_linear(pixel_features(16), frames, pairs, actions, BOUNDS)
    here, there = (square_video(torch.zeros(0, 2), start=(x, 16.0))[0][0] for x in (10.0, 22.0))
    shown = [np.ascontiguousarray(frame.permute(1, 2, 0)) for frame in (here, there)]
    policy.reset(shown[0], {"goal_frame": there.numpy()}, 0)
    right = policy.act(shown[0])
    policy.reset(shown[0], {"goal_frame": here.numpy()}, 0)
    left = policy.act(shown[1])
    assert right[0] > 1 > -1 > left[0]
    assert (np.abs([right, left]) <= 4).all()
