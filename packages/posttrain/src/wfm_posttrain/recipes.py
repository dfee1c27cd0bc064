"""Ways to make a base model into a model of one thing: each a config, ``train``, ``evaluate``."""

from . import action

__all__ = ["action"]
