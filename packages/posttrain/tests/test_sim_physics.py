"""The physics scenes do what their captions say. Tiny pictures: only the poses matter."""

import numpy as np
import pytest

from wfm_posttrain import sim

FPS = 15


def poses(scene: str, seed: int, frames: int = 17) -> tuple[np.ndarray, sim.Episode]:
    episode = sim.generate(scene, seed, size=(8, 8), frames=frames)
    return episode.object_pose.astype(np.float64), episode


def up_axis(quaternions: np.ndarray) -> np.ndarray:
    """Return the world z component of each body's own z axis."""
    _, x, y, _ = np.moveaxis(quaternions, -1, 0)
    return 1 - 2 * (x**2 + y**2)


@pytest.mark.parametrize("seed", range(3))
def test_things_fall_with_the_acceleration_of_gravity(seed):
    pose, _ = poses("free-fall", seed, frames=5)
    acceleration = np.diff(pose[:, :, 2], n=2, axis=0) * FPS**2
    assert acceleration == pytest.approx(np.full(acceleration.shape, -9.81), rel=0.02)


@pytest.mark.parametrize("seed", range(4))
def test_a_stable_stack_stands(seed):
    pose, episode = poses("stable-stack", seed)
    assert np.abs(pose[-1, :, :3] - pose[0, :, :3]).max() < 0.01
    assert episode.attributes["count"] == pose.shape[1]


@pytest.mark.parametrize("seed", range(6))
def test_an_unstable_stack_topples(seed):
    pose, _ = poses("unstable-stack", seed)
    assert pose[0, -1, 2] - pose[-1, -1, 2] > 0.15


@pytest.mark.parametrize("seed", range(4))
def test_dominoes_fall_one_after_another_in_the_direction_told(seed):
    pose, episode = poses("dominoes", seed, frames=25)
    tilt = np.degrees(np.arccos(np.clip(up_axis(pose[:, :, 3:]), -1, 1)))
    first = [int(np.argmax(column > 24)) for column in tilt.T]
    assert (tilt[-1] > 24).all()
    assert first == sorted(first)
    rightwards = (pose[-1, :, 0] > pose[0, :, 0]).all()
    assert rightwards == (episode.attributes["direction"] == "right")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scene", ["tilted-plane", "u-slope"])
def test_things_roll_and_slide_in_the_direction_told(scene, seed):
    pose, episode = poses(scene, seed, frames=10)
    moved = pose[-1, :, 0] - pose[0, :, 0]
    sign = 1 if episode.attributes["direction"] == "right" else -1
    assert (sign * moved > 0.1).all()
    assert (pose[-1, :, 2] < pose[0, :, 2]).all()


@pytest.mark.parametrize("seed", range(3))
def test_a_seesaw_lifts_its_light_end(seed):
    pose, episode = poses("seesaw", seed)
    light, heavy = pose[:, 0], pose[:, 1]
    assert light[:, 2].max() > light[0, 2] + 0.15
    assert heavy[-1, 2] < heavy[0, 2]
    assert (heavy[0, 0] > 0) == (episode.attributes["direction"] == "right")


@pytest.mark.parametrize("seed", range(3))
def test_a_gyroscope_keeps_its_tilt_and_precesses_with_its_spin(seed):
    pose, episode = poses("gyroscope", seed)
    w, x, y, z = np.moveaxis(pose[:, 0, 3:], -1, 0)
    axis = np.stack([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x**2 + y**2)], -1)
    tilt = np.degrees(np.arccos(axis[:, 2]))
    assert np.ptp(tilt) < 3
    turn = np.unwrap(np.arctan2(axis[:, 1], axis[:, 0]))
    assert np.sign(turn[-1] - turn[0]) == np.sign(episode.attributes["spin_rate"])
    assert 0.3 < abs(turn[-1] - turn[0]) < 4


def test_the_seed_chooses_the_camera():
    cameras = {sim.generate("stable-stack", s, size=(8, 8), frames=1).camera for s in range(6)}
    assert len(cameras) > 2


@pytest.mark.parametrize("scene", ["free-fall", "dominoes", "gyroscope"])
def test_a_second_take_starts_almost_alike_and_shows_the_same_things(scene):
    capture = sim.Capture(size=(8, 8), frames=4)
    first, again, second = (
        sim.generate_views(scene, 3, capture, take=take)[0] for take in (0, 0, 1)
    )
    assert np.array_equal(first.object_pose, again.object_pose)
    assert not np.array_equal(first.object_pose, second.object_pose)
    assert np.abs(first.object_pose[0, :, :3] - second.object_pose[0, :, :3]).max() < 0.02
    assert (first.captions, first.camera) == (second.captions, second.camera)
    assert second.attributes["take"] == 1


def test_scenes_without_a_second_take_say_so():
    with pytest.raises(ValueError, match="room has one take only"):
        sim.generate_views("room", 3, sim.Capture(size=(8, 8), frames=1), take=1)
