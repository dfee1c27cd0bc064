"""A world model as a gymnasium environment: act, and see what it imagines."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
import torch
from einops import rearrange
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from jaxtyping import Float, UInt8
from torch import Tensor

from .interfaces import ClipDataset, Reward, WorldModel

Picture = UInt8[np.ndarray, "h w 3"]
Contexts = Callable[[torch.Generator], UInt8[Tensor, "p 3 h w"]]


@runtime_checkable
class Judge(Protocol):
    """Says from a picture whether a task is done."""

    def reached(self, frame: UInt8[Tensor, "3 h w"], /) -> bool: ...


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


class _Imagination:
    """Pasts of several worlds, continued frame by frame; what the environments share."""

    def __init__(self, world: WorldModel, actions: spaces.Box) -> None:
        self.world, self.actions = world, actions
        self.device = torch.device(getattr(world, "device", "cpu"))
        self.past: Float[Tensor, "b 3 p h w"]

    def begin(self, frames: UInt8[Tensor, "p 3 h w"]) -> Float[Tensor, "1 3 p h w"]:
        """Return a past of the length that the model wants; the first frame is repeated."""
        missing = max(self.world.past_frames - len(frames), 0)
        frames = torch.cat([frames[:1].expand(missing, -1, -1, -1), frames])
        frames = frames[len(frames) - self.world.past_frames :]
        return rearrange(frames, "p c h w -> 1 c p h w").to(self.device) / 127.5 - 1

    @torch.no_grad()
    def step(
        self, actions: Float[np.ndarray, "b a"], generator: torch.Generator
    ) -> Float[Tensor, "b 3 1 h w"]:
        """Imagine one frame for each past."""
        clipped = np.clip(actions, self.actions.low, self.actions.high).astype(np.float32)
        controls = {"action": torch.from_numpy(clipped)[:, None].to(self.device)}
        new = self.world.rollout(self.past, frames=1, controls=controls, generator=generator)
        self.past = torch.cat([self.past[:, :, 1:], new], dim=2)
        return new

    def pictures(self) -> UInt8[np.ndarray, "b h w 3"]:
        """Return the latest frames."""
        frames = ((self.past[:, :, -1] + 1) * 127.5).round().clamp(0, 255).byte().cpu()
        return rearrange(frames, "b c h w -> b h w c").numpy()


class WorldEnv(gymnasium.Env[Picture, np.ndarray]):
    """One imagined world. Observations are pictures (h w 3), actions those of the data.

    ``reset(options={"start": picture or pictures (p h w 3)})`` imagines from there instead of
    from a context; ``options={"judge": ...}`` replaces the judge. Reward 0 and never done
    without ``reward`` and ``judge``.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012

    def __init__(
        self,
        world: WorldModel,
        contexts: Contexts,
        actions: spaces.Box,
        *,
        horizon: int = 32,
        reward: Reward | None = None,
        judge: Judge | None = None,
        render_mode: str | None = None,
    ) -> None:
        self._imagination = _Imagination(world, actions)
        self.contexts, self.horizon = contexts, horizon
        self.reward, self.judge = reward, judge
        self.render_mode = render_mode
        self.action_space = actions
        height, width = contexts(torch.Generator().manual_seed(0)).shape[2:]
        self.observation_space = spaces.Box(0, 255, (height, width, 3), np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Picture, dict[str, Any]]:
        super().reset(seed=seed)
        options = options or {}
        self._generator = torch.Generator().manual_seed(int(self.np_random.integers(2**31)))
        start = options.get("start")
        frames = self.contexts(self._generator) if start is None else _frames(start)
        self._imagination.past = self._imagination.begin(frames)
        self._judge: Judge | None = options.get("judge", self.judge)
        self._steps = 0
        return self.render(), {"imagined": True}

    def step(self, action: np.ndarray) -> tuple[Picture, float, bool, bool, dict[str, Any]]:
        action = np.asarray(action)[None]
        new = self._imagination.step(action, self._generator)
        self._steps += 1
        picture = self.render()
        value = _reward(self.reward, new, action)[0] if self.reward else 0.0
        success = bool(self._judge and self._judge.reached(_frames(picture)[0]))
        truncated = self._steps >= self.horizon
        return picture, value, success, truncated, {"imagined": True, "success": success}

    def render(self) -> Picture:
        """Return the latest picture."""
        return self._imagination.pictures()[0]


class WorldVectorEnv(gymnasium.vector.VectorEnv):
    """Several imagined worlds, one forward pass a step. They begin and end together.

    After the last step of the horizon, the next ``step`` resets all of them and ignores its
    actions (gymnasium's next-step autoreset).
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
        reward: Reward | None = None,
    ) -> None:
        self._imagination = _Imagination(world, actions)
        self.contexts, self.horizon, self.reward = contexts, horizon, reward
        self.num_envs = num_envs
        height, width = contexts(torch.Generator().manual_seed(0)).shape[2:]
        self.single_observation_space = spaces.Box(0, 255, (height, width, 3), np.uint8)
        self.single_action_space = actions
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[UInt8[np.ndarray, "n h w 3"], dict[str, Any]]:
        if seed is not None or self._np_random is None:
            super().reset(seed=seed)
        self._generator = torch.Generator().manual_seed(int(self.np_random.integers(2**31)))
        pasts = [self.contexts(self._generator) for _ in range(self.num_envs)]
        self._imagination.past = torch.cat([self._imagination.begin(past) for past in pasts])
        self._steps = 0
        return self._imagination.pictures(), {}

    def step(
        self, actions: np.ndarray
    ) -> tuple[UInt8[np.ndarray, "n h w 3"], np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        never = np.zeros(self.num_envs, bool)
        if self._steps >= self.horizon:
            observations, info = self.reset()
            return observations, np.zeros(self.num_envs), never, never.copy(), info
        new = self._imagination.step(actions, self._generator)
        self._steps += 1
        truncated = np.full(self.num_envs, self._steps >= self.horizon)
        values = np.zeros(self.num_envs)
        if self.reward:
            values = np.asarray(_reward(self.reward, new, actions))
        return self._imagination.pictures(), values, never, truncated, {}


def _reward(reward: Reward, new: Tensor, actions: np.ndarray) -> list[float]:
    taken = torch.from_numpy(np.asarray(actions, np.float32))[:, None]
    return reward.score(new, taken).tolist()


def _frames(pictures: UInt8[np.ndarray, "*p h w 3"]) -> UInt8[Tensor, "p 3 h w"]:
    """Turn one picture or several into frames."""
    pictures = pictures if pictures.ndim == 4 else pictures[None]
    return rearrange(torch.from_numpy(np.ascontiguousarray(pictures)), "p h w c -> p c h w")
