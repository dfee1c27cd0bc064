"""Copy one package and its tests to a folder, under another import name.

python tools/vendor.py tokenizer FOLDER makes FOLDER/vendored_tokenizer and FOLDER/tests.
Tests and README are rewritten, the package itself is not: that it works so is what the tests
then prove.
"""

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(package: str, folder: Path) -> None:
    short = package.removeprefix("wfm-")
    old, new = f"wfm_{short}", f"vendored_{short}"
    source = ROOT / "packages" / package
    shutil.rmtree(folder, ignore_errors=True)
    ignore = shutil.ignore_patterns("__pycache__", ".hypothesis")
    shutil.copytree(source / "src" / old, folder / new, ignore=ignore)
    shutil.copytree(source / "tests", folder / "tests", ignore=ignore)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(source / name, folder)
    for file in [folder / "pyproject.toml", folder / "README.md", *folder.glob("tests/**/*.py")]:
        file.write_text(re.sub(rf"\b{old}\b", new, file.read_text()))
    print(f"{old} vendored as {new} in {folder}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
