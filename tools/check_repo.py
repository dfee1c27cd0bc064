"""Rules no linter knows: packages stay apart, copies stay equal, weights stay small.

A copied function or class says on the line above it where its original lies:

    # same as: packages/tokenizer/src/wfm_tokenizer/video.py
    def read_video(...): ...

A class in any package's ``interfaces.py`` is a copy of the one in ``contracts/``.
``--wheels DIR`` checks the sizes of built wheels; ``--release PACKAGE`` checks that tag,
version and changelog agree.
"""

import argparse
import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONTRACTS = "contracts/interfaces.py"
MARK = re.compile(r"# same as: (\S+)$")
MODEL_LIMIT, GOLDEN_LIMIT, WHEEL_LIMIT = 16e6, 13e6, 40e6

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def definitions(file: Path) -> dict[str, Definition]:
    """Top-level functions and classes of a file, by name."""
    body = ast.parse(file.read_text()).body
    return {node.name: node for node in body if isinstance(node, Definition)}


def copies(file: Path) -> Iterator[tuple[Definition, str]]:
    """Definitions of a file that say they are copies, each with its original's file."""
    lines = file.read_text().splitlines()
    for node in definitions(file).values():
        above = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 2
        if file.name == "interfaces.py":
            yield node, CONTRACTS
        elif above >= 0 and (mark := MARK.match(lines[above])):
            yield node, mark[1]


def drifted(root: Path, file: Path) -> Iterator[str]:
    """Find copies that are no longer equal to their originals."""
    where = file.relative_to(root)
    marks = sum(bool(MARK.match(line)) for line in file.read_text().splitlines())
    found = list(copies(file))
    if file.name != "interfaces.py" and marks != len(found):
        yield f"{where}: a 'same as' line stands above no top-level definition"
    for node, original in found:
        source = root / original
        there = definitions(source).get(node.name) if source.is_file() else None
        if there is None:
            yield f"{where}:{node.lineno}: {original} has no {node.name}"
        elif ast.dump(there) != ast.dump(node):
            yield f"{where}:{node.lineno}: {node.name} differs from {original}; change both"


def entangled(root: Path, file: Path, own: set[str]) -> Iterator[str]:
    """Find absolute imports of a package of this repository: a sibling, or oneself."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        else:
            continue
        for name in sorted({n.split(".")[0] for n in names} & own):
            hint = "import it relatively" if f"/{name}/" in str(file) else "declare a Protocol"
            yield f"{file.relative_to(root)}:{node.lineno}: imports {name}; {hint}"


def oversized(root: Path) -> Iterator[str]:
    """Find shipped models and golden files that are too large."""
    for file in root.glob("packages/*/src/*/weights/**/*.safetensors"):
        if (size := file.stat().st_size) > MODEL_LIMIT:
            yield f"{file.relative_to(root)}: {size / 1e6:.1f} MB, over {MODEL_LIMIT / 1e6:.0f} MB"
    for folder in root.glob("packages/*/tests/golden"):
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        if size > GOLDEN_LIMIT:
            where = folder.relative_to(root)
            yield f"{where}: {size / 1e6:.1f} MB, over {GOLDEN_LIMIT / 1e6:.0f} MB"


def unkept_promises(root: Path) -> Iterator[str]:
    """Find packages that lack a file which every package has."""
    for project in root.glob("packages/*/pyproject.toml"):
        for name in ("README.md", "CHANGELOG.md", "LICENSE", "tests"):
            if not (project.parent / name).exists():
                yield f"{project.parent.relative_to(root)}: has no {name}"


def check(root: Path) -> list[str]:
    """Return every broken rule in the repository at ``root``, one line each."""
    own = {folder.name for folder in root.glob("packages/*/src/*") if folder.is_dir()}
    files = sorted(root.glob("packages/*/src/**/*.py"))
    problems = [p for file in files for p in (*entangled(root, file, own), *drifted(root, file))]
    return [*problems, *oversized(root), *unkept_promises(root)]


def check_wheels(folder: Path) -> list[str]:
    """Return the wheels that are too large to publish."""
    wheels = {wheel: wheel.stat().st_size for wheel in folder.glob("*.whl")}
    return [
        f"{wheel.name}: {size / 1e6:.1f} MB, over {WHEEL_LIMIT / 1e6:.0f} MB"
        for wheel, size in wheels.items()
        if size > WHEEL_LIMIT
    ]


def check_release(package: str) -> list[str]:
    """Return what keeps a package from being released from this commit."""
    folder = ROOT / "packages" / package
    init = next(folder.glob("src/*/__init__.py")).read_text()
    found = re.search(r'^__version__ = "(.+)"$', init, re.MULTILINE)
    version = found[1] if found else "?"
    heading = re.search(r"^## (?!Unreleased)(\S+)", (folder / "CHANGELOG.md").read_text(), re.M)
    tags = subprocess.run(
        ["git", "tag", "--points-at", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    problems = []
    if heading is None or heading[1] != version:
        problems.append(f"CHANGELOG.md's newest release is not {version}")
    if f"{package}-v{version}" not in tags:
        problems.append(f"HEAD does not carry the tag {package}-v{version}")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository to check")
    parser.add_argument("--wheels", type=Path, help="check the built wheels in this folder")
    parser.add_argument("--release", metavar="PACKAGE", help="check one package for release")
    args = parser.parse_args()
    if args.wheels:
        problems = check_wheels(args.wheels)
    elif args.release:
        problems = check_release(args.release)
    else:
        problems = check(args.root.resolve())
    print("\n".join(problems) or "packages apart, copies equal, sizes kept")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
