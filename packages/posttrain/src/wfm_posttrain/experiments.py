"""What else a model of the simulated arm is good for, each measured against its control.

Policies trained in imagination, policies that start from its features, and training data from
it: always against the same data without the world model, on goals and recordings held out.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .clips import ClipFolder, Part
from .comparison import plain
from .demonstration import Learner
from .env import WorldEnv, WorldVectorEnv
from .imagination import GoalContexts, ImaginationConfig, free_numbers, improve
from .interfaces import ClipDataset, LatentCodec, TrainableDenoiser, WorldModel
from .metrics import bootstrap
from .policies import Policy, RandomPolicy, StepEnv, run_trial
from .probes import (
    Encode,
    FrameFeatures,
    clone_linear,
    forgetful,
    latent_features,
    pixel_features,
    probe,
)
from .simulator import ACTIONS, REACHED, ArmEnv, move_bounds
from .synthetic import SyntheticConfig, synthesize
from .vision import (
    Examples,
    Gallery,
    SeenDistance,
    SmallVision,
    fit,
    goal_examples,
    inverse_examples,
    predictions,
    read_gallery,
)

logger = logging.getLogger(__name__)
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Attempts:
    """What came of a policy's trials: metres nearer to the goal, and whether it was reached."""

    nearer: Float[Tensor, " n"]
    reached: Float[Tensor, " n"]

    def facts(self) -> dict[str, Any]:
        """Return means with intervals as JSON values."""
        return {"return": plain(bootstrap(self.nearer)), "success": plain(bootstrap(self.reached))}


def attempt(env: StepEnv, policy: Policy, seeds: Sequence[int], *, steps: int = 6) -> Attempts:
    """Let a policy pursue the goal of each seed; rewards are minus the metres that are left."""
    trials = [run_trial(env, policy, seed=seed, steps=steps) for seed in seeds]
    # A first step may already pay, so the start is what the environment told.
    nearer = [float(t.rewards[-1]) + float(t.info["distance"]) for t in trials]
    reached = [float(t.success) for t in trials]
    return Attempts(torch.tensor(nearer), torch.tensor(reached))


class ReadDistance(WorldEnv):
    """The imagined world, with the distance that a reader sees told at reset."""

    def __init__(self, world: WorldModel, contexts: GoalContexts, *, horizon: int) -> None:
        super().__init__(world, contexts, ACTIONS, horizon=horizon)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        picture, info = super().reset(seed=seed, options=options)
        wanted = self._imagination.beginnings[0].reward
        assert isinstance(wanted, SeenDistance)
        frames = self._imagination.past[:, :, -1:]
        return picture, {**info, "distance": -float(wanted.score(frames, None)[0])}


def train_policy(
    world: WorldModel,
    learner: Learner,
    seeds: Sequence[int],
    config: ImaginationConfig,
    *,
    envs: int = 16,
    steps: int = 6,
    caution: float = 0.0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Improve a cloned policy in imagination; compare it in the simulator at equal data.

    Rivals are the cloned policy that it started from and random actions. ``gap`` is imagined
    minus real return: what the policy takes from the model's mistakes.
    """
    bounds, reader = move_bounds(), learner.tool(world)
    contexts = GoalContexts(
        learner.clips, world.past_frames, lambda goal: SeenDistance(reader, goal, within=REACHED)
    )
    cloned, trained = learner.policy(), learner.policy()
    env = WorldVectorEnv(
        world, contexts, ACTIONS, num_envs=envs, horizon=steps,
        guesses=2 if caution else 1, caution=caution,
    )  # fmt: skip
    rewards = improve(trained.net, env, bounds, config, progress=progress)
    real = ArmEnv("reach")
    try:
        found = {
            name: attempt(real, policy, seeds, steps=steps)
            for name, policy in {
                "imagination": trained, "cloned": cloned, "random": RandomPolicy(bounds),
            }.items()
        }  # fmt: skip
    finally:
        real.close()
    dream = attempt(ReadDistance(world, contexts, horizon=steps), trained, seeds, steps=steps)
    own = found["imagination"]
    return {
        "real": {name: attempts.facts() for name, attempts in found.items()},
        "imagined": dream.facts(),
        "gap": (dream.nearer.mean() - own.nearer.mean()).item(),
        "ahead": {
            name: plain(bootstrap(own.nearer - found[name].nearer)) for name in ("cloned", "random")
        },
        "rewards": rewards,
    }


def encoders(
    world: WorldModel, *, layers: Sequence[int], sigmas: Sequence[float]
) -> dict[str, Encode]:
    """Return features of a diffusion world model, and of its controls.

    Raises:
        ValueError: the world shows no network with features, or no codec.
    """
    net, codec = getattr(world, "net", None), getattr(world, "codec", None)
    if not (isinstance(net, TrainableDenoiser) and isinstance(codec, LatentCodec)):
        raise ValueError(f"{type(world).__name__} shows no denoiser and codec to probe")
    assert isinstance(net, nn.Module)
    empty = forgetful(net)
    assert isinstance(empty, TrainableDenoiser)
    found: dict[str, Encode] = {"pixels": pixel_features(), "latents": latent_features(codec)}
    for sigma in sigmas:
        for layer in layers:
            for kind, network in (("", net), ("untrained ", empty)):
                name = f"{kind}layer {layer}, noise {sigma:g}"
                found[name] = FrameFeatures(network, codec, layer=layer, sigma=sigma)
    return found


def probe_world(
    sources: Mapping[str, Encode], train: ClipDataset, test: ClipDataset, *, limit: int = 100
) -> dict[str, list[float]]:
    """Return, for each source of features, R^2 of the tool's x, y and z on held-out clips."""
    seen, held = read_gallery(train, limit), read_gallery(test, limit)
    return {
        name: probe(
            encode, (seen.frames, seen.state[:, :3]), (held.frames, held.state[:, :3])
        ).tolist()
        for name, encode in sources.items()
    }


def few_shot(
    sources: Mapping[str, Encode],
    clips: ClipDataset,
    seeds: Sequence[int],
    *,
    shots: Sequence[int] = (8, 32),
    steps: int = 6,
    control: str | None = None,
) -> dict[str, Any]:
    """Clone behaviour from few recordings on each source of frozen features; try it for real.

    Returns success and return per number of recordings and source, and what each is ahead of
    ``control`` by.
    """
    env, bounds, found = ArmEnv("reach"), move_bounds(), {}
    try:
        for count in shots:
            gallery = read_gallery(clips, count)
            examples = goal_examples(gallery)
            tried = {}
            for name, encode in sources.items():
                policy = clone_linear(
                    encode, gallery.frames, examples.rows, examples.targets, bounds
                )
                tried[name] = attempt(env, policy, seeds, steps=steps)
            facts = {name: attempts.facts() for name, attempts in tried.items()}
            if control is not None:
                for name, attempts in tried.items():
                    ahead = bootstrap(attempts.nearer - tried[control].nearer)
                    facts[name]["ahead"] = plain(ahead)
            found[str(count)] = facts
    finally:
        env.close()
    return found


def downstream_gain(  # noqa: PLR0913  what is learned, from what, and scored on what
    world: WorldModel,
    clips: ClipDataset,
    held_out: ClipDataset,
    folder: Path,
    config: SyntheticConfig,
    *,
    real: int = 16,
    steps: int = 400,
    seeds: Sequence[int] = (0, 1, 2),
    name: str = "",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Learn inverse dynamics and a goal policy from few recordings, with and without imagined ones.

    Imagined recordings start from the same ``real`` recordings. Scores are squared errors of
    actions per held-out recording, in variances; ``gain`` is what the imagined ones take off.
    """
    few = Part(clips, range(min(real, len(clips))))
    harvest = synthesize(world, few, folder, config, name=name, progress=progress)
    own, other = read_gallery(few), read_gallery(held_out)
    both = join(own, read_gallery(ClipFolder(folder))) if harvest.kept else own
    found: dict[str, Any] = {"kept": harvest.kept, "dropped": dict(harvest.dropped), "real": real}
    free = free_numbers(move_bounds())
    tasks: dict[str, Callable[[Gallery], Examples]] = {
        "inverse dynamics": inverse_examples,
        "goal policy": lambda gallery: goal_examples(gallery, free),
    }
    for task, examples in tasks.items():
        errors = {
            kind: torch.stack(
                [_errors(examples(g), examples(other), other, steps, s) for s in seeds]
            )
            for kind, g in {"without": own, "with": both}.items()
        }
        without, along = (errors[kind].mean(dim=0) for kind in ("without", "with"))
        found[task] = {
            "without": plain(bootstrap(without)),
            "with": plain(bootstrap(along)),
            "gain": plain(bootstrap(without - along)),
        }
    return found


def join(one: Gallery, other: Gallery) -> Gallery:
    """Put two galleries in one row. States are dropped unless both have them."""
    width = min(one.state.shape[1], other.state.shape[1])
    return Gallery(
        torch.cat([one.frames, other.frames]),
        torch.cat([one.action, other.action]),
        torch.cat([one.state[:, :width], other.state[:, :width]]),
        torch.cat([one.clip, other.clip + int(one.clip.max()) + 1]),
    )


def _errors(
    train: Examples, test: Examples, gallery: Gallery, steps: int, seed: int
) -> Float[Tensor, " n"]:
    """Learn, and return the mean squared error of each held-out clip, in variances."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = SmallVision(3 * train.rows.shape[1], train.targets.shape[1])
    fit(net, train, steps=steps, seed=seed)
    scale = test.targets.var(dim=0).clamp_min(1e-6)
    error = ((predictions(net, test) - test.targets).square() / scale).mean(dim=1)
    clip = gallery.clip[test.rows[:, 0]]
    count = torch.bincount(clip)
    return torch.zeros(len(count)).index_add(0, clip, error) / count
