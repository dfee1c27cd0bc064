"""A plain word list with the mechanics of Cosmos 1.0's, to compare with."""

import re
from collections.abc import Iterable, Iterator

_LETTERS = re.compile(r"[a-z0-9@$*'\"]+")
_SPELLINGS = {"a": "a@*4", "i": "i*l1", "o": "o*0@", "u": "u*v", "v": "v*u", "l": "l1"}
_SPELLINGS |= {"e": "e*3", "s": "s$5", "t": "t7"}


class PlainBlocklist:
    """The mechanics of the reference blocklist, on words of one's choice, for comparison.

    Text that is not ASCII becomes blanks; words and neighbouring words joined are looked up in
    better_profanity's spellings; then each plural in ``s``. The lemmatiser of WordNet and the
    similarity search, which accepts next to nothing, are left out.
    """

    def __init__(self, words: Iterable[str]) -> None:
        spelled = ("".join(map(_spellings, word.replace(" ", ""))) for word in words)
        self._pattern = re.compile("|".join(sorted(set(spelled))) or r"(?!)")

    def refuses(self, text: str) -> bool:
        """Tell whether a word of the list stands in a text; an empty text is refused."""
        if not text.strip():
            return True
        plain = re.sub(r"[^\x00-\x7f]+", " ", text).lower()
        words = [word.strip("'\"") for word in _LETTERS.findall(plain)]
        return any(self._pattern.fullmatch(w) for w in _joined(words))


def _spellings(letter: str) -> str:
    return f"[{re.escape(_SPELLINGS.get(letter, letter))}]"


def _joined(words: list[str]) -> Iterator[str]:
    for i, word in enumerate(words):
        yield word
        yield word.removesuffix("'s").strip("*")
        yield word.removesuffix("s")
        yield from ("".join(words[i:end]).strip("*") for end in (i + 2, i + 3))
