"""Late binding: a part is found by a short name, or as ``module:callable``."""

import importlib
from importlib.metadata import entry_points


# same as: packages/tokenizer/src/wfm_tokenizer/references.py
def resolve(reference: str, group: str) -> object:
    """Make the part that ``reference`` names.

    ``reference`` is a name registered under the entry-point ``group`` (``wfm.codecs``, ...), or
    ``module:callable``, called without arguments, or ``module:callable=ARGUMENT``, called
    with that one string.

    Raises:
        ValueError: the name is not registered, or the module or callable is not there.
    """
    target, equals, argument = reference.partition("=")
    module, colon, attribute = target.partition(":")
    if not colon:
        return _registered(reference, group)
    try:
        make = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as e:
        raise ValueError(f"{reference}: cannot import {attribute} from {module} ({e})") from e
    return make(argument) if equals else make()


# same as: packages/tokenizer/src/wfm_tokenizer/references.py
def _registered(name: str, group: str) -> object:
    """Load and call the entry point of that name."""
    found = entry_points(group=group)
    for entry in found:
        if entry.name == name:
            return entry.load()()
    known = ", ".join(sorted(entry.name for entry in found)) or "none is installed"
    raise ValueError(f"{name}: no such name in {group} ({known}), and not module:callable either")
