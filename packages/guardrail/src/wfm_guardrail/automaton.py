"""Find many strings in one pass (Aho and Corasick 1975, CACM 18(6))."""

from collections import deque
from collections.abc import Iterable, Iterator


class Automaton:
    """All occurrences of a set of patterns, in time linear in the text.

    States are numbered in breadth-first order of creation; ``_shorter[s]`` is the state of the
    longest proper suffix of ``s`` that some pattern starts with, and ``_ends[s]`` holds the
    patterns that end in ``s``, longest first.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = tuple(patterns)
        if not all(self.patterns):
            raise ValueError("a pattern is empty; it would match everywhere")
        self._next: list[dict[str, int]] = [{}]
        self._ends: list[tuple[int, ...]] = [()]
        for number, pattern in enumerate(self.patterns):
            self._insert(pattern, number)
        self._shorter = [0] * len(self._next)
        self._link()

    def _insert(self, pattern: str, number: int) -> None:
        state = 0
        for letter in pattern:
            following = self._next[state].get(letter)
            if following is None:
                following = len(self._next)
                self._next[state][letter] = following
                self._next.append({})
                self._ends.append(())
            state = following
        self._ends[state] += (number,)

    def _link(self) -> None:
        queue = deque(self._next[0].values())
        while queue:
            state = queue.popleft()
            for letter, following in self._next[state].items():
                queue.append(following)
                self._shorter[following] = self._step(self._shorter[state], letter)
                self._ends[following] += self._ends[self._shorter[following]]

    def _step(self, state: int, letter: str) -> int:
        while state and letter not in self._next[state]:
            state = self._shorter[state]
        return self._next[state].get(letter, 0)

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield ``(end, pattern number)`` of every occurrence, by increasing end.

        A failing step shortens the current suffix, and only a reading step lengthens it, so
        there are at most two steps for each letter.
        """
        following, shorter, ends = self._next, self._shorter, self._ends
        state = 0
        for end, letter in enumerate(text, 1):
            while state and letter not in following[state]:
                state = shorter[state]
            state = following[state].get(letter, 0)
            for number in ends[state]:
                yield end, number
