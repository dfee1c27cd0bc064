"""Captions: what came with the recording, or else a description from measurements.

A description says only what was measured, and ``source`` says that it is one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Scores = Mapping[str, float]


@dataclass(frozen=True)
class Caption:
    """``source`` is ``json`` or ``text`` (side-car files), ``described``, or ``none``."""

    text: str
    source: str


def choose(
    attributes: Mapping[str, object], text: str, description: str, *, described: bool = True
) -> Caption:
    """Prefer the side-car JSON's ``caption``, then the text file, then the description."""
    given = attributes.get("caption")
    if isinstance(given, str) and given.strip():
        return Caption(given.strip(), "json")
    if text.strip():
        return Caption(" ".join(text.split()), "text")
    return Caption(description, "described") if described else Caption("", "none")


def describe(scores: Scores, tags: Sequence[str], seconds: float) -> str:
    """Describe a clip by light, sharpness, camera and motion: ``A 3.2 second shot, ...``."""
    light = "dark" if scores["luma"] < 0.2 else "bright" if scores["luma"] > 0.65 else "evenly lit"
    detail = "soft" if scores["blur"] > 0.6 else "sharp"
    speed = scores["motion"]
    pace = "little" if speed < 0.05 else "moderate" if speed < 0.5 else "fast"
    camera = [tag for tag in tags if tag not in ("static", "moving objects")]
    if "static" in tags:
        moves = "nothing moves"
    elif "moving objects" in tags:
        moves = f"{pace} motion of objects"
    else:
        moves = f"{pace} motion of the whole view"
    return f"A {seconds:.1f} second {light}, {detail} shot; {', '.join(camera)}; {moves}."
