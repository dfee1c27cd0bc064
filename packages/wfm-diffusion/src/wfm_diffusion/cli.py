"""The command ``wfm-diffusion``. Torch is imported by the subcommands, not here."""

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TypeAlias

from . import __version__
from .console import add_common, run

Subcommands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; return its exit code."""
    return run(make_parser(), argv)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wfm-diffusion", description="Diffusion world models: text and video to world."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_worlds(commands)
    add_training(commands)
    add_tools(commands)
    return parser


def add_worlds(commands: Subcommands) -> None:
    """Add the ways of generating."""
    text = commands.add_parser("text2world", help="imagine a video from a prompt")
    text.add_argument("prompt")
    add_generation(text)
    text.add_argument("--height", type=int, help="pixels (default: as in training)")
    text.add_argument("--width", type=int, help="pixels (default: as in training)")
    add_lazy(text, "text2world")

    video = commands.add_parser("video2world", help="imagine what follows a video or a picture")
    video.add_argument("video", type=Path, help="its last frames are the past")
    video.add_argument("--prompt", help="what is to happen")
    add_generation(video)
    video.add_argument("--past", type=int, help="frames to look back at (default: all it can)")
    add_handover(video)
    add_lazy(video, "video2world")

    longer = commands.add_parser("extend", help="make a long video longer, stretch by stretch")
    longer.add_argument("video", type=Path, help="kept whole; its last frames are the past")
    longer.add_argument(
        "--prompt", action="append", default=[], help="one for each stretch; the last one stays"
    )
    add_generation(longer)
    add_handover(longer)
    add_lazy(longer, "extend", ".commands_batch")

    batch = commands.add_parser("batch", help="imagine many videos, one for each line of a file")
    batch.add_argument("file", type=Path, help="JSON Lines: prompt, video, seed, frames, name, ...")
    batch.add_argument("-o", "--out", type=Path, required=True, help="folder to write")
    add_dials(batch)
    add_lazy(batch, "batch", ".commands_batch")


def add_training(commands: Subcommands) -> None:
    training = commands.add_parser("train", help="train a network on clips")
    training.add_argument("--config", type=Path, help="YAML file with the fields of TrainConfig")
    training.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    training.add_argument("-o", "--out", help="folder of the run (sets out)")
    training.add_argument("--device", default="auto", help="auto, cpu, cuda[:i], mps")
    training.add_argument("--resume", action="store_true", help="go on from the checkpoint in OUT")
    add_lazy(training, "train_network")

    text_encoder = commands.add_parser("train-text", help="train the small text encoder")
    text_encoder.add_argument("captions", type=Path, help="folder of STEM.json files with captions")
    text_encoder.add_argument("-o", "--out", type=Path, required=True, help="folder to write")
    text_encoder.add_argument("--steps", type=int, default=1200)
    text_encoder.add_argument("--seed", type=int, default=0)
    add_lazy(text_encoder, "train_text")

    scoring = commands.add_parser("evaluate", help="score video2world on held-out clips")
    scoring.add_argument("clips", help="folder of videos, or module:callable[=ARGUMENT]")
    scoring.add_argument("-o", "--out", type=Path, help="JSON file to write")
    scoring.add_argument("--past", type=int, help="frames to look back at (default: all it can)")
    add_dials(scoring)
    scoring.set_defaults(frames=16)
    add_lazy(scoring, "evaluate_world", ".commands_evaluate")


def add_tools(commands: Subcommands) -> None:
    conversion = commands.add_parser("convert", help="write a checkpoint in another layout")
    conversion.add_argument("source", help="NVIDIA's model.pt, diffusers' folder, or ours")
    conversion.add_argument("--to", choices=("ours", "diffusers"), default="ours")
    conversion.add_argument("-o", "--out", type=Path, required=True, help="folder to write")
    conversion.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default=None)
    add_lazy(conversion, "convert_checkpoint")

    memory = commands.add_parser("memory", help="say how much memory a sampling takes")
    memory.add_argument("-m", "--model", required=True, help="preset (super, nano, ...) or folder")
    memory.add_argument("--frames", type=int, default=121)
    memory.add_argument("--height", type=int, default=704)
    memory.add_argument("--width", type=int, default=1280)
    memory.add_argument("--batch", type=int, default=1)
    memory.add_argument("--text-slots", type=int, default=512, help="left when padding collapses")
    memory.add_argument("--unguided", action="store_true", help="one branch, guidance 0")
    memory.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    add_lazy(memory, "memory", ".commands_memory")

    upsampling = commands.add_parser("upsample", help="make a short prompt long")
    upsampling.add_argument("prompt")
    upsampling.add_argument("--video", type=Path, help="let the model see its last frame")
    upsampling.add_argument("--guard", default="auto", help="auto, none, name or module:callable")
    add_upsampler(upsampling)
    add_lazy(upsampling, "upsample")


def add_generation(parser: argparse.ArgumentParser) -> None:
    """Add the flags that the ways of generating one video share."""
    parser.add_argument("-o", "--out", type=Path, default=Path("world.mp4"), help="video to write")
    add_dials(parser)
    parser.add_argument("--upsample", action="store_true", help="make the prompt long first")
    parser.add_argument(
        "--show-model", action="store_true", help="let the language model see the past, too"
    )
    add_upsampler(parser)


def add_dials(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every way of generating shares."""
    parser.add_argument(
        "-m", "--model", default="builtin:pico", help="folder, builtin:, owner/name"
    )
    parser.add_argument("--codec", help="name or module:callable (default: as in training)")
    parser.add_argument("--text-encoder", help="name or module:callable (default: as in training)")
    parser.add_argument("--guard", default="auto", help="auto, none, name or module:callable")
    parser.add_argument("--negative-prompt", help="what guidance leads away from")
    parser.add_argument("--frames", type=int, help="new frames (default: as in training)")
    parser.add_argument("--fps", type=float, help="frame rate (default: as in training)")
    parser.add_argument("--steps", type=int, help="steps of the sampler (default: the model's)")
    parser.add_argument("--guidance", type=float, help="strength of the prompt")
    parser.add_argument("--sampler", choices=("res2ab", "euler", "nvidia"), help="(the model's)")
    parser.add_argument(
        "--temperature",
        type=float,
        help="deviation of the first noise; below 1: likelier, less varied (default: the model's)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda[:i], mps")
    parser.add_argument(
        "--shortcut",
        action="append",
        default=[],
        help="not exact: guidance-interval=LOW:HIGH, step-cache=X, int8, fp8",
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile the blocks")


def add_handover(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--handover",
        choices=("pixels", "latents"),
        default="pixels",
        help="what a stretch gives the next: decoded frames, or latents as they are",
    )


def add_upsampler(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--endpoint", help="OpenAI-compatible address, http://HOST:PORT/v1")
    parser.add_argument(
        "--llm", help="model that the endpoint serves, or, without one, a model to run here"
    )


def add_lazy(parser: argparse.ArgumentParser, name: str, module: str = ".commands") -> None:
    """Let a subcommand import its work, and with it torch, only when it runs."""

    def work(args: argparse.Namespace) -> int:
        return getattr(import_module(module, __package__), name)(args)

    add_common(parser, work)
