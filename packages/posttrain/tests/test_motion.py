import numpy as np
import pytest
import torch
from fakes import SquareWorld, square_video

from wfm_posttrain import residuals
from wfm_posttrain.motion import motion_mask, motion_scores, physics_iq
from wfm_posttrain.video import to_model


def white(video):
    """Make the red square white: in grey, red is the background's twin."""
    red = video[:, :1] - video[:, 1:2] > 0.5
    return torch.where(red, 1.0, video)


def moving(speed=(3.0, 0.0), frames=6, start=(8.0, 16.0)):
    actions = torch.tensor([speed]).repeat(frames - 1, 1)
    return white(to_model(square_video(actions, start=start)[0]))


def test_only_what_moves_is_masked():
    assert not motion_mask(moving(speed=(0.0, 0.0))).any()
    mask = motion_mask(moving())[0]
    assert not mask[0].any()
    assert mask[1:].any(dim=(1, 2)).all()
    assert not mask[:, :32].any()  # the square is 12 of 32 rows down, masks have 128


def test_the_same_motion_scores_one_and_another_less():
    same = motion_scores(moving(), moving())
    assert (same.spatial, same.weighted, same.temporal, same.mse) == (1, 1, 1, 0)
    up = motion_scores(moving(speed=(0.0, -2.0)), moving())
    late = motion_scores(torch.cat([moving()[:, :, :1]] * 2 + [moving()[:, :, :4]], 2), moving())
    for scores in (up, late):
        assert (scores.temporal < 0.7).all()
    assert up.spatial < late.spatial


def test_a_second_take_scores_a_hundred_and_stillness_little():
    real, take = moving(), moving(start=(8.5, 16.3))
    takes = motion_scores(take, real)
    assert physics_iq(takes, takes).item() == pytest.approx(100)
    still = physics_iq(motion_scores(moving(speed=(0.0, 0.0)), real), takes)
    close = physics_iq(motion_scores(moving(start=(9.0, 16.0)), real), takes)
    assert still < 25 < close


def test_nothing_moving_twice_is_agreement():
    still = moving(speed=(0.0, 0.0))
    scores = motion_scores(still, still)
    assert scores.spatial == scores.weighted == scores.temporal == 1


def test_a_free_fall_has_the_acceleration_of_gravity():
    time = np.arange(12) / 15
    height = 1.4 - 0.5 * residuals.GRAVITY * time**2
    acceleration, rest = residuals.fitted_acceleration(height, 15.0)
    assert acceleration == pytest.approx(-residuals.GRAVITY)
    assert rest == pytest.approx(0, abs=1e-9)
    assert residuals.gravity_error(height, 15.0) == pytest.approx(0, abs=1e-9)
    moon = 1.4 - 0.5 * residuals.GRAVITY / 6 * time**2
    assert residuals.gravity_error(moon, 15.0) == pytest.approx(5 / 6)
    gaps = np.where(np.arange(12) % 3 == 0, np.nan, height)
    assert residuals.gravity_error(gaps, 15.0) == pytest.approx(0, abs=1e-9)
    assert np.isnan(residuals.gravity_error(height[:3], 15.0))
    assert residuals.flight(height, floor=0.5) == slice(0, int((height > 0.52).sum()))


def test_energy_may_fall_and_not_rise():
    time = np.arange(40) / 30
    fall = np.stack([0.4 * time, 0 * time, 5 - 0.5 * residuals.GRAVITY * time**2], axis=1)
    assert residuals.energy_drift(fall, 30.0) < 1e-9
    flung = fall.copy()
    flung[20:, 0] += 3 * (time[20:] - time[20])
    assert residuals.energy_drift(flung, 30.0) > 0.05
    resting = np.tile([0.0, 0, 0], (40, 1))
    assert np.isnan(residuals.energy_drift(resting, 30.0))


def test_collisions_keep_momentum():
    mass = np.array([1.0, 3.0])
    x = np.array([[0.0, 1], [0.2, 1], [0.4, 1], [0.3, 1.1], [0.2, 1.2]])
    position = np.stack([x, 0 * x, 0 * x], axis=-1)
    assert residuals.momentum_change(position, mass, 10.0, 2) == pytest.approx(0)
    position[3:, 1, 0] = 1
    assert residuals.momentum_change(position, mass, 10.0, 2) == pytest.approx(1.5)


def test_dominoes_fall_in_their_order():
    lean = np.zeros((10, 3))
    for i, start in enumerate((1, 3, 6)):
        lean[start:, i] = 1.2
    quaternion = np.stack([np.cos(lean / 2), 0 * lean, np.sin(lean / 2), 0 * lean], axis=-1)
    times = residuals.topple_times(quaternion)
    assert times.tolist() == [1, 3, 6]
    assert residuals.order_kept(times) == 1
    assert residuals.order_kept(times[::-1]) == 0
    assert residuals.order_kept(np.array([1, np.nan, 3])) == 0


def test_the_simulated_dominoes_and_falls_obey():
    from wfm_posttrain import sim

    row = sim.generate("dominoes", seed=1_000_001, size=(16, 16), frames=33)
    times = residuals.topple_times(row.object_pose[..., 3:])
    assert residuals.order_kept(times) == 1
    fall = sim.generate("free-fall", seed=1_000_001, size=(16, 16), frames=12)
    height = fall.object_pose[:, 0, 2].astype(float)
    air = residuals.flight(height, floor=0.0, margin=0.25)
    assert residuals.gravity_error(height[air], fall.fps) < 0.1


def test_sinking_and_vanishing_are_measured():
    assert residuals.penetration(np.array([0.3, 0.1, 0.08]), rest=0.1) == pytest.approx(0.02)
    assert residuals.penetration(np.array([0.3, 0.2]), rest=0.1) == 0
    mask = torch.zeros(2, 4, 8, 8, dtype=torch.bool)
    mask[0, :, :4] = True
    mask[1, :2, :4] = True
    variation = residuals.area_variation(mask)
    assert variation.tolist() == pytest.approx([0, 1])
    assert residuals.area_variation(mask[:1] & False).isnan()


def test_a_world_that_follows_scores_better_than_one_that_lags():
    actions = torch.tensor([[3.0, 0.0]]).repeat(5, 1)
    real = moving()
    past = to_model(square_video(torch.zeros(0, 2), start=(8.0, 16.0))[0])
    scores = []
    for gain in (1.0, 0.3):
        world = SquareWorld(gain=gain)
        future = world.rollout(past, frames=5, controls={"action": actions[None]})
        scores.append(motion_scores(white(torch.cat([past, future], 2)), real).temporal.item())
    assert scores[0] > scores[1]
