"""The subcommand ``simulate``: recordings of simulated scenes, with all their labels."""

import argparse
import os
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from .cli_uses import bar, tell
from .console import DONE, FAILED, add_common
from .sim.recordings import Job, Tally, record_all, write_card
from .sim.scenes import HELD_OUT_SEED, SCENES, Capture


def add_simulate(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand to a command's parser."""
    parser = subparsers.add_parser(
        "simulate",
        help="film simulated scenes: videos with captions, actions, poses, depth, segmentation",
        description="Write STEM.mp4, STEM.json and STEM.safetensors for each seed. Finished "
        "recordings are kept, so an interrupted run can be repeated.",
    )
    parser.add_argument("--scene", required=True, choices=SCENES, metavar="SCENE",
                        help=", ".join(SCENES))  # fmt: skip
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--clips", type=int, default=10, help="number of seeds (default 10)")
    parser.add_argument(
        "--seed", type=int, default=0,
        help=f"first seed (default 0); from {HELD_OUT_SEED} on, held out from training",
    )  # fmt: skip
    parser.add_argument("--size", type=_size, default=(64, 64), metavar="N|HxW",
                        help="picture size in pixels (default 64)")  # fmt: skip
    parser.add_argument("--frames", type=int, default=17, help="frames per clip (default 17)")
    parser.add_argument("--views", type=_names, metavar="A,B", help="cameras to film with")
    parser.add_argument("--camera-jitter", type=float, default=0.0, metavar="METRES",
                        help="how far a seed may move the camera (default 0)")  # fmt: skip
    parser.add_argument("--take", type=int, default=0,
                        help="physics: 1 and up start a little otherwise (default 0)")  # fmt: skip
    parser.add_argument("--workers", type=int, default=_cores(), help="processes (default: cores)")
    add_common(parser, simulate)


def simulate(args: argparse.Namespace) -> int:
    """Record what the arguments ask for; return the exit code."""
    capture = Capture(args.size, args.frames, args.views, args.camera_jitter)
    job = Job(args.scene, args.clips, args.seed, capture, args.take)
    if args.workers < 1:
        raise ValueError(f"--workers is {args.workers}; at least 1 is needed")
    try:
        tally, update = Tally(0, 0), bar(job.scene, args.quiet)
        for tally in record_all(job, args.out, workers=args.workers):
            update(tally.made + tally.kept, job.clips)
    except BrokenProcessPool:
        sys.stderr.write(
            "wfm-posttrain simulate: error: a worker process died, perhaps for lack of memory; "
            "repeat the command with fewer --workers\n"
        )
        return FAILED
    write_card(args.out)
    facts = {"out": str(args.out), "scene": args.scene, "made": tally.made, "kept": tally.kept}
    text = f"{args.out}: {tally.made} recorded, {tally.kept} already there"
    tell(args, facts, text)
    return DONE


def _size(text: str) -> tuple[int, int]:
    h, _, w = text.lower().partition("x")
    return int(h), int(w or h)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
