"""The subcommands that use a world model: to plan, to try policies, to learn from."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .console import DONE, add_common, choose_device

Subparsers = Any


def add_uses(commands: Subparsers) -> None:
    """Add the subcommands to a command's parser."""
    _add_plan(commands)
    _add_evaluate_policy(commands)
    _add_train_policy(commands)
    _add_probe(commands)
    _add_synthesize(commands)


def _command(
    commands: Subparsers,
    name: str,
    run: Callable[[argparse.Namespace], int],
    says: str,
    more: str,
    *,
    folder: bool = False,
) -> argparse.ArgumentParser:
    """Add a subcommand on a model that writes a JSON file, or a ``folder``; return its parser."""
    parser = commands.add_parser(name, help=says, description=more)
    add_model(parser)
    if folder:
        parser.add_argument("-o", "--out", type=Path, required=True, metavar="DIR")
        add_device(parser)
    else:
        add_output(parser)
    add_common(parser, run)
    return parser


def _add_plan(commands: Subparsers) -> None:
    parser = _command(
        commands, "plan", _plan,
        "reach goals in the simulated arm world by planning in the imagined one",
        "Model-predictive control towards a goal picture; writes a video for each "
        "goal (left: what happened, right: the goal) and result.json.", folder=True,
    )  # fmt: skip
    _add_seeds(parser, "--goals", 3)
    parser.add_argument("--steps", type=int, default=8, help="actions per goal (default 8)")
    parser.add_argument("--task", choices=["reach", "push"], default="reach")
    parser.add_argument("--reward", choices=["pixels", "latents", "seen"], default="pixels",
                        help="nearness to the goal in pixels, in latents, or as a reader learned "
                        "from --clips sees it")  # fmt: skip
    parser.add_argument("--method", choices=["cem", "icem", "mppi"], default="cem")
    parser.add_argument("--rivals", default="", metavar="A,B",
                        help="of random, tumble, cloned (by --clips), simulator")  # fmt: skip
    parser.add_argument("--agreement", action="store_true",
                        help="rank random plans in the model and the simulator")  # fmt: skip
    _add_set(parser, "override a setting of the search, such as samples=64")
    _add_learner(parser)


def _add_evaluate_policy(commands: Subparsers) -> None:
    parser = _command(
        commands, "evaluate-policy", _evaluate_policy,
        "compare success rates of policies in a world model and in the simulator",
        "Tries policies of graded skill from the same beginnings in both worlds; with "
        "--clips, also policies cloned from recordings, and with a judge that learned from them.",
    )  # fmt: skip
    _add_seeds(parser, "--episodes", 8)
    parser.add_argument("--steps", type=int, default=6, help="actions at most (default 6)")
    parser.add_argument("--skills", default="0,0.25,0.5,0.75,1", help="skill of each policy")
    parser.add_argument("--cloned", default="0,50,150,600", metavar="A,B",
                        help="training steps of each cloned policy (with --clips)")  # fmt: skip
    _add_learner(parser)


def _add_train_policy(commands: Subparsers) -> None:
    parser = _command(
        commands, "train-policy", _train_policy,
        "improve a cloned policy in imagination and try it in the simulator",
        "Clones a policy from recordings, improves it on imagined episodes, and "
        "compares both, and random actions, in the simulator.",
    )  # fmt: skip
    _add_seeds(parser, "--episodes", 24)
    parser.add_argument("--steps", type=int, default=6, help="actions at most (default 6)")
    parser.add_argument("--caution", type=float, default=0.0,
                        help="reward lost per unit of uncertainty (default 0)")  # fmt: skip
    _add_set(parser, "override a setting of the training, such as rounds=40")
    _add_learner(parser, required=True)


def _add_probe(commands: Subparsers) -> None:
    parser = _command(
        commands, "probe", _probe,
        "what a world model's features know: linear probes and few-shot cloning",
        "Reads the tool's place off frozen features, layer by layer, beside pixels, "
        "latents and the untrained network; then clones policies on them from few recordings.",
    )  # fmt: skip
    parser.add_argument("--held-out", required=True, metavar="DIR", help="recordings to score on")
    parser.add_argument("--layers", default="1,3,5", help="blocks, from 0 (default 1,3,5)")
    parser.add_argument("--sigmas", default="0.05,0.5", help="noise levels (default 0.05,0.5)")
    parser.add_argument("--shots", default="8,32", help="recordings to clone from (default 8,32)")
    _add_seeds(parser, "--episodes", 24)
    _add_learner(parser, required=True)


def _add_synthesize(commands: Subparsers) -> None:
    parser = _command(
        commands, "synthesize", _synthesize,
        "imagine recordings with labels to train on",
        "Continues real beginnings with other recordings' actions; drops what is "
        "uncertain, blurred or still; marks the rest as synthetic. With --held-out, measures "
        "what learning gains from them.", folder=True,
    )  # fmt: skip
    parser.add_argument("--clips", required=True, help="folder, or module:callable=ARGUMENT")
    _add_set(parser, "override a setting, such as clips=200")
    parser.add_argument("--held-out", metavar="DIR", help="recordings to measure the gain on")
    parser.add_argument("--real", type=int, default=16,
                        help="recordings to learn from, with --held-out (default 16)")  # fmt: skip


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add ``--model``."""
    parser.add_argument("-m", "--model", required=True,
                        help="folder, builtin:NAME, a name under wfm.world_models, "
                        "or module:callable=ARGUMENT")  # fmt: skip


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda[:i], mps")


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add ``--out`` for a JSON file, and ``--device``."""
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="JSON file to write")
    add_device(parser)


def _add_seeds(parser: argparse.ArgumentParser, flag: str, count: int) -> None:
    parser.add_argument("--seed", type=int, default=1_000_000, help="of the first one")
    parser.add_argument(flag, type=int, default=count, dest="count", metavar="N",
                        help=f"how many (default {count})")  # fmt: skip


def _add_set(parser: argparse.ArgumentParser, says: str) -> None:
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=says)


def _add_learner(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    parser.add_argument("--clips", required=required, metavar="DIR",
                        help="recordings that readers and cloned policies learn from")  # fmt: skip
    parser.add_argument("--learned", type=Path, metavar="DIR",
                        help="where to keep them (default: .learned in --clips)")  # fmt: skip
    parser.add_argument("--learn-steps", type=int, default=600, metavar="N",
                        help="training steps of each (default 600)")  # fmt: skip


def _plan(args: argparse.Namespace) -> int:
    from .demonstration import Errand, agreement, contest
    from .plan import SearchConfig
    from .settings import load_settings

    config = load_settings(SearchConfig, None, args.set)
    errand = Errand(args.task, args.reward, args.method, args.steps, config)
    world, learner, seeds = open_model(args), _learner(args), _seeds(args)
    found = contest(
        world, seeds, args.out, errand, rivals=_names(args.rivals), learner=learner,
        progress=bar("planning", args.quiet),
    )  # fmt: skip
    model = found["model"]
    facts = {
        "goals": model["goals"],
        "reached": sum(goal["reached"] for goal in model["goals"]),
        "seconds_per_plan": model["seconds_per_plan"],
        "contest": found,
    }
    if args.agreement:
        facts["agreement"] = agreement(world, seeds, errand, learner=learner)
    write_json(args.out / "result.json", facts)
    lines = [
        f"goal {goal['seed']}: {100 * goal['start']:.1f} cm -> {100 * goal['end']:.1f} cm"
        for goal in facts["goals"]
    ]
    lines.append(f"{facts['reached']} of {args.count} reached")
    lines.append(f"{facts['seconds_per_plan']:.1f} s per plan")
    for name, rival in found.items() if len(found) > 1 else ():
        ahead = f"; the model is ahead by {_span(rival['model_ahead'])}" if name != "model" else ""
        lines.append(f"{name}: {_span(rival['success'])} reached, {_span(rival['end'])} m{ahead}")
    if args.agreement:
        lines.append(f"rank correlation of plans: {_span(facts['agreement']['mean'])}")
    tell(args, facts, "\n".join(lines))
    return DONE


def _evaluate_policy(args: argparse.Namespace) -> int:
    from .demonstration import compare_policies

    facts = compare_policies(
        open_model(args), _numbers("--skills", args.skills), _seeds(args), steps=args.steps,
        learner=_learner(args), cloned=[int(n) for n in _numbers("--cloned", args.cloned)],
        progress=bar("policies", args.quiet),
    )  # fmt: skip
    write_json(args.out, facts)
    lines = [
        f"{name}: imagined {rate['imagined']:.0%}, real {rate['real']:.0%}"
        for name, rate in facts["success"].items()
    ]
    lines += [
        f"{name} {_span(facts[name])}" for name in ("pearson", "pearson_over_policies", "mmrv")
    ]
    lines += [f"pearson, {name}: {_span(value)}" for name, value in facts["families"].items()]
    close = facts["close_pairs"]
    lines.append(f"close pairs: {close['ranked_right']} of {close['count']} ranked right")
    lines.append(f"judge right on real pictures: {facts['judge_accuracy']:.0%}")
    tell(args, facts, "\n".join(lines))
    return DONE


def _train_policy(args: argparse.Namespace) -> int:
    from .experiments import train_policy
    from .imagination import ImaginationConfig
    from .settings import load_settings

    config, learner = load_settings(ImaginationConfig, None, args.set), _learner(args)
    assert learner is not None
    facts = train_policy(
        open_model(args), learner, _seeds(args), config, steps=args.steps, caution=args.caution,
        progress=bar("imagining", args.quiet),
    )  # fmt: skip
    write_json(args.out, facts)
    lines = [
        f"{name}: {_span(found['return'])} m nearer, {_span(found['success'])} reached"
        for name, found in facts["real"].items()
    ]
    lines += [f"ahead of {name} by {_span(value)} m" for name, value in facts["ahead"].items()]
    lines.append(f"imagined return minus real: {facts['gap']:+.3f} m")
    tell(args, facts, "\n".join(lines))
    return DONE


def _probe(args: argparse.Namespace) -> int:
    from .clips import open_clips
    from .experiments import encoders, few_shot, probe_world

    layers = [int(n) for n in _numbers("--layers", args.layers)]
    sources = encoders(open_model(args), layers=layers, sigmas=_numbers("--sigmas", args.sigmas))
    train, test = open_clips(args.clips), open_clips(args.held_out)
    found = probe_world(sources, train, test)
    best = max((n for n in found if n.startswith("layer")), key=lambda n: sum(found[n]))
    chosen = {name: sources[name] for name in ("pixels", "latents", f"untrained {best}", best)}
    shots = [int(n) for n in _numbers("--shots", args.shots)]
    cloned = few_shot(chosen, train, _seeds(args), shots=shots, control=f"untrained {best}")
    facts = {"r_squared": found, "best": best, "few_shot": cloned}
    write_json(args.out, facts)
    lines = ["| features | R2 of x | y | z |", "|---" * 4 + "|"]
    lines += [f"| {n} | {' | '.join(f'{x:.3f}' for x in row)} |" for n, row in found.items()]
    for count, tried in cloned.items():
        lines += [
            f"{count} recordings, {name}: {_span(facts['return'])} m nearer, "
            f"ahead of untrained by {_span(facts['ahead'])}"
            for name, facts in tried.items()
        ]
    tell(args, facts, "\n".join(lines))
    return DONE


def _synthesize(args: argparse.Namespace) -> int:
    from .clips import open_clips
    from .experiments import downstream_gain
    from .settings import load_settings
    from .synthetic import SyntheticConfig, synthesize

    config, clips = load_settings(SyntheticConfig, None, args.set), open_clips(args.clips)
    world, progress = open_model(args), bar("imagining", args.quiet)
    if args.held_out is None:
        harvest = synthesize(world, clips, args.out, config, name=args.model, progress=progress)
        facts: dict[str, Any] = {"kept": harvest.kept, "dropped": dict(harvest.dropped)}
    else:
        facts = downstream_gain(
            world, clips, open_clips(args.held_out), args.out, config, real=args.real,
            name=args.model, progress=progress,
        )  # fmt: skip
    write_json(args.out / "result.json", facts)
    why = ", ".join(f"{count} {fault}" for fault, count in facts["dropped"].items()) or "none"
    lines = [f"{args.out}: {facts['kept']} kept, dropped: {why}"]
    for task in ("inverse dynamics", "goal policy"):
        if task in facts:
            spans = {kind: _span(value) for kind, value in facts[task].items()}
            lines.append(
                "{}: error {without} without, {with} with; gain {gain}".format(task, **spans)
            )
    tell(args, facts, "\n".join(lines))
    return DONE


def open_model(args: argparse.Namespace) -> Any:
    """Load the world model that the arguments name."""
    from .saved import open_world

    return open_world(args.model, device=choose_device(args.device))


def _learner(args: argparse.Namespace) -> Any:
    """Return what learns from ``--clips``, if they are given."""
    if args.clips is None:
        return None
    from .clips import open_clips
    from .demonstration import Learner

    folder = args.learned or Path(args.clips) / ".learned"
    return Learner(open_clips(args.clips), folder, str(args.clips), steps=args.learn_steps)


def _seeds(args: argparse.Namespace) -> range:
    if args.count < 1:
        raise ValueError(f"{args.count} goals or episodes; one is the least")
    return range(args.seed, args.seed + args.count)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(flag: str, text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as e:
        raise ValueError(f"{flag} takes numbers with commas between, got {text!r}") from e


def _span(interval: dict[str, float | None]) -> str:
    """Put an interval in words."""
    numbers = [interval[k] for k in ("value", "low", "high")]
    value, low, high = ("-" if n is None else f"{n:.3f}" for n in numbers)
    return f"{value} ({low} to {high})"


def bar(what: str, quiet: bool) -> Callable[[int, int], None]:
    """Make a progress callback that draws a bar on a terminal."""
    import os
    import sys

    from tqdm import tqdm

    hidden = quiet or not sys.stderr.isatty() or "NO_PROGRESS" in os.environ
    drawn = tqdm(desc=what, disable=hidden, file=sys.stderr)

    def update(done: int, total: int) -> None:
        drawn.total = total
        drawn.update(done - drawn.n)
        if done == total:
            drawn.close()

    return update


def write_json(path: Path | None, facts: dict[str, Any]) -> None:
    """Write results as JSON, whole or not at all."""
    if path is None:
        return
    from .checkpoint import replacing

    with replacing(path) as partial:
        partial.write_text(json.dumps(facts, indent=2) + "\n")


def tell(args: argparse.Namespace, facts: dict[str, Any], text: str) -> None:
    """Print results: as JSON with ``--json``, else in words."""
    print(json.dumps(facts) if args.json else text)
