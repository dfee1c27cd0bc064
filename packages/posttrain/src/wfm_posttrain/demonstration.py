"""What a model of the simulated arm is good for: reaching goals, and comparing policies."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange

from .env import WorldEnv
from .interfaces import WorldModel
from .plan import LooksLike, SearchConfig
from .policies import PlanningPolicy, Trial, evaluate_policy, run_trial
from .simulator import ACTIONS, REACHED, ArmEnv, SkilledPolicy, move_bounds
from .video import write_video

Progress = Callable[[int, int], None]


def reach_goals(
    world: WorldModel,
    seeds: Sequence[int],
    folder: Path,
    *,
    config: SearchConfig,
    method: str = "cem",
    steps: int = 8,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Plan towards the goal picture of each seed; write a video of each, return the figures."""
    policy = PlanningPolicy(
        world,
        lambda info: LooksLike(torch.from_numpy(info["goal_frame"])),
        move_bounds(),
        config,
        method=method,
    )
    goals, seconds, plans = [], 0.0, 0
    env = ArmEnv("reach")
    try:
        for done, seed in enumerate(seeds, 1):
            begun = time.perf_counter()
            trial = run_trial(env, policy, seed=seed, steps=steps)
            seconds += time.perf_counter() - begun
            plans += len(policy.plans)
            goals.append(_facts(trial, seed))
            _film(trial, folder / f"goal-{seed}.mp4")
            if progress:
                progress(done, len(seeds))
    finally:
        env.close()
    reached = sum(goal["reached"] for goal in goals)
    return {"goals": goals, "reached": reached, "seconds_per_plan": seconds / max(plans, 1)}


def compare_policies(
    world: WorldModel,
    skills: Sequence[float],
    seeds: Sequence[int],
    *,
    steps: int = 6,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Try policies of graded skill in the imagined world and in the simulator."""
    policies = {f"skill {skill:g}": SkilledPolicy(skill) for skill in skills}
    real = ArmEnv("reach")
    try:
        height, width = real.simulator.size
        blank = torch.zeros(1, 3, height, width, dtype=torch.uint8)
        imagined = WorldEnv(world, lambda _: blank, ACTIONS, horizon=steps)
        found = evaluate_policy(
            policies, imagined=imagined, real=real, seeds=seeds, steps=steps, progress=progress
        )
    finally:
        real.close()
    return found.summary()


def _facts(trial: Trial, seed: int) -> dict[str, Any]:
    end = -float(trial.rewards[-1])
    start = trial.info["distance"]
    return {"seed": seed, "start": start, "end": end, "reached": end <= REACHED}


def _film(trial: Trial, path: Path) -> None:
    """Write what happened beside the goal."""
    frames = rearrange(torch.from_numpy(trial.pictures), "t h w c -> t c h w")
    goal = torch.from_numpy(np.ascontiguousarray(trial.info["goal_frame"]))
    goals = goal.expand(len(frames), -1, -1, -1)
    write_video(path, torch.cat([frames, goals], dim=3), 5.0, pixels="yuv444p")
