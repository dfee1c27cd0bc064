"""Make films with known cuts from real clips, to judge shot detectors by.

A film is a row of excerpts, each mirrored, cropped and graded at random, joined by hard cuts,
dissolves, fades through black and wipes; a few have a flash of light, which is no cut. Beside
``film-0000.mp4`` lies ``film-0000.json`` with its ``transitions``.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from . import sidecar
from .inputs import Recording
from .video import convert, decode, open_video

GRADUAL = {"dissolve": 0.5, "fade": 0.3, "wipe": 0.2}  # and their shares
HARD_SHARE, FLASH_SHARE = 0.6, 0.2
LONGEST = 240  # frames kept of a shot
FPS = 25


@dataclass(frozen=True)
class Transition:
    """``stop`` is the first frame of the new shot alone, ``start`` the first that is mixed.

    The two are equal for a hard cut.
    """

    kind: str
    start: int
    stop: int


def make(
    recordings: Sequence[Recording],
    out: Path,
    *,
    films: int = 8,
    shots: int = 24,
    height: int = 216,
    seed: int = 0,
) -> Iterator[Path]:
    """Yield films as they are written. Needs two shots or more.

    A recording is one shot, unless its side-car JSON lists the first frames of its shots as
    ``"cuts": [30, 76]``.

    Raises:
        ValueError: fewer than two shots of 20 frames in the recordings.
    """
    size = (height, round(height * 16 / 9 / 2) * 2)
    stock = [shot for r in recordings for shot in _shots(r.path, size)]
    if len(stock) < 2:
        raise ValueError(f"{len(stock)} shots of 20 frames or more; films are made of two or more")
    out.mkdir(parents=True, exist_ok=True)
    for number in range(films):
        rng = np.random.default_rng((seed, number))
        frames, transitions = _join(stock, shots, rng)
        path = out / f"film-{number:04d}.mp4"
        facts = {"seed": seed, "transitions": [asdict(t) for t in transitions]}
        path.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")
        write(path, frames)
        yield path


def truth(path: Path) -> list[Transition]:
    """Read the transitions of a film that `make` wrote.

    Raises:
        ValueError: its side-car JSON has none.
    """
    rows = sidecar.read_attributes(path.with_suffix(".json")).get("transitions")
    if not isinstance(rows, list):
        raise ValueError(f"{path}: no transitions in its .json; wfm-curator bench make writes them")
    return [Transition(**row) for row in rows]


def _shots(path: Path, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Yield the shots of a recording, uint8 ``t h w 3``, filling the size."""
    cuts = sidecar.read_attributes(sidecar.paths(path)[0]).get("cuts", [])
    if not isinstance(cuts, list) or not all(isinstance(c, int) for c in cuts):
        raise ValueError(f"{path.with_suffix('.json')}: cuts are frame numbers, got {cuts!r}")
    wanted = {i for a, b in pairwise([0, *cuts, 1 << 62]) for i in range(a, min(b, a + LONGEST))}
    found: dict[int, list[np.ndarray]] = {}
    reformatter = VideoReformatter()
    with open_video(path) as container:
        for index, frame in enumerate(decode(container, str(path))):
            if index in wanted:
                shot = sum(c <= index for c in cuts)
                picture = convert(reformatter, frame, "rgb24")
                found.setdefault(shot, []).append(_cover(picture, size))
    yield from (np.stack(shot) for shot in found.values() if len(shot) >= 20)


def _cover(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale a picture so that it covers the size, and crop its middle."""
    (height, width), (h, w) = size, picture.shape[:2]
    scale = max(height / h, width / w)
    wide, high = max(width, round(w * scale)), max(height, round(h * scale))
    big = cv2.resize(picture, (wide, high), interpolation=cv2.INTER_AREA)
    top, left = (high - height) // 2, (wide - width) // 2
    return np.ascontiguousarray(big[top : top + height, left : left + width])


def _join(
    stock: Sequence[np.ndarray], shots: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[Transition]]:
    parts: list[np.ndarray] = []
    transitions: list[Transition] = []
    length, before = 0, -1
    for number in range(shots):
        choice = int(rng.choice([i for i in range(len(stock)) if i != before]))
        shot, before = _excerpt(stock[choice], rng), choice
        if number:
            mixed = 0
            kind = (
                "hard"
                if rng.random() < HARD_SHARE
                else str(rng.choice(list(GRADUAL), p=list(GRADUAL.values())))
            )
            if kind != "hard":
                most = min(len(parts[-1]), len(shot)) // 3
                mixed = int(np.clip(rng.integers(8, 26), 4, max(4, most)))
                tail, parts[-1] = parts[-1][-mixed:], parts[-1][:-mixed]
                parts.append(_mix(kind, tail, shot[:mixed]))
                shot, length = shot[mixed:], length - mixed
            transitions.append(Transition(kind, length, length + mixed))
            length += mixed
        parts.append(shot)
        length += len(shot)
    return np.concatenate(parts), transitions


def _excerpt(shot: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Take 0.8 to 4 seconds of a shot, mirrored, cropped, graded, now and then with a flash."""
    most = min(len(shot), 4 * FPS)
    length = int(rng.integers(min(20, most), most + 1))
    start = int(rng.integers(0, len(shot) - length + 1))
    part = shot[start : start + length]
    if rng.random() < 0.5:
        part = part[:, :, ::-1]
    _, h, w, _ = part.shape
    zoom = rng.uniform(1.0, 1.3)
    high, wide = round(h / zoom), round(w / zoom)
    top, left = rng.integers(0, h - high + 1), rng.integers(0, w - wide + 1)
    gamma = rng.uniform(0.75, 1.3)
    table = (255 * (np.arange(256) / 255) ** gamma).round().astype(np.uint8)
    part = part[:, top : top + high, left : left + wide]
    graded = [cv2.LUT(cv2.resize(np.ascontiguousarray(p), (w, h)), table) for p in part]
    if rng.random() < FLASH_SHARE:
        at = int(rng.integers(length // 3, 2 * length // 3))
        graded[at] = np.clip(graded[at] * 1.6 + 60, 0, 255).astype(np.uint8)
    return np.stack(graded)


def _mix(kind: str, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Go from one shot to the other in as many frames as both have."""
    n, _, w, _ = old.shape
    share = ((np.arange(n) + 1) / (n + 1))[:, None, None, None]
    match kind:
        case "dissolve":
            mixed = old * (1 - share) + new * share
        case "fade":
            mixed = old * np.maximum(1 - 2 * share, 0) + new * np.maximum(2 * share - 1, 0)
        case _:
            mixed = np.where(np.arange(w)[:, None] < share * w, new, old)
    return mixed.round().astype(np.uint8)


def write(path: Path, frames: np.ndarray, *, fps: int = FPS, crf: int = 20) -> None:
    """Write uint8 ``t h w 3`` as H.264 in mp4, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    try:
        with av.open(str(partial), "w", format="mp4", options={"fflags": "+bitexact"}) as out:
            stream = out.add_stream("libx264", rate=fps)
            stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
            stream.codec_context.thread_count = 1
            stream.options = {"crf": str(crf), "preset": "veryfast"}
            for picture in frames:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
