"""The commands that need a world model or clips: evaluate, train-heads, drafts, play."""

import argparse
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import DONE, add_common, choose_device

if TYPE_CHECKING:
    from .interfaces import WorldModel as AnyWorld
    from .world import WorldModel

logger = logging.getLogger(__name__)

START = Path(__file__).parent / "page" / "arm.mp4"
ARM_WORLD = "pico-arm-ar"
WEIGHT_KINDS = ("float32", "bfloat16", "int8")


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    add_common(parser, evaluate)
    _add_world(parser)
    add = parser.add_argument
    add("clips", help="folder of held-out videos, or module:callable=ARGUMENT of a dataset")
    add("-f", "--frames", type=int, help="frames to imagine (default: as in the training)")
    add("-n", "--count", type=int, default=64, help="clips, evenly spread")
    add("--rounds", type=int, default=0, help="measure the drift over so many grids instead")
    add("--temperature", type=float, default=1.0, help="0 takes the likeliest token")
    add("--top-p", type=float, default=0.8, help="part of the probability sampled from")
    add("--seed", type=int, default=0)
    add("-o", "--out", type=Path, metavar="FILE.md", help="write the table there too")


def add_train_heads(parser: argparse.ArgumentParser) -> None:
    add_common(parser, train_heads)
    _add_world(parser, decodes=False)
    add = parser.add_argument
    add("clips", help="folder of videos, or module:callable=ARGUMENT of a dataset")
    add("-o", "--out", type=Path, required=True, metavar="FOLDER")
    add("--count", type=int, default=4, help="tokens to guess beside the next one")
    add("--steps", type=int, default=500)
    add("--batch", type=int, default=16)
    add("--lr", type=float, default=1e-3)
    add("--precision", choices=("float32", "bfloat16"), default="float32", help="of the products")
    add("--stride", type=int, default=8, help="frames from one window of a clip to the next")
    add("--tokens", type=Path, metavar="FILE", help="those that the model was trained on")
    add("--seed", type=int, default=0)


def add_drafts(parser: argparse.ArgumentParser) -> None:
    add_common(parser, drafts)
    _add_world(parser)
    add = parser.add_argument
    add("clips", help="folder of videos, or module:callable=ARGUMENT of a dataset")
    add("-n", "--count", type=int, default=16, help="clips, evenly spread")
    add("--heads", type=Path, metavar="FOLDER", help="Medusa heads to try too")
    add("--temperature", type=float, default=0.0, help="0 takes the likeliest token")
    add("--top-p", type=float, help="part of the probability sampled from")
    add("--seed", type=int, default=0)


def add_play(parser: argparse.ArgumentParser) -> None:
    add_common(parser, play)
    add = parser.add_argument
    add("--world", default=ARM_WORLD, metavar="REF", help="world model that follows actions")
    add("--start", type=Path, metavar="FILE", help="video or picture to begin from")
    add("--keys", type=Path, metavar="FILE.yaml", help="actions of keys (default: a robot arm)")
    add("--weights", choices=WEIGHT_KINDS, help="precision of the matrices")
    add("--fps", type=float, default=10.0, help="at most so many frames a second")
    add("--port", type=int, default=8000)
    add("--seed", type=int, default=0)
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")


def _add_world(parser: argparse.ArgumentParser, *, decodes: bool = True) -> None:
    add = parser.add_argument
    add(
        "-m",
        "--model",
        default="builtin:pico-ar",
        metavar="SOURCE",
        help="folder, builtin:NAME, or name",
    )
    add("--codec", metavar="REF", help="name or module:callable (default: as in the training)")
    add("--text-encoder", metavar="REF", help="likewise")
    if decodes:
        add("--weights", choices=WEIGHT_KINDS, help="precision of the matrices")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")


def evaluate(args: argparse.Namespace) -> int:
    """Print figures for a model card: by horizon and scene, or round by round."""
    from . import drift, evaluation
    from .checkpoint import replacing
    from .clips import find_clips

    clips, world = find_clips(args.clips), _world(args)
    world.temperature, world.top_p = args.temperature, args.top_p if args.temperature else None
    shared: dict[str, Any] = {"count": args.count, "seed": args.seed, "progress": _told(args)}
    if args.rounds:
        rows = drift.drift(world, clips, rounds=args.rounds, **shared)
        facts, text = {"rounds": rows}, drift.table(rows)
    else:
        figures = evaluation.evaluate(world, clips, frames=args.frames, **shared)
        facts, text = {"scenes": figures}, evaluation.table(figures)
    if args.out is not None:
        with replacing(args.out) as partial:
            partial.write_text(f"{text}\n")
    print(json.dumps(facts) if args.json else text)
    return DONE


def train_heads(args: argparse.Namespace) -> int:
    """Train Medusa heads on a frozen model."""
    from .clips import find_clips
    from .medusa import train_heads as train
    from .tokens import Windows, cached_tokens

    clips, world = find_clips(args.clips), _world(args)
    settings = world.settings
    windows = Windows(
        settings.latents, settings.past_frames + settings.frames, args.stride, settings.fps,
        settings.height, settings.width,
    )  # fmt: skip
    data = cached_tokens(
        args.tokens or args.out / "tokens.safetensors", clips, world.codec, windows,
        about=[args.clips, str(args.text_encoder or settings.text_encoder)],
        text_encoder=world.text_encoder, progress=_told(args),
    )  # fmt: skip

    def log(step: int, figures: Any) -> None:
        if not args.quiet:
            text = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
            sys.stderr.write(f"{step:>6}/{args.steps}  {text}\n")

    heads, accuracy = train(
        world.lm, data, count=args.count, steps=args.steps, batch=args.batch, lr=args.lr,
        seed=args.seed, precision=args.precision, log=log,
    )  # fmt: skip
    heads.save(args.out, world.lm)
    facts = {"heads": str(args.out), "held_out_accuracy": [round(x, 4) for x in accuracy]}
    print(json.dumps(facts) if args.json else f"{args.out}: held-out accuracy {accuracy}")
    return DONE


def drafts(args: argparse.Namespace) -> int:
    """Print what drafts save on clips, static and moving scenes apart."""
    from . import trial
    from .clips import find_clips
    from .medusa import load_heads

    clips, world = find_clips(args.clips), _world(args)
    tried = trial.copies(world)
    if args.heads is not None:
        tried["heads"] = load_heads(args.heads, world.lm)
    rows = trial.try_drafts(
        world, clips, tried, temperature=args.temperature, top_p=args.top_p,
        count=args.count, seed=args.seed, progress=_told(args),
    )  # fmt: skip
    print(json.dumps({"drafts": rows}) if args.json else trial.table(rows))
    return DONE


def play(args: argparse.Namespace) -> int:
    """Serve the page in which keys steer a world."""
    from .keys import ARM, Keys
    from .settings import load_settings

    if args.fps <= 0:
        raise ValueError(f"--fps must be above 0, got {args.fps:g}")
    keys = load_settings(Keys, args.keys, []) if args.keys else ARM
    if args.start is None and args.world != ARM_WORLD:
        raise ValueError(f"--world {args.world} needs --start FILE: a picture to begin from")
    try:
        from .play import Player, serve
    except ImportError as e:
        raise ImportError(f"wfm-ar play needs: pip install wfm-ar[play] ({e})") from e
    device = choose_device(args.device)
    world = _any_world(args.world, args.weights)
    player = Player(world, _start(args.start or START, world).to(device), keys, args.seed)
    for _ in range(3):  # mistakes show now, and so does the speed
        player.step(keys.action([], []))
    logger.info("a frame takes %.0f ms here", player.milliseconds)
    player.reset()
    print(json.dumps({"url": f"http://127.0.0.1:{args.port}/"}), flush=True)
    serve(player, port=args.port, fps=args.fps, title=f"{args.world}, steered by you")
    return DONE


def _world(args: argparse.Namespace) -> "WorldModel":
    """Load one of our world models, from where ``load`` finds them or by its name."""
    from .fast import for_decoding
    from .references import resolve
    from .world import WorldModel, load_world

    source, device = args.model, choose_device(args.device)
    if source.startswith("builtin:") or "/" in source or Path(source).is_dir():
        world = load_world(source, codec=args.codec, text_encoder=args.text_encoder, device=device)
    else:
        found = resolve(source, "wfm.world_models")
        if not isinstance(found, WorldModel):
            raise ValueError(f"{source}: a {type(found).__name__}, not an autoregressive world")
        world = found
    if "weights" in args:
        world.lm = for_decoding(world.lm, weights=args.weights)
    return world


def _any_world(reference: str, weights: str | None) -> "AnyWorld":
    from .fast import for_decoding
    from .interfaces import WorldModel as AnyWorld
    from .references import resolve
    from .world import WorldModel

    try:
        world = resolve(reference, "wfm.world_models")
    except ValueError as e:
        if reference == ARM_WORLD and "no such name" in str(e):
            raise ValueError(f"{e}; pip install wfm-posttrain, or choose another --world") from e
        raise
    if not isinstance(world, AnyWorld):
        raise ValueError(f"--world {reference}: a {type(world).__name__}, not a world model")
    if isinstance(world, WorldModel):
        world.lm = for_decoding(world.lm, weights=weights)
    return world


def _start(path: Path, world: "AnyWorld") -> Any:
    """Read the last frames of a video, or a picture, at the world's size if it says one."""
    from .clips import fit
    from .video import read_video

    frames, _ = read_video(path)
    settings = getattr(world, "settings", None)
    height = getattr(settings, "height", frames.shape[-2])
    width = getattr(settings, "width", frames.shape[-1])
    past = fit(frames[-max(world.past_frames, 1) :], height, width)
    return past.transpose(0, 1)[None]


def _told(args: argparse.Namespace) -> Callable[[int, int], None] | None:
    """Return what draws a bar on stderr, where that is a terminal."""
    if args.quiet or not sys.stderr.isatty():
        return None
    from tqdm import tqdm

    bar = tqdm(file=sys.stderr)

    def tell(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return tell
