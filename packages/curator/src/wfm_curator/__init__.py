"""Raw video into training clips: split, filter, caption, deduplicate, shard.

``curate`` runs the five steps over a folder and can be stopped and resumed at any time;
each step is also a module of its own: ``split``, ``filters``, ``caption``, ``dedup``,
``shard``. ``ShardedDataset`` reads back what was written.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import caption, dedup, filters, shard, split
    from .analysis import analyse
    from .config import CurateConfig
    from .dataset import ShardedClip, ShardedDataset
    from .manifest import CurationReport
    from .pipeline import curate
    from .video import VideoError

__version__ = "0.1.0"

__all__ = [
    "CurateConfig",
    "CurationReport",
    "ShardedClip",
    "ShardedDataset",
    "VideoError",
    "analyse",
    "caption",
    "curate",
    "dedup",
    "filters",
    "shard",
    "split",
]

_HOMES = {
    "CurateConfig": "config",
    "CurationReport": "manifest",
    "ShardedClip": "dataset",
    "ShardedDataset": "dataset",
    "VideoError": "video",
    "analyse": "analysis",
    "curate": "pipeline",
}
_MODULES = ("caption", "dedup", "filters", "shard", "split")


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that ``--help`` stays instant."""
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
