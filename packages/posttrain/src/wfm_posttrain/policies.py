"""Policies, and whether a world model tells good ones from bad ones.

A policy is tried from the same beginnings in the simulator (or on the robot) and in the
imagined world. A world model is of use for evaluation when the two success rates agree:
Pearson's r near 1, and few and small ranking mistakes (MMRV).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from .env import Picture
from .interfaces import Reward, WorldModel
from .metrics import Interval
from .plan import PLANNERS, Bounds, ImaginedReturn, Plan, SearchConfig

NAN = float("nan")


@runtime_checkable
class Policy(Protocol):
    """Chooses actions from pictures. ``info`` is what the environment's reset told."""

    def reset(self, picture: Picture, info: Mapping[str, Any], seed: int, /) -> None: ...

    def act(self, picture: Picture, /) -> np.ndarray: ...


@runtime_checkable
class StepEnv(Protocol):
    """The part of gymnasium's Env that is needed; ``info["success"]`` says when it is done."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Picture, dict[str, Any]]: ...

    def step(self, action: np.ndarray, /) -> tuple[Picture, Any, bool, bool, dict[str, Any]]: ...


@dataclass(frozen=True)
class Trial:
    """What one episode showed: pictures (one more than actions), and whether it succeeded."""

    pictures: UInt8[np.ndarray, "t h w 3"]
    actions: Float[np.ndarray, "s a"]
    rewards: Float[np.ndarray, " s"]
    success: bool
    info: Mapping[str, Any]


def run_trial(
    env: StepEnv,
    policy: Policy,
    *,
    seed: int,
    steps: int,
    options: dict[str, Any] | None = None,
    told: Mapping[str, Any] | None = None,
) -> Trial:
    """Let a policy act until it succeeds, the environment ends, or ``steps`` are done.

    ``told`` is added to the ``info`` of reset before the policy sees it.
    """
    picture, info = env.reset(seed=seed, options=options)
    info = {**info, **(told or {})}
    policy.reset(picture, info, seed)
    pictures, actions, rewards, success = [picture], [], [], False
    for _ in range(steps):
        action = np.asarray(policy.act(picture), np.float32)
        picture, reward, terminated, truncated, about = env.step(action)
        pictures.append(picture)
        actions.append(action)
        rewards.append(float(reward))
        success = success or bool(about.get("success", False))
        if success or terminated or truncated:
            break
    return Trial(np.stack(pictures), np.stack(actions), np.array(rewards), success, info)


class PlanningPolicy:
    """Model-predictive control: plan in imagination, do the first actions, plan again.

    Args:
        world: imagines the plans' futures.
        reward: makes the reward of an episode from the ``info`` of its reset.
        bounds: of the actions that are searched.
        config: of the search.
        method: ``cem``, ``icem`` or ``mppi``.
        execute: actions done before planning again.
    """

    def __init__(
        self,
        world: WorldModel,
        reward: Callable[[Mapping[str, Any]], Reward],
        bounds: Bounds,
        config: SearchConfig | None = None,
        *,
        method: str = "cem",
        execute: int = 1,
    ) -> None:
        if method not in PLANNERS:
            raise ValueError(f"no planner {method!r}; there are {', '.join(PLANNERS)}")
        self.world, self.make_reward, self.bounds = world, reward, bounds
        self.config = config or SearchConfig()
        self.search, self.execute = PLANNERS[method], execute
        self.plans: list[Plan] = []

    def reset(self, picture: Picture, info: Mapping[str, Any], seed: int, /) -> None:
        self._reward = self.make_reward(info)
        self._seen = [picture] * (self.world.past_frames - 1)
        self._queue: list[Tensor] = []
        self._seed = seed
        self.plans = []

    def act(self, picture: Picture, /) -> np.ndarray:
        self._seen = [*self._seen, picture][-self.world.past_frames :]
        if not self._queue:
            self._plan()
        return self._queue.pop(0).numpy()

    def _plan(self) -> None:
        """Search, starting from what is left of the last plan."""
        start = self.plans[-1].actions[self.execute :] if self.plans else None
        seed = self._seed + 1000 * len(self.plans)
        objective = ImaginedReturn(self.world, self._past(), self._reward, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        plan = self.search(objective, self.bounds, self.config, generator=generator, start=start)
        self.plans.append(plan)
        self._queue = list(plan.actions[: self.execute])

    def _past(self) -> Float[Tensor, "1 3 p h w"]:
        pictures = torch.from_numpy(np.stack(self._seen))
        past = rearrange(pictures, "p h w c -> 1 c p h w") / 127.5 - 1
        return past.to(getattr(self.world, "device", "cpu"))


class RandomPolicy:
    """Uniform actions within bounds, each held for some steps: the least to compare with."""

    def __init__(self, bounds: Bounds, *, hold: int = 1) -> None:
        self.bounds, self.hold = bounds, hold

    def reset(self, picture: Picture, info: Mapping[str, Any], seed: int, /) -> None:
        self._rng = np.random.default_rng(seed)
        self._left = 0

    def act(self, picture: Picture, /) -> np.ndarray:
        if not self._left:
            low, high = self.bounds.low.numpy(), self.bounds.high.numpy()
            self._action = self._rng.uniform(low, high).astype(np.float32)
            self._left = self.hold
        self._left -= 1
        return self._action


@dataclass(frozen=True)
class PolicyEvaluation:
    """Successes of each policy (rows) from each beginning (columns), imagined and real."""

    names: tuple[str, ...]
    imagined: Bool[np.ndarray, "n e"]
    real: Bool[np.ndarray, "n e"]

    @property
    def rates(self) -> dict[str, tuple[float, float]]:
        """Success rate of each policy: imagined, real."""
        pairs = zip(self.imagined.mean(1).tolist(), self.real.mean(1).tolist(), strict=True)
        return dict(zip(self.names, pairs, strict=True))

    def pearson(self, *, draws: int = 2000, seed: int = 0) -> Interval:
        """Correlation of the success rates; the interval resamples beginnings."""
        return self._interval(pearson, draws, seed)

    def mmrv(self, *, draws: int = 2000, seed: int = 0) -> Interval:
        """Mean maximum rank violation; the interval resamples beginnings."""
        return self._interval(lambda i, r: mmrv(imagined=i, real=r), draws, seed)

    def summary(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        rates = {n: {"imagined": i, "real": r} for n, (i, r) in self.rates.items()}
        return {
            "episodes": self.real.shape[1],
            "success": rates,
            "pearson": _plain(self.pearson()),
            "mmrv": _plain(self.mmrv()),
        }

    def _interval(
        self, score: Callable[[np.ndarray, np.ndarray], float], draws: int, seed: int
    ) -> Interval:
        rng = np.random.default_rng(seed)
        count = self.real.shape[1]
        found = []
        for _ in range(draws):
            picks = rng.integers(count, size=count)
            found.append(score(self.imagined[:, picks].mean(1), self.real[:, picks].mean(1)))
        known = np.array(found)[~np.isnan(found)]
        low, high = np.quantile(known, [0.025, 0.975]).tolist() if len(known) else (NAN, NAN)
        return Interval(score(self.imagined.mean(1), self.real.mean(1)), low, high, count)


def evaluate_policy(
    policies: Mapping[str, Policy],
    *,
    imagined: StepEnv,
    real: StepEnv,
    seeds: Sequence[int],
    steps: int = 20,
    progress: Callable[[int, int], None] | None = None,
) -> PolicyEvaluation:
    """Try every policy from every seed's beginning, in the real world and in the imagined.

    The imagined world starts from the real one's first picture (``options={"start": ...,
    "judge": ...}``); a ``judge`` in the real one's info decides about success there.

    Raises:
        ValueError: nothing to compare.
    """
    if not policies or not seeds:
        raise ValueError(f"{len(policies)} policies and {len(seeds)} beginnings: nothing to do")
    successes = np.zeros((2, len(policies), len(seeds)), bool)
    done, total = 0, len(policies) * len(seeds)
    for row, policy in enumerate(policies.values()):
        for column, seed in enumerate(seeds):
            truth = run_trial(real, policy, seed=seed, steps=steps)
            options = {"start": truth.pictures[0], "judge": truth.info.get("judge")}
            dream = run_trial(
                imagined, policy, seed=seed, steps=steps, options=options, told=truth.info
            )
            successes[:, row, column] = dream.success, truth.success
            done += 1
            if progress:
                progress(done, total)
    return PolicyEvaluation(tuple(policies), successes[0], successes[1])


def pearson(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Correlation of two lists; NaN when one of them does not vary."""
    a, b = a - a.mean(), b - b.mean()
    length = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum() / length) if length > 1e-8 else NAN


def mmrv(*, imagined: Float[np.ndarray, " n"], real: Float[np.ndarray, " n"]) -> float:
    """Mean maximum rank violation (SIMPLER, arXiv 2405.05941): 0 when the ranking is right.

    A pair ranked otherwise than in reality costs the difference of its real success rates.
    It is not symmetric, hence the names.
    """
    wrong = (imagined[:, None] > imagined) != (real[:, None] > real)
    return float((np.abs(real[:, None] - real) * wrong).max(axis=1).mean())


def _plain(interval: Interval) -> dict[str, float | None]:
    values = {"value": interval.mean, "low": interval.low, "high": interval.high}
    return {name: None if np.isnan(x) else x for name, x in values.items()}
