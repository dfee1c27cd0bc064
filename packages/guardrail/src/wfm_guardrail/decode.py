"""Undo what hides a text from a reader of plain letters: escapes, markup, and encoded payloads."""

import base64
import binascii
import codecs
import html
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from urllib.parse import unquote

ROUNDS = 3  # of escapes upon escapes

_ESCAPE = re.compile(
    r"\\(?:u\{([0-9a-fA-F]{1,6})\}|u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|U([0-9a-fA-F]{8}))"
)
_TAG = re.compile(r"<[^<>]*>")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{6,}={0,2}")
_HEX = re.compile(r"(?:0x|\\x)?([0-9a-fA-F]{8,})")
_PAIR = re.compile(r"(?:0x|\\x)?([0-9a-fA-F]{2})[,;.]?")
_BITS = re.compile(r"[01]{8}")
_NUMBER = re.compile(r"(\d{2,3})[,;.]?")
_DOTS = re.compile(r"[.\-]{1,6}|/")
_BLOB = re.compile(r"[A-Za-z0-9+]{40,}")  # so long, an unreadable word is no serial number

_CODES = """.- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- -. --- .--. --.- .-. ... - ..-
            ...- .-- -..- -.-- --.. -----"""
MORSE = dict(zip(_CODES.split(), "abcdefghijklmnopqrstuvwxyz0", strict=True))


def _unescape(match: re.Match[str]) -> str:
    code = int(next(filter(None, match.groups())), 16)
    return chr(code) if code < 0x110000 else ""


def _decode_once(text: str) -> str:
    return unquote(_ESCAPE.sub(_unescape, html.unescape(text)), errors="ignore")


def unescaped(text: str) -> tuple[str, bool]:
    """Undo HTML entities, percent and backslash escapes, also nested ones.

    The flag says whether anything is still escaped after three rounds.
    """
    for _ in range(ROUNDS):
        decoded = _decode_once(text)
        if decoded == text:
            return text, False
        text = decoded
    return text, _decode_once(text) != text


def without_markup(text: str) -> str:
    """Drop ``<tags>`` and ``<!-- comments -->``."""
    return _TAG.sub("", text)


def payloads(text: str) -> Iterator[str]:
    """Yield the readable texts that words of a text encode: base64, hex, bits, codes, Morse.

    The yielded texts are together shorter than the text times the number of encodings.
    """
    words = text.split()
    for word in words:
        yield from _of_word(word)
    yield from _of_runs(words, _PAIR, lambda run: bytes(int(x, 16) for x in run))
    yield from _of_runs(words, _BITS, lambda run: bytes(int(x, 2) for x in run))
    yield from _of_runs(words, _NUMBER, lambda run: bytes(n for x in run if (n := int(x)) < 256))
    morse = (w.translate({0x2013: "-", 0x2014: "-", 0xB7: ".", 0x2022: "."}) for w in words)
    for run in _runs(morse, _DOTS):
        if len(run) > 2:
            yield "".join(" " if code == "/" else MORSE.get(code, "") for code in run)


def opaque(text: str) -> bool:
    """Tell whether a word is a long blob of base64 or hex that hides something unreadable."""
    for blob in _BLOB.findall(text):
        kinds = (str.isupper, str.islower, str.isdigit)
        if all(any(map(kind, blob)) for kind in kinds) and not any(_of_word(blob)):
            return True
    return False


def _of_word(word: str) -> Iterator[str]:
    for match in _BASE64.finditer(word):
        blob = match[0].rstrip("=").translate({0x2D: "+", 0x5F: "/"})
        with suppress(binascii.Error):
            yield from _readable(base64.b64decode(blob + "=" * (-len(blob) % 4), validate=True))
    if (match := _HEX.fullmatch(word)) and len(match[1]) % 2 == 0:
        yield from _readable(bytes.fromhex(match[1]))
    if not word.strip("01") and len(word) >= 16 and len(word) % 8 == 0:
        yield from _readable(bytes(int(word[i : i + 8], 2) for i in range(0, len(word), 8)))


def _readable(data: bytes) -> Iterator[str]:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return
    if len(text) >= 4 and all(c.isprintable() or c.isspace() for c in text):
        yield text


def _runs(words: Iterable[str], pattern: re.Pattern[str]) -> Iterator[list[str]]:
    run: list[str] = []
    for word in words:
        if match := pattern.fullmatch(word):
            run.append(match[1] if match.re.groups else word)
            continue
        if run:
            yield run
        run = []
    if run:
        yield run


def _of_runs(
    words: Iterable[str], pattern: re.Pattern[str], to_bytes: Callable[[list[str]], bytes]
) -> Iterator[str]:
    for run in _runs(words, pattern):
        if len(run) > 2:
            yield from _readable(to_bytes(run))


def rot13(text: str) -> str:
    """Shift every letter by half the alphabet."""
    return codecs.encode(text, "rot13")
