import re

import numpy as np
import pytest
import torch
from conftest import scene

from wfm_guardrail import Guardrail, Policy
from wfm_guardrail.media import FLASHING


def blinking(frames, every, *, low=20, high=235, size=64, area=1.0):
    """A picture that turns between two greys every so many frames, on a part of its area."""
    video = scene(frames, size, size)
    rows = round(size * area)
    bright = (np.arange(frames) // every) % 2
    grey = np.where(bright, high, low)[:, None, None, None] + np.linspace(-5, 5, size)
    video[:, :, :rows] = grey.clip(0, 255)
    return video


def test_an_ordinary_video_passes(guard):
    verdict = guard.check_video(scene(60))
    assert verdict.safe
    assert verdict.checked == ("sanity", "frozen", "flash")


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (1, 3, 7, 5), (2, 3, 3, 100)])
def test_small_and_odd_sizes_are_no_trouble(guard, shape):
    rng = np.random.default_rng(0)
    assert guard.check_video(rng.integers(0, 255, shape, dtype=np.uint8)).checked


@pytest.mark.parametrize(
    ("frames", "why"),
    [
        (torch.zeros(5, 3, 8), "5x3x8"),
        (torch.zeros(5, 1, 8, 8), "5x1x8x8"),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), "no pixel"),
        (torch.zeros(5, 3, 8, 8, dtype=torch.int64), "int64"),
        (torch.full((5, 3, 8, 8), float("nan")), "NaN"),
        (torch.full((5, 3, 8, 8), float("inf")), "NaN or infinity"),
        (torch.rand(5, 3, 8, 8) * 255, r"expected \[-1, 1\]"),
        (None, "a single number"),
        ("video.mp4", "a single number"),
    ],
)
def test_what_is_no_video_is_refused(guard, frames, why):
    verdict = guard.check_video(frames)
    assert not verdict.safe
    assert re.search(why, verdict.reason)


def test_one_nan_pixel_is_refused(guard):
    video = torch.from_numpy(scene()).float() / 127.5 - 1
    assert guard.check_video(video).safe
    assert guard.check_video(video.to(torch.bfloat16)).safe
    video[7, 1, 5, 5] = float("nan")
    assert not guard.check_video(video).safe


def test_blank_videos_are_refused_and_fades_are_not(guard):
    black = np.zeros((20, 3, 32, 32), np.uint8)
    assert "20 of 20 frames are blank" in guard.check_video(black).reason
    grey = np.full((1, 3, 32, 32), 127, np.uint8)
    assert not guard.check_video(grey).safe
    fade = scene(20, 32, 32)
    fade[:5] = 0
    assert guard.check_video(fade).safe


def test_a_frozen_video_is_noted_and_refused_by_strict(guard):
    still = np.repeat(scene(1), 20, axis=0)
    verdict = guard.check_video(still)
    assert verdict.safe
    assert [f.check for f in verdict.findings] == ["frozen"]
    strict = Guardrail(Policy(checks={}), detector=None)
    assert "all 20 frames are the same" in strict.check_video(still).reason
    assert strict.check_video(scene(1)).safe


def test_frames_that_change_size_are_refused(guard):
    verdict = guard.check_stream(iter([scene(3, 32, 32), scene(3, 48, 32)]))
    assert not verdict.safe


def test_a_stream_without_frames_is_refused(guard):
    assert "there is no frame" in guard.check_stream(iter([])).reason


def test_flashes_are_refused(guard):
    verdict = guard.check_video(blinking(60, 3), fps=30)
    assert verdict.category == FLASHING
    assert verdict.score == 1.0


@pytest.mark.parametrize(
    ("video", "fps"),
    [
        (blinking(60, 5), 30.0),  # three flashes in a second
        (blinking(60, 3), 10.0),  # the same frames, slower
        (blinking(60, 3, area=0.2), 30.0),  # on a small part
        (blinking(60, 3, low=120, high=140), 30.0),  # weak
        (blinking(60, 3, low=240, high=255), 30.0),  # between two bright pictures
    ],
    ids=["rare", "slow", "small", "weak", "bright"],
)
def test_harmless_flicker_passes(guard, video, fps):
    assert guard.check_video(video, fps=fps).safe


def test_flashes_of_saturated_red_are_refused_though_their_light_is_weak(guard):
    video = scene(60, 64, 64)
    bright = (np.arange(60) // 3) % 2
    video[:, 0] = np.where(bright, 130, 60)[:, None, None]
    video[:, 1:] = 0
    video[:, 1, ::9] = 30  # not blank
    assert guard.check_video(video, fps=30).category == FLASHING


def test_flashes_are_found_wherever_the_chunks_end(guard):
    video = blinking(60, 3)
    for size in (1, 7, 60):
        chunks = (video[i : i + size] for i in range(0, 60, size))
        assert guard.check_stream(chunks, fps=30).category == FLASHING


def test_a_strange_frame_rate_falls_back_to_the_policy(guard):
    for fps in (None, 0.0, -1.0, float("nan")):
        assert guard.check_video(blinking(60, 3), fps=fps).category == FLASHING
