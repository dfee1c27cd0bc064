"""Which keys stand for which actions. No torch here."""

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field, model_validator

Action = tuple[float, ...]


class Keys(BaseModel):
    """Actions of keys, named as browsers do (``w``, ``ArrowUp``, a space); held ones add up."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hold: dict[str, Action] = Field(description="while the key is down")
    toggle: dict[str, Action] = Field({}, description="from one press to the next")
    about: dict[str, str] = Field({}, description="what a key does, for the page")

    @property
    def size(self) -> int:
        """Numbers in an action."""
        return len(next(iter(self.hold.values())))

    def action(self, held: Iterable[str], toggled: Iterable[str]) -> list[float]:
        """Add up the actions of all keys in effect; unknown keys do nothing."""
        total = [0.0] * self.size
        for table, keys in ((self.hold, held), (self.toggle, toggled)):
            for key in sorted(set(keys) & set(table)):
                total = [a + b for a, b in zip(total, table[key], strict=True)]
        return total

    @model_validator(mode="after")
    def _fits(self) -> "Keys":
        sizes = {len(action) for action in (*self.hold.values(), *self.toggle.values())}
        if len(sizes) != 1 or not min(sizes):
            raise ValueError(f"all keys need actions of one length, got lengths {sorted(sizes)}")
        return self


def _axis(index: int, amount: float) -> Action:
    return tuple(amount if i == index else 0.0 for i in range(7))


# x y z roll pitch yaw of the gripper's own frame, times 20, and the gripper from 0 to 1. The
# amounts are what the recordings' 95th percentiles are, so that a key is a brisk usual move.
ARM = Keys(
    hold={
        "w": _axis(0, 0.9), "s": _axis(0, -0.9), "a": _axis(1, 0.7), "d": _axis(1, -0.7),
        "r": _axis(2, -0.9), "f": _axis(2, 0.9), "q": _axis(5, 1.5), "e": _axis(5, -1.5),
        "ArrowUp": _axis(4, 1.1), "ArrowDown": _axis(4, -1.1),
        "ArrowLeft": _axis(3, 1.1), "ArrowRight": _axis(3, -1.1),
    },
    toggle={" ": _axis(6, 1.0)},
    about={
        "w s": "gripper's x", "a d": "gripper's y", "r f": "gripper's z", "q e": "turn (yaw)",
        "↑ ↓": "pitch", "← →": "roll", "space": "close, open",
    },
)  # fmt: skip
