from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import settings

from wfm_guardrail import Guardrail, Policy
from wfm_guardrail.lexicon import builtin_lexicon
from wfm_guardrail.matching import Matcher
from wfm_guardrail.videofile import write_chunks

settings.register_profile("repository", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("repository")

DATA = Path(__file__).parent / "data"


# The default policy without what may be installed or not: the same wherever it runs.
_APART = {"mode": "off", "reason": "tested apart"}
PLAIN = Policy(checks={"frozen": {"mode": "shadow"}, "semantic": _APART, "nudity": _APART})


@pytest.fixture(scope="session")
def guard():
    """A guard that is the same wherever it runs."""
    return Guardrail(PLAIN, detector=None)


@pytest.fixture(scope="session")
def matcher():
    return Matcher(builtin_lexicon())


@pytest.fixture(scope="session")
def portrait():
    """A photograph of one face (NASA, public domain), 240x240."""
    with av.open(str(DATA / "astronaut.jpg")) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
    return np.ascontiguousarray(picture.transpose(2, 0, 1))


def scene(frames=20, height=48, width=64, seed=0):
    """A bright square that moves over a soft gradient, with a little grain."""
    rng = np.random.default_rng(seed)
    video = np.tile(np.linspace(40, 160, width), (frames, 3, height, 1))
    video += rng.normal(0, 2, video.shape)
    for i in range(frames):
        at = (seed + i) % (width - 12)
        video[i, :, 10:22, at : at + 12] = 220
    return video.clip(0, 255).astype(np.uint8)


@pytest.fixture
def film(tmp_path):
    path = tmp_path / "film.mp4"
    write_chunks(path, [scene()], 10.0)
    return path


class Box:
    """A detector that finds one box where it is told to, and nothing elsewhere."""

    name = "box"

    def __init__(self, seen):
        self.seen, self.calls = seen, -1
        self.confidence = lambda call: 0.9

    def detect(self, frame, /):
        self.calls += 1
        box = self.seen(self.calls)
        confidence = self.confidence(self.calls)
        return np.empty((0, 5)) if box is None else np.array([[*map(float, box), confidence]])
