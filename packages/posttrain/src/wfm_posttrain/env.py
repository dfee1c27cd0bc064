"""A world model as a gymnasium environment: act, and see what it imagines."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
import torch
from einops import rearrange, repeat
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from .interfaces import ClipDataset, Reward, WorldModel

Picture = UInt8[np.ndarray, "h w 3"]
RewardFunction = Callable[[Float[Tensor, "b 3 f h w"], Float[Tensor, "b s a"]], Float[Tensor, " b"]]


@runtime_checkable
class Judge(Protocol):
    """Says from a picture whether a task is done."""

    def reached(self, frame: UInt8[Tensor, "3 h w"], /) -> bool: ...


@dataclass(frozen=True)
class Beginning:
    """Where an imagined episode starts, and what is wanted in it, if anything."""

    frames: UInt8[Tensor, "p 3 h w"]
    goal: UInt8[Tensor, "3 h w"] | None = None
    reward: Reward | RewardFunction | None = None
    judge: Judge | None = None


Contexts = Callable[[torch.Generator], Beginning | UInt8[Tensor, "p 3 h w"]]


class ClipContexts:
    """Real beginnings to imagine from: some frames of some clip, drawn anew each time."""

    def __init__(self, clips: ClipDataset, frames: int, *, anywhere: bool = False) -> None:
        self.clips, self.frames, self.anywhere = clips, frames, anywhere

    def __call__(self, generator: torch.Generator) -> UInt8[Tensor, "p 3 h w"]:
        number, share = torch.rand(2, generator=generator).tolist()
        clip = self.clips[int(number * len(self.clips))]
        room = max(len(clip) - self.frames, 0) if self.anywhere else 0
        start = int(share * (room + 1))
        return clip.read(start, start + self.frames)


@dataclass(frozen=True)
class Outcome:
    """What one step gave each world: reward, whether its judge is content, uncertainty."""

    rewards: Float[np.ndarray, " b"]
    success: Bool[np.ndarray, " b"]
    uncertainty: Float[np.ndarray, " b"] | None


class Imagination:
    """Pasts of several worlds, continued frame by frame; what the environments share.

    Args:
        world: imagines.
        actions: the space that actions are cut to.
        reward: of worlds whose beginning brings none.
        guesses: futures imagined at each step; the first one happens, and how far they differ
            (standard deviation of pixels, in [0, 1]) is the uncertainty.
        caution: the reward lost per unit of uncertainty, so that a policy does not seek
            what the model does not know.
    """

    def __init__(
        self,
        world: WorldModel,
        actions: spaces.Box,
        *,
        reward: Reward | RewardFunction | None = None,
        guesses: int = 1,
        caution: float = 0.0,
    ) -> None:
        if guesses < 1 or (caution and guesses < 2):
            raise ValueError(f"guesses is {guesses}; 1 or more, and 2 or more for caution")
        self.world, self.actions, self.reward = world, actions, reward
        self.guesses, self.caution = guesses, caution
        self.device = torch.device(getattr(world, "device", "cpu"))
        self.past: Float[Tensor, "b 3 p h w"]
        self.beginnings: list[Beginning] = []

    def begin(self, beginnings: Sequence[Beginning]) -> None:
        """Start as many worlds."""
        self.beginnings = list(beginnings)
        self.past = torch.cat([self._past(beginning.frames) for beginning in beginnings])

    def renew(self, row: int, beginning: Beginning) -> None:
        """Start one world again."""
        self.beginnings[row] = beginning
        self.past[row] = self._past(beginning.frames)[0]

    @torch.no_grad()
    def step(
        self, actions: Float[np.ndarray, "b a"], rows: Sequence[int], generator: torch.Generator
    ) -> Outcome:
        """Imagine one frame of each of the worlds ``rows``, in one forward pass."""
        clipped = np.clip(actions, self.actions.low, self.actions.high).astype(np.float32)
        taken = torch.from_numpy(clipped)[:, None].to(self.device)
        past, k = self.past[list(rows)], self.guesses
        guessed = self.world.rollout(
            repeat(past, "b c p h w -> (b k) c p h w", k=k),
            frames=1,
            controls={"action": repeat(taken, "b s a -> (b k) s a", k=k)},
            generator=generator,
        )
        guessed = rearrange(guessed, "(b k) c 1 h w -> k b c 1 h w", k=k)
        new = guessed[0]
        self.past[list(rows)] = torch.cat([past[:, :, 1:], new], dim=2)
        rewards = self._rewards(new, taken, rows)
        doubt = None
        if k > 1:
            doubt = (guessed.std(dim=0).mean(dim=(1, 2, 3, 4)) / 2).cpu().double().numpy()
            rewards = rewards - self.caution * doubt
        return Outcome(rewards, self._judged(rows), doubt)

    def pictures(self) -> UInt8[np.ndarray, "b h w 3"]:
        """Return the latest frames."""
        frames = ((self.past[:, :, -1] + 1) * 127.5).round().clamp(0, 255).byte().cpu()
        return rearrange(frames, "b c h w -> b h w c").numpy()

    def goals(self) -> dict[str, UInt8[np.ndarray, "b 3 h w"]]:
        """Return ``goal_frame`` of every world, or nothing if there are no goals."""
        goals = [beginning.goal for beginning in self.beginnings]
        known = [goal for goal in goals if goal is not None]
        return {"goal_frame": torch.stack(known).numpy()} if len(known) == len(goals) else {}

    def _past(self, frames: UInt8[Tensor, "p 3 h w"]) -> Float[Tensor, "1 3 q h w"]:
        """Return a past of the length that the model wants; the first frame is repeated."""
        missing = max(self.world.past_frames - len(frames), 0)
        frames = torch.cat([frames[:1].expand(missing, -1, -1, -1), frames])
        frames = frames[len(frames) - self.world.past_frames :]
        return rearrange(frames, "p c h w -> 1 c p h w").to(self.device) / 127.5 - 1

    def _rewards(
        self, new: Float[Tensor, "b 3 1 h w"], taken: Float[Tensor, "b 1 a"], rows: Sequence[int]
    ) -> Float[np.ndarray, " b"]:
        own = [self.beginnings[row].reward for row in rows]
        if any(own):
            pairs = [(own[i] or self.reward, slice(i, i + 1)) for i in range(len(rows))]
        else:
            pairs = [(self.reward, slice(None))]
        parts = [
            torch.zeros(len(new[part]))
            if reward is None
            else _score(reward, new[part], taken[part])
            for reward, part in pairs
        ]
        return torch.cat([part.cpu() for part in parts]).double().numpy()

    def _judged(self, rows: Sequence[int]) -> Bool[np.ndarray, " b"]:
        pictures, found = None, np.zeros(len(rows), bool)
        for i, row in enumerate(rows):
            judge = self.beginnings[row].judge
            if judge is not None:
                pictures = self.pictures() if pictures is None else pictures
                found[i] = judge.reached(frames_of(pictures[row])[0])
        return found


class WorldEnv(gymnasium.Env[Picture, np.ndarray]):
    """One imagined world. Observations are pictures (h w 3), actions those of the data.

    ``contexts`` gives frames or a :class:`Beginning`; ``reset(options={"start": picture or
    pictures (p h w 3)})`` imagines from there instead, and ``options={"judge": ...}`` replaces
    the judge. Reward 0 and never done without a reward and a judge. ``info`` of reset has
    ``goal_frame`` (3 h w) where the beginning has a goal, that of step ``success``, and
    ``uncertainty`` with ``guesses > 1`` (see :class:`Imagination`).
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012

    def __init__(
        self,
        world: WorldModel,
        contexts: Contexts,
        actions: spaces.Box,
        *,
        horizon: int = 32,
        reward: Reward | RewardFunction | None = None,
        judge: Judge | None = None,
        guesses: int = 1,
        render_mode: str | None = None,
    ) -> None:
        self._imagination = Imagination(world, actions, reward=reward, guesses=guesses)
        self.contexts, self.horizon = contexts, horizon
        self.judge = judge
        self.render_mode = render_mode
        self.action_space = actions
        self.observation_space = _picture_space(contexts)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Picture, dict[str, Any]]:
        super().reset(seed=seed)
        options = options or {}
        self._generator = torch.Generator().manual_seed(int(self.np_random.integers(2**31)))
        start = options.get("start")
        beginning = (
            _beginning(self.contexts(self._generator)) if start is None
            else Beginning(frames_of(start))
        )  # fmt: skip
        judge = options.get("judge", beginning.judge or self.judge)
        self._imagination.begin([replace(beginning, judge=judge)])
        self._steps = 0
        goals = {name: goal[0] for name, goal in self._imagination.goals().items()}
        return self.render(), {"imagined": True, **goals}

    def step(self, action: np.ndarray) -> tuple[Picture, float, bool, bool, dict[str, Any]]:
        found = self._imagination.step(np.asarray(action)[None], [0], self._generator)
        self._steps += 1
        success = bool(found.success[0])
        info: dict[str, Any] = {"imagined": True, "success": success}
        if found.uncertainty is not None:
            info["uncertainty"] = float(found.uncertainty[0])
        truncated = self._steps >= self.horizon
        return self.render(), float(found.rewards[0]), success, truncated, info

    def render(self) -> Picture:
        """Return the latest picture."""
        return self._imagination.pictures()[0]


class WorldVectorEnv(gymnasium.vector.VectorEnv):
    """Several imagined worlds, one forward pass a step.

    A world whose judge is content terminates, one at its horizon is truncated; the next
    ``step`` ignores its action and begins it again (gymnasium's next-step autoreset). ``info``
    has ``success``, ``uncertainty`` (with ``guesses > 1``; NaN where a world began again) and
    ``goal_frame`` (n 3 h w), if beginnings have goals.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(
        self,
        world: WorldModel,
        contexts: Contexts,
        actions: spaces.Box,
        *,
        num_envs: int,
        horizon: int = 32,
        reward: Reward | RewardFunction | None = None,
        guesses: int = 1,
        caution: float = 0.0,
    ) -> None:
        self._imagination = Imagination(
            world, actions, reward=reward, guesses=guesses, caution=caution
        )
        self.contexts, self.horizon = contexts, horizon
        self.num_envs = num_envs
        self.single_observation_space = _picture_space(contexts)
        self.single_action_space = actions
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[UInt8[np.ndarray, "n h w 3"], dict[str, Any]]:
        if seed is not None or self._np_random is None:
            super().reset(seed=seed)
        self._generator = torch.Generator().manual_seed(int(self.np_random.integers(2**31)))
        self._imagination.begin([self._draw() for _ in range(self.num_envs)])
        self._steps = np.zeros(self.num_envs, int)
        self._over = np.zeros(self.num_envs, bool)
        return self._imagination.pictures(), dict(self._imagination.goals())

    def step(
        self, actions: np.ndarray
    ) -> tuple[UInt8[np.ndarray, "n h w 3"], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        live = np.flatnonzero(~self._over)
        for row in np.flatnonzero(self._over).tolist():
            self._imagination.renew(row, self._draw())
            self._steps[row] = 0
        rewards, success = np.zeros(self.num_envs), np.zeros(self.num_envs, bool)
        doubt = np.full(self.num_envs, np.nan)
        info: dict[str, Any] = {"success": success, **self._imagination.goals()}
        if len(live):
            found = self._imagination.step(
                np.asarray(actions)[live], live.tolist(), self._generator
            )
            rewards[live], success[live] = found.rewards, found.success
            self._steps[live] += 1
            if found.uncertainty is not None:
                doubt[live] = found.uncertainty
                info["uncertainty"] = doubt
        terminated = success.copy()
        truncated = (self._steps >= self.horizon) & ~terminated
        self._over = terminated | truncated
        return self._imagination.pictures(), rewards, terminated, truncated, info

    def _draw(self) -> Beginning:
        return _beginning(self.contexts(self._generator))


def frames_of(pictures: UInt8[np.ndarray, "*p h w 3"]) -> UInt8[Tensor, "p 3 h w"]:
    """Turn one picture or several into frames."""
    pictures = pictures if pictures.ndim == 4 else pictures[None]
    return rearrange(torch.from_numpy(np.ascontiguousarray(pictures)), "p h w c -> p c h w")


def _beginning(context: Beginning | Tensor) -> Beginning:
    return context if isinstance(context, Beginning) else Beginning(context)


def _picture_space(contexts: Contexts) -> spaces.Box:
    """Return the space of pictures of the size that contexts have."""
    height, width = _beginning(contexts(torch.Generator().manual_seed(0))).frames.shape[2:]
    return spaces.Box(0, 255, (height, width, 3), np.uint8)


def _score(
    reward: Reward | RewardFunction, new: Float[Tensor, "b 3 1 h w"], taken: Float[Tensor, "b 1 a"]
) -> Float[Tensor, " b"]:
    return reward.score(new, taken) if isinstance(reward, Reward) else reward(new, taken)
