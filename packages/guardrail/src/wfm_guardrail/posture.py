"""What a guard was asked to check, and what it does check."""

from dataclasses import asdict, dataclass

from .verdict import Stage


@dataclass(frozen=True)
class Coverage:
    """One check: asked for in ``mode``; ``effective`` says whether it runs; ``detail`` why not."""

    check: str
    stages: tuple[Stage, ...]
    mode: str
    effective: bool
    detail: str = ""


@dataclass(frozen=True)
class Posture:
    """Requested against effective checks of one guard."""

    policy: str
    fingerprint: str
    coverage: tuple[Coverage, ...]

    @property
    def gaps(self) -> tuple[Coverage, ...]:
        """Checks that were asked for and do not run."""
        return tuple(c for c in self.coverage if c.mode != "off" and not c.effective)

    @property
    def complete(self) -> bool:
        """Whether all that was asked for is done."""
        return not self.gaps

    def to_dict(self) -> dict[str, object]:
        """Return plain data, as for JSON."""
        return {**asdict(self), "complete": self.complete}

    def __str__(self) -> str:
        """Draw a table, one line for each check."""
        lines = [f"policy {self.policy} ({self.fingerprint})"]
        for c in self.coverage:
            state = "runs" if c.effective else "OFF" if c.mode == "off" else "MISSING"
            lines.append(f"  {c.check:<10} {c.mode:<8} {state:<8} {c.detail}".rstrip())
        return "\n".join(lines)
