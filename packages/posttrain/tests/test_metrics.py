import math

import numpy as np
import pytest
import torch
from fakes import PatchCodec, square_mask, square_video
from hypothesis import given
from hypothesis import strategies as st

from wfm_posttrain.metrics import (
    bootstrap,
    centroid,
    centroid_error,
    colour_mask,
    fidelity_gap,
    latent_l2,
    mean_colour,
    permanence,
    psnr,
    ssim,
)
from wfm_posttrain.video import to_model


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_psnr_of_a_known_error():
    real = torch.zeros(2, 3, 4, 16, 16)
    off = real.clone()
    off[:, :, 1] += 0.2  # a tenth of the range: 20 dB
    score = psnr(off, real)
    torch.testing.assert_close(score[:, 1], torch.full((2,), 20.0))
    assert (score[:, 0] == 100).all()


def ssim_by_hand(x, y):
    """Wang et al.'s formula with explicit loops over windows, in double precision."""
    offsets = np.arange(11) - 5
    line = np.exp(-(offsets**2) / 4.5)
    window = np.outer(line, line) / line.sum() ** 2
    values = []
    for i in range(x.shape[0] - 10):
        for j in range(x.shape[1] - 10):
            a, b = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            ma, mb = (window * a).sum(), (window * b).sum()
            va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
            cov = (window * (a - ma) * (b - mb)).sum()
            top = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4)
            values.append(top / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))
    return np.mean(values)


def test_ssim_is_the_papers():
    x, y = noise(1, 3, 1, 16, 16).tanh(), noise(1, 3, 1, 16, 16, seed=1).tanh()
    y = 0.7 * x + 0.3 * y
    pairs = [[(v[0, c, 0].double().numpy() + 1) / 2 for v in (x, y)] for c in range(3)]
    expected = np.mean([ssim_by_hand(*pair) for pair in pairs])
    assert ssim(x, y).item() == pytest.approx(expected, abs=1e-5)


@given(seed=st.integers(0, 1000))
def test_scores_are_best_for_equal_videos_and_the_same_both_ways(seed):
    x, y = (noise(1, 3, 2, 16, 16, seed=s).tanh() for s in (seed, seed + 1))
    torch.testing.assert_close(ssim(x, x), torch.ones(1, 2))
    assert (ssim(x, y) < 1).all()
    torch.testing.assert_close(ssim(x, y), ssim(y, x))


def test_latent_distance_counts_latents():
    x = torch.zeros(1, 3, 2, 16, 16)
    torch.testing.assert_close(latent_l2(PatchCodec(), x + 0.5, x), torch.full((1, 2), 0.5))


def test_an_object_is_found_by_its_colour_in_any_light():
    frames, masks = square_video(torch.zeros(1, 2))
    video = to_model(frames)
    colour = mean_colour(video[:, :, 0], masks[None, 0] > 0)
    for light in (0.5, 1.0, 1.1):
        lit = ((video + 1) * light - 1).clamp(-1, 1)
        found = colour_mask(lit, colour)
        assert torch.equal(found[0], masks > 0)


@given(x=st.integers(6, 26), y=st.integers(6, 26))
def test_the_centroid_of_a_square_is_its_centre(x, y):
    mask = square_mask(torch.tensor([float(x), float(y)]))[None, None] > 0
    torch.testing.assert_close(centroid(mask)[0, 0], torch.tensor([float(x), float(y)]))


def test_moving_and_vanishing_objects_are_told_apart():
    real = square_mask(torch.tensor([16.0, 16.0]))[None, None] > 0
    moved = square_mask(torch.tensor([19.0, 20.0]))[None, None] > 0
    gone = torch.zeros_like(real)
    assert centroid_error(moved, real).item() == pytest.approx(5)
    assert permanence(moved, real).item() == 1
    assert centroid_error(gone, real).item() == pytest.approx(math.hypot(32, 32))
    assert permanence(gone, real).item() == 0
    assert centroid_error(real, gone).isnan().all()
    assert permanence(real, gone).isnan().all()


def test_the_interval_holds_the_mean_about_as_often_as_it_says():
    hits = 0
    for seed in range(100):
        interval = bootstrap(noise(40, seed=seed), draws=300)
        hits += interval.low <= 0 <= interval.high
    assert 87 <= hits <= 99


def test_what_is_not_a_number_is_left_out():
    interval = bootstrap(torch.tensor([1.0, torch.nan, 3.0]))
    assert (interval.mean, interval.count) == (2, 2)
    assert math.isnan(bootstrap(torch.full((3,), torch.nan)).mean)


def test_a_model_that_ignores_its_actions_has_no_gap():
    scores = noise(8, 3)
    assert all(gap.mean == gap.low == gap.high == 0 for gap in fidelity_gap(scores, scores))
    assert fidelity_gap(scores + 2, scores)[0].mean == pytest.approx(2)
