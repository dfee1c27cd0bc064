"""Policies, and how they fare: model-predictive control in an imagined world, and baselines."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from .env import Picture
from .interfaces import Reward, WorldModel
from .plan import PLANNERS, Bounds, ImaginedReturn, Plan, SearchConfig


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


class MPCPolicy:
    """Model-predictive control: plan in imagination, do the first actions, plan again.

    Args:
        world: imagines the plans' futures.
        reward: makes the reward of an episode from the ``info`` of its reset.
        bounds: of the actions that are searched.
        config: of the search.
        method: ``cem``, ``icem`` or ``mppi``.
        execute: actions done before planning again.

    ``plans`` are those of the running episode, ``seconds`` the time they took.
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
        self.seconds = 0.0

    def reset(self, picture: Picture, info: Mapping[str, Any], seed: int, /) -> None:
        self._reward = self.make_reward(info)
        self._seen = [picture] * (self.world.past_frames - 1)
        self._queue: list[Tensor] = []
        self._seed = seed
        self.plans, self.seconds = [], 0.0

    def act(self, picture: Picture, /) -> np.ndarray:
        self._seen = [*self._seen, picture][-self.world.past_frames :]
        if not self._queue:
            self._plan()
        return self._queue.pop(0).numpy()

    def _plan(self) -> None:
        """Search, starting from what is left of the last plan."""
        start = self.plans[-1].actions[self.execute :] if self.plans else None
        begun = time.perf_counter()
        seed = self._seed + 1000 * len(self.plans)
        objective = ImaginedReturn(self.world, self._past(), self._reward, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        plan = self.search(objective, self.bounds, self.config, generator=generator, start=start)
        self.plans.append(plan)
        self._queue = list(plan.actions[: self.execute])
        self.seconds += time.perf_counter() - begun

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


class TumblePolicy:
    """Goes on as long as the picture gets nearer to the goal's, else turns at random.

    The way of bacteria, without a model: the heuristic that a planner has to beat.
    """

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds

    def reset(self, picture: Picture, info: Mapping[str, Any], seed: int, /) -> None:
        self._rng = np.random.default_rng((seed, 3))
        self._goal = np.moveaxis(np.asarray(info["goal_frame"], np.float32), 0, -1)
        self._last = -np.inf  # the first action is drawn

    def act(self, picture: Picture, /) -> np.ndarray:
        error = float(np.square(picture - self._goal).mean())
        if error >= self._last:
            low, high = self.bounds.low.numpy(), self.bounds.high.numpy()
            self._action = self._rng.uniform(low, high).astype(np.float32)
        self._last = error
        return self._action
