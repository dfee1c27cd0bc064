import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wfm_guardrail.fold import fold, foreign_words

ANY = st.text(st.characters(codec=None, exclude_categories=()))


@given(ANY)
def test_folding_twice_is_folding_once(text):
    assert fold(fold(text)) == fold(text)


@given(ANY, ANY)
def test_folding_works_letter_by_letter(a, b):
    assert fold(a + b) == fold(a) + fold(b)


def test_printable_ascii_stays_as_it_is():
    ascii_text = "".join(map(chr, range(32, 127)))
    assert fold(ascii_text) == ascii_text


def test_every_code_point_folds_to_something_stable():
    for code in range(0, sys.maxunicode, 97):
        assert fold(fold(chr(code))) == fold(chr(code))


@pytest.mark.parametrize(
    "disguised",
    [
        "r\u200bo\u200cb\u200do\u2060t",
        "r\u00ado\u3164b\u180eo\u2800t",
        "r\x00o\x07b\ud800ot",
        "\uff52\uff4f\uff42\uff4f\uff54",
        "\U0001d42b\U0001d428\U0001d41b\U0001d428\U0001d42d",
        "\u24e1\u24de\u24d1\u24de\u24e3",
        "r\u0336o\u0300b\u0322o\u20ddt",
        "r\u043eb\u03bf\u0442",
        "".join(chr(0xE0000 + ord(c)) for c in "robot"),
    ],
)
def test_disguised_letters_become_plain(disguised):
    assert fold(disguised) == "robot"


@pytest.mark.parametrize(
    ("first", "case"), [(0x1F130, 0), (0x1F170, 0), (0x1F1E6, 0), (0x1F150, 0)]
)
def test_enclosed_capitals_become_plain(first, case):
    assert fold("".join(chr(first + ord(c) - 65) for c in "ROBOT")) == "ROBOT"


def test_spaces_and_line_breaks_are_told_apart():
    assert fold("a\u00a0b\u2003c\u2028d\r\n") == "a b c\nd\n\n"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("a robot, caf\u00e9, Z\u00fcrich, \u0141\u00f3d\u017a", 0),
        ("\u0394t = 0.02 s, \u03bc = 0.4, \u03b8", 0),
        ("\u0440\u043e\u0431\u043e\u0442", 1),
        ("\u88f8 robot", 1),
        ("\u03c1\u03bf\u03bc\u03c0\u03cc\u03c4", 1),
        ("\u0631\u0648\u0628\u0648\u062a \u0631\u0648\u0628\u0648\u062a", 2),
        ("r\u043eb\u043et", 0),
        ("\u2837\u2815\u2803", 1),
        ("\u2460 5 \U0001f916 \u2192 \u20ac", 0),
    ],
)
def test_words_in_other_scripts_are_counted(text, count):
    assert foreign_words(text) == count
