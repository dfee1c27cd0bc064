"""Import every module of one installed package and say which siblings came along.

A module may stop for want of a library that only an extra of the package brings.
"""

import importlib
import pkgutil
import re
import sys
from importlib.metadata import packages_distributions, requires


def extras(name: str) -> set[str]:
    """Return the libraries that the package's extras bring."""
    (distribution,) = set(packages_distributions()[name])
    lines = [line for line in requires(distribution) or [] if "extra ==" in line]
    return {re.split(r"[^\w-]", line)[0].replace("-", "_").lower() for line in lines}


def main(name: str) -> None:
    optional = extras(name)
    package = importlib.import_module(name)
    modules = [m.name for m in pkgutil.walk_packages(package.__path__, f"{name}.")]
    waiting = []
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as e:
            if (e.name or "").split(".")[0] not in optional:
                raise
            waiting.append(f"{module} needs {e.name}")
    siblings = {m.split(".")[0] for m in sys.modules if m.startswith("wfm_")} - {name}
    if siblings:
        sys.exit(f"{name} pulled in {sorted(siblings)}; packages may not need each other")
    print(f"{name}: {len(modules) - len(waiting)} modules imported alone", *waiting, sep="\n  ")


if __name__ == "__main__":
    main(sys.argv[1])
