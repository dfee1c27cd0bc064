"""What every scene promises: labels that fit the pictures, and the same bits for a seed."""

import functools
import json

import numpy as np
import pytest

from wfm_posttrain import sim
from wfm_posttrain.sim.graphics import project

FRAMES, SIZE = 9, (48, 64)


@functools.cache
def film(scene: str, seed: int = 0) -> tuple[sim.Episode, ...]:
    return sim.generate_views(scene, seed, sim.Capture(SIZE, FRAMES))


@pytest.mark.parametrize("scene", sim.SCENES)
def test_a_scene_yields_every_field_with_its_shape(scene):
    h, w = SIZE
    for episode in film(scene):
        n = episode.object_pose.shape[1]
        assert episode.frames.shape == (FRAMES, 3, h, w)
        assert episode.frames.dtype == np.uint8
        assert episode.frames.std() > 10
        assert episode.camera_pose.shape == (FRAMES, 4, 4)
        assert episode.intrinsics.shape == (FRAMES, 3, 3)
        assert episode.depth.shape == episode.segmentation.shape == (FRAMES, h, w)
        assert np.isfinite(episode.depth).all()
        assert (episode.depth > 0).all()
        assert episode.object_pose.shape == (FRAMES, n, 7)
        assert episode.object_pixel.shape == (FRAMES, n, 2)
        assert n >= 1
        assert set(np.unique(episode.segmentation)) <= {0, *episode.segments}


@pytest.mark.parametrize("scene", sim.SCENES)
def test_captions_are_several_and_attributes_fit_into_json(scene):
    for episode in film(scene):
        assert episode.caption in episode.captions
        assert len(set(episode.captions)) >= 3
        assert all("{" not in text and text.endswith(".") for text in episode.captions)
        assert json.loads(json.dumps(episode.description()))["caption"] == episode.caption


@pytest.mark.parametrize("scene", ["arm-push", "room", "gyroscope", "unstable-stack"])
def test_a_seed_gives_the_same_bits_again(scene):
    again = sim.generate(scene, 0, size=SIZE, frames=FRAMES)
    first = film(scene)[0]
    assert np.array_equal(first.frames, again.frames)
    assert first.description() == again.description()
    arrays = again.arrays()
    for name, value in first.arrays().items():
        assert np.array_equal(value, arrays[name], equal_nan=True), name


def test_another_seed_gives_another_recording():
    other = sim.generate("arm-push", 1, size=SIZE, frames=FRAMES)
    assert not np.array_equal(film("arm-push")[0].frames, other.frames)


def test_the_middle_of_a_ball_is_projected_onto_its_segment():
    for seed in range(3):
        (episode,) = film("u-slope", seed)
        for pixel, segments in zip(episode.object_pixel[:, 0], episode.segmentation, strict=True):
            column, row = np.floor(pixel).astype(int)
            assert segments[row, column] == 1


def test_objects_on_the_table_are_projected_onto_their_segments():
    errors = []
    for seed in range(4):
        (episode,) = film("arm-push", seed)
        for i in range(episode.object_pose.shape[1]):
            rows, columns = np.nonzero(episode.segmentation[0] == i + 1)
            if len(rows) >= 15:
                centre = np.array([columns.mean() + 0.5, rows.mean() + 0.5])
                errors.append(np.linalg.norm(episode.object_pixel[0, i] - centre))
    assert len(errors) >= 5
    # Half-hidden objects shift the mean of what is seen.
    assert np.median(errors) < 1.0


def unproject(episode: sim.Episode, t: int) -> np.ndarray:
    h, w = episode.depth.shape[1:]
    columns, rows = np.meshgrid(np.arange(w) + 0.5, np.arange(h) + 0.5)
    rays = np.stack([columns, rows, np.ones((h, w))], -1) @ np.linalg.inv(episode.intrinsics[t]).T
    local = rays * episode.depth[t].astype(np.float64)[..., None]
    return local @ episode.camera_pose[t, :3, :3].T + episode.camera_pose[t, :3, 3]


@pytest.mark.parametrize("seed", [0, 3, 5])
def test_depth_and_poses_of_a_static_room_agree_between_frames(seed):
    (episode,) = film("room", seed)
    points = unproject(episode, 0)
    pose = episode.camera_pose[4].astype(np.float64)
    pixels = project(points, pose, episode.intrinsics[4].astype(np.float64))
    expected = ((points - pose[:3, 3]) @ pose[:3, :3])[..., 2]
    h, w = episode.depth.shape[1:]
    seen = (pixels > 1).all(-1) & (pixels < (w - 1, h - 1)).all(-1)
    columns, rows = np.floor(pixels[seen]).astype(int).T
    ratio = episode.depth[4][rows, columns] / expected[seen]
    assert seen.mean() > 0.4
    assert np.median(np.abs(ratio - 1)) < 0.01
    assert (np.abs(ratio - 1) < 0.05).mean() > 0.85


def test_a_street_is_seen_by_six_cameras_of_one_moment():
    episodes = film("street")
    assert [e.camera for e in episodes] == episodes[0].attributes["views"]
    assert len({e.stem for e in episodes}) == 6
    assert len({e.attributes["group"] for e in episodes}) == 1
    front = episodes[0].camera_pose.astype(np.float64)
    for episode in episodes[1:]:
        between = np.linalg.inv(front) @ episode.camera_pose
        assert np.abs(between - between[0]).max() < 1e-4
        assert np.array_equal(episode.arrays()["trajectory"], episodes[0].arrays()["trajectory"])
    assert len({e.caption for e in episodes}) == 6


@pytest.mark.parametrize("seed", range(4))
def test_a_cars_trajectory_is_the_way_of_its_cameras(seed):
    views = sim.Capture((16, 16), FRAMES, ("left",))
    (episode,) = sim.generate_views("street", seed, views)
    assert episode.trajectory is not None
    assert episode.state is not None
    assert episode.trajectory.shape == (64, 3)
    x, y, yaw, _ = episode.state[0].astype(np.float64)
    forward = np.array([-np.sin(yaw), np.cos(yaw)])
    left = np.array([-np.cos(yaw), -np.sin(yaw)])
    ahead, aside, _ = episode.trajectory[FRAMES - 1]
    assert episode.state[-1, :2] == pytest.approx([x, y] + ahead * forward + aside * left, abs=1e-4)
    turns = episode.attributes["manoeuvre"]
    if turns == "turn-left":
        assert episode.trajectory[-1, 1] > 5
    if turns == "turn-right":
        assert episode.trajectory[-1, 1] < -5


def test_the_number_of_views_follows_from_those_asked_for():
    views = ("back", "front", "rear-left")
    episodes = sim.generate_views("street", 2, sim.Capture((16, 16), 2, views))
    assert tuple(e.camera for e in episodes) == views
    both = sim.generate_views("arm-push", 2, sim.Capture((16, 16), 2, ("front", "side")))
    assert np.array_equal(both[0].arrays()["action"], both[1].arrays()["action"])
    assert not np.array_equal(both[0].frames, both[1].frames)


def test_a_recording_of_one_frame_has_no_actions():
    episode = sim.generate("arm-push", 0, size=(16, 16), frames=1)
    assert episode.arrays()["action"].shape == (0, 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("kitchen", 0), "no scene 'kitchen'; there are arm-push"),
        (("room", -1), "must not be negative"),
    ],
)
def test_what_cannot_be_simulated_is_a_value_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        sim.generate(*arguments)


def test_impossible_captures_are_value_errors():
    with pytest.raises(ValueError, match="size is 4x64"):
        sim.generate("room", 0, size=(4, 64))
    with pytest.raises(ValueError, match="at least 1"):
        sim.generate("room", 0, frames=0)
    with pytest.raises(ValueError, match="no camera 'roof'; there are fly"):
        sim.generate_views("room", 0, sim.Capture((16, 16), 2, ("roof",)))


def test_geoms_that_no_camera_sees_are_left_out_and_change_no_picture(monkeypatch):
    from wfm_posttrain.sim.graphics import Renderer

    few, shares = sim.Capture((48, 48), 2, ("front", "left")), []
    seen = Renderer._may_be_seen

    def note(self, data, camera):
        shares.append(seen(self, data, camera).mean())
        return seen(self, data, camera)

    monkeypatch.setattr(Renderer, "_may_be_seen", note)
    quick = sim.generate_views("street", 3, few)
    monkeypatch.setattr(Renderer, "_may_be_seen", lambda s, *_: np.ones(s._model.ngeom, bool))
    for episode, slow in zip(quick, sim.generate_views("street", 3, few), strict=True):
        assert np.array_equal(episode.frames, slow.frames)
        assert np.array_equal(episode.segmentation, slow.segmentation)
    assert max(shares) < 0.6
