"""The subcommand ``wfm-diffusion evaluate``."""

import argparse
import sys

from .checkpoint import replacing
from .commands import bar, open_world, refusals
from .console import DONE, REFUSED
from .evaluation import evaluate
from .latents import open_clips


def evaluate_world(args: argparse.Namespace) -> int:
    """Score video to world on held-out clips, frame by frame, beside the last frame repeated."""
    clips = open_clips(args.clips)
    with refusals("evaluate"):
        world = open_world(args)
        world.steps_given = args.steps or world.steps_given
        world.guidance_given = world.guidance_given if args.guidance is None else args.guidance
        if args.temperature is not None:
            world.temperature_given = args.temperature
        world.sampler = args.sampler or world.sampler
        scores = evaluate(
            world,
            clips,
            past=args.past,
            frames=args.frames,
            seed=args.seed,
            progress=bar(args.quiet, "clips"),
        )
        if args.out is not None:
            with replacing(args.out) as partial:
                partial.write_text(scores.to_json() + "\n")
        sys.stdout.write((scores.to_json() if args.json else scores.table()) + "\n")
        return DONE
    return REFUSED
