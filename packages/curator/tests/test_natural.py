"""Natural-scene statistics against pictures with the spectrum of nature, and planted defects."""

from importlib.util import find_spec

import cv2
import numpy as np
import pytest

from wfm_curator import natural

RNG = np.random.default_rng(0)
DEFECTS = {
    "blurred": lambda p: cv2.GaussianBlur(p, (0, 0), 2),
    "noisy": lambda p: (p + RNG.normal(0, 20, p.shape)).clip(0, 255).astype(np.uint8),
    "coarsely coded": lambda p: cv2.imdecode(cv2.imencode(".jpg", p, [1, 8])[1], 0),
}


def nature(seed, size=96):
    """A picture whose amplitudes fall with frequency, as those of natural pictures do."""
    rng = np.random.default_rng(seed)
    rows, columns = np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size), indexing="ij")
    fall = np.maximum(np.hypot(rows, columns), 1 / size) ** -rng.uniform(1.1, 1.3)
    picture = np.fft.ifft2(np.fft.fft2(rng.normal(size=(size, size))) * fall).real
    picture = (picture - picture.mean()) / picture.std() * rng.uniform(35, 55) + 128
    return picture.clip(0, 255).astype(np.uint8)


def test_the_fit_finds_the_shape_of_what_it_is_given():
    normal, laplace = RNG.normal(size=200_000), RNG.laplace(size=200_000)
    assert natural._fit(normal)[0] == pytest.approx(2, abs=0.05)
    assert natural._fit(laplace)[0] == pytest.approx(1, abs=0.05)
    _, mean, left, right = natural._fit(np.where(normal < 0, normal, 3 * normal))
    assert (left, right) == pytest.approx((1, 9), rel=0.05)
    assert mean > 0.5


def test_pictures_that_say_nothing_have_no_features():
    assert natural.features(np.full((96, 96), 90, np.uint8)) is None
    assert natural.features(nature(0)[:20]) is None


@pytest.mark.parametrize("defect", list(DEFECTS))
def test_planted_defects_are_the_most_unusual_of_a_data_set(defect):
    plain = [nature(seed) for seed in range(85)]
    spoilt = [DEFECTS[defect](nature(seed)) for seed in range(100, 115)]
    rows = np.stack([natural.features(p) for p in plain + spoilt])
    worst = np.argsort(-natural.unusual(rows))[:15]
    assert (worst >= 85).mean() >= 0.9


def test_few_clips_or_unknown_ones_are_not_called_unusual():
    rows = RNG.normal(size=(20, 36))
    assert not natural.unusual(rows).any()
    rows = RNG.normal(size=(100, 36))
    rows[7] = np.nan
    assert natural.unusual(rows)[7] == 0 < natural.unusual(rows)[8]


@pytest.mark.skipif(find_spec("brisque") is None, reason="the package brisque is not installed")
def test_the_score_of_the_paper_rises_with_defects():
    picture = nature(3, 256)
    pictures = [picture, *(d(picture) for d in DEFECTS.values())]
    plain, *worse = natural.brisque(np.stack([natural.features(p) for p in pictures]))
    assert min(worse) > plain


@pytest.mark.skipif(find_spec("brisque") is not None, reason="the package brisque is installed")
def test_without_the_support_vectors_it_says_what_to_install():
    with pytest.raises(ImportError, match="pip install --no-deps brisque"):
        natural.brisque(np.zeros((1, 36)))
