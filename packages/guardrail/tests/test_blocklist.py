import pytest

from wfm_guardrail import Guardrail, Policy
from wfm_guardrail.attack import macro, matrix
from wfm_guardrail.blocklist import PlainBlocklist
from wfm_guardrail.lexicon import read_lexicon


@pytest.fixture
def folder(tmp_path):
    """A blocklist folder as NVIDIA's checkpoint has it."""
    for name, text in {
        "custom/a": "Zorblax\nglim glam\n",
        "exact_match/b": "frobnicator\nquux\n",
        "whitelist/c": "quux\n",
        "nltk_data/d": "glorp\n",
    }.items():
        path = tmp_path / "blocklist" / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return tmp_path / "blocklist"


@pytest.mark.parametrize("text", ["a Zorblax", "z0rbl4x!", "glim-glam", "f r o b n i c a t o r"])
def test_a_blocklist_folder_is_found_in_disguise_too(folder, text):
    policy = Policy.model_validate({"text": {"lexicons": [str(folder)]}})
    guard = Guardrail(policy, detector=None)
    assert guard.check_text(text).category == "blocklist"
    assert guard.check_text("a quux and a glorp").safe


def test_a_folder_without_lists_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="custom"):
        read_lexicon(tmp_path)


def test_the_plain_list_has_the_strengths_and_weaknesses_of_its_kind():
    plain = PlainBlocklist(["zorblax", "glim glam"])
    for text in ("", "ZORBLAX", "z0rb1@x", "two zorblaxs", "glim glam", '"zorblax"', "zor blax"):
        assert plain.refuses(text)
    for text in ("\u200b".join("zorblax"), "z.o.r.b.l.a.x", "zorblaxxx", "a robot"):
        assert not plain.refuses(text)
    assert macro(matrix(plain.refuses, ["zorblax"])) < 0.4
