"""The command ``wfm-posttrain``: simulate, train, evaluate, and the uses of a world model."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from . import __version__
from .cli_simulate import add_simulate
from .cli_train import add_lora, add_train
from .cli_uses import add_model, add_output, add_uses, open_model, tell, write_json
from .console import DONE, add_common, run

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
    add_train(commands)
    add_lora(commands)
    _add_evaluate(commands)
    add_uses(commands)
    return run(parser, argv)


def _add_evaluate(commands: Subparsers) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="score a world model on held-out recordings",
        description="Imagines recordings with their own and with others' actions or conditions.",
    )
    add_model(parser)
    parser.add_argument("--clips", required=True, help="folder, or module:callable=ARGUMENT")
    parser.add_argument("--frames", type=int, default=8,
                        help="horizon of models that act frame by frame (default 8)")  # fmt: skip
    parser.add_argument("--limit", type=int, default=32, help="clips at most (default 32)")
    add_output(parser)
    add_common(parser, _evaluate)


def _evaluate(args: argparse.Namespace) -> int:
    from .recipes import evaluate

    result = evaluate(open_model(args), args.clips, clips_at_most=args.limit, frames=args.frames)
    facts = json.loads(result.to_json())
    write_json(args.out, facts)
    tell(args, facts, result.table())
    return DONE
