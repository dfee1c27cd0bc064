"""The subcommands ``extend`` and ``batch`` of ``wfm-diffusion``."""

import argparse
import logging
import math
import sys
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .commands import (
    answer,
    bar,
    check_writable,
    dials_of,
    facts_of,
    open_world,
    refusals,
    write_world,
)
from .console import DONE, FAILED, REFUSED
from .guards import Refused
from .latents import fit
from .settings import explain
from .upsample import PromptUpsampler
from .video import read_video, to_frames, to_model
from .world import WorldModel

logger = logging.getLogger(__name__)


def extend(args: argparse.Namespace) -> int:
    """Make a video longer, with a prompt for each stretch."""
    check_writable(args.out)
    frames, fps = read_video(args.video)
    with refusals("extend"):
        world = open_world(args)
        s = world.settings
        args.fps = args.fps or fps
        prompts = list(args.prompt)
        if args.upsample:
            upsampler = PromptUpsampler(args.endpoint, model=args.llm, guards=world.guards.guards)
            prompts = [upsampler.upsample(prompt).text for prompt in prompts]
        video = to_model(fit(frames, s.height, s.width))
        total = args.frames or s.frames
        dials, shown = dials_of(args), bar(args.quiet)
        for i, new in enumerate(stretches(total, s.frames, len(prompts))):
            words = [prompts[min(i, len(prompts) - 1)]] if prompts else None
            more = world.video2world(
                video[:, :, -s.past_frames :],
                words,
                frames=new,
                handover=args.handover,
                progress=shown,
                **{**dials, "seed": args.seed + i},
            )
            video = torch.cat([video, more.to(video)], dim=2)
            logger.info("%d of %d frames", video.shape[2] - len(frames), total)
        facts = facts_of(args, world, dials, given=True)
        facts |= {"prompts": prompts, "past_frames": len(frames)}
        line = write_world(args.out, to_frames(video), facts)
        answer(args, facts, line)
        return DONE
    return REFUSED


def stretches(total: int, most: int, prompts: int) -> list[int]:
    """Return how many frames each prompt makes; with one prompt or none all are made at once."""
    if total < 1:
        raise ValueError(f"--frames {total}: there must be one frame or more")
    if prompts < 2:
        return [total]
    count = min(prompts, math.ceil(total / most))
    return [most] * (count - 1) + [total - most * (count - 1)]


class Job(BaseModel):
    """One line of a batch. What is left out is as on the command line."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None = Field(None, pattern=r"^[\w.-]+$", description="of the file, no suffix")
    prompt: str = ""
    video: Path | None = Field(None, description="its last frames are the past")
    negative_prompt: str | None = None
    seed: int | None = None
    frames: int | None = Field(None, gt=0)
    height: int | None = Field(None, gt=0, description="text2world only")
    width: int | None = Field(None, gt=0, description="text2world only")
    steps: int | None = Field(None, gt=1)
    guidance: float | None = None
    temperature: float | None = Field(None, ge=0)
    fps: float | None = Field(None, gt=0)


def read_jobs(path: Path) -> list[Job]:
    """Read a file of jobs, all of it, before anything is imagined.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line that is no job, or none at all; names the line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    jobs = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            job = Job.model_validate_json(line)
        except ValidationError as e:
            raise ValueError(f"{path}, line {number}: {explain(e)}") from e
        if job.video is not None and not job.video.is_file():
            raise FileNotFoundError(f"{path}, line {number}: {job.video}: no such file")
        if job.video is None and not job.prompt:
            raise ValueError(f"{path}, line {number}: wanted a prompt or a video")
        jobs.append(job)
    if not jobs:
        raise ValueError(f"{path}: holds no line")
    names = [name_of(i, job) for i, job in enumerate(jobs)]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{path}: names that occur twice: {', '.join(sorted(twice))}")
    return jobs


def name_of(i: int, job: Job) -> str:
    return job.name or f"{i:05d}"


def batch(args: argparse.Namespace) -> int:
    """Imagine a video for each line; what is there already is not made again.

    A line that fails or is refused does not stop the others; the exit code tells.
    """
    jobs = read_jobs(args.file)
    args.out.mkdir(parents=True, exist_ok=True)
    world = open_world(args)
    code = DONE
    for i, job in enumerate(jobs):
        out = args.out / f"{name_of(i, job)}.mp4"
        facts: dict[str, Any] = {"line": i + 1, "video": str(out)}
        if out.with_suffix(".png").is_file():
            answer(args, {**facts, "status": "kept"}, f"kept {out}")
            continue
        try:
            line = imagine(args, world, job, out, facts)
            answer(args, {**facts, "status": "done"}, f"{i + 1}/{len(jobs)}: {line}")
        except Refused as e:
            code = code or REFUSED
            report(args, {**facts, "status": "refused", "reason": str(e)})
        except (ValueError, OSError) as e:
            code = FAILED
            report(args, {**facts, "status": "failed", "reason": str(e)})
    return code


def imagine(
    args: argparse.Namespace, world: WorldModel, job: Job, out: Path, facts: dict[str, Any]
) -> str:
    """Do one job; complete its facts, and say what was written."""
    own = job.model_dump(
        include={"negative_prompt", "steps", "guidance", "temperature", "fps", "seed"}
    )
    dials = dials_of(args) | {k: x for k, x in own.items() if x is not None}
    frames = job.frames or args.frames
    how: dict[str, Any] = {"frames": frames, "progress": bar(args.quiet)}
    if job.video is None:
        video = world.text2world([job.prompt], height=job.height, width=job.width, **how, **dials)
        known = 0
    else:
        seen, fps = read_video(job.video)
        s = world.settings
        past = to_model(fit(seen[-s.past_frames :], s.height, s.width))
        dials["fps"] = dials["fps"] or fps
        new = world.video2world(past, [job.prompt] if job.prompt else None, **how, **dials)
        video, known = torch.cat([past.to(new), new], dim=2), past.shape[2]
    facts |= facts_of(args, world, dials, given=bool(known))
    facts |= {"prompt": job.prompt, "past_frames": known}
    return write_world(out, to_frames(video), facts)


def report(args: argparse.Namespace, facts: dict[str, Any]) -> None:
    """Say what became of a line that made no video."""
    sys.stderr.write(f"line {facts['line']}: {facts['status']}: {facts['reason']}\n")
    if args.json:
        answer(args, facts, "")
