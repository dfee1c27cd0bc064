"""Check a lexicon against ordinary language before it refuses anybody."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .lexicon import Lexicon
from .matching import SHORT, Matcher


@dataclass(frozen=True)
class Collision:
    """Ordinary words that the lexicon takes for a disguised entry."""

    words: str
    rule: str
    view: str


def collisions(lexicon: Lexicon, dictionary: Iterable[str]) -> Iterator[Collision]:
    """Find dictionary words, and pairs that run together, which only look like an entry.

    Put the harmless ones on the ``innocent`` list. A word that is an entry itself is no
    collision.
    """
    words = {w for w in map(str.lower, dictionary) if w.isascii() and w.isalpha()}
    matcher = Matcher(lexicon)
    for word in sorted(words):
        findings = matcher.find(word)
        if findings and all(finding.view != "verbatim" for finding in findings):
            yield Collision(word, findings[0].rule, findings[0].view)
    known = words | {"a", "i"}
    for entry in lexicon.entries:
        for form in entry.forms:
            for pair in _splits(form, known - lexicon.innocent):
                if pair not in lexicon.innocent and any(matcher.find(pair)):
                    yield Collision(pair, entry.rule, "words run together")


def _splits(form: str, known: set[str]) -> Iterator[str]:
    whole = form.replace(" ", "")
    for i in range(1, len(whole)):
        pair = f"{whole[:i]} {whole[i:]}"
        if len(whole) >= SHORT and pair != form and set(pair.split()) <= known:
            yield pair


def duplicates(lexicon: Lexicon) -> Iterator[str]:
    """Name the forms that two entries share, by rule."""
    owners: dict[str, str] = {}
    for entry in lexicon.entries:
        for form in entry.forms:
            if form in owners and owners[form] != entry.rule:
                yield f"{owners[form]} and {entry.rule} have a form in common"
            owners[form] = entry.rule
