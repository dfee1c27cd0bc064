"""The record of what was done, in one SQLite file, so that a stopped run can go on.

A unit of work is a recording or a shard. Its row holds a mark of all that its result depends
on: while the mark is the same, the result is. Nothing is written when nothing is to be done.
"""

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

LEDGER = "ledger.sqlite"  # in the output folder
TABLES = (  # each step brings a ledger from one version to the next
    """
CREATE TABLE recordings (
  name TEXT PRIMARY KEY, mark TEXT, state TEXT, error TEXT, facts TEXT);
CREATE TABLE clips (
  name TEXT, number INTEGER, vector BLOB, cells BLOB, strip BLOB, PRIMARY KEY (name, number));
CREATE TABLE shards (path TEXT PRIMARY KEY, mark TEXT, size INTEGER, members TEXT)
""",
    """
ALTER TABLE clips ADD COLUMN variants BLOB DEFAULT x'';
ALTER TABLE recordings ADD COLUMN kind TEXT DEFAULT '';
ALTER TABLE recordings ADD COLUMN attempts INTEGER DEFAULT 0;
CREATE TABLE captions (mark TEXT PRIMARY KEY, status TEXT, text TEXT, facts TEXT)
""",
    """
CREATE TABLE embeddings (mark TEXT PRIMARY KEY, vector BLOB)
""",
)
SCHEMA = len(TABLES)


@dataclass(frozen=True)
class Row:
    """A recording: ``state`` is ``done``, ``quarantined`` (its own fault) or ``failed``.

    ``kind`` is the class of the error, as in `pool.Outcome`; ``attempts`` are those since the
    file or the settings changed.
    """

    mark: str
    state: str
    error: str
    facts: dict[str, Any]
    kind: str = ""
    attempts: int = 0


class Ledger:
    """Open the ledger of an output folder; only one process may have it open."""

    def __init__(self, path: Path) -> None:
        self.db = sqlite3.connect(path, isolation_level=None, timeout=1)
        try:
            self.db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self.db.execute("BEGIN EXCLUSIVE")
            version = self.db.execute("PRAGMA user_version").fetchone()[0]
            for step in TABLES[version:]:
                for statement in step.split(";"):
                    self.db.execute(statement)
            if version < SCHEMA:
                self.db.execute(f"PRAGMA user_version = {SCHEMA}")
            self.db.execute("COMMIT")
        except sqlite3.OperationalError as e:
            self.db.close()
            if "locked" in str(e):
                raise ValueError(f"{path}: another run is writing to this folder") from e
            raise OSError(f"{path}: {e}") from e
        except sqlite3.DatabaseError as e:
            self.db.close()
            raise ValueError(f"{path}: not a ledger ({e}); delete it to start afresh") from e
        if version > SCHEMA:
            self.db.close()
            raise ValueError(f"{path}: written by a newer version; use a new output folder")

    def close(self) -> None:
        self.db.close()

    def recordings(self) -> dict[str, Row]:
        columns = "name, mark, state, error, facts, kind, attempts"
        rows = self.db.execute(f"SELECT {columns} FROM recordings")
        return {n: Row(m, s, e, json.loads(f), k, a) for n, m, s, e, f, k, a in rows}

    def marks(self) -> dict[str, tuple[str, str, int]]:
        """Return each recording's mark, state and attempts."""
        rows = self.db.execute("SELECT name, mark, state, attempts FROM recordings")
        return {name: (mark, state, attempts) for name, mark, state, attempts in rows}

    def attempts(self, name: str) -> tuple[str, int]:
        """Return the mark of a recording and how often it was tried."""
        query = "SELECT mark, attempts FROM recordings WHERE name = ?"
        return self.db.execute(query, (name,)).fetchone() or ("", 0)

    def put(self, name: str, row: Row, clips: list[tuple[bytes, ...]]) -> None:
        """Record a recording and the blobs of its clips; durable after `commit`."""
        facts = json.dumps(row.facts, sort_keys=True)
        self._begin()
        self.db.execute("DELETE FROM clips WHERE name = ?", (name,))
        self.db.execute(
            "INSERT OR REPLACE INTO recordings VALUES (?, ?, ?, ?, ?, ?, ?)",
            (name, row.mark, row.state, row.error, facts, row.kind, row.attempts),
        )
        self.db.executemany(
            "INSERT INTO clips VALUES (?, ?, ?, ?, ?, ?)",
            [(name, number, *blobs) for number, blobs in enumerate(clips)],
        )

    def _begin(self) -> None:
        if not self.db.in_transaction:
            self.db.execute("BEGIN")

    def commit(self) -> None:
        """Make what was put durable; many at once, for each commit waits for the disk."""
        if self.db.in_transaction:
            self.db.execute("COMMIT")

    def forget(self, names: set[str]) -> None:
        """Drop recordings that are no longer among the inputs."""
        for name in sorted(names):
            self._begin()
            self.db.execute("DELETE FROM recordings WHERE name = ?", (name,))
            self.db.execute("DELETE FROM clips WHERE name = ?", (name,))
        self.commit()

    def vectors(self) -> Iterator[tuple[str, int, bytes, bytes, bytes]]:
        """Yield what `embed.pack` made of each clip, by recording and number."""
        yield from self.db.execute("SELECT name, number, vector, cells, variants FROM clips")

    def strip(self, name: str, number: int) -> bytes:
        query = "SELECT strip FROM clips WHERE name = ? AND number = ?"
        return self.db.execute(query, (name, number)).fetchone()[0]

    def caption(self, mark: str) -> tuple[str, str, dict[str, Any]] | None:
        """Return status, text and facts of a window that was captioned before."""
        query = "SELECT status, text, facts FROM captions WHERE mark = ?"
        row = self.db.execute(query, (mark,)).fetchone()
        return row and (row[0], row[1], json.loads(row[2]))

    def put_caption(self, mark: str, status: str, text: str, facts: dict[str, Any]) -> None:
        """Record what a model said of a window; durable after `commit`."""
        self._begin()
        values = (mark, status, text, json.dumps(facts, sort_keys=True))
        self.db.execute("INSERT OR REPLACE INTO captions VALUES (?, ?, ?, ?)", values)

    def embedding(self, mark: str) -> bytes | None:
        """Return the vector that a network gave a clip before."""
        query = "SELECT vector FROM embeddings WHERE mark = ?"
        row = self.db.execute(query, (mark,)).fetchone()
        return row and row[0]

    def put_embedding(self, mark: str, vector: bytes) -> None:
        """Record a network's vector of a clip; durable after `commit`."""
        self._begin()
        self.db.execute("INSERT OR REPLACE INTO embeddings VALUES (?, ?)", (mark, vector))

    def shards(self) -> dict[str, tuple[str, int, Any]]:
        rows = self.db.execute("SELECT path, mark, size, members FROM shards")
        return {path: (mark, size, json.loads(members)) for path, mark, size, members in rows}

    def put_shard(self, path: str, mark: str, size: int, members: Any) -> None:
        text = json.dumps(members)
        self.db.execute(
            "INSERT OR REPLACE INTO shards VALUES (?, ?, ?, ?)", (path, mark, size, text)
        )

    def forget_shard(self, path: str) -> None:
        self.db.execute("DELETE FROM shards WHERE path = ?", (path,))


def read_vectors(path: Path) -> list[tuple[str, int, bytes, bytes, bytes]]:
    """Read what `Ledger.vectors` yields from the ledger of a run that is finished."""
    uri = f"file:{quote(str(path.resolve()))}?mode=ro"
    db = sqlite3.connect(uri, uri=True)
    try:
        query = "SELECT name, number, vector, cells, variants FROM clips"
        return db.execute(query).fetchall()
    except sqlite3.DatabaseError as e:
        raise ValueError(f"{path}: not a ledger of this version ({e}); curate it again") from e
    finally:
        db.close()
