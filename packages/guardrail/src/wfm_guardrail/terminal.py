"""What the subcommands share: a guard from the options, files of lines, output."""

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .guard import Guardrail

logger = logging.getLogger(__name__)


def guard_of(args: argparse.Namespace) -> "Guardrail":
    from .guard import Guardrail
    from .policy import Policy

    guard = Guardrail(Policy.load(args.policy), audit=args.audit)
    for gap in guard.posture().gaps:
        logger.info("not checked: %s (%s)", gap.check, gap.detail)
    return guard


def say(args: argparse.Namespace, record: object, text: str) -> None:
    sys.stdout.write((json.dumps(record) if args.json else text) + "\n")


def listed(path: Path | None, builtin: str) -> list[str]:
    if path is not None:
        return list(lines(path))
    return list(_meant((files(str(__package__)) / "data" / builtin).read_text(encoding="utf-8")))


def lines(path: Path) -> Iterator[str]:
    return _meant(sys.stdin.read() if str(path) == "-" else read(path))


def _meant(text: str) -> Iterator[str]:
    """Yield the lines that are neither empty nor a comment (``# ...``)."""
    return (line for line in text.splitlines() if line.strip() and not line.startswith("# "))


def read(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise ValueError(f"{path}: not UTF-8 text") from e
