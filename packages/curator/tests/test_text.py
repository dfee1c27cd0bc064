"""Overlay text against labelled cases, for a detector of its own and for PP-OCR's."""

from importlib.util import find_spec

import cv2
import numpy as np
import pytest
from conftest import write
from hypothesis import given
from hypothesis import strategies as st

import wfm_curator as wc
from wfm_curator import text
from wfm_curator.analysis import analyse
from wfm_curator.config import FilterConfig, LookConfig, SplitConfig
from wfm_curator.filters import judge

H, W, FPS, FRAMES = 144, 256, 10, 30
WEIGHTS = find_spec("rapidocr_onnxruntime") is not None
DETECTORS = [
    "detectors:magenta",
    pytest.param(
        "pp-ocr", marks=pytest.mark.skipif(not WEIGHTS, reason="PP-OCR's weights are not installed")
    ),
]
INK = {"detectors:magenta": (255, 0, 255), "pp-ocr": (255, 255, 255)}
WAYS = [(4, 0), (-4, 0), (0, 3), (3, -2)]


def ground(seed):
    """A smooth picture, larger than what is seen of it, too smooth to be taken for text."""
    rng = np.random.default_rng(seed)
    picture = cv2.GaussianBlur(rng.random((H + 240, W + 300, 3)).astype(np.float32), (0, 0), 7)
    low, high = picture.min(), picture.max()
    return ((picture - low) / (high - low) * np.float32([90, 170, 90])).astype(np.uint8)


def put(picture, place, ink, words="HELLO 42"):
    x, y = place
    cv2.putText(picture, words, (int(x), int(y)), cv2.FONT_HERSHEY_SIMPLEX, 0.8, ink, 2)
    return picture


def film(way, ink, *, on_screen=None, in_scene=None, seed=0):
    """A camera that goes ``way`` pixels a frame, with text on the screen or in the scene."""
    base = ground(seed)
    if in_scene:
        put(base, (in_scene[0] + 150, in_scene[1] + 120), ink)
    seen = []
    for t in range(FRAMES):
        x, y = 150 + round(way[0] * (t - FRAMES / 2)), 120 + round(way[1] * (t - FRAMES / 2))
        picture = base[y : y + H, x : x + W].copy()
        seen.append(put(picture, on_screen, ink) if on_screen else picture)
    return np.stack(seen)


def scores(tmp_path, pictures, detector):
    path = write(tmp_path / "film.mp4", pictures, FPS, crf="16")
    (clip,) = analyse(path, SplitConfig(method="whole"), look=LookConfig(text=detector)).clips
    return clip.scores


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("way", WAYS)
def test_text_that_stays_while_the_scene_moves_was_laid_over(tmp_path, way, detector):
    for place in ((60, 130), (20, 40)):
        found = scores(tmp_path, film(way, INK[detector], on_screen=place), detector)
        assert found["overlay"] > 0.8
        assert judge(found, FilterConfig()) == "overlay text"


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("way", WAYS)
def test_text_that_goes_with_the_scene_is_part_of_it(tmp_path, way, detector):
    found = scores(tmp_path, film(way, INK[detector], in_scene=(60, 80)), detector)
    assert found["text"] > 0.5
    assert found["overlay"] < 0.2
    assert judge(found, FilterConfig()) == ""


@pytest.mark.parametrize("detector", DETECTORS)
def test_before_a_fixed_camera_only_the_place_speaks(tmp_path, detector):
    walker = [(40 + 5 * t, 40) for t in range(FRAMES)]

    def fixed(place):
        pictures = film((0, 0), INK[detector], on_screen=place)
        for picture, (x, y) in zip(pictures, walker, strict=True):
            picture[y : y + 20, x : x + 12] = (20, 200, 30)
        return scores(tmp_path, pictures, detector)

    subtitle, sign = fixed((60, 132)), fixed((60, 95))
    assert (subtitle["overlay"], sign["overlay"]) == (0, 0)
    assert subtitle["placed"] > 0.8 > 0.1 > sign["placed"]
    assert judge(subtitle, FilterConfig()) == judge(sign, FilterConfig()) == ""
    assert judge(subtitle, FilterConfig(max_placed=0.5)) == "text in place"


@pytest.mark.parametrize("detector", DETECTORS)
def test_a_title_on_black_and_footage_without_text(tmp_path, detector):
    title = np.stack([put(np.zeros((H, W, 3), np.uint8), (50, 80), INK[detector])] * FRAMES)
    assert scores(tmp_path, title, detector)["overlay"] == 1
    assert scores(tmp_path, film((3, 0), INK[detector]), detector)["text"] == 0


@pytest.mark.parametrize("detector", DETECTORS)
def test_a_mark_in_every_shot_is_laid_over_though_no_camera_moves(tmp_path, detector):
    shots = [film((0, 0), INK[detector], on_screen=(60, 95), seed=n)[:10] for n in range(4)]
    for shot in shots:
        shot[:, 20:30, 20:30] += (np.arange(10, dtype=np.uint8) * 9)[:, None, None, None]
    path = write(tmp_path / "film.mp4", np.concatenate(shots), FPS, crf="16")
    config = SplitConfig(method="content", min_seconds=0.5)
    clips = analyse(path, config, look=LookConfig(text=detector)).clips
    assert len(clips) >= 3
    assert all(clip.scores["overlay"] == 1 for clip in clips)


@given(st.lists(st.tuples(*[st.floats(0, 1)] * 4), max_size=5), st.integers(0, 9))
def test_shares_of_moments_stay_shares(corners, count):
    boxes = np.array(
        [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in corners], np.float32
    ).reshape(-1, 4)
    looks = [text.Look(5 * n, n / 2, 0.5, boxes) for n in range(count)]
    camera = text.Camera.of(np.arange(10) / 2, np.full((10, 3), 0.1))
    found = text.judge(looks, camera, 16 / 9, text.repeated([looks] * 3))
    assert all(0 <= value <= 1 for value in found.values())
    assert found["overlay"] + found["placed"] <= found["text"] + 1e-9


def test_a_run_leaves_out_what_has_text_laid_over_and_thresholds_are_a_view(tmp_path):
    ink = INK["detectors:magenta"]
    write(tmp_path / "in/over.mp4", film((4, 0), ink, on_screen=(60, 130)), FPS)
    write(tmp_path / "in/sign.mp4", film((4, 0), ink, in_scene=(60, 80), seed=1), FPS)
    given = {"look": {"text": "detectors:magenta"}, "split": {"method": "content"}}
    report = wc.curate(tmp_path / "in", tmp_path / "out", wc.CurateConfig.model_validate(given))
    assert report.rejected == {"overlay text": 1}
    given["filter"] = {"max_overlay": 1.0}
    assert wc.curate(
        tmp_path / "in", tmp_path / "out", wc.CurateConfig.model_validate(given)
    ).kept == 2  # fmt: skip


@pytest.mark.parametrize("name", ["nothing", "detectors:none", "nowhere:magenta"])
def test_a_detector_that_is_not_there_is_named(name):
    with pytest.raises(ValueError, match=f"look.text is '{name}'"):
        text.detector(LookConfig(text=name))
    with pytest.raises(FileNotFoundError, match="no such file"):
        text.detector(LookConfig(text="nowhere.onnx"))
