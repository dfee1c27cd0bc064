"""Ask the guards: every installed one by default, and never silently none."""

import logging
from collections.abc import Sequence
from importlib.metadata import entry_points

from jaxtyping import UInt8
from torch import Tensor

from .interfaces import TextGuard, VideoGuard
from .references import resolve

logger = logging.getLogger(__name__)

GROUP = "wfm.guards"


class Refused(Exception):
    """A guard says no; the message is its reason."""


class Guards:
    """All guards as one: the first that refuses decides."""

    def __init__(self, guards: Sequence[object]) -> None:
        self.guards = guards

    def check_text(self, text: str) -> None:
        """Pass, or raise Refused with the reason."""
        for guard in self.guards:
            if isinstance(guard, TextGuard):
                _pass("prompt", guard.check_text(text))

    def check_video(self, frames: UInt8[Tensor, "t 3 h w"], what: str) -> None:
        """Pass, or raise Refused with the reason."""
        for guard in self.guards:
            if isinstance(guard, VideoGuard):
                _pass(what, guard.check_video(frames))

    def redact(self, frames: UInt8[Tensor, "t 3 h w"]) -> UInt8[Tensor, "t 3 h w"]:
        """Return the frames without what must not be shown."""
        for guard in self.guards:
            if isinstance(guard, VideoGuard):
                frames = guard.redact(frames)
        return frames


def find_guards(choice: str) -> Guards:
    """Return the guards of ``--guard``: auto (all that are installed), none, or one by name.

    Raises:
        ValueError: no such guard, or something that is none.
    """
    if choice == "none":
        logger.warning("NO GUARD: switched off by --guard none")
        return Guards([])
    names = sorted({e.name for e in entry_points(group=GROUP)}) if choice == "auto" else [choice]
    if not names:
        logger.warning("NO GUARD is installed: prompts and videos go unchecked (wfm-guardrail)")
    guards = [resolve(name, GROUP) for name in names]
    for name, guard in zip(names, guards, strict=True):
        if not isinstance(guard, TextGuard | VideoGuard):
            raise ValueError(f"{name}: a {type(guard).__name__}, not a guard")
        logger.info("guard: %s", name)
    return Guards(guards)


def _pass(what: str, verdict: object) -> None:
    """Raise unless the verdict is safe; a verdict that does not say so is not."""
    if getattr(verdict, "safe", False) is not True:
        raise Refused(f"{what} refused: {getattr(verdict, 'reason', '') or 'no reason given'}")
