import pytest
from hypothesis import given
from hypothesis import strategies as st

from wfm_guardrail.automaton import Automaton

WORDS = st.text("ab", min_size=1, max_size=4)


@given(patterns=st.lists(WORDS, min_size=1, max_size=8, unique=True), text=st.text("abc"))
def test_finds_exactly_what_a_search_for_each_pattern_finds(patterns, text):
    expected = {
        (start + len(pattern), number)
        for number, pattern in enumerate(patterns)
        for start in range(len(text))
        if text.startswith(pattern, start)
    }
    found = list(Automaton(patterns).find(text))
    assert set(found) == expected
    assert len(found) == len(expected)
    assert [end for end, _ in found] == sorted(end for end, _ in found)


def test_refuses_an_empty_pattern():
    with pytest.raises(ValueError, match="match everywhere"):
        Automaton(["a", ""])


class CountingDict(dict):
    reads = 0

    def __contains__(self, key):
        CountingDict.reads += 1
        return super().__contains__(key)


@pytest.mark.parametrize("text", ["a" * 4000, "ab" * 2000, "a" * 3999 + "b"])
def test_takes_at_most_two_steps_for_each_letter(text):
    automaton = Automaton(["a" * 30 + "b", "ab" * 10 + "c", "b"])
    automaton._next = [CountingDict(d) for d in automaton._next]
    CountingDict.reads = 0
    list(automaton.find(text))
    assert CountingDict.reads <= 2 * len(text)
