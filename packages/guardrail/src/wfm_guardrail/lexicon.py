"""The list of what is refused: entries in severities, words that must not meet, exceptions."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .settings import explain
from .verdict import Severity

_FORM = re.compile(r"[a-z0-9]+( [a-z0-9]+)*")
_CHOICE = re.compile(r"\(([^()]*)\)")
BLOCKLIST = ("custom", "exact_match", "whitelist")  # folders of NVIDIA's checkpoint
SeverityName = Literal["note", "sensitive", "explicit", "severe"]


class NearRule(BaseModel):
    """Groups that, found within so many words of each other, make a finding."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    category: str
    severity: SeverityName
    groups: tuple[str, ...] = Field(min_length=2)
    within: int = Field(gt=0, le=50)


class _Source(BaseModel):
    """A lexicon file, as written."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    entries: dict[str, dict[SeverityName, tuple[str, ...]]] = {}
    groups: dict[str, tuple[str, ...]] = {}
    near: tuple[NearRule, ...] = ()
    opposites: dict[str, tuple[str, ...]] = {}
    allow: tuple[str, ...] = ()
    innocent: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One rule. Its name is made from a hash, so that a log does not quote it."""

    rule: str
    category: str
    severity: Severity
    forms: tuple[str, ...]
    review: bool = False


@dataclass(frozen=True)
class Lexicon:
    """Everything the text guard looks for.

    ``opposites`` are sought in negative prompts only. ``innocent`` words and word pairs look like
    a disguised entry and are none. ``fingerprint`` identifies the content.
    """

    entries: tuple[Entry, ...]
    opposites: tuple[Entry, ...]
    groups: Mapping[str, tuple[str, ...]]
    near: tuple[NearRule, ...]
    allow: tuple[str, ...]
    innocent: frozenset[str]
    fingerprint: str

    def __add__(self, other: "Lexicon") -> "Lexicon":
        """Join two lexicons; members of groups of one name are put together."""
        groups = dict(self.groups)
        for name, members in other.groups.items():
            groups[name] = groups.get(name, ()) + members
        return Lexicon(
            self.entries + other.entries,
            self.opposites + other.opposites,
            groups,
            self.near + other.near,
            self.allow + other.allow,
            self.innocent | other.innocent,
            sha256((self.fingerprint + other.fingerprint).encode()).hexdigest()[:16],
        )

    def allowing(self, phrases: tuple[str, ...]) -> "Lexicon":
        """Add phrases to the exceptions."""
        return replace(self, allow=self.allow + tuple(f for p in phrases for f in forms(p)))


def forms(pattern: str) -> Iterator[str]:
    """Expand ``behead(|s|ed)`` and normalise blanks.

    Raises:
        ValueError: a form is not lower-case words of letters and digits.
    """
    parts = _CHOICE.split(" ".join(pattern.split()))
    choices = [part.split("|") if i % 2 else [part] for i, part in enumerate(parts)]
    for choice in product(*choices):
        form = " ".join(
            "".join(part.strip() if i % 2 else part for i, part in enumerate(choice)).split()
        )
        if not _FORM.fullmatch(form):
            raise ValueError(
                f"{pattern!r} gives {form!r}; write lower-case letters, digits, blanks"
            )
        yield form


def parse_lexicon(text: str, name: str) -> Lexicon:
    """Read a lexicon from YAML.

    Raises:
        ValueError: not YAML, unknown keys, a form that cannot match, a group that is missing.
    """
    try:
        source = _Source.model_validate(yaml.safe_load(text) or {})
    except yaml.YAMLError as e:
        raise ValueError(f"{name}: not YAML ({e})") from e
    except ValidationError as e:
        raise ValueError(f"{name}: {explain(e)}") from e
    try:
        return _compile(source, sha256(text.encode()).hexdigest()[:16])
    except ValueError as e:
        raise ValueError(f"{name}: {e}") from e


def _compile(source: _Source, fingerprint: str) -> Lexicon:
    for rule in source.near:
        if missing := set(rule.groups) - set(source.groups):
            raise ValueError(f"near rule names a group that is not there: {sorted(missing)}")
    return Lexicon(
        entries=tuple(
            _entry(category, severity, pattern)
            for category, tiers in source.entries.items()
            for severity, patterns in tiers.items()
            for pattern in patterns
        ),
        opposites=tuple(
            _entry(category, "explicit", pattern, opposite=True)
            for category, patterns in source.opposites.items()
            for pattern in patterns
        ),
        groups={
            name: tuple(form for member in members for form in forms(member))
            for name, members in source.groups.items()
        },
        near=source.near,
        allow=tuple(form for pattern in source.allow for form in forms(pattern)),
        innocent=frozenset(source.innocent),
        fingerprint=fingerprint,
    )


def _entry(category: str, severity: SeverityName, pattern: str, *, opposite: bool = False) -> Entry:
    text = f"not {pattern}" if opposite else pattern
    rule = f"{category}/{sha256(text.encode()).hexdigest()[:6]}"
    return Entry(rule, category, Severity[severity.upper()], tuple(forms(pattern)), opposite)


def read_lexicon(path: str | Path) -> Lexicon:
    """Read a lexicon file, or a blocklist folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a lexicon.
    """
    if Path(path).is_dir():
        return read_blocklist(path)
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such lexicon file")
    try:
        return parse_lexicon(Path(path).read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as e:
        raise ValueError(f"{path}: not UTF-8 text") from e


def read_blocklist(folder: str | Path) -> Lexicon:
    """Read a blocklist folder of NVIDIA's guardrail checkpoint as a lexicon.

    ``folder`` holds ``custom`` and ``exact_match``, whose lines are refused, and ``whitelist``,
    whose lines are not, in text files of one entry a line. Entries are found in all the
    disguises that our own are.

    Raises:
        FileNotFoundError: there is no such folder, or it holds neither list.
        ValueError: a file is not UTF-8 text.
    """
    folder = Path(folder)
    if not any((folder / name).is_dir() for name in BLOCKLIST[:2]):
        raise FileNotFoundError(f"{folder}: holds neither custom/ nor exact_match/ of a blocklist")
    custom, exact, allowed = (dict.fromkeys(_lines(folder / name)) for name in BLOCKLIST)
    refused = [line for line in {**custom, **exact} if line not in allowed]
    entries = tuple(
        Entry(f"blocklist/{i}", "blocklist", Severity.EXPLICIT, tuple(forms(line)))
        for i, line in enumerate(refused)
    )
    return Lexicon(entries, (), {}, (), tuple(allowed), frozenset(), f"blocklist-{len(entries)}")


def _lines(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if not path.is_file():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as e:
            raise ValueError(f"{path}: not UTF-8 text") from e
        for line in text.splitlines():
            plain = " ".join(re.findall(r"[a-z0-9]+", line.lower().replace("'", "")))
            if plain:
                yield plain


def builtin_lexicon() -> Lexicon:
    """Read the lexicon of this package."""
    folder = files(str(__package__)) / "data"
    lexicon = parse_lexicon((folder / "lexicon.yaml").read_text(encoding="utf-8"), "lexicon.yaml")
    words = (folder / "innocent.txt").read_text(encoding="utf-8").splitlines()
    return replace(lexicon, innocent=frozenset(w for w in words if w and not w.startswith("#")))
