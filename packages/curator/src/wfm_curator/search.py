"""Find clips of a finished run: like a clip, like a video, or by words."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import manifest
from .config import EmbedConfig
from .dedup import unit
from .embed import Embedding, forms, unpack
from .embedders import TextEmbedder, load
from .ledger import LEDGER, read_vectors

K1, B = 1.2, 0.75  # of BM25: Robertson and Zaragoza 2009


@dataclass(frozen=True)
class Hit:
    """A clip and how well it fits: a cosine, or for words a sum of weights."""

    key: str
    recording: str
    start: int
    stop: int
    state: str
    score: float
    caption: str


def like(folder: Path, query: str | Path, *, count: int = 10) -> list[Hit]:
    """Return the clips most like one of the run, by its key, or like a video file.

    Mirrored, cropped and trimmed versions of the query count as well.

    Raises:
        FileNotFoundError: no finished run in the folder.
        ValueError: no such clip, and no such file.
    """
    rows = {(r["recording"], r["number"]): r for r in _rows(folder)}
    found = [
        (rows[n, i], unpack(*blobs))
        for n, i, *blobs in read_vectors(folder / LEDGER)
        if (n, i) in rows
    ]
    own = next((e for row, e in found if row["key"] == str(query)), None)
    asked = own or _embedded(Path(query), folder)
    queries = unit(np.stack([v.vector for v in forms(asked)]))
    cosines = unit(np.stack([e.vector for _, e in found])) @ queries.T
    scored = [
        (float(c), row)
        for c, (row, _) in zip(cosines.max(1), found, strict=True)
        if row["key"] != str(query)
    ]
    return _best(scored, count)


def _embedded(path: Path, folder: Path) -> Embedding:
    from .analysis import analyse
    from .config import SplitConfig

    if not path.is_file():
        raise ValueError(f"{path}: neither the key of a clip in {folder} nor a video file")
    (embedding,) = analyse(path, SplitConfig(method="whole", max_seconds=1e9)).embeddings
    return embedding


def words(folder: Path, text: str, *, count: int = 10) -> list[Hit]:
    """Return the clips whose captions fit some words best (BM25).

    Raises:
        FileNotFoundError: no finished run in the folder.
        ValueError: no words.
    """
    asked = set(_split(text))
    if not asked:
        raise ValueError(f"{text!r}: no words to look for")
    rows = [row for row in _rows(folder) if row["caption"]]
    bags = [Counter(_split(row["caption"])) for row in rows]
    usual = sum(bag.total() for bag in bags) / max(1, len(bags))
    scored = []
    rare = {w: _rarity(sum(w in bag for bag in bags), len(bags)) for w in asked}
    for row, bag in zip(rows, bags, strict=True):
        length = K1 * (1 - B + B * bag.total() / max(usual, 1e-9))
        score = sum(rare[w] * bag[w] * (K1 + 1) / (bag[w] + length) for w in asked)
        if score > 0:
            scored.append((score, row))
    return _best(scored, count)


def text(folder: Path, sentence: str, *, count: int = 10) -> list[Hit]:
    """Return the kept clips that show what a sentence says, if the run's network knows sentences.

    If it does not, or there was none, go by the words of captions.

    Raises:
        FileNotFoundError: no finished run in the folder.
        ValueError: no words.
    """
    import pyarrow.parquet as pq

    rows = {row["key"]: row for row in _rows(folder)}
    settings = json.loads((folder / manifest.REPORT).read_text())["settings"]
    config = EmbedConfig.model_validate(settings["embed"])
    network = load(config) if config.model else None
    if not isinstance(network, TextEmbedder):
        return words(folder, sentence, count=count)
    found = pq.read_table(folder / manifest.EMBEDDINGS).to_pydict()
    if not found["key"]:
        return []
    asked = unit(np.asarray(network.embed_text([sentence])))[0]
    cosines = np.array(found["embedding"], np.float32) @ asked
    scored = [(float(c), rows[key]) for c, key in zip(cosines, found["key"], strict=True)]
    return _best(scored, count)


def _rarity(having: int, total: int) -> float:
    return math.log(1 + (total - having + 0.5) / (having + 0.5))


def _split(text: str) -> Iterator[str]:
    return (word.removesuffix("s") for word in re.findall(r"\w+", text.lower()))


def _rows(folder: Path) -> list[dict]:
    import pyarrow.parquet as pq

    path = folder / manifest.MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no finished run in here; wfm-curator run makes one")
    columns = ["key", "recording", "number", "start", "stop", "state", "caption"]
    rows = pq.read_table(path, columns=columns).to_pylist()
    return [row for row in rows if row["state"] != "quarantined"]


def _best(scored: list[tuple[float, dict]], count: int) -> list[Hit]:
    scored.sort(key=lambda pair: (-pair[0], pair[1]["key"]))
    names = ("key", "recording", "start", "stop", "state")
    return [
        Hit(**{k: row[k] for k in names}, score=round(score, 4), caption=row["caption"])
        for score, row in scored[:count]
    ]
