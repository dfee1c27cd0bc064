"""Bring a text down to plain ASCII letters as the eye reads them, one character at a time."""

# ruff: noqa: RUF001 - letters that are easily confused are what this module is about

import re
import unicodedata
from functools import lru_cache

# Letters that look like Latin ones and that NFKD keeps apart, by what they look like.
_LOOKALIKES = {
    "a": "аαɑᴀɐ∂ӓª",
    "b": "вьъβЬᏏʙɓƅ",
    "c": "сϲςᴄɔƈцↄ¢",
    "d": "ԁɗᴅđɖժ",
    "e": "еєεэɛᴇǝəҽ℮ɘ€",
    "f": "ƒꜰϝɟғʄ",
    "g": "ɡɢցƃԍɠǥ",
    "h": "һнʜɥհԋђħ",
    "i": "іιıɪӏꙇɩι¡",
    "j": "јϳᴊɾյ",
    "k": "кκᴋʞқҝƙ",
    "l": "ӏʟłⅼľɭℓ",
    "m": "мμᴍɯʍӎ",
    "n": "пηɴոռŋŉɲи",
    "o": "оοσօøᴏөⲟѳ",
    "p": "рρᴘ℗þƥ",
    "q": "ԛզɋφ",
    "r": "гʀɹгяᴦɾ",
    "s": "ѕꜱʂƽֆ",
    "t": "тτᴛʇțŧƭ",
    "u": "υսᴜцμʋц",
    "v": "νѵᴠʌν",
    "w": "ԝшωᴡѡʍщա",
    "x": "хχжӽ×",
    "y": "уγʏүყʎч",
    "z": "ᴢʐƶȥ",
    "A": "АΑᎪ∀Λ",
    "B": "ВΒᏴ",
    "C": "СϹᏟↃ",
    "D": "ᎠÐĐƊ",
    "E": "ЕΕᎬ∃ƎΞ",
    "F": "ϜҒ",
    "G": "ԌᏀ",
    "H": "НΗᎻ",
    "I": "ІΙӀ",
    "J": "ЈᎫ",
    "K": "КΚᏦ",
    "L": "ᏞŁ",
    "M": "МΜᎷ",
    "N": "ΝИ",
    "O": "ОΟՕØΘ",
    "P": "РΡᏢÞ",
    "R": "ᎡЯ",
    "S": "ЅՏᏚ",
    "T": "ТΤᎢ",
    "U": "ՍЦ",
    "V": "ѴᏙ",
    "W": "ԜᎳШ",
    "X": "ХΧЖ",
    "Y": "УΥҮ",
    "Z": "ΖᏃ",
    "ss": "ß",
    "ae": "æ",
    "AE": "Æ",
    "oe": "œ",
    "OE": "Œ",
    "'": "’‘ʼ`´′",
    '"': "“”«»″",
}
LOOKALIKE = {
    letter: latin
    for latin, letters in reversed(_LOOKALIKES.items())
    for letter in letters
    if not letter.isascii()
}
# Not of a "format" or "mark" category, yet shown as nothing.
_BLANK = frozenset("\u115f\u1160\u3164\uffa0\u2800\u180e\u00ad\u034f\ufffc")
_DROPPED = frozenset({"Cf", "Mn", "Me", "Cc", "Cs", "Co", "Cn"})
_CACHED = 1 << 14


def _letter_block(code: int) -> str | None:
    """Return the letter of a tag, regional-indicator or negative enclosed character."""
    if 0xE0020 <= code <= 0xE007E:
        return chr(code - 0xE0000)
    for first in (0x1F1E6, 0x1F150, 0x1F170):
        if first <= code < first + 26:
            return chr(ord("A") + code - first)
    return None


def _fold(char: str) -> str:
    if char in "\n\r\v\f\x85\u2028\u2029":
        return "\n"
    if char in _BLANK:
        return ""
    if char in LOOKALIKE:
        return LOOKALIKE[char]
    if (letter := _letter_block(ord(char))) is not None:
        return letter
    if char.isspace():
        return " "
    if unicodedata.category(char) == "Pd":
        return "-"
    folded = []
    for part in unicodedata.normalize("NFKD", char):
        if part.isascii() and part.isprintable():
            folded.append(part)
        elif unicodedata.category(part) not in _DROPPED and part not in _BLANK:
            folded.append(LOOKALIKE.get(part, part))
    return "".join(folded)


class _Table(dict[int, str]):
    """A table for ``str.translate`` that fills itself, up to a bound."""

    def __missing__(self, code: int) -> str:
        folded = _fold(chr(code))
        if len(self) < _CACHED:
            self[code] = folded
        return folded


_TABLE = _Table()


def fold(text: str) -> str:
    """Spell a text in ASCII as it looks; case is kept, what cannot be seen is dropped.

    Full-width, mathematical, circled, squared, regional and tag letters, accents and Cyrillic,
    Greek or Armenian look-alikes become Latin letters; zero-width and control characters, lone
    surrogates and combining marks vanish; every kind of space is a space, every line break a
    newline. Letters that look like no Latin one stay. Each character is folded on its own, so
    folding is linear, idempotent, and ``fold(a + b) == fold(a) + fold(b)``.
    """
    return text.translate(_TABLE)


_WORD = re.compile(r"[^\W\d_]+|[\u2800-\u28ff]+")


@lru_cache(maxsize=_CACHED)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "UNKNOWN").split(" ", 1)[0]


class _Seen(dict[int, str]):
    """A table for ``str.translate`` that drops what cannot be seen and undoes styling."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        if (letter := _letter_block(code)) is not None:
            seen = letter
        elif char in _BLANK or unicodedata.category(char) in {"Cf", "Mn", "Me", "Cs"}:
            seen = ""
        else:
            seen = "".join(
                c for c in unicodedata.normalize("NFKD", char) if unicodedata.category(c) != "Mn"
            )
        if len(self) < _CACHED:
            self[code] = seen
        return seen


_SEEN = _Seen()
_SYMBOLS = 2  # Greek letters in one word that still count as a symbol: mu, Delta t, sigma


def foreign_words(text: str) -> int:
    """Count the words that are not in Latin script, and so cannot be judged by our lexicon.

    One or two Greek letters are a symbol or a unit. A Latin word with look-alikes in it does not
    count: folding reads it.
    """
    return sum(map(_is_foreign, _WORD.findall(text.translate(_SEEN))))


def _is_foreign(word: str) -> bool:
    if word.isascii():
        return False
    scripts = [(letter, _script(letter)) for letter in word]
    strangers = [(letter, script) for letter, script in scripts if script != "LATIN"]
    if all(script == "GREEK" for _, script in strangers) and len(strangers) <= _SYMBOLS:
        return False
    readable = all(letter in LOOKALIKE for letter, _ in strangers)
    return bool(strangers) and not (readable and len(strangers) < len(word))
