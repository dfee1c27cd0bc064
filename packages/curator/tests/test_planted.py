"""The filter against labelled cases: each defect planted in several scenes, and clean footage."""

import cv2
import numpy as np
import pytest
from conftest import moving, scene, write
from test_natural import nature

from wfm_curator import natural
from wfm_curator.analysis import analyse
from wfm_curator.config import FilterConfig, SplitConfig
from wfm_curator.decide import drop_lowest, rank
from wfm_curator.filters import judge
from wfm_curator.ledger import Row
from wfm_curator.manifest import Entry

FPS, FRAMES = 10, 30
STRICT = FilterConfig(max_shake=0.3, max_blur=0.7)


def robot(seed):
    """A fixed camera, and a small arm that moves slowly."""
    film = np.stack([scene(seed, 96, 128)] * FRAMES)
    for t in range(FRAMES):
        film[t, 50:60, 20 + t : 30 + t] = (240, 240, 250)
    return film


def panning(seed, pixels=2):
    wide = cv2.resize(scene(seed, 96, 256), (300, 96), interpolation=cv2.INTER_LINEAR)
    return np.stack([wide[:, pixels * t : pixels * t + 128] for t in range(FRAMES)])


def shaken(seed):
    rng = np.random.default_rng(seed)
    big = cv2.resize(scene(seed, 96, 128), (168, 136), interpolation=cv2.INTER_LINEAR)
    places = rng.integers(0, 40, (FRAMES, 2))
    return np.stack([big[y : y + 96, x : x + 128] for y, x in places])


def stopped(film, share=0.99):
    film = film.copy()
    film[FRAMES - int(share * FRAMES) :] = film[FRAMES - int(share * FRAMES)]
    return film


def letterboxed(film):
    film = film.copy()
    film[:, :32], film[:, -32:] = 0, 0
    return film


CLEAN = {"moving": lambda s: moving(s, FRAMES, 96, 128), "robot": robot, "panning": panning}
PLANTED = {
    "static": lambda film, s: np.stack([film[0]] * FRAMES),
    "dark": lambda film, s: film // 80,
    "burnt out": lambda film, s: np.maximum(film, 250),
    "blank": lambda film, s: np.full_like(film, 70 + 30 * s),
    "blurred": lambda film, s: np.stack([cv2.GaussianBlur(p, (0, 0), 6) for p in film]),
    "black bars": lambda film, s: letterboxed(film),
    "small": lambda film, s: np.ascontiguousarray(film[:, :40, :56]),
    "shaking": lambda film, s: shaken(s),
}


def verdict(tmp_path, film, config=STRICT):
    path = write(tmp_path / "film.mp4", film, FPS, crf="18")
    (clip,) = analyse(path, SplitConfig(method="whole")).clips
    return judge(clip.scores, config)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", list(CLEAN))
def test_clean_footage_is_kept(tmp_path, kind, seed):
    assert verdict(tmp_path, CLEAN[kind](seed)) == ""


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("reason", list(PLANTED))
def test_planted_defects_are_rejected_for_what_they_are(tmp_path, reason, seed):
    film = PLANTED[reason](moving(seed, FRAMES, 96, 128), seed)
    if reason == "black bars":
        assert verdict(tmp_path, film, FilterConfig(max_bars=0.4)) == reason
    else:
        assert verdict(tmp_path, film) == reason


def test_a_recording_that_freezes_is_told_by_its_share_of_standing_frames(tmp_path):
    film = stopped(moving(1, FRAMES, 96, 128), 0.8)
    assert verdict(tmp_path, film) == ""
    assert verdict(tmp_path, film, FilterConfig(max_frozen=0.6)) == "frozen"


def test_bars_are_measured_by_their_share_and_darkness_is_no_bar():
    from wfm_curator.quality import bars

    picture = np.full((100, 200), 90, np.uint8)
    assert bars(picture) == 0
    picture[:20] = 3
    assert bars(picture) == pytest.approx(0.2)
    picture[:, -50:] = 0
    assert bars(picture) == pytest.approx(0.4)
    assert bars(picture * 0) == 0


def spoilt(film, seed):
    noise = np.random.default_rng(seed).normal(0, 25, film.shape)
    return (film + noise).clip(0, 255).astype(np.uint8)


def test_the_most_unusual_of_a_data_set_go_if_that_is_asked(tmp_path):
    """Noise is no defect that another score sees: to natural-scene statistics it stands out."""
    rows, found = {}, {}
    for n in range(80):
        picture = np.stack([nature(n)] * 3, -1)
        row = natural.features((spoilt(picture, n) if n % 10 == 0 else picture)[..., 0])
        clip = {"natural": [float(v) for v in row]}
        rows[f"{n}"] = Row("", "done", "", {"clips": [clip]})
        found[f"{n}"] = Entry(f"{n}", f"{n}", scores={"quality": 0.5 + n / 1000})
    entries = list(found.values())
    rank(entries, rows, "unusual")
    drop_lowest(entries, FilterConfig(drop_lowest=0.1, rank_by="unusual"))
    gone = {int(e.key) for e in entries if e.state == "rejected"}
    assert len(gone & set(range(0, 80, 10))) >= 7
    assert {e.reason for e in entries if e.state == "rejected"} == {"lowest quality"}
