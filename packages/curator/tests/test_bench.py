import itertools
import json
from importlib.util import find_spec

import numpy as np
import pytest
from conftest import moving, write
from hypothesis import given
from hypothesis import strategies as st

from wfm_curator import films
from wfm_curator.analysis import find_shots
from wfm_curator.cli import main
from wfm_curator.config import SplitConfig
from wfm_curator.films import Transition
from wfm_curator.inputs import find_recordings
from wfm_curator.judge import detectors, judge, ours, tally

TRUTH = [Transition("hard", 50, 50), Transition("dissolve", 100, 120), Transition("fade", 200, 210)]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Four shots, of which two lie in one file that says so."""
    place = tmp_path_factory.mktemp("clips")
    for n in range(2):
        write(place / f"{n}.mp4", moving(n, 50, 90, 160), fps=25)
    write(place / "two.mp4", np.concatenate([moving(5, 40, 90, 160), moving(9, 40, 90, 160)]))
    (place / "two.json").write_text(json.dumps({"cuts": [40]}))
    return place


@pytest.mark.parametrize(
    ("found", "hard", "gradual"),
    [
        ([50, 119, 205], (1, 0, 0), (2, 0, 0)),
        ([51, 99, 211], (1, 0, 0), (2, 0, 0)),
        ([52, 97], (0, 1, 2), (0, 2, 2)),
        ([50, 110, 115], (1, 0, 1), (1, 1, 1)),  # one transition, found twice
        ([], (0, 1, 0), (0, 2, 0)),
    ],
)
def test_detections_are_matched_once_each(found, hard, gradual):
    counts = tally(found, TRUTH)
    assert tuple(vars(counts["hard"]).values()) == hard
    assert tuple(vars(counts["gradual"]).values()) == gradual


@given(st.lists(st.integers(0, 300), max_size=12))
def test_every_transition_is_hit_or_missed(found):
    counts = tally(found, TRUTH)
    assert counts["hard"].hits + counts["hard"].missed == 1
    assert counts["gradual"].hits + counts["gradual"].missed == 2
    hits = counts["hard"].hits + counts["gradual"].hits
    assert hits + counts["hard"].false == len(found)
    assert 0 <= counts["gradual"].f1 <= 1


def test_films_hold_what_they_say(clips, tmp_path):
    made = list(films.make(find_recordings([clips]), tmp_path, films=1, shots=8, height=90))
    transitions = films.truth(made[0])
    assert len(transitions) == 7
    seen = films.np.concatenate(list(films._shots(made[0], (90, 160))))
    assert all(a.stop <= b.start for a, b in itertools.pairwise(transitions))
    for t in transitions:
        jump = np.abs(np.diff(seen[t.start - 1 : t.stop + 1].astype(int), axis=0)).mean((1, 2, 3))
        assert len(jump) == t.stop - t.start + 1
        assert (jump[0] > 5) == (t.kind == "hard") or t.kind != "hard"
    again = list(films.make(find_recordings([clips]), tmp_path / "b", films=1, shots=8, height=90))
    assert again[0].read_bytes() == made[0].read_bytes()


def test_the_bench_runs_from_the_command_line(clips, tmp_path, capsys):
    place = str(tmp_path / "films")
    size = ["--films", "1", "--shots", "6", "--height", "72"]
    assert main(["bench", "make", str(clips), "-o", place, *size]) == 0
    capsys.readouterr()
    assert main(["bench", "shots", place, "--only", "content", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["detector"] == "content"
    assert row["hard"]["hits"] + row["hard"]["missed"] + row["gradual"]["hits"] <= 5
    assert main(["bench", "shots", place, "--only", "content"]) == 0
    assert "| content | " in capsys.readouterr().out
    assert main(["bench", "shots", place, "--only", "magic"]) == 2
    assert main(["bench", "shots", str(clips / "nowhere")]) == 2


def test_too_few_shots_and_films_without_truth_are_refused(clips, tmp_path):
    write(tmp_path / "one.mp4", moving(0, 30))
    with pytest.raises(ValueError, match="1 shots of 20 frames"):
        list(films.make(find_recordings([tmp_path]), tmp_path / "out"))
    with pytest.raises(ValueError, match="no transitions"):
        films.truth(clips / "0.mp4")


@pytest.mark.skipif(find_spec("scenedetect") is None, reason="scenedetect is not installed")
def test_pyscenedetect_on_our_frames_finds_what_it_finds_by_itself(clips, tmp_path):
    (film,) = films.make(find_recordings([clips]), tmp_path, films=1, shots=8, height=90)
    for name in ("adaptive", "content", "histogram"):
        config = SplitConfig(method="scenedetect", detector=name)
        found = set(find_shots(film, config)[1:])
        theirs = set(detectors()[f"PySceneDetect {name}"](film))
        assert len(found ^ theirs) <= 1, name


@pytest.mark.skipif(find_spec("scenedetect") is not None, reason="scenedetect is installed")
def test_without_pyscenedetect_it_says_what_to_install(clips):
    with pytest.raises(ImportError, match=r"wfm-curator\[scenedetect\]"):
        find_shots(clips / "0.mp4", SplitConfig(method="scenedetect"))


def test_hard_cuts_are_found_in_made_films(clips, tmp_path):
    made = list(films.make(find_recordings([clips]), tmp_path, films=1, shots=10, height=90))
    found = judge(made, lambda path: ours(path, "content"))
    assert found["hard"].recall >= 0.8
