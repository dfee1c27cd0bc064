"""What a guard says: findings, and the verdict that follows from them."""

from dataclasses import dataclass
from enum import IntEnum
from math import isfinite
from typing import Literal, NoReturn, get_args

TextStage = Literal["prompt", "negative_prompt", "upsampled_prompt"]
MediaStage = Literal["conditioning_media", "output_media"]
Stage = TextStage | MediaStage

TEXT_STAGES: tuple[TextStage, ...] = get_args(TextStage)
MEDIA_STAGES: tuple[MediaStage, ...] = get_args(MediaStage)

UNDECIDED = "undecided"


class Severity(IntEnum):
    """How bad a finding is. A policy says from where on it refuses; SEVERE always does."""

    NOTE = 0
    SENSITIVE = 1
    EXPLICIT = 2
    SEVERE = 3


@dataclass(frozen=True)
class Finding:
    """One thing that one check found.

    ``rule`` names what fired without quoting it, so it may be logged; ``matched`` quotes the
    input and stays in memory. ``view`` says in what disguise it was found. ``score`` runs from
    0 to 1. ``review`` marks "a person must decide": it is refused at every stage.
    """

    check: str
    category: str
    severity: Severity
    score: float
    rule: str
    view: str = "verbatim"
    matched: str | None = None
    review: bool = False

    def __post_init__(self) -> None:
        """Refuse scores that would slip through comparisons."""
        if not (isfinite(self.score) and 0 <= self.score <= 1):
            raise ValueError(f"score must lie in [0, 1], got {self.score}")

    def describe(self) -> str:
        """Say it in words, without a word of the input."""
        how = "" if self.view == "verbatim" else f", {self.view}"
        kind = "for review: " if self.review else ""
        return f"{kind}{self.category} ({self.check} {self.rule}{how})"


@dataclass(frozen=True)
class Verdict:
    """A guard's answer about one input.

    ``reason`` is empty when safe and quotes nothing of the input otherwise. ``category`` and
    ``score`` are those of the gravest finding that counted; ``None`` and 0 when none did.
    ``findings`` holds every finding, also those that the policy lets pass; ``checked`` names the
    checks that ran to their end.
    """

    safe: bool
    reason: str
    category: str | None
    stage: Stage
    score: float
    findings: tuple[Finding, ...] = ()
    checked: tuple[str, ...] = ()

    def __bool__(self) -> NoReturn:
        """Refuse: ``if guard.check_text(...)`` would always hold and let everything pass."""
        raise TypeError("a Verdict has no truth value; ask its .safe")


class Refused(Exception):
    """The guard did not let frames through; ``verdict`` says why."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(f"{verdict.stage.replace('_', ' ')} refused: {verdict.reason}")
        self.verdict = verdict


def undecided(check: str, rule: str) -> Finding:
    """Make the finding of a check that came to no answer; it always refuses."""
    return Finding(check, UNDECIDED, Severity.SEVERE, 1.0, rule, review=True)
