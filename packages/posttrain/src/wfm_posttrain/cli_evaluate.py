"""The subcommand ``evaluate``: figures of a world model on held-out recordings, and a page."""

import argparse
import json
from pathlib import Path
from typing import Any

from .cli_uses import add_model, add_output, open_model, tell, write_json
from .console import DONE, add_common


def add_evaluate(commands: Any) -> None:
    """Add the subcommand to a command's parser."""
    parser = commands.add_parser(
        "evaluate",
        help="score a world model on held-out recordings",
        description="Imagines recordings with their own and with others' actions or conditions. "
        "--html writes one page with plots and pictures.",
    )
    add_model(parser)
    parser.add_argument("--clips", required=True, help="folder, or module:callable=ARGUMENT")
    parser.add_argument("--frames", type=int, default=8,
                        help="horizon of models that act frame by frame (default 8)")  # fmt: skip
    parser.add_argument("--limit", type=int, default=32, help="clips at most (default 32)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="page to write")
    parser.add_argument("--learn", metavar="DIR",
                        help="training recordings: learn to read actions and effector")  # fmt: skip
    parser.add_argument("--learn-steps", type=int, default=600, metavar="N",
                        help="training steps of each reader (default 600)")  # fmt: skip
    parser.add_argument(
        "--follow",
        action="store_true",
        help="models of whole clips: also geometry, masks, instructions obeyed",
    )
    parser.add_argument("--takes", metavar="DIR",
                        help="second takes of --clips, for the Physics-IQ score")  # fmt: skip
    net = parser.add_mutually_exclusive_group()
    net.add_argument("--fvd-net", type=Path, metavar="FILE",
                     help="TorchScript network to compare features of (I3D: FVD)")  # fmt: skip
    net.add_argument("--proxy", action="store_true",
                     help="compare TransNetV2's features: a proxy, not FVD")  # fmt: skip
    add_output(parser)
    add_common(parser, _evaluate)


def _evaluate(args: argparse.Namespace) -> int:
    from .clips import open_clips
    from .imagine import ClipWorld

    world, clips = open_model(args), open_clips(args.clips)
    if isinstance(world, ClipWorld):
        from .recipes import evaluate

        result: Any = evaluate(world, clips, clips_at_most=args.limit)
        _page(args, result)
        if args.follow:
            return _follow(args, world, clips, result)
    else:
        result = _act(args, world, clips)
        _page(args, result)
    facts = json.loads(result.to_json())
    write_json(args.out, facts)
    tell(args, facts, result.table())
    return DONE


def _page(args: argparse.Namespace, result: Any) -> None:
    """Write the page that ``--html`` asks for."""
    if args.html is not None:
        from .report import write_report

        write_report(args.html, result, title=f"{args.model} on {args.clips}")


def _follow(args: argparse.Namespace, world: Any, clips: Any, result: Any) -> int:
    """Add whether the camera, the rig and the masks are as they were told."""
    from .fidelity import FidelityConfig
    from .following import follow_conditions

    found = follow_conditions(world, clips, FidelityConfig(samples=args.limit))
    facts = {**json.loads(result.to_json()), "following": json.loads(found.to_json())}
    write_json(args.out, facts)
    tell(args, facts, f"{result.table()}\n\n{found.table()}")
    return DONE


def _act(args: argparse.Namespace, world: Any, clips: Any) -> Any:
    """Evaluate a world that acts frame by frame, by all that the arguments offer."""
    from .clips import open_clips
    from .distribution import PROXY, transnet_features, user_features
    from .evaluation import EvaluationConfig, Readers, evaluate_world

    features = user_features(args.fvd_net) if args.fvd_net else None
    features = transnet_features() if args.proxy else features
    name = PROXY if args.proxy else str(args.fvd_net)
    readers = Readers()
    if args.learn is not None:
        from .demonstration import Learner

        folder = Path(args.learn) / ".learned"
        learner = Learner(open_clips(args.learn), folder, args.learn, steps=args.learn_steps)
        readers = Readers(learner.tool(pixels=True), learner.inverse())
    return evaluate_world(
        world, clips, EvaluationConfig(clips=args.limit, frames=args.frames), readers=readers,
        takes=None if args.takes is None else open_clips(args.takes), features=features,
        features_of=name,
    )  # fmt: skip
