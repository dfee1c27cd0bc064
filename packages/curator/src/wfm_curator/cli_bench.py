"""``wfm-curator bench``: make films with known cuts, and judge shot detectors on them."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from . import console


def add(commands: Any) -> None:
    """Add the subcommand and its own ones."""
    bench = commands.add_parser("bench", help="judge shot detectors on films with known cuts")
    parts = bench.add_subparsers(dest="part", required=True, metavar="PART")
    make = parts.add_parser("make", help="make films from clips of one shot each")
    console.add_common(make, _make)
    make.add_argument(
        "inputs", nargs="+", type=Path, help='videos or folders; a .json may list "cuts"'
    )
    make.add_argument("-o", "--out", type=Path, required=True, help="folder for the films")
    for flag, value, about in (
        ("films", 8, "how many"),
        ("shots", 24, "shots in each"),
        ("height", 216, "pixels; width is 16/9 of it"),
        ("seed", 0, "decides excerpts, order and transitions"),
    ):
        make.add_argument(f"--{flag}", type=int, default=value, help=f"{about} [{value}]")
    shots = parts.add_parser("shots", help="table of recall, precision and F1 of each detector")
    console.add_common(shots, _shots)
    shots.add_argument("films", type=Path, help="what `bench make -o` wrote")
    shots.add_argument("--tolerance", type=int, default=1, help="frames [1]")
    shots.add_argument(
        "--only", action="append", metavar="DETECTOR", help="not all that are installed"
    )


def _make(args: argparse.Namespace) -> int:
    from .films import make
    from .inputs import find_recordings

    found = find_recordings(args.inputs)
    films = make(
        found, args.out, films=args.films, shots=args.shots, height=args.height, seed=args.seed
    )
    for path in console.progress(films, "films", quiet=args.quiet):
        print(json.dumps({"path": str(path)}) if args.json else path)
    return console.DONE


def _shots(args: argparse.Namespace) -> int:
    from .judge import detectors, judge

    films = sorted(args.films.glob("*.mp4"))
    if not films:
        raise ValueError(f"{args.films}: no films in here; wfm-curator bench make writes them")
    known = detectors()
    for name in args.only or ():
        if name not in known:
            raise ValueError(f"detector {name!r} is not one of {', '.join(known)}")
    if not args.json:
        print(
            "| detector | hard F1 (recall, precision) | gradual F1 (recall, precision) | frames/s |"
        )
        print("| --- | --- | --- | --- |")
    for name in args.only or known:
        began = time.perf_counter()
        found = judge(films, known[name], tolerance=args.tolerance)
        seconds = time.perf_counter() - began
        frames = sum(_length(film) for film in films)
        if args.json:
            rows = {k: vars(v) | {"f1": round(v.f1, 4)} for k, v in found.items()}
            print(json.dumps({"detector": name, "seconds": round(seconds, 3), **rows}))
            continue
        cells = [
            f"{t.f1:.3f} ({t.recall:.3f}, {t.precision:.3f})"
            for t in (found["hard"], found["gradual"])
        ]
        print(f"| {name} | {cells[0]} | {cells[1]} | {frames / seconds:.0f} |")
    return console.DONE


def _length(film: Path) -> int:
    from .video import open_video

    with open_video(film) as container:
        return container.streams.video[0].frames
