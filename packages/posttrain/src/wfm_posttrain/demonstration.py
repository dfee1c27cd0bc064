"""What a model of the simulated arm is good for: reaching goals, and comparing policies."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import nn

from .checkpoint import kept
from .comparison import evaluate_policy, plain, spearman
from .env import Judge, WorldEnv
from .imagination import VisionPolicy, free_numbers
from .interfaces import ClipDataset, Reward, WorldModel
from .metrics import bootstrap
from .network_files import fingerprint
from .plan import ImaginedReturn, LooksLike, SearchConfig
from .policies import MPCPolicy, Policy, RandomPolicy, Trial, TumblePolicy, run_trial
from .simulator import ACTIONS, REACHED, ArmEnv, PushAlong, SkilledPolicy, TrueWorld, move_bounds
from .video import write_video
from .vision import (
    SeenDistance,
    SmallVision,
    fit,
    goal_examples,
    imagined_examples,
    inverse_examples,
    read_gallery,
    state_examples,
)

Progress = Callable[[int, int], None]
TASKS, REWARDS = ("reach", "push"), ("pixels", "latents", "seen")


@dataclass(frozen=True)
class Errand:
    """What is to be done, for how long, and what tells a planner how near it is.

    ``reward`` is ``pixels`` or ``latents`` of the goal picture, or ``seen``: where a reader
    trained on recordings sees the tool (and, to push, where its colour shows the object).
    """

    task: str = "reach"
    reward: str = "pixels"
    method: str = "cem"
    steps: int = 8
    config: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
        if self.task not in TASKS or self.reward not in REWARDS:
            known = f"tasks {', '.join(TASKS)} and rewards {', '.join(REWARDS)}"
            raise ValueError(f"no {self.task!r} by {self.reward!r}; there are {known}")


class Learner:
    """Small networks learned from recordings, kept in a folder.

    Args:
        clips: recordings of the arm.
        folder: where networks are kept; they are learned again when ``key`` or settings change.
        key: says which recordings these are.
        limit: recordings used.
        steps: of training.
    """

    def __init__(
        self, clips: ClipDataset, folder: Path, key: str, *, limit: int = 400, steps: int = 600
    ) -> None:
        self.clips, self.folder, self.key = clips, folder, key
        self.limit, self.steps = min(limit, len(clips)), steps

    def tool(self, world: WorldModel | None = None, *, pixels: bool = False) -> SmallVision:
        """Return a reader of the tool's place in metres, or in the picture (column, row).

        With a ``world`` it learns from what that one imagines, too.
        """
        label, outputs = ("effector_pixel", 2) if pixels else ("state", 3)
        told = "" if world is None else f"-{_weights(world)}"

        def learn(net: SmallVision, seed: int) -> SmallVision:
            gallery = read_gallery(self.clips, self.limit, state=label, numbers=outputs)
            examples = (
                state_examples(gallery) if world is None else imagined_examples(gallery, world)
            )
            return fit(net, examples, steps=self.steps, seed=seed)

        return self._kept(label + told, 3, outputs, learn)

    def inverse(self) -> SmallVision:
        """Return a reader of the action between two pictures."""
        gallery = read_gallery(self.clips, self.limit)

        def learn(net: SmallVision, seed: int) -> SmallVision:
            examples = inverse_examples(gallery)
            return fit(net, examples, steps=self.steps, seed=seed)

        return self._kept("inverse", 6, gallery.action.shape[1], learn)

    def policy(
        self, *, limit: int | None = None, steps: int | None = None, seed: int = 0
    ) -> VisionPolicy:
        """Return a policy cloned from the recordings, or from the first ``limit`` of them."""
        bounds = move_bounds()
        free, limit = free_numbers(bounds), limit or self.limit
        steps = self.steps if steps is None else steps

        def clone(net: SmallVision, seed: int) -> SmallVision:
            examples = goal_examples(read_gallery(self.clips, limit), free)
            return fit(net, examples, steps=steps, seed=seed)

        net = self._kept(f"policy-{limit}-{steps}", 6, len(free), clone, seed)
        return VisionPolicy(net, bounds)

    def _kept(
        self,
        name: str,
        channels: int,
        outputs: int,
        learn: Callable[[SmallVision, int], SmallVision],
        seed: int = 0,
    ) -> SmallVision:
        """Read a network from the folder, or learn and keep it."""
        what = {
            "clips": [self.key, self.limit], "steps": self.steps, "name": name,
            "sizes": [channels, outputs], "seed": seed,
        }  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = SmallVision(channels, outputs)
        path = self.folder / f"{name}-{seed}.safetensors"
        net.load_state_dict(kept(path, what, lambda: learn(net, seed).state_dict()))
        return net.eval()


def reward_maker(
    errand: Errand, world: WorldModel, learner: Learner | None = None
) -> Callable[[Mapping[str, Any]], Reward]:
    """Return what makes the reward of an episode from the ``info`` of its reset.

    Raises:
        ValueError: latents of a world that shows no codec, or ``seen`` without recordings.
    """
    if errand.reward == "seen":
        if learner is None:
            raise ValueError("reward 'seen' learns a reader from recordings; give --clips")
        imagined = None if isinstance(world, TrueWorld) else world
        reader = learner.tool(imagined, pixels=errand.task == "push")
        if errand.task == "push":
            return lambda info: PushAlong(info, reader)
        return lambda info: SeenDistance(reader, _goal(info), within=REACHED)
    codec = getattr(world, "codec", None) if errand.reward == "latents" else None
    if errand.reward == "latents" and codec is None:
        raise ValueError(f"reward 'latents' needs a codec; {type(world).__name__} shows none")
    return lambda info: LooksLike(_goal(info), codec)


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
    errand = Errand(method=method, steps=steps, config=config)
    found = contest(world, seeds, folder, errand, progress=progress)
    goals = found["model"]["goals"]
    reached = sum(goal["reached"] for goal in goals)
    return {
        "goals": goals,
        "reached": reached,
        "seconds_per_plan": found["model"]["seconds_per_plan"],
    }


def contest(
    world: WorldModel,
    seeds: Sequence[int],
    folder: Path,
    errand: Errand,
    *,
    rivals: Sequence[str] = (),
    learner: Learner | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Let a planner and its rivals pursue the same goals in the simulator.

    ``rivals`` are any of ``random``, ``tumble`` (a heuristic without a model), ``cloned``
    (behaviour cloning, needs ``learner``) and ``simulator`` (the same planner, with the true
    simulator for a model). Writes a video of each goal; every rival's figures are compared with
    the planner's, goal by goal.
    """
    env = ArmEnv(errand.task, horizon=errand.steps)
    try:
        policies = _contestants(world, env, errand, rivals, learner)
        found: dict[str, Any] = {}
        done, total = 0, len(policies) * len(seeds)
        for name, policy in policies.items():
            goals, seconds, plans = [], 0.0, 0
            for seed in seeds:
                trial = run_trial(env, policy, seed=seed, steps=errand.steps)
                if isinstance(policy, MPCPolicy):
                    seconds, plans = seconds + policy.seconds, plans + len(policy.plans)
                goals.append(_facts(trial, seed))
                prefix = "goal" if name == "model" else f"{name}-goal"
                _film(trial, folder / f"{prefix}-{seed}.mp4")
                done += 1
                if progress:
                    progress(done, total)
            found[name] = {"goals": goals, "seconds_per_plan": seconds / max(plans, 1)}
    finally:
        env.close()
    return _compared(found)


def agreement(
    world: WorldModel,
    seeds: Sequence[int],
    errand: Errand,
    *,
    plans: int = 12,
    learner: Learner | None = None,
) -> dict[str, Any]:
    """Score the same random plans in the model and in the simulator; correlate the scores.

    Returns Spearman's rho per goal, and its mean with an interval: what a planner needs of a
    model is that its order of plans is right.
    """
    env = ArmEnv(errand.task, horizon=errand.steps)
    bounds, found = move_bounds(), []
    worlds = world, TrueWorld(env)
    makers = [reward_maker(errand, w, learner) for w in worlds]
    try:
        for seed in seeds:
            picture, info = env.reset(seed=seed)
            generator = torch.Generator().manual_seed(seed)
            noise = torch.rand(plans, errand.config.horizon, len(bounds.low), generator=generator)
            actions = bounds.low + (bounds.high - bounds.low) * noise
            still = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None, :, None] / 127.5 - 1
            past = still.expand(-1, -1, world.past_frames, -1, -1)
            scores = [
                ImaginedReturn(w, past, make(info))(actions).numpy()
                for w, make in zip(worlds, makers, strict=True)
            ]
            found.append(spearman(*scores))
    finally:
        env.close()
    return {"rho": found, "mean": plain(bootstrap(torch.tensor(found)))}


def compare_policies(
    world: WorldModel,
    skills: Sequence[float],
    seeds: Sequence[int],
    *,
    steps: int = 6,
    learner: Learner | None = None,
    cloned: Sequence[int] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Try policies of graded skill in the imagined world and in the simulator.

    With a ``learner``, a second family is cloned from its recordings, one policy for each number
    of training steps in ``cloned``, and the judge reads the tool's place from pictures.
    """
    policies: dict[str, Policy] = {f"skill {skill:g}": SkilledPolicy(skill) for skill in skills}
    families = dict.fromkeys(policies, "scripted")
    judge: Callable[[Mapping[str, Any]], Judge] | None = None
    if learner is not None:
        own = {f"cloned {count} steps": learner.policy(steps=count) for count in cloned}
        policies |= own
        families |= dict.fromkeys(own, "cloned")
        reader = learner.tool(world)
        judge = lambda info: SeenDistance(reader, _goal(info), within=REACHED)  # noqa: E731
    real = ArmEnv("reach")
    try:
        height, width = real.simulator.size
        blank = torch.zeros(1, 3, height, width, dtype=torch.uint8)
        imagined = WorldEnv(world, lambda _: blank, ACTIONS, horizon=steps)
        found = evaluate_policy(
            policies, imagined=imagined, real=real, seeds=seeds, steps=steps, judge=judge,
            families=families, progress=progress,
        )  # fmt: skip
    finally:
        real.close()
    return found.summary()


def _contestants(
    world: WorldModel,
    env: ArmEnv,
    errand: Errand,
    rivals: Sequence[str],
    learner: Learner | None,
) -> dict[str, Policy]:
    bounds = move_bounds()

    def planner(model: WorldModel) -> MPCPolicy:
        make = reward_maker(errand, model, learner)
        return MPCPolicy(model, make, bounds, errand.config, method=errand.method)

    def cloned() -> Policy:
        if learner is None:
            raise ValueError("rival 'cloned' learns from recordings; give --clips")
        return learner.policy()

    makers: dict[str, Callable[[], Policy]] = {
        "random": lambda: RandomPolicy(bounds),
        "tumble": lambda: TumblePolicy(bounds),
        "cloned": cloned,
        "simulator": lambda: planner(TrueWorld(env)),
    }
    if unknown := [name for name in rivals if name not in makers]:
        raise ValueError(f"no rival {unknown[0]!r}; there are {', '.join(makers)}")
    return {"model": planner(world), **{name: makers[name]() for name in rivals}}


def _compared(found: dict[str, Any]) -> dict[str, Any]:
    """Add success rates with intervals, and what the planner is ahead of each rival by."""

    def column(name: str, what: str) -> torch.Tensor:
        return torch.tensor([float(goal[what]) for goal in found[name]["goals"]])

    for name, facts in found.items():
        facts["success"] = plain(bootstrap(column(name, "reached")))
        facts["end"] = plain(bootstrap(column(name, "end")))
        if name != "model":
            ahead = column("model", "reached") - column(name, "reached")
            nearer = column(name, "end") - column("model", "end")
            facts["model_ahead"] = plain(bootstrap(ahead))
            facts["model_nearer"] = plain(bootstrap(nearer))
    return found


def _weights(world: WorldModel) -> str:
    """Tell apart what imagines: by its network's weights, if it shows a network."""
    network = getattr(world, "net", getattr(world, "lm", None))
    return fingerprint(network) if isinstance(network, nn.Module) else type(world).__name__


def _goal(info: Mapping[str, Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(info["goal_frame"]))


def _facts(trial: Trial, seed: int) -> dict[str, Any]:
    end = -float(trial.rewards[-1])
    start = trial.info["distance"]
    return {"seed": seed, "start": start, "end": end, "reached": end <= REACHED}


def _film(trial: Trial, path: Path) -> None:
    """Write what happened beside the goal."""
    frames = rearrange(torch.from_numpy(trial.pictures), "t h w c -> t c h w")
    goals = _goal(trial.info).expand(len(frames), -1, -1, -1)
    write_video(path, torch.cat([frames, goals], dim=3), 5.0, pixels="yuv444p")
