"""What other limits of likeness would do to the clips of a finished run."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from . import manifest
from .config import DedupConfig
from .dedup import Duplicate, find_duplicates
from .embed import Embedding, unpack
from .ledger import LEDGER, read_vectors

COSINES = (0.9, 0.92, 0.94, 0.96, 0.98, 0.99)

Clips = tuple[list[str], list[Embedding], list[tuple]]


def clips_of(folder: Path) -> Clips:
    """Return names, embeddings and ranks of the clips that passed the filter.

    Raises:
        FileNotFoundError: no finished run in the folder.
    """
    import pyarrow.parquet as pq

    if not (folder / manifest.MANIFEST).is_file():
        raise FileNotFoundError(f"{folder}: no finished run in here; wfm-curator run makes one")
    table = pq.read_table(folder / manifest.MANIFEST).to_pylist()
    rows = {(r["recording"], r["number"]): r for r in table if r["state"] in ("kept", "duplicate")}
    names, embeddings, ranks = [], [], []
    for recording, number, *blobs in sorted(read_vectors(folder / LEDGER)):
        row = rows.get((recording, number))
        if row is None:
            continue
        names.append(f"{recording} [{row['start']}:{row['stop']}]")
        embeddings.append(unpack(*blobs))
        size = row["height"] * row["width"]
        ranks.append((size, row["score_quality"], row["frames"], -len(ranks)))
    return names, embeddings, ranks


def sweep(
    embeddings: Sequence[Embedding],
    ranks: Sequence[tuple],
    config: DedupConfig,
    cosines: Sequence[float] = COSINES,
) -> Iterator[tuple[float, list[Duplicate]]]:
    """Yield, for each cosine, the clips that would be left out."""
    for cosine in cosines:
        yield (
            cosine,
            find_duplicates(embeddings, ranks, config.model_copy(update={"cosine": cosine})),
        )
