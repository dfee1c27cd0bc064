"""Fine-tuned from the pre-trained model against from scratch, by how much data there is; resumable.

    python packages/posttrain/benchmarks/study.py --clips TRAIN --held-out HELD_OUT -o study
    python packages/posttrain/benchmarks/study.py ... --recipe camera --seeds 1 --shares 0.05,1

Trains the recipe on shares of the recordings, once from the base model and once from the same
network with random weights, and writes result.json, result.md and a plot (result.svg). What
is there already is not trained again. Needs the base packages (dependency group `bench`).
"""

# ruff: noqa: T201
import argparse
import itertools
import json
import os
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from wfm_posttrain import recipes
from wfm_posttrain.checkpoint import replacing
from wfm_posttrain.clips import Part, open_clips
from wfm_posttrain.interfaces import ClipDataset
from wfm_posttrain.metrics import bootstrap
from wfm_posttrain.references import resolve
from wfm_posttrain.report import Curve, draw

Rows = dict[str, list[list[tuple[float, float]]]]
"""By start, by share of the data, by seed: PSNR and what another's condition takes from it, dB."""

STARTS = {"fine-tuned": "study:pretrained", "from scratch": "study:untrained"}


def pretrained(source: str) -> Any:
    """Load the base of the study, or a network that it saved."""
    return resolve(f"wfm_diffusion:load={source}", "")


def untrained(source: str) -> Any:
    """Load a network that the study saved, or make the base's anew with random weights."""
    network = pretrained(source)
    if Path(source).is_dir():
        return network
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return type(network)(network.config)


def share(argument: str) -> ClipDataset:
    """Open every so-many-th recording of a data set: ``PART@CLIPS``, with 0 < PART <= 1.

    The clips of a recording, one for each of its cameras, stay together.
    """
    part, _, reference = argument.partition("@")
    clips = open_clips(reference)
    recordings: dict[Any, list[int]] = {}
    for i in range(len(clips)):
        recordings.setdefault(clips[i].attributes.get("group", i), []).append(i)
    count = max(round(float(part) * len(recordings)), 2)
    chosen = list(recordings.values())[:: len(recordings) // count]
    return Part(clips, list(itertools.chain.from_iterable(chosen)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", required=True)
    parser.add_argument("--held-out", required=True)
    parser.add_argument("--recipe", default="action")
    parser.add_argument("--shares", default="0.01,0.05,0.25,1")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    shares = [float(x) for x in args.shares.split(",")]
    rows: Rows = {name: [] for name in STARTS}
    for part in shares:
        for name, start in STARTS.items():
            rows[name].append([trained(args, part, start, seed) for seed in range(args.seeds)])
            write(args.out, shares, rows)


def trained(args: argparse.Namespace, part: float, start: str, seed: int) -> tuple[float, float]:
    """Train once, if that was not done; return PSNR and gap, means over the horizon."""
    run = args.out / f"{args.recipe}-{start.partition(':')[2]}-{part:g}-{seed}"
    found = run / "evaluation.json"
    if not found.is_file():
        settings = [
            f"clips=study:share={part:g}@{args.clips}", f"held_out={args.held_out}",
            f"backend.base={start}=builtin:pico", f"fit.seed={seed}", f"fit.steps={args.steps}",
            *args.set,
        ]  # fmt: skip
        config = recipes.configure(args.recipe, None, settings)
        recipes.train(config, run, resume=(run / "state.pt").is_file())
    facts = json.loads(found.read_text())
    score, gap = fmean(facts["psnr"]), fmean(frame["mean"] for frame in facts["gap"])
    print(f"{run.name}: {score:.2f} dB, gap {gap:+.2f} dB", file=sys.stderr, flush=True)
    return score, gap


def write(folder: Path, shares: list[float], rows: Rows) -> None:
    """Write what is known so far: numbers, a table, a plot over the shares of the data."""
    table = ["| data | " + " | ".join(rows) + " |", "|---" * (1 + len(rows)) + "|"]
    for i, part in enumerate(shares):
        cells = [cell(found[i]) if i < len(found) else "-" for found in rows.values()]
        table.append(f"| {part:.0%} | {' | '.join(cells)} |")
    curves = [
        Curve.of(name, [bootstrap(torch.tensor([score for score, _ in s])) for s in found])
        for name, found in rows.items()
        if found
    ]
    files = {
        "result.json": json.dumps({"shares": shares, "psnr_and_gap": rows}, indent=2),
        "result.md": "\n".join(table),
        "result.svg": draw(curves, [f"{x:.0%}" for x in shares]),
    }
    for name, text in files.items():
        with replacing(folder / name) as partial:
            partial.write_text(text + "\n")
    print("\n".join(table), flush=True)


def cell(seeds: list[tuple[float, float]]) -> str:
    """Say the means over the seeds, and each seed's PSNR."""
    score, gap = (fmean(column) for column in zip(*seeds, strict=True))
    each = ", ".join(f"{score:.2f}" for score, _ in seeds)
    return f"{score:.2f} dB ({each}), gap {gap:+.2f}"


if __name__ == "__main__":
    main()
