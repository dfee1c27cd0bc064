"""The checks on text. Each returns what it found; the guard decides what that means."""

from collections.abc import Sequence

from . import decode
from .fold import foreign_words
from .lexicon import Lexicon
from .matching import Matcher
from .verdict import Finding, Severity, Stage

UNREADABLE = "unreadable"


class LengthCheck:
    """Refuse what is too long to be checked."""

    name = "length"

    def __init__(self, max_chars: int) -> None:
        self.max_chars = max_chars

    def check(self, text: str, _stage: Stage) -> Sequence[Finding]:
        """Find a text of more than ``max_chars`` characters."""
        if len(text) <= self.max_chars:
            return ()
        rule = f"more than {self.max_chars} characters"
        return (Finding(self.name, UNREADABLE, Severity.EXPLICIT, 1.0, rule, review=True),)


class LexiconCheck:
    """Find words and phrases of a lexicon, also in disguise."""

    name = "lexicon"

    def __init__(self, lexicon: Lexicon) -> None:
        self.matcher = Matcher(lexicon)

    def check(self, text: str, stage: Stage) -> Sequence[Finding]:
        """Find entries; a negative prompt is also searched for opposites."""
        return self.matcher.find(text, negative=stage == "negative_prompt")


class ScriptCheck:
    """Leave to a person what is written in a script that the lexicon does not know."""

    name = "script"

    def check(self, text: str, _stage: Stage) -> Sequence[Finding]:
        """Find words in other than Latin letters."""
        words = foreign_words(decode.without_markup(decode.unescaped(text)[0]))
        words = words or foreign_words(text)
        if not words:
            return ()
        rule = f"{words} word{'s' * (words > 1)} not in Latin script"
        return (Finding(self.name, UNREADABLE, Severity.EXPLICIT, 0.5, rule, review=True),)


class PayloadCheck:
    """Leave to a person what is encoded too deeply to be read."""

    name = "payload"

    def check(self, text: str, _stage: Stage) -> Sequence[Finding]:
        """Find unreadable blobs, and escapes within escapes."""
        rules = []
        if decode.opaque(text):
            rules.append("an encoded block that cannot be read")
        if decode.unescaped(text)[1]:
            rules.append(f"escapes nested more than {decode.ROUNDS} deep")
        return [
            Finding(self.name, UNREADABLE, Severity.EXPLICIT, 0.5, rule, review=True)
            for rule in rules
        ]
