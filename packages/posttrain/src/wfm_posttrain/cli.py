"""The command ``wfm-posttrain``: simulate, train, evaluate, and the uses of a world model."""

import argparse
from collections.abc import Sequence

from . import __version__
from .cli_evaluate import add_evaluate
from .cli_export import add_export
from .cli_simulate import add_simulate
from .cli_train import add_lora, add_train
from .cli_uses import add_uses
from .console import run


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
    add_evaluate(commands)
    add_uses(commands)
    add_export(commands)
    return run(parser, argv)
