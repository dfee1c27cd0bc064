"""What the subcommands of ``wfm-diffusion`` do."""

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from . import __version__
from .checkpoint import find_source, load, read_network, replacing, save_network
from .compiling import compile_blocks
from .config import TrainConfig
from .console import DONE, REFUSED, choose_device
from .export import save_diffusers
from .guards import Refused, find_guards
from .latents import fingerprint_of, fit
from .loading import load_world
from .samplers import Progress
from .settings import load_settings
from .shortcuts import Shortcuts
from .text import train_text_encoder
from .training import train
from .upsample import PromptUpsampler
from .video import read_video, to_frames, to_model, write_sheet, write_video
from .world import WorldModel

logger = logging.getLogger(__name__)


def text2world(args: argparse.Namespace) -> int:
    """Imagine a video from a prompt."""
    check_writable(args.out)
    with refusals("text2world"):
        world = open_world(args)
        sizes = {"height": args.height, "width": args.width, "frames": args.frames}

        def imagine(prompt: str, dials: dict[str, Any]) -> Tensor:
            return world.text2world([prompt], **sizes, **dials)

        return generate(args, world, imagine, past=None)
    return REFUSED


def video2world(args: argparse.Namespace) -> int:
    """Imagine what follows a video or a picture."""
    check_writable(args.out)
    frames, fps = read_video(args.video)
    with refusals("video2world"):
        world = open_world(args)
        s = world.settings
        past = to_model(fit(frames[-(args.past or s.past_frames) :], s.height, s.width))
        if args.fps is None:
            args.fps = fps

        def imagine(prompt: str, dials: dict[str, Any]) -> Tensor:
            words = [prompt] if prompt else None
            how = {"frames": args.frames, "handover": args.handover}
            return world.video2world(past, words, **how, **dials)

        return generate(args, world, imagine, past=past)
    return REFUSED


def train_network(args: argparse.Namespace) -> int:
    """Train a network on clips."""
    overrides = [*args.set, *([f"out={args.out}"] if args.out else [])]
    device = choose_device(args.device)
    config = load_settings(TrainConfig, args.config, [*overrides, f"device={device}"])

    def log(step: int, numbers: Any) -> None:
        short = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        logger.info("step %d: %s", step, short)

    folder = train(config, resume=args.resume, log=log)
    if os.environ.get("RANK", "0") == "0":  # one of torchrun's processes speaks for all
        answer(args, {"model": str(folder)}, f"wrote {folder}")
    return DONE


def train_text(args: argparse.Namespace) -> int:
    """Train the small text encoder from the captions of recordings or clips."""
    if not args.captions.is_dir():
        raise FileNotFoundError(f"{args.captions}: no such folder")
    pairs = []
    for path in sorted(args.captions.rglob("*.json")):
        try:
            content = json.loads(path.read_text())
        except ValueError as e:
            raise ValueError(f"{path}: not JSON ({e})") from e
        if isinstance(content, dict) and content.get("caption"):
            pairs.append((str(content["caption"]), content))
    if not pairs:
        raise ValueError(f"{args.captions}: no JSON file with a caption")

    def log(step: int, numbers: Any) -> None:
        logger.info("step %d: %s", step, numbers)

    encoder = train_text_encoder(pairs, steps=args.steps, seed=args.seed, log=log)
    with replacing(args.out) as partial:
        encoder.save(partial, text_card(len(pairs), args.steps, args.seed))
    answer(args, {"model": str(args.out)}, f"wrote {args.out}")
    return DONE


def text_card(count: int, steps: int, seed: int) -> str:
    """Return the model card of a text encoder."""
    return f"""---
license: apache-2.0
library_name: wfm-diffusion
---
# A small text encoder for captions of simulated clips

Trained on {count} captions and their attributes, {steps} steps, seed {seed}, by `wfm-diffusion
train-text`: captions of equal attributes are drawn together, and the attributes can be read off
by linear layers. 32 slots, one for each word; further words are cut off. It knows the words
of those captions; others get a row of the table that stands for nothing.
"""


def convert_checkpoint(args: argparse.Namespace) -> int:
    """Write a checkpoint in our layout, or in that of diffusers."""
    path = find_source(args.source)
    config, state = read_network(path)
    kept = next(iter(state.values())).dtype
    dtype = getattr(torch, args.dtype) if args.dtype else kept
    net = load(path, dtype=dtype)
    card = f"# Converted weights\n\nFrom `{path.name}` by `wfm-diffusion convert`.\n"
    if args.to == "diffusers":
        save_diffusers(net, args.out, card=card, dtype=dtype)
    else:
        save_network(net, args.out, card=card, world=net.world, dtype=dtype)
    weights = sum(x.numel() for x in state.values())
    facts = {"model": str(args.out), "weights": weights, "width": config.width}
    answer(args, facts, f"wrote {args.out}: {weights / 1e6:.1f} M weights, width {config.width}")
    return DONE


def upsample(args: argparse.Namespace) -> int:
    """Make a short prompt long."""
    with refusals("upsample"):
        guards = find_guards(args.guard)
        upsampler = PromptUpsampler(args.endpoint, model=args.llm, guards=guards)
        frames = None if args.video is None else read_video(args.video)[0]
        longer = upsampler.upsample(args.prompt, frames)
        if longer.source == "rules":
            logger.warning("no language model: expanded by fixed rules")
        answer(args, {"prompt": longer.text, "source": longer.source}, longer.text)
        return DONE
    return REFUSED


@contextmanager
def refusals(command: str) -> Generator[None, None, None]:
    """Say in one line what a guard refused; the caller then returns REFUSED."""
    try:
        yield
    except Refused as e:
        sys.stderr.write(f"wfm-diffusion {command}: {e}\n")


def open_world(args: argparse.Namespace) -> WorldModel:
    """Load the model and its parts, with the guards that are wanted."""
    world = load_world(
        args.model,
        codec=args.codec,
        text_encoder=args.text_encoder,
        guard=find_guards(args.guard),
        device=choose_device(args.device),
        shortcuts=Shortcuts.parse(args.shortcut),
    )
    if args.compile:
        compile_blocks(world.net)
    return world


def generate(
    args: argparse.Namespace,
    world: WorldModel,
    imagine: Callable[[str, dict[str, Any]], Tensor],
    past: Tensor | None,
) -> int:
    """Imagine, and write the video, its facts and a contact sheet."""
    prompt, written_by = args.prompt or "", "user"
    if prompt and args.upsample:
        guards = world.guards.guards
        upsampler = PromptUpsampler(args.endpoint, model=args.llm, guards=guards)
        seen = None
        if past is not None and args.show_model:
            seen = world.guards.clear(to_frames(past), what="input video")
        longer = upsampler.upsample(prompt, seen)
        prompt, written_by = longer.text, longer.source
    dials = dials_of(args)
    new = imagine(prompt, {**dials, "progress": bar(args.quiet)})
    video = new if past is None else torch.cat([past.to(new), new], dim=2)
    frames = to_frames(video)
    facts = {
        **facts_of(args, world, dials, given=past is not None),
        "prompt": prompt,
        "prompt_by": written_by,
        "past_frames": 0 if past is None else past.shape[2],
    }
    line = write_world(args.out, frames, facts)
    answer(args, facts, line)
    return DONE


def dials_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the methods of a world model take."""
    names = ("steps", "guidance", "sampler", "temperature", "negative_prompt", "fps", "seed")
    return {name: getattr(args, name) for name in names}


def facts_of(
    args: argparse.Namespace, world: WorldModel, dials: dict[str, Any], *, given: bool
) -> dict[str, Any]:
    """Return everything that makes a video, as it is written beside it."""
    guidance = world.guidance_given if given else world.guidance
    steps = world.steps_given if given else world.steps
    temperature = world.temperature_given if given else world.temperature
    return {
        **dials,
        "steps": dials["steps"] or steps,
        "sampler": dials["sampler"] or world.sampler,
        "guidance": guidance if dials["guidance"] is None else dials["guidance"],
        "temperature": temperature if dials["temperature"] is None else dials["temperature"],
        "fps": dials["fps"] or world.settings.fps,
        "shortcuts": args.shortcut,
        "handover": getattr(args, "handover", "pixels"),
        "model": str(args.model),
        "codec": world.settings.codec,
        "codec_fingerprint": fingerprint_of(world.codec),
        "guards": [type(guard).__name__ for guard in world.guards.guards],
        "version": __version__,
    }


def write_world(out: Path, frames: UInt8[Tensor, "t 3 h w"], facts: dict[str, Any]) -> str:
    """Write a video, its facts (which it completes) and a contact sheet; say so in a line."""
    sheet = out.with_suffix(".png")
    facts |= {"frames": len(frames), "video": str(out), "sheet": str(sheet)}
    write_video(out, frames, facts["fps"])
    with replacing(out.with_suffix(".json")) as partial:
        partial.write_text(json.dumps(facts, indent=2) + "\n")
    write_sheet(sheet, [frames])
    return f"wrote {out}: {len(frames)} frames at {facts['fps']:g} Hz"


def check_writable(out: Path) -> None:
    """Refuse an output that cannot be written, before minutes are spent on it.

    Raises:
        ValueError: not an .mp4 file.
    """
    if out.suffix != ".mp4":
        raise ValueError(f"{out}: the output is a video; give a name that ends in .mp4")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out.parent):
        pass


def bar(quiet: bool, what: str = "denoising") -> Progress | None:
    """Return a progress bar on stderr, if that is a terminal."""
    if quiet or not sys.stderr.isatty():
        return None
    from tqdm import tqdm

    shown = tqdm(desc=what, file=sys.stderr)

    def move(done: int, total: int) -> None:
        shown.total = total
        shown.update(done - shown.n)
        if done == total:
            shown.refresh()

    return move


def answer(args: argparse.Namespace, facts: dict[str, Any], line: str) -> None:
    """Print the result: a line, or JSON."""
    sys.stdout.write((json.dumps(facts) if args.json else line) + "\n")
