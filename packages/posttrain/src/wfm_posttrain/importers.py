"""Public data sets as clips; ``open_clips`` knows their folders by what is in them."""

from pathlib import Path

from .import_bridge import bridge
from .import_driving import driving
from .import_lerobot import lerobot
from .import_replicator import replicator
from .imported import ImportedClips, Resized

__all__ = ["Resized", "bridge", "driving", "lerobot", "recognise", "replicator"]


def recognise(argument: str) -> ImportedClips | None:
    """Open a folder in one of the layouts, with its options behind ``?``; None if it is in none."""
    folder = Path(argument.partition("?")[0]).expanduser()
    if (folder / "meta" / "info.json").is_file():
        return lerobot(argument)
    if (folder / "annotation").is_dir():
        return bridge(argument)
    if any(folder.glob("v1.0-*/scene.json")):
        return driving(argument)
    if next(folder.rglob("rgb_*.png"), None) is not None:
        return replicator(argument)
    return None
