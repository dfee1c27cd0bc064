"""Measure the simulator, imagined steps, plans, learning and metrics; print Markdown.

    python packages/posttrain/benchmarks/bench.py             # all
    python packages/posttrain/benchmarks/bench.py --only simulator --clips 6

Seconds are those of this process's CPU time on one thread, so that a busy machine tells the same.
`worlds` and `uses` need the base packages of the built-in models (dependency group `bench`).
"""

# ruff: noqa: T201
import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from wfm_posttrain import metrics, motion, sim
from wfm_posttrain.plan import ImaginedReturn, LooksLike, SearchConfig, cem
from wfm_posttrain.sim.recordings import Job, record_one
from wfm_posttrain.simulator import ArmEnv, TrueWorld, move_bounds
from wfm_posttrain.vision import Examples, SmallVision, fit

Row = tuple[str, ...]
SCENES = {"arm-push": 120, "free-fall": 120, "dominoes": 120, "room": 120, "street": 45}


def main() -> None:
    parts = {"simulator": simulator, "worlds": worlds, "uses": uses, "metrics": scores}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=parts, action="append")
    parser.add_argument("--clips", type=int, default=4, help="simulator: recordings a scene [4]")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.only or parts:
        print(f"\n### {name}\n", flush=True)
        for number, row in enumerate(parts[name](args)):
            print(f"| {' | '.join(row)} |", flush=True)
            if not number:
                print("|" + " --- |" * len(row), flush=True)


def spent(work: Callable[[], object], times: int = 3) -> float:
    """Return the median CPU seconds of a call, after one that warms up."""
    work()
    found = []
    for _ in range(times):
        begun = time.process_time()
        work()
        found.append(time.process_time() - begun)
    return statistics.median(found)


def simulator(args: argparse.Namespace) -> Iterator[Row]:
    """Recordings of 17 frames at 64 pixels with all labels, encoded and written."""
    yield "scene", "recordings per core-minute", "wanted"
    with tempfile.TemporaryDirectory() as name:
        for scene, wanted in SCENES.items():
            job, seeds = Job(scene, args.clips + 1), iter(range(args.clips + 1))
            seconds = spent(lambda j=job, s=seeds: record_one(j, Path(name), next(s)), args.clips)
            views = " of six cameras" if scene == "street" else ""
            yield f"{scene}{views}", f"{60 / seconds:.0f}", str(wanted)


@torch.no_grad()
def worlds(_: argparse.Namespace) -> Iterator[Row]:
    """One step of the built-in models, alone and in a batch."""
    import wfm_posttrain as wp

    yield "model", "worlds at once", "frames per second"
    for name in ("pico-arm-diffusion", "pico-arm-ar"):
        world = wp.load(f"builtin:{name}")
        for count in (1, 16):
            past = torch.zeros(count, 3, world.past_frames, 64, 64)
            controls = {"action": torch.zeros(count, 1, 7)}
            seconds = spent(lambda w=world, p=past, c=controls: w.rollout(p, frames=1, controls=c))
            yield name, str(count), f"{count / seconds:.1f}"


def uses(_: argparse.Namespace) -> Iterator[Row]:
    """A plan in the model and in the simulator; a step of learning to read pictures."""
    import wfm_posttrain as wp

    yield "what", "CPU seconds"
    env, config = ArmEnv("reach"), SearchConfig()
    try:
        picture, info = env.reset(seed=sim.HELD_OUT_SEED)
        still = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None, :, None] / 127.5 - 1
        goal = LooksLike(torch.from_numpy(info["goal_frame"].copy()))
        models = {"model": wp.load("builtin:pico-arm-diffusion"), "simulator": TrueWorld(env)}
        for name, world in models.items():
            past = still.expand(-1, -1, world.past_frames, -1, -1)
            score = ImaginedReturn(world, past, goal)
            seconds = spent(
                lambda s=score: cem(s, move_bounds(), config, generator=torch.Generator()), 1
            )
            imagined = config.samples * config.iterations * config.horizon
            yield f"plan of {imagined} imagined frames, {name}", f"{seconds:.2f}"
    finally:
        env.close()
    frames = torch.randint(0, 256, (64, 3, 64, 64), dtype=torch.uint8)
    examples = Examples(frames, torch.arange(64)[:, None], torch.rand(64, 3))
    net = SmallVision(3, 3)
    seconds = spent(lambda: fit(net, examples, steps=5)) / 5
    yield "training step of a reader, 64 pictures", f"{seconds:.3f}"


def scores(_: argparse.Namespace) -> Iterator[Row]:
    """Metrics of one clip of 9 frames."""
    from wfm_posttrain import geometry

    yield "metric", "milliseconds"
    episode = sim.generate("room", sim.HELD_OUT_SEED, frames=9)
    video = torch.from_numpy(episode.frames).permute(1, 0, 2, 3)[None] / 127.5 - 1
    measured: dict[str, Callable[[], object]] = {
        "PSNR": lambda: metrics.psnr(video, video.flip(2)),
        "SSIM": lambda: metrics.ssim(video, video.flip(2)),
        "motion": lambda: motion.motion_scores(video, video.flip(2)),
        "TSE": lambda: geometry.temporal_sampson(episode.frames),
    }
    for name, work in measured.items():
        yield name, f"{1000 * spent(work):.1f}"


if __name__ == "__main__":
    main()
