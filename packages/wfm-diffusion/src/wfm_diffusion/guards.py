"""Guards at the door: what goes in and what comes out is checked, and never silently unchecked."""

import logging
import re
from collections.abc import Sequence
from importlib.metadata import entry_points

from jaxtyping import UInt8
from torch import Tensor

from .interfaces import TextGuard, VideoGuard
from .references import resolve

logger = logging.getLogger(__name__)
GROUP = "wfm.guards"
STAGE = re.compile(r"^[\w ]+ refused: ")
"""How a guard's own reason may begin; what was refused is said here, once."""


class Refused(Exception):
    """A guard said no; the message is its reason."""


class Guards:
    """Any number of guards as one; the first that refuses decides."""

    def __init__(self, guards: Sequence[object]) -> None:
        self.guards = tuple(guards)

    def check_prompt(self, text: str) -> None:
        """Pass, or raise Refused with the reason."""
        for guard in self.guards:
            if isinstance(guard, TextGuard):
                _insist("prompt", guard.check_text(text))

    def clear(self, frames: UInt8[Tensor, "t 3 h w"], *, what: str) -> UInt8[Tensor, "t 3 h w"]:
        """Return the frames redacted, or raise Refused with the reason."""
        for guard in self.guards:
            if isinstance(guard, VideoGuard):
                _insist(what, guard.check_video(frames))
                frames = guard.redact(frames)
        return frames


def _insist(what: str, verdict: object) -> None:
    """Raise unless the verdict says safe; one that does not say so is not."""
    if getattr(verdict, "safe", False) is not True:
        reason = str(getattr(verdict, "reason", "") or "no reason given")
        raise Refused(f"{what} refused: {STAGE.sub('', reason)}")


def find_guards(choice: str) -> list[object]:
    """Return the guards of ``--guard``: auto (all that are installed), none, or one by name.

    Raises:
        ValueError: no such guard, or something that is none.
    """
    if choice == "none":
        logger.warning("NO GUARD: switched off by --guard none")
        return []
    names = sorted({e.name for e in entry_points(group=GROUP)}) if choice == "auto" else [choice]
    if not names:
        logger.warning("NO GUARD is installed: prompts and videos go unchecked (see wfm-guardrail)")
    found = [resolve(name, GROUP) for name in names]
    for name, guard in zip(names, found, strict=True):
        if not isinstance(guard, TextGuard | VideoGuard):
            raise ValueError(f"{name}: gives a {type(guard).__name__}, not a guard")
        logger.info("guard: %s", name)
    return found
