"""The command ``wfm-tokenizer``. Nothing here imports torch before a subcommand runs."""

import argparse
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__, console

if TYPE_CHECKING:
    from .model import ContinuousTokenizer, DiscreteTokenizer

logger = logging.getLogger(__name__)

DEFAULT = "builtin:pico-cv4x8x8"

Report = Callable[[int, int], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return console.run(build_parser(), argv)


def build_parser() -> argparse.ArgumentParser:
    """Describe all subcommands."""
    parser = argparse.ArgumentParser(
        prog="wfm-tokenizer", description="Video and image tokenizers: pixels to latents and back."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, run, text, what in (
        ("encode", encode, "write each video's latents or tokens", "VIDEO"),
        ("decode", decode, "write the video of each latent file", "LATENTS"),
        ("reconstruct", reconstruct, "write original and reconstruction side by side", "VIDEO"),
    ):
        command = _command(commands, name, run, text)
        command.add_argument("inputs", nargs="+", type=Path, metavar=what)
        command.add_argument("-o", "--out", type=Path, required=True, help="folder for the results")
        _add_model(command, None if run is decode else DEFAULT)
    command = _command(commands, "evaluate", evaluate, "measure models on clips: a table, a plot")
    command.add_argument("inputs", nargs="+", metavar="CLIPS", help="folder, video or reference")
    command.add_argument("--clips", type=int, default=32, help="at most, of each input (32)")
    command.add_argument("--frames", type=int, default=17, help="at most, of each clip (17)")
    command.add_argument("--size", type=int, default=256, help="larger clips are cut to it (256)")
    command.add_argument("--short-side", type=int, metavar="PIXELS", help="shrink to it before")
    command.add_argument(
        "-m", "--model", action="append", dest="models", help=f"may be given again ({DEFAULT})"
    )
    command.add_argument(
        "--features", metavar="MODULE:CALLABLE", help="clips b 3 t h w -> b d, for the rFVD"
    )
    command.add_argument("-o", "--out", type=Path, help="folder for table.md, .json and plot.svg")
    _add_way(command)
    command = _command(commands, "train", train, "train a tokenizer on videos and images")
    command.add_argument("--config", type=Path, help="YAML file with the fields of TrainConfig")
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes")
    command.add_argument("-o", "--out", type=Path, help="folder of the run; as --set out=DIR")
    command.add_argument("--seed", type=int, help="as --set seed=N")
    command.add_argument("--device", help="cpu, cuda[:N] or mps (cpu)")
    command.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    command = _command(commands, "convert", convert, "write a published checkpoint in our layout")
    command.add_argument("source", help="folder or owner/name of a published checkpoint")
    command.add_argument("-o", "--out", type=Path, required=True, help="folder to write")
    command.add_argument("--variant", help="a published name, if the folder has another")
    command.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="to store"
    )
    _command(commands, "models", models, "list the built-in models and the presets")
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    console.add_common(command, run)
    return command


def _add_model(command: argparse.ArgumentParser, default: str | None) -> None:
    usual = default or "the built-in one that encoded"
    command.add_argument(
        "-m", "--model", default=default, help=f"folder, builtin:NAME or owner/name ({usual})"
    )
    _add_way(command)


def _add_way(command: argparse.ArgumentParser) -> None:
    command.add_argument("--device", default="auto", help="auto, cpu, cuda[:N] or mps (auto)")
    command.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="to compute in (float32 on a CPU, bfloat16 elsewhere)",
    )
    way = command.add_mutually_exclusive_group()
    way.add_argument(
        "--reference", action="store_true", help="compute layer by layer as published, not fused"
    )
    way.add_argument(
        "--compile", action="store_true", help="by torch.compile, on a GPU as CUDA graphs"
    )
    command.add_argument(
        "--tile", type=int, metavar="PIXELS", help="take huge frames in tiles of this side; inexact"
    )


def encode(args: argparse.Namespace) -> int:
    """Write a latent file for each video."""
    from .files import encode_file

    tokenizer = _load(args)

    def one(path: Path, report: Report) -> dict[str, Any]:
        out = args.out / f"{path.stem}.safetensors"
        content = encode_file(path, out, tokenizer, report=report)
        shape = "x".join(map(str, content.latent.shape[1:]))
        return {"input": str(path), "output": str(out), "shape": shape, "frames": content.frames}

    return _each(args, one)


def decode(args: argparse.Namespace) -> int:
    """Write a video for each latent file, by the built-in model that it names or by ``-m``."""
    from .files import decode_file, read_facts

    tokenizers = cache(partial(_load, args))

    def one(path: Path, report: Report) -> dict[str, Any]:
        out = args.out / f"{path.stem}.mp4"
        tokenizer = tokenizers(args.model or _made_by(path, read_facts(path)))
        content = decode_file(path, out, tokenizer, report=report)
        return {"input": str(path), "output": str(out), "frames": content.frames}

    return _each(args, one)


def reconstruct(args: argparse.Namespace) -> int:
    """Write a comparison video for each video."""
    from .files import reconstruct_file

    tokenizer = _load(args)

    def one(path: Path, report: Report) -> dict[str, Any]:
        out = args.out / f"{path.stem}.mp4"
        figures = reconstruct_file(path, out, tokenizer, report=report)
        return {"input": str(path), "output": str(out), **figures}

    return _each(args, one)


def evaluate(args: argparse.Namespace) -> int:
    """Print the figures of each model at each resolution."""
    from .data import Source, read_source
    from .evaluation import fitting_clips, measure
    from .references import resolve
    from .tables import write_report

    numbers = (args.clips, args.frames, args.size, args.short_side)
    if any(number is not None and number < 1 for number in numbers):
        raise ValueError("--clips, --frames, --size and --short-side are at least 1")
    features = resolve(args.features, "wfm.video_features") if args.features else None
    limits = {"max_frames": args.frames, "max_clips": args.clips, "short_side": args.short_side}
    sources = [Source(clips=clips, **limits) for clips in args.inputs]
    rows = []
    for model in args.models or [DEFAULT]:
        tokenizer = _load(args, model)
        box = (args.frames, args.size)
        clips = (
            clip
            for source in sources  # one clip after the other: they may be large
            for clip in fitting_clips(read_source(source), source.clips, tokenizer.compression, box)
        )
        bar = console.progress(clips, tokenizer.config.name, quiet=args.quiet)
        for row in measure(tokenizer, bar, features):
            rows.append(row)
            _print(args, row)
    if args.out is not None:
        write_report(args.out, rows)
    return console.DONE


def train(args: argparse.Namespace) -> int:
    """Train, and print the figures of the result."""
    from .settings import load_settings
    from .train_config import TrainConfig
    from .training import train as run

    changes = list(args.changes)
    for key in ("out", "seed", "device"):
        if (value := getattr(args, key)) is not None:
            changes.append(f"{key}={value}")
    config = load_settings(TrainConfig, args.config, changes)
    console.choose_device(config.device)

    def log(step: int, metrics: Any) -> None:
        figures = "  ".join(f"{key} {value:.4g}" for key, value in metrics.items())
        logger.info("%d/%d  %s", step, config.steps, figures)

    run(config, resume=args.resume, log=log)
    _print(args, json.loads((config.out / "model" / "metrics.json").read_text()))
    return console.DONE


def convert(args: argparse.Namespace) -> int:
    """Rewrite a checkpoint."""
    import torch

    from .loading import load

    tokenizer = load(args.source, variant=args.variant)
    tokenizer.save(args.out, dtype=getattr(torch, args.dtype))
    count = sum(p.numel() for p in tokenizer.parameters())
    _print(args, {"output": str(args.out), "name": tokenizer.config.name, "parameters": count})
    return console.DONE


def models(args: argparse.Namespace) -> int:
    """List what ``-m`` and ``model:`` of a training config know by name."""
    from .config import PRESETS

    shelf = Path(__file__).parent / "weights"
    for name, config in PRESETS.items():
        shipped = (shelf / name / "config.json").is_file()
        _print(
            args,
            {
                "name": f"builtin:{name}" if shipped else name,
                "kind": f"{config.kind} {config.network}",
                "compression": "x".join(map(str, config.compression)),
                "latent": config.vocab_size if config.levels else config.latent_channels,
                "weights": "here" if shipped else "not here (a preset)",
            },
        )
    return console.DONE


def _made_by(path: Path, facts: Mapping[str, str]) -> str:
    """Return the built-in model that a latent file names; of another it does not know the place."""
    from .loading import builtins

    source = f"builtin:{facts['model']}"
    if source not in builtins():
        raise ValueError(
            f"{path}: made by {facts['model']} ({facts['fingerprint']}), which is not built in; "
            "give its folder with -m"
        )
    return source


def _load(
    args: argparse.Namespace, source: str | None = None
) -> "ContinuousTokenizer | DiscreteTokenizer":
    import torch

    from .loading import load

    device = console.choose_device(args.device)
    dtype = getattr(torch, args.dtype or ("float32" if device == "cpu" else "bfloat16"))
    tokenizer = load(source or args.model, device=device, dtype=torch.float32)
    logger.info("%s on %s", tokenizer.config.name, device)
    if args.reference:
        tokenizer = tokenizer.to(dtype)
    else:
        tokenizer = tokenizer.fused(dtype, compile=args.compile)
    return tokenizer.tiled(args.tile) if args.tile else tokenizer


def _each(args: argparse.Namespace, one: Callable[[Path, Report], dict[str, Any]]) -> int:
    """Work on every input; with several, a bad one does not stop the others."""
    if args.out.is_file():
        raise ValueError(f"{args.out}: is a file; -o takes a folder")
    if any(path.resolve().parent == args.out.resolve() for path in args.inputs):
        raise ValueError(
            f"{args.out}: holds an input, which a result might replace; choose another"
        )
    stems = [path.stem for path in args.inputs]
    twice = sorted({stem for stem in stems if stems.count(stem) > 1})
    if twice:
        raise ValueError(f"several inputs are called {', '.join(twice)}: their results would clash")

    def work(path: Path) -> None:
        with console.frames_bar(path.name, quiet=args.quiet) as report:
            result = one(path, report)
        _print(args, result)

    if len(args.inputs) == 1:
        work(args.inputs[0])
        return console.DONE
    failed = []
    for path in args.inputs:
        try:
            work(path)
        except (ValueError, FileNotFoundError) as e:
            logger.error("wfm-tokenizer %s: error: %s", args.command, e)
            failed.append(path.name)
    if failed:
        logger.error("%d of %d failed: %s", len(failed), len(args.inputs), ", ".join(failed))
    return console.FAILED if failed else console.DONE


def _print(args: argparse.Namespace, result: dict[str, Any]) -> None:
    if args.json:
        print(json.dumps(result), flush=True)
        return
    flat = {key: value for key, value in result.items() if not isinstance(value, dict)}
    print("  ".join(f"{key} {value}" for key, value in flat.items()), flush=True)
    for key in result.keys() - flat.keys():
        for name, value in result[key].items():
            print(f"  {key}: {name} {value}", flush=True)
