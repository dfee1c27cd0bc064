"""The command ``wfm-posttrain``: simulate, train, evaluate, plan, evaluate-policy."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import __version__
from .cli_simulate import add_simulate
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
    _add_plan(commands)
    _add_evaluate_policy(commands)
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
    _add_device(parser)
    add_common(parser, _train)


def _add_evaluate(commands: Subparsers) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="score a world model on held-out recordings",
        description="Rolls out recordings with their own and with other recordings' actions.",
    )
    _add_model(parser)
    parser.add_argument("--clips", required=True, help="folder, or module:callable=ARGUMENT")
    parser.add_argument("--frames", type=int, default=8, help="horizon (default 8)")
    parser.add_argument("--limit", type=int, default=32, help="clips at most (default 32)")
    _add_output(parser)
    add_common(parser, _evaluate)


def _add_plan(commands: Subparsers) -> None:
    parser = commands.add_parser(
        "plan",
        help="reach goals in the simulated arm world by planning in the imagined one",
        description="Model-predictive control towards a goal picture; writes a video for each "
        "goal (left: what happened, right: the goal) and result.json.",
    )
    _add_model(parser)
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=1_000_000, help="of the first goal")
    parser.add_argument("--goals", type=int, default=3, help="how many (default 3)")
    parser.add_argument("--steps", type=int, default=8, help="actions per goal (default 8)")
    parser.add_argument("--method", choices=["cem", "icem", "mppi"], default="cem")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="override a setting of the search, such as samples=64")  # fmt: skip
    _add_device(parser)
    add_common(parser, _plan)


def _add_evaluate_policy(commands: Subparsers) -> None:
    parser = commands.add_parser(
        "evaluate-policy",
        help="compare success rates of policies in a world model and in the simulator",
        description="Tries policies of graded skill from the same beginnings in both worlds.",
    )
    _add_model(parser)
    parser.add_argument("--episodes", type=int, default=8, help="per policy (default 8)")
    parser.add_argument("--steps", type=int, default=6, help="actions at most (default 6)")
    parser.add_argument("--seed", type=int, default=1_000_000, help="of the first beginning")
    parser.add_argument("--skills", default="0,0.25,0.5,0.75,1", help="skill of each policy")
    _add_output(parser)
    add_common(parser, _evaluate_policy)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model", required=True,
                        help="folder, builtin:NAME, a name under wfm.world_models, "
                        "or module:callable=ARGUMENT")  # fmt: skip


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda[:i], mps")


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="JSON file to write")
    _add_device(parser)


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
        progress=_bar("training", args.quiet),
    )
    found = json.loads((args.out / "evaluation.json").read_text())
    _tell(args, {"model": str(folder), **found}, f"{folder}: ready; see {folder / 'README.md'}")
    return DONE


def _evaluate(args: argparse.Namespace) -> int:
    from .action import evaluate
    from .evaluation import EvaluationConfig

    config = EvaluationConfig(clips=args.limit, frames=args.frames)
    result = evaluate(_world(args), args.clips, config)
    facts = json.loads(result.to_json())
    _write(args.out, facts)
    _tell(args, facts, result.table())
    return DONE


def _plan(args: argparse.Namespace) -> int:
    from .demonstration import reach_goals
    from .plan import SearchConfig
    from .settings import load_settings

    config = load_settings(SearchConfig, None, args.set)
    seeds = range(args.seed, args.seed + args.goals)
    facts = reach_goals(
        _world(args), seeds, args.out, config=config, method=args.method, steps=args.steps,
        progress=_bar("planning", args.quiet),
    )  # fmt: skip
    _write(args.out / "result.json", facts)
    lines = [
        f"goal {goal['seed']}: {100 * goal['start']:.1f} cm -> {100 * goal['end']:.1f} cm"
        for goal in facts["goals"]
    ]
    lines.append(f"{facts['reached']} of {args.goals} reached")
    lines.append(f"{facts['seconds_per_plan']:.1f} s per plan")
    _tell(args, facts, "\n".join(lines))
    return DONE


def _evaluate_policy(args: argparse.Namespace) -> int:
    from .demonstration import compare_policies

    try:
        skills = [float(skill) for skill in args.skills.split(",")]
    except ValueError as e:
        raise ValueError(f"--skills takes numbers with commas between, got {args.skills!r}") from e
    seeds = range(args.seed, args.seed + args.episodes)
    facts = compare_policies(
        _world(args), skills, seeds, steps=args.steps, progress=_bar("policies", args.quiet)
    )
    _write(args.out, facts)
    lines = [
        f"{name}: imagined {rate['imagined']:.0%}, real {rate['real']:.0%}"
        for name, rate in facts["success"].items()
    ]
    for name in ("pearson", "mmrv"):
        value = facts[name]
        numbers = ["-" if value[k] is None else f"{value[k]:.3f}" for k in ("value", "low", "high")]
        lines.append(f"{name} {numbers[0]} (95 %: {numbers[1]} to {numbers[2]})")
    _tell(args, facts, "\n".join(lines))
    return DONE


def _world(args: argparse.Namespace) -> Any:
    """Load the world model that the arguments name."""
    from .saved import open_world

    return open_world(args.model, device=choose_device(args.device))


def _bar(what: str, quiet: bool) -> Callable[[int, int], None]:
    """Make a progress callback that draws a bar on a terminal."""
    import os
    import sys

    from tqdm import tqdm

    hidden = quiet or not sys.stderr.isatty() or "NO_PROGRESS" in os.environ
    bar = tqdm(desc=what, disable=hidden, file=sys.stderr)

    def update(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return update


def _write(path: Path | None, facts: dict[str, Any]) -> None:
    """Write results as JSON, whole or not at all."""
    if path is None:
        return
    from .checkpoint import replacing

    with replacing(path) as partial:
        partial.write_text(json.dumps(facts, indent=2) + "\n")


def _tell(args: argparse.Namespace, facts: dict[str, Any], text: str) -> None:
    print(json.dumps(facts) if args.json else text)
