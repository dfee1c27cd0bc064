"""What guard models are asked, and what they answer: one dialect each, parsed by its grammar."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp
from typing import Any, Protocol

from .verdict import Finding, Severity

CHECK = "llm"

# The hazards of MLCommons, as Llama Guard 3 and 4 number them.
_MLCOMMONS = """violence illegal sexual sexual_minors public_figure advice privacy ip_brand
                weapons hate self_harm sexual politics jailbreak"""
_LLAMA_GUARD_1 = "violence sexual illegal weapons drugs self_harm"  # O1 to O6
_AEGIS = """violence sexual illegal weapons drugs self_harm sexual_minors hate privacy harassment
            threat profanity needs_caution"""  # O1 to O13
_QWEN = {
    "Violent": "violence",
    "Non-violent Illegal Acts": "illegal",
    "Sexual Content or Sexual Acts": "sexual",
    "PII": "privacy",
    "Personally Identifiable Information": "privacy",
    "Suicide & Self-Harm": "self_harm",
    "Unethical Acts": "hate",
    "Politically Sensitive Topics": "politics",
    "Copyright Violation": "ip_brand",
    "Jailbreak": "jailbreak",
}
_GUIDELINES = {
    "illegal": "No content that seeks or shows how to harm oneself or others, such as making "
    "weapons or drugs, or committing crimes.",
    "harassment": "No content that threatens, bullies or insults a person.",
    "hate": "No content that expresses hatred of, or demeans, people for what they are.",
    "sexual": "No explicit sexual content.",
    "violence": "No depiction of gore or of cruelty.",
}


@dataclass(frozen=True)
class Question:
    """One call of a model: a conversation, or a finished prompt, and what the template takes."""

    messages: tuple[Mapping[str, str], ...] = ()
    prompt: str | None = None
    template: Mapping[str, str] | None = None
    tokens: int = 40


@dataclass(frozen=True)
class Answer:
    """What came back: the text, and the log-probabilities of the first token's candidates."""

    text: str
    first: Mapping[str, float] | None = None


class Dialect(Protocol):
    """The language of one family of guard models. ``parse`` raises ValueError rather than guess."""

    def ask(self, text: str) -> Sequence[Question]: ...

    def parse(self, number: int, answer: Answer) -> Sequence[Finding]: ...


def _user(text: str) -> tuple[Mapping[str, str], ...]:
    return ({"role": "user", "content": text},)


def _finding(category: str, rule: str, severity: Severity = Severity.EXPLICIT) -> Finding:
    grave = category == "sexual_minors"
    return Finding(CHECK, category, Severity.SEVERE if grave else severity, 1.0, rule)


class LlamaGuard:
    """Llama Guard (Inan et al. 2023, arXiv 2312.06674) and its kin: ``safe``, or codes.

    The model's own chat template lists the categories, unless ``categories`` are to be written
    into the prompt, as for Aegis.
    """

    def __init__(self, letter: str, names: str, *, written: bool = False) -> None:
        self.letter = letter
        self.names = {f"{letter}{i}": name for i, name in enumerate(names.split(), 1)}
        self.written = written

    def ask(self, text: str) -> Sequence[Question]:
        """One question."""
        if not self.written:
            return [Question(_user(text))]
        listed = "\n".join(
            f"{code}: {name.replace('_', ' ')}." for code, name in self.names.items()
        )
        return [
            Question(
                prompt="[INST] Task: Check if there is unsafe content in 'User' messages in "
                "conversations according our safety policy with the below categories.\n\n"
                f"<BEGIN UNSAFE CONTENT CATEGORIES>\n{listed}\n<END UNSAFE CONTENT CATEGORIES>\n\n"
                f"<BEGIN CONVERSATION>\n\nUser: {text}\n\n<END CONVERSATION>\n\n"
                "Provide your safety assessment for User in the above conversation:\n"
                "- First line must read 'safe' or 'unsafe'.\n- If unsafe, a second line must "
                "include a comma-separated list of violated categories. [/INST]"
            )
        ]

    def parse(self, number: int, answer: Answer) -> Sequence[Finding]:
        """Read ``safe`` or ``unsafe`` and a line of codes; a code nobody knows still counts."""
        lines = answer.text.strip().splitlines() or [""]
        if lines[0].strip() == "safe" and len(lines) == 1:
            return ()
        code = rf"{self.letter}\d{{1,2}}"
        if lines[0].strip() != "unsafe" or len(lines) > 2:
            raise ValueError("a Llama Guard answers safe, or unsafe and a line of codes")
        codes = [c.strip() for c in lines[1].split(",")] if len(lines) == 2 else []
        if not all(re.fullmatch(code, c) for c in codes):
            raise ValueError(f"the second line lists codes such as {self.letter}1")
        return [_finding(self.names.get(c, "unsafe"), c) for c in codes or ["unsafe"]]


class Qwen3Guard:
    """Qwen3Guard-Gen (arXiv 2510.14276): a line of safety and a line of categories.

    ``strict`` refuses what is controversial, too.
    """

    _ANSWER = re.compile(
        r"Safety: (Safe|Unsafe|Controversial)\nCategories: ([^\n]+)(?:\nRefusal: (?:Yes|No))?"
    )

    def __init__(self, *, strict: bool = True) -> None:
        self.strict = strict

    def ask(self, text: str) -> Sequence[Question]:
        """One question."""
        return [Question(_user(text), tokens=128)]

    def parse(self, number: int, answer: Answer) -> Sequence[Finding]:
        """Read both lines; ``Safe`` with categories, or the other way round, is no answer."""
        match = self._ANSWER.fullmatch(answer.text.strip())
        if not match:
            raise ValueError("a Qwen3Guard answers Safety: and Categories:")
        names = [] if match[2].strip() == "None" else [n.strip() for n in match[2].split(",")]
        if (match[1] == "Safe") != (not names):
            raise ValueError(f"{match[1]} with {len(names)} categories is no answer")
        if unknown := set(names) - set(_QWEN):
            raise ValueError(f"{len(unknown)} categories are none of Qwen3Guard's")
        doubtful = match[1] == "Controversial" and not self.strict
        severity = Severity.SENSITIVE if doubtful else Severity.EXPLICIT
        return [_finding(_QWEN[name], f"{match[1]}: {name}", severity) for name in names]


class ShieldGemma:
    """ShieldGemma (arXiv 2407.21772): the odds of Yes against No, for each guideline.

    The guidelines go into the model's chat template; they are put in our words.
    """

    def __init__(self, *, threshold: float = 0.5) -> None:
        self.threshold = threshold

    def ask(self, text: str) -> Sequence[Question]:
        """Ask one question for each guideline."""
        user = _user(text)
        return [Question(user, template={"guideline": g}, tokens=1) for g in _GUIDELINES.values()]

    def parse(self, number: int, answer: Answer) -> Sequence[Finding]:
        """Weigh the first token; without its probabilities there is no answer."""
        odds = {k.strip(): exp(v) for k, v in (answer.first or {}).items()}
        yes, no = odds.get("Yes", 0.0), odds.get("No", 0.0)
        if yes + no < 0.1 or not yes + no <= 1.1:
            raise ValueError("a ShieldGemma begins with Yes or No")
        score = yes / (yes + no)
        category = list(_GUIDELINES)[number]
        if score < self.threshold:
            return ()
        return [
            Finding(CHECK, category, Severity.EXPLICIT, min(1.0, score), f"guideline {category}")
        ]


DIALECTS: Mapping[str, Any] = {
    "llama-guard-1": LlamaGuard("O", _LLAMA_GUARD_1),
    "llama-guard-3": LlamaGuard("S", _MLCOMMONS),
    "llama-guard-4": LlamaGuard("S", _MLCOMMONS),
    "aegis": LlamaGuard("O", _AEGIS, written=True),
    "qwen3guard": Qwen3Guard(),
    "qwen3guard-loose": Qwen3Guard(strict=False),
    "shieldgemma": ShieldGemma(),
}


def dialect(name: str) -> Dialect:
    """Return the dialect of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in DIALECTS:
        raise ValueError(f"no guard dialect {name!r}; there are {', '.join(DIALECTS)}")
    return DIALECTS[name]
