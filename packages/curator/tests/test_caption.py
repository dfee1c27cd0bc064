from conftest import moving, write

from wfm_curator import caption
from wfm_curator.analysis import analyse


def test_the_side_car_comes_before_the_text_and_both_before_a_description():
    assert caption.choose({"caption": " a "}, "b", "c") == caption.Caption("a", "json")
    assert caption.choose({"caption": 3}, "b\nb", "c") == caption.Caption("b b", "text")
    assert caption.choose({}, "", "c") == caption.Caption("c", "described")
    assert caption.choose({}, "", "c", described=False) == caption.Caption("", "none")


def test_a_description_says_what_was_measured(tmp_path):
    clip = analyse(write(tmp_path / "film.mp4", moving(0, 20))).clips[0]
    words = caption.describe(clip.scores, clip.tags, 2.0)
    assert words.startswith("A 2.0 second ")
    assert "fixed camera" in words
    assert words.endswith("motion of objects.")
