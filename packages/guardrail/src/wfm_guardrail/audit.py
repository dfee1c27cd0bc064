"""A record of verdicts in which any later change shows: each line is sealed to the one before."""

import hmac
import json
import os
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

START = "0" * 64
KEY_VARIABLE = "WFM_GUARDRAIL_AUDIT_KEY"


class AuditLog:
    """Append-only JSON lines; prompts and frames appear as hashes only.

    With a ``key`` the seals are HMACs, so that nobody without the key can write a new chain; the
    hashes of inputs are keyed, too. Without one the chain shows accidents and careless edits,
    and whoever can guess a prompt can test the guess. Cutting off the end is seen against
    ``LOG.head``, which names the last seal; keep a copy of it elsewhere to be sure.
    """

    def __init__(self, path: str | Path, *, key: bytes | None = None) -> None:
        self.path = Path(path)
        self.key = key if key is not None else _key_from_environment()
        self._lock = Lock()
        self._salt = secrets.token_hex(16)
        if self.path.is_dir():
            raise IsADirectoryError(f"{self.path}: the audit log is a folder; name a file")
        if not self.path.parent.is_dir():
            raise FileNotFoundError(f"{self.path.parent}: no such folder for the audit log")

    def digest(self, data: bytes) -> str:
        """Hash an input for a record, keyed or salted anew by each process."""
        return _seal(self.key or self._salt.encode(), data)

    def append(self, event: str, record: Mapping[str, Any]) -> str:
        """Write one record, return its seal.

        Raises:
            OSError: it could not be written.
            ValueError: the log does not end in a whole record.
        """
        with self._lock, self.path.open("a+b") as file:
            _lock_file(file)
            seq, previous = _tail(file, self.path)
            body = {
                "seq": seq,
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "event": event,
                **({} if self.key else {"salt": self._salt}),
                **record,
                "previous": previous,
            }
            seal = _seal(self.key, _canonical(body))
            file.write(_canonical({**body, "seal": seal}) + b"\n")
            file.flush()
            os.fsync(file.fileno())
            _head(self.path).write_text(f"{seq} {seal}\n")
        return seal


def verify(path: str | Path, *, key: bytes | None = None, head: str | None = None) -> int:
    """Check every seal and the end of a log; return the number of records.

    ``head`` is a seal that was noted elsewhere and must be the last one; without it the file
    ``LOG.head`` is asked.

    Raises:
        FileNotFoundError: there is no such log.
        ValueError: a record was edited, removed, moved or added, or the end is missing.
    """
    path = Path(path)
    key = key if key is not None else _key_from_environment()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such audit log")
    previous, count = START, 0
    for count, line in enumerate(path.read_bytes().splitlines(), 1):
        previous = _check(path, count, line, previous, key)
    expected = head or _noted_head(path)
    if expected is None:
        raise ValueError(f"{path}: {_head(path).name} is missing; name the last seal with --head")
    if not hmac.compare_digest(expected, previous):
        raise ValueError(f"{path}: ends after {count} records with another seal than noted")
    return count


def _check(path: Path, number: int, line: bytes, previous: str, key: bytes | None) -> str:
    where = f"{path}: record {number}"
    try:
        body = json.loads(line)
        seal = body.pop("seal")
        follows, seq = body["previous"], body["seq"]
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise ValueError(f"{where} is not a record") from e
    if follows != previous or seq != number - 1:
        raise ValueError(f"{where} does not follow the one before: removed, added or moved")
    if not hmac.compare_digest(str(seal), _seal(key, _canonical(body))):
        raise ValueError(f"{where} was edited, or sealed with another key")
    return str(seal)


def _canonical(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _seal(key: bytes | None, data: bytes) -> str:
    return (hmac.new(key, data, sha256) if key else sha256(data)).hexdigest()


def _head(path: Path) -> Path:
    return path.with_name(path.name + ".head")


def _noted_head(path: Path) -> str | None:
    try:
        return _head(path).read_text().split()[1]
    except (FileNotFoundError, IndexError):
        return None


def _tail(file: BinaryIO, path: Path) -> tuple[int, str]:
    """Return the number and the previous seal that the next record gets."""
    end = file.seek(0, os.SEEK_END)
    if not end:
        return 0, START
    size = 4096
    while True:
        file.seek(max(0, end - size))
        lines = file.read().splitlines(keepends=True)
        if len(lines) > 1 or size >= end:
            break
        size *= 4
    try:
        last = json.loads(lines[-1])
        if lines[-1].endswith(b"\n"):
            return last["seq"] + 1, last["seal"]
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{path}: does not end in a whole audit record; move it away")


def _lock_file(file: BinaryIO) -> None:
    """Keep other processes out until the file is closed, where the system can."""
    try:
        import fcntl
    except ImportError:
        return
    fcntl.flock(file, fcntl.LOCK_EX)


def _key_from_environment() -> bytes | None:
    value = os.environ.get(KEY_VARIABLE, "")
    return value.encode() or None
