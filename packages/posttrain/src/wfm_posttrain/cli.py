"""The command ``wfm-posttrain``: simulate, train, evaluate, and the uses of a world model."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import __version__
from .cli_simulate import add_simulate
from .cli_uses import add_device, add_model, add_output, add_uses, bar, open_model, tell, write_json
from .console import DONE, add_common, choose_device, run

Subparsers = Any


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="wfm-posttrain",
        description="Post-train world models, act in them, plan with them, measure them.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_simulate(commands)
    _add_train(commands)
    _add_evaluate(commands)
    add_uses(commands)
    return run(parser, argv)


def _add_train(commands: Subparsers) -> None:
    parser = commands.add_parser(
        "train",
        help="fine-tune a base model to follow actions",
        description="Writes RUN/model (loads as a world model by itself), metrics.jsonl and "
        "evaluation.json. An interrupted run goes on with --resume.",
    )
    parser.add_argument("--recipe", choices=["action"], default="action")
    parser.add_argument("--config", metavar="FILE", help="YAML; see `action.ActionConfig`")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="override one setting, such as fit.steps=500")  # fmt: skip
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="RUN")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--seed", type=int, help="the same as --set fit.seed=N")
    add_device(parser)
    add_common(parser, _train)


def _add_evaluate(commands: Subparsers) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="score a world model on held-out recordings",
        description="Rolls out recordings with their own and with other recordings' actions.",
    )
    add_model(parser)
    parser.add_argument("--clips", required=True, help="folder, or module:callable=ARGUMENT")
    parser.add_argument("--frames", type=int, default=8, help="horizon (default 8)")
    parser.add_argument("--limit", type=int, default=32, help="clips at most (default 32)")
    add_output(parser)
    add_common(parser, _evaluate)


def _train(args: argparse.Namespace) -> int:
    from .action import ActionConfig, train
    from .settings import load_settings

    overrides = [*args.set, *([f"fit.seed={args.seed}"] if args.seed is not None else [])]
    config = load_settings(ActionConfig, args.config, overrides)
    folder = train(
        config,
        args.out,
        resume=args.resume,
        device=choose_device(args.device),
        progress=bar("training", args.quiet),
    )
    found = json.loads((args.out / "evaluation.json").read_text())
    tell(args, {"model": str(folder), **found}, f"{folder}: ready; see {folder / 'README.md'}")
    return DONE


def _evaluate(args: argparse.Namespace) -> int:
    from .action import evaluate
    from .evaluation import EvaluationConfig

    config = EvaluationConfig(clips=args.limit, frames=args.frames)
    result = evaluate(open_model(args), args.clips, config)
    facts = json.loads(result.to_json())
    write_json(args.out, facts)
    tell(args, facts, result.table())
    return DONE
