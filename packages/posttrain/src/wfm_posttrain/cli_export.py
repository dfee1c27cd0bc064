"""The subcommand ``export``: recordings in the formats of others."""

import argparse
from pathlib import Path
from typing import Any

from .cli_uses import bar, tell
from .console import DONE, add_common


def add_export(commands: Any) -> None:
    """Add the subcommand to a command's parser."""
    parser = commands.add_parser(
        "export",
        help="write recordings as LeRobot 3.0 or 2.1, or as WebDataset",
        description="Writes a new folder, whole or not at all, with a card. LeRobot needs "
        "wfm-posttrain[lerobot].",
    )
    parser.add_argument("--clips", required=True, help="folder, or module:callable=ARGUMENT")
    parser.add_argument("--format", required=True, metavar="FORMAT",
                        help="lerobot-v3.0, lerobot-v2.1, webdataset")  # fmt: skip
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--robot", default="simulated", help="what LeRobot calls robot_type")
    add_common(parser, _export)


def _export(args: argparse.Namespace) -> int:
    from .clips import open_clips
    from .export import export

    count = export(
        open_clips(args.clips), args.out, args.format, robot=args.robot,
        progress=bar("exporting", args.quiet),
    )  # fmt: skip
    facts = {"out": str(args.out), "format": args.format, "episodes": count}
    tell(args, facts, f"{args.out}: {count} episodes as {args.format}")
    return DONE
