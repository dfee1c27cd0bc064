import cv2
import numpy as np
import pytest
from conftest import moving, scene, write

from wfm_curator.analysis import analyse
from wfm_curator.config import FilterConfig, SplitConfig
from wfm_curator.filters import judge, lowest, tags
from wfm_curator.motion import measure as measure_motion
from wfm_curator.quality import blocking, blur

SIZES = ((144, 256), (16, 16), (64, 64), (48, 16), (96, 128))


def texture(height=180, width=320):
    noise = np.random.default_rng(0).random((height * 2, width * 2)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min()) * 255
    return smooth.astype(np.uint8)


def seen_by(camera, t, height=144, width=256):
    """What a camera sees of the texture at time t; ``camera`` are speeds per second."""
    picture = texture()
    h, w = picture.shape
    scale, angle = (1 + camera.get("zoom", 0.0)) ** t, camera.get("roll", 0.0) * t
    matrix = cv2.getRotationMatrix2D((w / 2, h / 2), -angle, scale)
    matrix[0, 2] -= camera.get("pan", 0.0) * t * width + (w - width) / 2
    matrix[1, 2] -= camera.get("tilt", 0.0) * t * width + (h - height) / 2
    return cv2.warpAffine(picture, matrix, (width, height))


@pytest.mark.parametrize(
    ("camera", "tag"),
    [
        ({}, "fixed camera"),
        ({"pan": 0.1}, "pan right"),
        ({"pan": -0.1}, "pan left"),
        ({"tilt": 0.1}, "tilt down"),
        ({"tilt": -0.1}, "tilt up"),
        ({"zoom": 0.3}, "forward or zoom in"),
        ({"zoom": -0.3}, "backward or zoom out"),
        ({"roll": 20.0}, "roll"),
    ],
)
def test_the_camera_is_told(camera, tag):
    scores = measure_motion(seen_by(camera, 0), seen_by(camera, 0.1), 0.1)
    assert tag in tags(scores | {"shake": 0.0})


def analysed(tmp_path, pictures, **options):
    path = write(tmp_path / "film.mp4", pictures, **options)
    return analyse(path, SplitConfig(method="whole")).clips[0].scores


def test_a_small_moving_part_before_a_fixed_camera_is_kept(tmp_path):
    film = np.stack([scene(0, 64, 64)] * 25)
    for t in range(25):
        film[t, 40:46, 10 + t : 16 + t] = 255
    assert judge(analysed(tmp_path, film, fps=5, crf="28"), FilterConfig()) == ""


def test_a_still_picture_is_static_however_it_was_encoded(tmp_path):
    for crf in ("5", "28"):
        film = np.stack([scene(0, 96, 128)] * 60)
        assert judge(analysed(tmp_path, film, fps=25, crf=crf, g="250"), FilterConfig()) == "static"


def test_motion_is_measured_alike_after_encoding_anew(tmp_path):
    film = moving(3, 40, 96, 128)
    fine = analysed(tmp_path, film, fps=20, crf="5")["motion"]
    coarse = analysed(tmp_path, film, fps=20, crf="32")["motion"]
    assert coarse == pytest.approx(fine, rel=0.15)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda f: f // 64, "dark"),
        (lambda f: f // 255 + 250, "burnt out"),
        (lambda f: np.full_like(f, 90), "blank"),
        (lambda f: f[:, :32, :40], "small"),
    ],
    ids=["dark", "burnt out", "blank", "small"],
)
def test_bad_exposure_and_size_are_named(tmp_path, change, reason):
    film = np.ascontiguousarray(change(moving(0, 20, 64, 80)))
    assert reason in judge(analysed(tmp_path, film), FilterConfig())


def test_blur_rises_with_blurring():
    sharp = (np.random.default_rng(0).random((120, 160)) * 255).astype(np.uint8)
    values = [blur(sharp), *(blur(cv2.GaussianBlur(sharp, (0, 0), s)) for s in (1, 2, 4))]
    assert values == sorted(values)
    assert values[0] < 0.2 < 0.5 < values[-1] < 1
    assert blur(np.zeros((20, 20), np.uint8)) == 0


def test_blocks_of_a_coarse_codec_are_seen():
    smooth = cv2.GaussianBlur(texture(64, 64), (0, 0), 4)
    blocks = cv2.resize(smooth[::8, ::8], smooth.shape[::-1], interpolation=cv2.INTER_NEAREST)
    assert blocking(smooth) < 0.1 < 1 < blocking(blocks)


def test_thresholds_are_a_view_on_the_scores(tmp_path):
    scores = analysed(tmp_path, moving(0, 17))
    assert judge(scores, FilterConfig()) == ""
    assert judge(scores, FilterConfig(min_luma=0.99)) == "dark"
    assert judge(scores, FilterConfig(max_blur=0.0)) == "blurred"
    assert judge(scores | {"corrupt": 1.0}, FilterConfig()) == "corrupt frames"
    assert judge(scores | {"shake": 1.0}, FilterConfig(max_shake=0.5)) == "shaking"


def test_the_lowest_share_is_marked():
    assert lowest([0.3, 0.1, 0.2, 0.1], 0.5) == [False, True, False, True]
    assert lowest([0.1, 0.1], 0.5) == [False, True]
    assert lowest([0.5], 0.15) == [False]


def test_a_measurement_does_not_depend_on_what_was_measured_before():
    pairs = [
        (seen_by({}, 0, *size), seen_by({"pan": 0.2, "roll": 9.0}, 0.1, *size)) for size in SIZES
    ]
    alone = []
    for pair in pairs:
        alone.append(measure_motion(*pair, 0.1))
    for order in (range(len(pairs)), reversed(range(len(pairs)))):
        for i in order:
            assert measure_motion(*pairs[i], 0.1) == alone[i]
