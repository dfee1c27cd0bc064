"""What there is to curate: files, folders, patterns, lists, and places that fsspec reaches."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel

from . import rigs, sidecar
from .sidecar import SidecarError
from .video import SUFFIXES

LISTS = (".txt", ".jsonl", ".parquet")
CACHE = ".inputs"
VERSION = 6  # of scores and descriptors; a change makes every run measure anew


@dataclass(frozen=True)
class Recording:
    """A file among the inputs; ``name`` is its path below them, with forward slashes.

    A synchronised recording is the folder ``rig``; ``path`` is then its reference. What is
    ``remote`` is fetched to local files first, pairs of address and place; ``stamp`` tells one
    version of it from another.
    """

    path: Path
    name: str
    rig: Path | None = None
    remote: tuple[tuple[str, Path], ...] = ()
    stamp: str = ""

    def mark(self, *configs: BaseModel) -> str:
        """Return a digest of all that an analysis depends on, from sizes and times of change."""
        settings = " ".join(config.model_dump_json() for config in configs)
        text = f"{VERSION} {self.stamp or self._stats()} {settings}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _stats(self) -> list[Any]:
        files = [self.path, *sidecar.paths(self.path)] if self.rig is None else files_of(self.rig)
        stats = [(p.stat() if p.is_file() else None) for p in files]
        found: list[Any] = [(s.st_size, s.st_mtime_ns) if s else None for s in stats]
        return found if self.rig is None else [*zip([p.name for p in files], found, strict=True)]

    def fetch(self) -> None:
        """Bring what is remote to its local place, whole or not at all; once is enough.

        Raises:
            OSError: it is not there any more, or cannot be reached.
        """
        for address, place in self.remote:
            if place.is_file():
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            partial = place.with_name(place.name + ".partial")
            try:
                system, inner = _system(address)
                system.get_file(inner, str(partial))
                partial.replace(place)
            finally:
                partial.unlink(missing_ok=True)


def files_of(folder: Path) -> list[Path]:
    """Return the files of a rig, by name."""
    return sorted(p for p in folder.iterdir() if p.is_file())


def find_recordings(inputs: Sequence[str | Path], *, cache: Path | None = None) -> list[Recording]:
    """Return the videos among inputs, by name.

    An input is a file, a folder, a rig, a pattern such as ``raw/**/*.mp4``, a list (``.txt`` with
    a path a line, ``.jsonl`` or ``.parquet`` with ``path``; relative to the list), or an address
    such as ``s3://bucket/raw`` (extra ``[remote]``), which is fetched below ``cache``. Below a
    folder a video is known by its suffix; a file that is named is taken as one.

    Raises:
        FileNotFoundError: an input is not there.
        ValueError: there is no video at all, or a list cannot be read.
    """
    found: dict[str | Path, Recording] = {}
    for place in inputs:
        if "://" in str(place):
            for one in _remote(str(place), cache):
                found.setdefault(one.remote[0][0], one)
            continue
        for path, name in _local(Path(place)):
            found.setdefault(path.resolve(), _recording(path.resolve(), name))
    if not found:
        raise ValueError(f"{', '.join(map(str, inputs))}: no video files in here")
    names = [one.name for one in found.values()]
    if len(set(names)) < len(names):  # two inputs with like names: tell them by their whole paths
        whole = [(str(where).replace("://", "/").lstrip("/"), r) for where, r in found.items()]
        return sorted((_renamed(r, name) for name, r in whole), key=lambda r: r.name)
    return sorted(found.values(), key=lambda r: r.name)


def _renamed(one: Recording, name: str) -> Recording:
    return Recording(one.path, name, one.rig, one.remote, one.stamp)


def _local(place: Path) -> Iterator[tuple[Path, str]]:
    """Yield paths and names of what one local input stands for."""
    if not place.exists():
        yield from ((path, path.as_posix()) for path in _matching(place))
    elif place.is_file() and place.suffix in LISTS:
        for line in _listed(place):
            path = place.parent / line
            if not path.exists():
                raise FileNotFoundError(f"{place}: lists {line}, which is not there")
            yield path, line
    elif place.is_file():
        yield place, place.name
    else:
        for path in _below(place):
            yield path, path.name if path == place else path.relative_to(place).as_posix()


def _matching(pattern: Path) -> list[Path]:
    """Return the files and rigs that a pattern fits."""
    if not any(c in str(pattern) for c in "*?["):
        raise FileNotFoundError(f"{pattern}: no such file or folder")
    root = Path(pattern.anchor) if pattern.is_absolute() else Path()
    found = sorted(root.glob(str(pattern.relative_to(pattern.anchor))))
    found = [path for path in found if path.is_file() or path.suffix == rigs.SUFFIX]
    if not found:
        raise FileNotFoundError(f"{pattern}: nothing has such a name")
    return found


def _listed(place: Path) -> list[str]:
    """Read the paths of a list."""
    try:
        if place.suffix == ".parquet":
            import pyarrow.parquet as pq

            return pq.read_table(place, columns=["path"]).column("path").to_pylist()
        lines = [line.strip() for line in place.read_text().splitlines()]
        lines = [line for line in lines if line and not line.startswith("#")]
        return [json.loads(line)["path"] for line in lines] if place.suffix == ".jsonl" else lines
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{place}: not a list of paths ({' '.join(str(e).split())})") from e


def _below(folder: Path) -> Iterator[Path]:
    """Yield videos and rigs of a folder, hidden ones and the parts of rigs left out."""
    if folder.suffix == rigs.SUFFIX:
        yield folder
        return
    for path in sorted(folder.rglob("*")):
        below = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in below.parts)
        if hidden or any(p.suffix == rigs.SUFFIX for p in below.parents):
            continue
        if path.suffix == rigs.SUFFIX if path.is_dir() else path.suffix.lower() in SUFFIXES:
            yield path


def _recording(path: Path, name: str) -> Recording:
    """Take a folder as a rig; what is wrong with it is said when it is analysed."""
    if not path.is_dir():
        return Recording(path, name)
    try:
        return Recording(rigs.find(path).path, name, path)
    except SidecarError:
        return Recording(path, name, path)


def _system(address: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        pip = 'pip install "wfm-curator[remote]"'
        raise ImportError(f"{address}: other places than files need: {pip}") from None
    return url_to_fs(address)


def _remote(address: str, cache: Path | None) -> Iterator[Recording]:
    """Yield the videos at an address with the side-cars beside them."""
    if cache is None:
        raise ValueError(f"{address}: what is elsewhere needs an output folder: wfm-curator run")
    system, root = _system(address)
    protocol = address.partition("://")[0]
    if any(c in root for c in "*?["):
        listing = system.glob(root, detail=True)
    elif system.isdir(root):
        listing = system.find(root, detail=True)
    elif system.exists(root):
        listing = {root: system.info(root)}
    else:
        raise FileNotFoundError(f"{address}: no such file or folder")
    place = cache / hashlib.sha256(address.encode()).hexdigest()[:8]
    for name in sorted(listing):
        path = PurePosixPath(name)
        if path.suffix.lower() not in SUFFIXES and name != root:
            continue
        files = [path, *(path.with_suffix(s) for s in (".json", ".txt", ".safetensors"))]
        files = [f for f in files if str(f) in listing]
        below = path.relative_to(root).as_posix() if name != root and root in name else path.name
        stamp = [[str(f), _version(listing[str(f)])] for f in files]
        local = place / hashlib.sha256(json.dumps(stamp).encode()).hexdigest()[:12]
        pairs = tuple((f"{protocol}://{str(f).lstrip('/')}", local / f.name) for f in files)
        if protocol in ("file", "local"):
            pairs = tuple((f"{protocol}://{f}", local / f.name) for f in files)
        yield Recording(local / path.name, below, remote=pairs, stamp=json.dumps(stamp))


def _version(info: dict) -> list[str]:
    """Return what tells versions of a remote file apart."""
    return [str(info.get(k)) for k in ("size", "ETag", "etag", "mtime", "LastModified", "created")]
