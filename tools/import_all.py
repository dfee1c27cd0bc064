"""Import every module of one installed package and say which siblings came along."""

import importlib
import pkgutil
import sys


def main(name: str) -> None:
    package = importlib.import_module(name)
    modules = [m.name for m in pkgutil.walk_packages(package.__path__, f"{name}.")]
    for module in modules:
        importlib.import_module(module)
    siblings = {m.split(".")[0] for m in sys.modules if m.startswith("wfm_")} - {name}
    if siblings:
        sys.exit(f"{name} pulled in {sorted(siblings)}; packages may not need each other")
    print(f"{name}: {len(modules)} modules imported alone")


if __name__ == "__main__":
    main(sys.argv[1])
