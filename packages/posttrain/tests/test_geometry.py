import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("cv2")

from wfm_posttrain import geometry, sim


@pytest.fixture(scope="module")
def room():
    return sim.generate("room", seed=1_000_003, size=(64, 64), frames=7)


def turn(axis, angle):
    x, y, z = np.asarray(axis) / np.linalg.norm(axis)
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


def pose(rotation, centre):
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = rotation, centre
    return out


K = np.array([[60.0, 0, 32], [0, 60, 32], [0, 0, 1]])
SECOND = pose(turn((0.2, 1, 0.1), 0.1), (0.3, -0.05, 0.1))


def seen_twice(count=80, seed=0):
    """Points of a cloud as both cameras see them."""
    rng = np.random.default_rng(seed)
    cloud = rng.uniform((-2, -2, 3), (2, 2, 6), (count, 3))
    views = []
    for camera in (np.eye(4), SECOND):
        local = (cloud - camera[:3, 3]) @ camera[:3, :3]
        views.append((local @ K.T)[:, :2] / local[:, 2:])
    return np.concatenate(views, axis=1)


def test_perfect_matches_have_no_sampson_error_and_noise_shows_in_pixels():
    matches = seen_twice(400)
    f = geometry.fundamental_of(np.linalg.inv(SECOND), K, K)
    assert geometry.sampson(matches, f).max() < 1e-9
    noisy = matches + np.random.default_rng(1).normal(0, 1.0, matches.shape)
    # First order: the distance to the epipolar manifold is normal with the noise's sigma.
    assert np.sqrt((geometry.sampson(noisy, f) ** 2).mean()) == pytest.approx(1.0, rel=0.1)


def test_the_pose_is_recovered_from_matches():
    found = geometry.relative_pose(seen_twice(), K)
    assert geometry.angle_between(found[:3, :3], SECOND[:3, :3]) < 0.1
    direction = SECOND[:3, 3] / np.linalg.norm(SECOND[:3, 3])
    assert found[:3, 3] == pytest.approx(direction, abs=0.01)


def test_too_few_matches_give_nothing():
    few = seen_twice(6)
    assert geometry.fundamental(few) is None
    assert geometry.relative_pose(few, K) is None
    blank = np.zeros((3, 3, 32, 32), np.uint8)
    score = geometry.temporal_sampson(blank)
    assert np.isnan(score.error)
    assert score.matches == 0


def test_points_are_followed_to_a_part_of_a_pixel():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (3, 20, 20))
    picture = np.kron(coarse, np.ones((1, 4, 4))).astype(np.uint8)
    matches = geometry.follow(picture, np.roll(picture, (2, 3), axis=(1, 2)))
    inner = matches[(matches[:, :2] > 10).all(1) & (matches[:, :2] < 65).all(1)]
    assert len(inner) > 20
    assert np.median(inner[:, 2:] - inner[:, :2], axis=0) == pytest.approx([3, 2], abs=0.1)


def test_real_video_bends_less_than_jittered_video(room):
    """A smooth random warp of each frame breaks the geometry that the real camera obeys."""
    import cv2

    rng = np.random.default_rng(0)
    warped = []
    for frame in room.frames:
        shift = cv2.resize(rng.normal(0, 1.5, (4, 4, 2)).astype(np.float32), (64, 64))
        grid = np.stack(np.meshgrid(np.arange(64), np.arange(64)), -1).astype(np.float32)
        image = cv2.remap(
            np.ascontiguousarray(frame.transpose(1, 2, 0)), grid + shift, None, cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT,
        )  # fmt: skip
        warped.append(image.transpose(2, 0, 1))
    real, bent = geometry.temporal_sampson(room.frames), geometry.temporal_sampson(np.stack(warped))
    assert real.matches > 100
    assert real.error < 0.15
    assert bent.error > 2 * real.error


def test_commanded_rotations_are_recovered_from_small_pictures():
    wanted, found = [], []
    for seed in range(1_000_001, 1_000_005):
        episode = sim.generate("room", seed=seed, size=(64, 64), frames=4)
        steps = geometry.recovered_steps(episode.frames, episode.intrinsics[0])
        commanded = geometry.commanded_steps(episode.camera_pose)
        for step, order in zip(steps, commanded, strict=True):
            if step is not None:  # the turn about the vertical
                wanted.append(order[0, 2])
                found.append(step[0, 2])
        errors = geometry.pose_errors(episode.frames, episode.camera_pose, episode.intrinsics[0])
        assert errors.succeeded
        assert np.median(errors.rotation) < 2.5
    assert np.corrcoef(wanted, found)[0, 1] > 0.8


def test_a_turn_is_found_without_points_that_could_be_followed():
    """Smooth pictures of changing contrast have no corners; 6 of 64 pixels are a turn."""
    import cv2

    rng = np.random.default_rng(0)
    wide = cv2.GaussianBlur(rng.uniform(0, 255, (64, 96)), (0, 0), 6)
    wide = np.stack([(wide - wide.min()) / np.ptp(wide)] * 3)
    before, after = (
        (60 + gain * wide[..., x : x + 64]).astype(np.uint8) for gain, x in ((150, 10), (90, 16))
    )
    assert len(geometry.follow(before, after)) < geometry.LEAST_MATCHES
    expected = np.sin(np.arctan(6 / K[0, 0]))
    assert geometry.pan(before, after, K) == pytest.approx(expected, abs=0.5 / K[0, 0])
    assert geometry.pan(after, before, K) == pytest.approx(-expected, abs=0.5 / K[0, 0])
    assert geometry.pan(np.zeros_like(before), after, K) is None


def test_two_cameras_of_one_rig_share_a_geometry():
    capture = sim.Capture(size=(64, 64), frames=4, views=("front", "left"))
    front, left = sim.generate_views("street", 1_000_004, capture)
    mount = np.linalg.inv(front.camera_pose[0]) @ left.camera_pose[0]
    f = geometry.fundamental_of(np.linalg.inv(mount), front.intrinsics[0], left.intrinsics[0])
    own = geometry.cross_view_sampson(front.frames, front.frames, f=f)
    assert own.matches > 0
    assert own.error > 1  # a camera and itself do not have the rig's geometry


@given(st.floats(-0.3, 0.3), st.floats(-1, 1), st.floats(-1, 1))
def test_a_way_is_rebuilt_from_its_steps(angle, x, z):
    steps = [pose(turn((0, 1, 0), angle), (x, 0.1, z))] * 4
    lengths = np.array([np.linalg.norm(s[:3, 3]) for s in steps])
    way = geometry.recovered_way(steps, lengths)
    commanded = np.stack([np.linalg.matrix_power(steps[0], i) for i in range(5)])
    error = geometry.following_error(way, commanded)
    assert error["ate"] < 1e-6
    assert error["rpe_r"] < 1e-4
    # The same way, wherever the world's origin lies.
    moved = pose(turn((1, 1, 0), 0.7), (3, 2, 1)) @ commanded
    assert geometry.following_error(way, moved)["ate"] < 1e-6


def test_a_missing_step_goes_on_as_before():
    step = pose(np.eye(3), (0, 0, 1.0))
    way = geometry.recovered_way([step, None, step], np.array([1.0, 1, 2]))
    assert way[:, 2, 3].tolist() == [0, 1, 2, 4]


def test_two_cameras_of_a_rig_agree_on_their_way():
    rig = np.stack([pose(turn((0, 1, 0), 0.05 * i), (0.1 * i, 0, 0.3 * i)) for i in range(6)])
    mount = pose(turn((0, 1, 0), 0.9), (0.2, 0, -0.1))
    other = np.linalg.inv(mount) @ rig @ mount
    assert geometry.agreement_error(rig, other, mount)["ate"] < 1e-9
    assert geometry.agreement_error(rig, rig, mount)["ate"] > 0.05


def test_structure_from_motion_registers_a_real_walk():
    pytest.importorskip("pycolmap")
    episode = sim.generate("room", seed=1_000_003, size=(256, 256), frames=10)
    assert geometry.reconstruction(episode.frames, episode.intrinsics[0]) >= 0.9
    assert geometry.share_reconstructed([1.0, 0.5]).mean == 0.5
