"""Look for a lexicon's entries in all readings of a text."""

import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from .automaton import Automaton
from .fold import fold
from .lexicon import Entry, Lexicon, NearRule
from .verdict import Finding, Severity
from .views import View, views

CHECK = "lexicon"
SHORT = 4  # letters that an entry needs to be sought in disguise
LONG = 6  # letters that an entry needs to be sought inside words, or with a slip in it
_LONGEST = 40  # letters of a word that may be an entry with a slip in it
_MASKED = re.compile(r"[a-z*#?%&]+")
_MASK = "*#?%&"
_CERTAIN, _DISGUISED, _GUESSED = 1.0, 0.9, 0.7


@dataclass(frozen=True)
class _Hit:
    start: int
    end: int
    number: int


class Matcher:
    """A lexicon made ready for searching; building takes some 20 ms, so keep it."""

    def __init__(self, lexicon: Lexicon) -> None:
        self.lexicon = lexicon
        self._roles: list[tuple[str, Entry | str | None]] = []
        patterns: list[str] = []
        for entry in lexicon.entries:
            self._add(patterns, (*entry.forms, *_ones(entry.forms)), "entry", entry)
        for entry in lexicon.opposites:
            self._add(patterns, entry.forms, "opposite", entry)
        for name, members in lexicon.groups.items():
            self._add(patterns, members, "group", name)
        self._add(patterns, lexicon.allow, "allow", None)
        self._words = Automaton(patterns)
        self._forms = {form for entry in lexicon.entries for form in entry.forms}
        self._exact = {
            form.replace(" ", ""): entry
            for entry in lexicon.entries
            if entry.severity >= Severity.EXPLICIT
            for form in entry.forms
            if len(form.replace(" ", "")) >= SHORT
        }
        self._inner = {n: Automaton(f for f in self._exact if len(f) >= n) for n in (SHORT, LONG)}
        self._by_length: dict[int, list[str]] = defaultdict(list)
        self._slips: dict[str, list[str]] = defaultdict(list)
        for form in self._exact:
            self._by_length[len(form)].append(form)
            if len(form) >= LONG:
                for shorter in _shortened(form):
                    self._slips[shorter].append(form)

    def _add(
        self, patterns: list[str], forms: Iterable[str], kind: str, what: Entry | str | None
    ) -> None:
        for form in forms:
            patterns.append(f" {form} ")
            self._roles.append((kind, what))

    def find(self, text: str, *, negative: bool = False) -> list[Finding]:
        """Return one finding for each rule that fired, the plainest.

        ``negative`` adds the words that a negative prompt must not hold.
        """
        found: dict[str, Finding] = {}
        readings = views(text, self.lexicon.innocent)
        for view in readings:
            for finding in self._in_view(view, negative):
                found.setdefault(finding.rule, finding)
        for finding in (*self._in_words(readings), *self._masked(text)):
            found.setdefault(finding.rule, finding)
        return list(found.values())

    def _in_view(self, view: View, negative: bool) -> Iterator[Finding]:
        hits = self._hits(view.text)
        for hit in hits:
            kind, entry = self._roles[hit.number]
            if isinstance(entry, Entry) and (kind == "entry" or negative):
                letters = hit.end - hit.start - 2
                if letters >= SHORT or not view.disguised:
                    yield _finding(entry, view, view.text[hit.start : hit.end].strip())
        if not view.secret:
            yield from self._near(hits, view)

    def _hits(self, text: str) -> list[_Hit]:
        """Return the hits that do not lie within an allowed phrase."""
        hits, allowed = [], []
        for end, number in self._words.find(text):
            start = end - len(self._words.patterns[number])
            (allowed if self._roles[number][0] == "allow" else hits).append(
                _Hit(start, end, number)
            )
        if not allowed:
            return hits
        allowed.sort(key=lambda hit: hit.start)
        starts = [hit.start for hit in allowed]
        reach = list(accumulate((hit.end for hit in allowed), max))
        return [h for h in hits if not (i := bisect_right(starts, h.start)) or reach[i - 1] < h.end]

    def _near(self, hits: Sequence[_Hit], view: View) -> Iterator[Finding]:
        places: dict[str, list[int]] = defaultdict(list)
        for hit in hits:
            kind, name = self._roles[hit.number]
            if kind == "group" and isinstance(name, str):
                places[name].append(hit.start)
        if len(places) < 2:
            return
        blanks = [i for i, letter in enumerate(view.text) if letter == " "]
        order = {name: [bisect_left(blanks, p) for p in where] for name, where in places.items()}
        for rule in self.lexicon.near:
            if all(name in order for name in rule.groups) and _meet(rule, order):
                mark = f"{rule.category}/{'+'.join(rule.groups)}"
                severity = Severity[rule.severity.upper()]
                score = _DISGUISED if view.disguised else _CERTAIN
                yield Finding(CHECK, rule.category, severity, score, mark, view.name)

    def _in_words(self, readings: Iterable[View]) -> Iterator[Finding]:
        """Look inside words, across the blank between them, and past one slip of the pen."""
        innocent = self.lexicon.innocent
        seen: set[str] = set()
        for view in readings:
            if view.secret:
                continue
            words = view.text.split()
            yield from self._fused(words, view)
            for word in words:
                if word in seen or word in innocent or word in self._forms:
                    continue
                seen.add(word)
                yield from self._in_word(word, view)

    def _fused(self, words: Sequence[str], view: View) -> Iterator[Finding]:
        for i in range(len(words) - 1):
            for parts in (words[i : i + 2], words[i : i + 3]):
                entry = self._exact.get("".join(parts))
                if entry and len(parts) > 1 and not self._meant(parts):
                    yield _finding(entry, view, " ".join(parts), "words run together")

    def _meant(self, parts: Sequence[str]) -> bool:
        """Tell words that stand side by side by right: a phrase of the list, or innocent."""
        phrase = " ".join(parts)
        return phrase in self._forms or phrase in self.lexicon.innocent

    def _in_word(self, word: str, view: View) -> Iterator[Finding]:
        if (entry := self._exact.get(word)) and view.disguised:
            yield _finding(entry, view, word, "words run together")
        least = SHORT if "split letters" in view.name else LONG
        for _, number in self._inner[least].find(word):
            yield _finding(
                self._exact[self._inner[least].patterns[number]], view, word, "in a word"
            )
        if LONG - 1 <= len(word) <= _LONGEST:
            for near in {word, *_shortened(word)}:
                for form in self._slips.get(near, ()) if near in self._slips else ():
                    if one_edit(word, form):
                        yield _finding(self._exact[form], view, word, "misspelt", _GUESSED)
                if near != word and len(near) >= LONG and near in self._exact:
                    yield _finding(self._exact[near], view, word, "misspelt", _GUESSED)

    def _masked(self, text: str) -> Iterator[Finding]:
        """Read ``d*mb``: a mask stands for exactly one letter."""
        for match in _MASKED.finditer(fold(text).lower()):
            word = match[0].strip(_MASK) if match[0].startswith("**") else match[0]
            masks = sum(word.count(mask) for mask in _MASK)
            if not masks or len(word) < SHORT or masks * 2 > len(word):
                continue
            for form in self._by_length.get(len(word), ()):
                if all(a == b or a in _MASK for a, b in zip(word, form, strict=True)):
                    yield _finding(self._exact[form], _MASK_VIEW, word)


_MASK_VIEW = View("masked letters", "", True)


def _finding(
    entry: Entry, view: View, matched: str, how: str = "", score: float | None = None
) -> Finding:
    name = " + ".join(filter(None, ("" if view.name == "verbatim" else view.name, how)))
    if score is None:
        score = _DISGUISED if name else _CERTAIN
    return Finding(
        CHECK,
        entry.category,
        entry.severity,
        score,
        entry.rule,
        view=name or "verbatim",
        matched=matched,
        review=entry.review,
    )


def _meet(rule: NearRule, order: dict[str, list[int]]) -> bool:
    """Tell whether each group has a word within reach of some word of the first."""
    first, *others = rule.groups
    return any(all(_nearby(order[o], place, rule.within) for o in others) for place in order[first])


def _nearby(places: Sequence[int], place: int, within: int) -> bool:
    i = bisect_left(places, place - within)
    return i < len(places) and places[i] <= place + within


def _ones(forms: Iterable[str]) -> Iterator[str]:
    """Yield what reading every 1 as i makes of a form whose i and l were both written as 1."""
    return (form.replace("l", "i") for form in forms if "l" in form and "i" in form)


def _shortened(word: str) -> Iterator[str]:
    """Yield the word with each one letter left out."""
    return (word[:i] + word[i + 1 :] for i in range(len(word)))


def one_edit(a: str, b: str) -> bool:
    """Tell whether one insertion, deletion, substitution or swap of neighbours makes b of a."""
    if a == b or abs(len(a) - len(b)) > 1:
        return False
    start = next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
    x, y = a[start:], b[start:]
    if len(x) == len(y):
        return x[1:] == y[1:] or (x[:2] == y[1::-1] and x[2:] == y[2:])
    return x[1:] == y if len(x) > len(y) else x == y[1:]
