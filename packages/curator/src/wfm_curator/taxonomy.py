"""The nine kinds of footage of the Cosmos paper, with their shares of its training set.

Source: arXiv 2501.03575, data section. A recording says its kind by ``category`` in its
side-car JSON; nothing here guesses it.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

PAPER = {
    "driving": 0.11,
    "hand motion and object manipulation": 0.16,
    "human motion and activity": 0.10,
    "spatial awareness and navigation": 0.16,
    "first person view": 0.08,
    "nature dynamics": 0.20,
    "dynamic camera movement": 0.08,
    "synthetically rendered": 0.04,
    "other": 0.07,
}


def category(attributes: Mapping[str, object]) -> str:
    """Return the kind that a side-car names, by a name of ``PAPER`` or its first words; else ''."""
    given = attributes.get("category")
    if not isinstance(given, str) or not given.strip():
        return ""
    words = " ".join(given.lower().replace("_", " ").replace("&", "and").split())
    return next((name for name in PAPER if name.startswith(words)), "other")


def shares(kinds: Iterable[str]) -> dict[str, float]:
    """Return the share of each kind, in the paper's order, among clips that have one."""
    counts = Counter(kind for kind in kinds if kind)
    total = max(1, counts.total())
    return {name: counts[name] / total for name in PAPER}
