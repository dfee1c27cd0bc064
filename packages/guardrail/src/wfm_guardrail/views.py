"""The ways one text can be read: as it stands, and with each common disguise taken off."""

# ruff: noqa: RUF001 - letters that are easily confused are what this module is about

import re
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from functools import partial

from . import decode
from .fold import fold

DEPTH = 2  # payloads within payloads

_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_POSSESSIVE = re.compile(r"'s\b")
_BREAK = re.compile(r"[^a-z0-9 '\-]+")
_PUNCTUATION = re.compile(r"[^a-z0-9 ]+")
_GAP = re.compile(r"[ \n]{2,}|\n|(?<=[a-z0-9]) ?[/|,] ?(?=[a-z0-9])")
_LONG = re.compile(r"(.)\1{2,}")
_BEFORE, _AFTER = "?.,;:()<>[]{}\"'*_~`#-^=", "!?.,;:()<>[]{}\"'*_~`#-^="
_LEET = str.maketrans("0123456789@$!|+(<[{", "oizeasgtbgasiitcccc")
_LEET_L = str.maketrans("0123456789@$!|+(<[{", "olzeasgtbgasiltcccc")  # 1 is i or l
_TURNED = str.maketrans("ɐqɔpǝɟƃɓɥıᴉɾʞɯuodbɹsʇnʌʍʎ", "abcdefgghiijkmnopqrstuvwy")
_ONLY_TURNED = re.compile("[ɐɔǝɟƃɥᴉɾʞɯɹʇʌʍʎ]")


@dataclass(frozen=True)
class View:
    """One reading: words of ``a-z0-9`` with one space between, before and after them.

    ``|`` as a word marks where punctuation stood. ``disguised`` readings are ones that an honest
    writer did not mean; ``secret`` ones change every word.
    """

    name: str
    text: str
    disguised: bool = False
    secret: bool = False


def views(text: str, innocent: Container[str] = ()) -> list[View]:
    """Return all readings of a text, each once, the plainest first.

    ``innocent`` words are left out of the secret readings: "drawer" is no "reward" reversed.
    Their number is bounded, and none is longer than the text plus its marks: the work of every
    later step is linear in the text.
    """
    found: dict[str, View] = {}
    for view in _all(text, innocent):
        found.setdefault(view.text, view)
    return list(found.values())


def _all(text: str, innocent: Container[str]) -> Iterator[View]:
    for name, version in _versions(text, DEPTH):
        yield from _readings(name, fold(version), innocent)


def _versions(text: str, depth: int) -> Iterator[tuple[str, str]]:
    clear, _ = decode.unescaped(text)
    bare = decode.without_markup(clear)
    yield "", text
    if clear != text:
        yield "escaped", clear
    if bare != clear:
        yield "inside markup", bare
    if _ONLY_TURNED.search(text):
        yield "upside down", text.translate(_TURNED)[::-1]
    if depth:
        for source in dict.fromkeys((text, fold(bare))):
            for payload in decode.payloads(source):
                for name, version in _versions(payload, depth - 1):
                    yield f"encoded {name}".strip(), version


def _readings(name: str, folded: str, innocent: Container[str]) -> Iterator[View]:
    plain = folded.lower()
    disguised = bool(name)
    yield View(name or "verbatim", _marked(plain), disguised)
    yield View(name or "verbatim", _words(plain), disguised)
    camel = _CAMEL.sub(" ", folded).lower()
    if camel != plain:
        yield View(_join(name, "camel case"), _words(camel), True)
    for table in (_LEET, _LEET_L):
        spelled = " ".join(_unleet(word, table) for word in plain.split(" "))
        if spelled != plain:
            yield from _shapes(_join(name, "look-alike characters"), spelled)
    yield from _shapes(name, plain)
    words = _each(_words(plain), lambda w: "|" if w in innocent else w)
    yield View(_join(name, "reversed"), words[::-1], True, True)
    yield View(_join(name, "reversed words"), _each(words, lambda w: w[::-1]), True, True)
    yield View(_join(name, "rot13"), decode.rot13(words), True, True)
    for moved in range(4):
        yield View(_join(name, "pig latin"), _each(words, partial(_unpig, moved=moved)), True, True)


def _shapes(name: str, text: str) -> Iterator[View]:
    """Read a text with its letters drawn together, and with stretched words shortened."""
    words = _words(text)
    shapes = {
        "": words,
        "split letters": _spelled_out(text, article=""),
        "split letters after a": _spelled_out(text, article="a"),
        "inner punctuation": _tight(text),
        "doubled letters": _each(words, _undouble),
    }
    for shape, reading in shapes.items():
        yield View(_join(name, shape), reading, True)
        for repeated in (r"\1", r"\1\1"):
            shorter = _LONG.sub(repeated, reading)
            if shorter != reading:
                yield View(_join(name, shape, "stretched"), shorter, True)


def _join(*names: str) -> str:
    return " + ".join(filter(None, names)) or "verbatim"


def _spaced(text: str) -> str:
    return f" {' '.join(text.split())} "


def _each(words: str, change: Callable[[str], str]) -> str:
    return _spaced(" ".join(map(change, words.split())))


def _marked(text: str) -> str:
    """Words, with a mark where punctuation stood, so that no phrase reaches across it."""
    text = _BREAK.sub(" | ", _POSSESSIVE.sub("", text)).replace("'", "")
    return _spaced(text.replace("-", " "))


def _words(text: str) -> str:
    return _spaced(_PUNCTUATION.sub(" ", _POSSESSIVE.sub("", text).replace("'", "")))


def _tight(text: str) -> str:
    """Words as blanks divide them, without the punctuation in them."""
    return _spaced(" ".join(_PUNCTUATION.sub("", word) for word in text.split()))


def _spelled_out(text: str, *, article: str) -> str:
    """Join letters that stand alone: ``r e d`` and ``r.e.d``; a wide gap parts words.

    A leading ``article`` is left out of what is joined.
    """
    return _spaced(" ".join(_join_single(_words(part), article) for part in _GAP.split(text)))


def _join_single(words: str, article: str) -> str:
    out: list[str] = []
    run: list[str] = []
    for word in (*words.split(), ""):
        if len(word) == 1:
            run.append(word)
            continue
        first = int(run[:1] == [article])
        out += [*run[:first], "".join(run[first:])] if len(run) > 2 else run
        run = []
        out.append(word)
    return " ".join(out)


def _unleet(word: str, table: dict[int, int]) -> str:
    core = word.lstrip(_BEFORE).rstrip(_AFTER)
    if core.isalpha() or (core.isdigit() and len(core) > 1):
        return word
    return word.replace(core, core.translate(table)) if core else word


def _undouble(word: str) -> str:
    return word[::2] if len(word) > 7 and word[::2] == word[1::2] else word


def _unpig(word: str, moved: int) -> str:
    """Undo pig Latin that moved so many letters to the end."""
    for ending in ("way", "yay"):
        if not moved and word.endswith(ending) and len(word) > len(ending) + 2:
            return word.removesuffix(ending)
    stem = word.removesuffix("ay")
    if moved and stem != word and len(stem) > 3:
        return stem[-moved:] + stem[:-moved]
    return word
