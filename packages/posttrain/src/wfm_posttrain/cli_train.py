"""The subcommands ``train`` and ``lora``: make a model, and fold its adapters in."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from .cli_uses import add_device, bar, tell
from .console import DONE, add_common, choose_device

Subparsers = Any
RECIPES = ("action", "action-chunk", "camera", "instruction", "multiview", "control")


def add_train(commands: Subparsers) -> None:
    """Add the subcommand to a command's parser."""
    parser = commands.add_parser(
        "train",
        help="fine-tune a base model to follow actions, a camera, text, cameras, or a hint",
        description="Writes RUN/model (loads as a world model by itself), metrics.jsonl and "
        "evaluation.json. An interrupted run goes on with --resume.",
    )
    parser.add_argument("--recipe", choices=RECIPES, default="action",
                        help="whose settings to start from (default action)")  # fmt: skip
    parser.add_argument("--config", metavar="FILE",
                        help="YAML with changes; see `recipes.ClipConfig`")  # fmt: skip
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="change one setting, such as fit.steps=500")  # fmt: skip
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="RUN")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--seed", type=int, help="the same as --set fit.seed=N")
    parser.add_argument("--estimate", action="store_true",
                        help="say how much memory it takes, and do not train")  # fmt: skip
    add_device(parser)
    add_common(parser, _train)


def add_lora(commands: Subparsers) -> None:
    """Add the subcommand to a command's parser."""
    parser = commands.add_parser("lora", help="low-rank adapters of a trained model")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    merge = actions.add_parser(
        "merge",
        help="fold a model's adapters into its network",
        description="Writes a model that needs neither its adapters nor its base any more.",
    )
    merge.add_argument("model", help="folder of a model that was trained with lora")
    merge.add_argument("-o", "--out", type=Path, required=True, metavar="FOLDER")
    add_common(merge, _merge)


def _train(args: argparse.Namespace) -> int:
    from .recipes import ClipConfig, configure, engine, train

    overrides = [*args.set, *([f"fit.seed={args.seed}"] if args.seed is not None else [])]
    config = configure(args.recipe, args.config, overrides)
    if args.estimate:
        if not isinstance(config, ClipConfig):
            raise ValueError("--estimate knows the recipes on whole clips, not this one")
        found = engine.estimate(config, args.out)
        tell(args, vars(found) | {"total": found.total}, str(found))
        return DONE
    folder = train(
        config, args.out, resume=args.resume, device=choose_device(args.device),
        progress=bar("training", args.quiet),
    )  # fmt: skip
    if os.environ.get("RANK", "0") != "0":  # one of several processes speaks for all
        return DONE
    found = json.loads((args.out / "evaluation.json").read_text())
    tell(args, {"model": str(folder), **found}, f"{folder}: ready; see {folder / 'README.md'}")
    return DONE


def _merge(args: argparse.Namespace) -> int:
    from .merging import merge_model

    merge_model(args.model, args.out)
    tell(args, {"model": str(args.out)}, f"{args.out}: ready, its adapters folded in")
    return DONE
