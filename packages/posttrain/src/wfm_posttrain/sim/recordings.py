"""Write many recordings: in parallel, atomically, and only those that are missing."""

import json
import multiprocessing
import os
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .episode import MEMBERS, write_atomically, write_episode
from .scenes import HELD_OUT_SEED, PHYSICS, SCENES, Capture, generate_views

MANIFEST, CARD = "dataset.json", "README.md"
CARD_TEXT = f"""---
license: apache-2.0
task_categories: [robotics]
tags: [simulated, mujoco]
---

# Simulated recordings

Made by `wfm-posttrain simulate` from procedural MuJoCo scenes: no asset of others, no person, no
place that exists. A seed is a recording.
**Seeds from {HELD_OUT_SEED:,} on are held out: train on none of them.**

| scene | recordings | seeds | of them held out | frames | pixels |
|---|---|---|---|---|---|
{{rows}}

Each recording is `STEM.mp4` (H.264, 4:4:4), `STEM.json` (captions, frame rate, scene facts, the
settings it was made with) and `STEM.safetensors` with exact labels: `camera_pose` (camera to
world, OpenCV axes), `intrinsics` (pixels), `depth` (metres along the optical axis),
`segmentation` (keys in the JSON's `segments`), `object_pose` (position, quaternion w x y z),
`object_pixel`, and, where there are some, `state`, `action`, `effector_pixel`, `trajectory`.

Pictures are rendered; models that saw nothing else know nothing of cameras' noise, of deformable
things, of people.
"""
# Raised whenever the same seed would no longer give the same recording of a scene.
VERSIONS = dict.fromkeys(PHYSICS, 2) | {"street": 3}


@dataclass(frozen=True)
class Job:
    """Recordings of one scene for the seeds ``seed`` to ``seed + clips - 1``."""

    scene: str
    clips: int
    seed: int = 0
    capture: Capture = field(default_factory=Capture)
    take: int = 0

    def __post_init__(self) -> None:
        if self.scene not in SCENES:
            raise ValueError(f"no scene {self.scene!r}; there are {', '.join(SCENES)}")
        if self.clips < 1 or self.seed < 0 or self.take < 0:
            raise ValueError("clips must be at least 1, seed and take at least 0")
        if self.take and self.scene not in PHYSICS:
            known = ", ".join(PHYSICS)
            raise ValueError(f"{self.scene} has one take only; those with more are {known}")
        if self.seed < HELD_OUT_SEED < self.seed + self.clips:
            raise ValueError(
                f"seeds {self.seed} to {self.seed + self.clips - 1} mix training and held-out "
                f"ones; those from {HELD_OUT_SEED} on are held out"
            )

    @property
    def settings(self) -> dict[str, object]:
        """What a recording depends on beside its seed; JSON values only."""
        capture = json.loads(json.dumps(asdict(self.capture)))
        take = {"take": self.take} if self.take else {}
        return {"scene": self.scene, "version": VERSIONS.get(self.scene, 1), **capture, **take}


@dataclass(frozen=True)
class Tally:
    """How many of the seeds were recorded now, and how many were there already."""

    made: int
    kept: int


def record_all(job: Job, folder: Path, *, workers: int = 1) -> Iterator[Tally]:
    """Write a job's missing recordings; yield the tally at the start and after each seed.

    A folder may hold several scenes, each with one set of settings, kept in ``dataset.json``.
    Killed or failed, a run is continued by calling it again.

    Raises:
        ValueError: the folder holds recordings of this scene with other settings.
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _enter(job, folder)
    seeds = range(job.seed, job.seed + job.clips)
    missing = [seed for seed in seeds if not _is_complete(job, folder, seed)]
    kept = job.clips - len(missing)
    yield Tally(0, kept)
    if workers == 1 or len(missing) < 2:
        for made, seed in enumerate(missing, start=1):
            record_one(job, folder, seed)
            yield Tally(made, kept)
        return
    with _pool(min(workers, len(missing))) as pool:
        futures = [pool.submit(record_one, job, folder, seed) for seed in missing]
        for made, future in enumerate(as_completed(futures), start=1):
            future.result()
            yield Tally(made, kept)


def record_one(job: Job, folder: Path, seed: int) -> None:
    """Simulate one seed and write a recording per view."""
    episodes = generate_views(job.scene, seed, job.capture, take=job.take)
    stems = [episode.stem for episode in episodes]
    for episode in episodes:
        extra = {"settings": job.settings, "held_out": seed >= HELD_OUT_SEED, "stems": stems}
        write_episode(episode, folder, extra=extra)


@contextmanager
def _pool(workers: int) -> Generator[ProcessPoolExecutor]:
    """Yield worker processes that are told to stop when the body fails or is interrupted."""
    # A forked child would inherit OpenGL state; a spawned one starts clean.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_with_parent)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _leave_with_parent() -> None:
    """End this worker when its parent is gone, killed say, and cannot tell it to stop."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _is_complete(job: Job, folder: Path, seed: int) -> bool:
    """Tell whether every view of a seed is there; a JSON file vouches for its recording."""
    stem = f"{job.scene}-{seed:07d}"
    found = [*folder.glob(f"{stem}.json"), *folder.glob(f"{stem}-*.json")][:1]
    if not found:
        return False
    try:
        description = json.loads(found[0].read_text())
        stems = description["stems"]
        same = description["settings"] == job.settings
    except (KeyError, TypeError, ValueError):
        return False
    return same and all((folder / (s + suffix)).is_file() for s in stems for suffix in MEMBERS)


def _enter(job: Job, folder: Path) -> None:
    """Note the job's settings in the folder's manifest, or refuse others than those there."""
    path = folder / MANIFEST
    manifest: dict[str, dict[str, object]] = {"scenes": {}}
    if path.exists():
        try:
            manifest = json.loads(path.read_text())
            known = manifest["scenes"].get(job.scene, job.settings)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: not a manifest of recordings ({error})") from error
        if known != job.settings:
            changed = [key for key, value in job.settings.items() if known.get(key) != value]
            raise ValueError(
                f"{folder}: has {job.scene} recordings with another {', '.join(changed)}; "
                "use a new folder"
            )
    manifest["scenes"][job.scene] = job.settings
    manifest["held_out_seeds_from"] = HELD_OUT_SEED  # ty: ignore[invalid-assignment]
    write_atomically(path, (json.dumps(manifest, indent=1) + "\n").encode())


def write_card(folder: Path) -> None:
    """Write README.md: what the recordings of a folder are, from its manifest and its files."""
    scenes = json.loads((folder / MANIFEST).read_text())["scenes"]
    rows = []
    for scene, settings in sorted(scenes.items()):
        stems = sorted(path.stem for path in folder.glob(f"{scene}-*.json"))
        seeds = sorted({int(stem.removeprefix(f"{scene}-")[:7]) for stem in stems})
        height, width = settings["size"]
        held_out = sum(seed >= HELD_OUT_SEED for seed in seeds)
        span = f"{seeds[0]} to {seeds[-1]}" if seeds else "-"
        rows.append(
            f"| {scene} | {len(stems)} | {span} | {held_out} | {settings['frames']} | "
            f"{height}x{width} |"
        )
    write_atomically(folder / CARD, CARD_TEXT.format(rows="\n".join(rows)).encode())
