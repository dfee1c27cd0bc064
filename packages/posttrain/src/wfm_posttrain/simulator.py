"""The simulated arm as a gymnasium environment: the truth that imagined worlds are held to."""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from einops import rearrange
from gymnasium import spaces
from jaxtyping import Bool, Float
from torch import Tensor

from .env import Picture
from .metrics import centroid, colour_mask, mean_colour
from .plan import Bounds, NearerTo, ObjectAt
from .sim.arm_env import FPS, ArmPushEnv, action_towards
from .sim.filming import Story
from .sim.graphics import project
from .vision import SmallVision

REACH_STEPS = 4
REACHED = 0.03  # metres

# Scaled as recorded: 1 is 5 cm, or 0.05 rad; the gripper is absolute.
ACTIONS = spaces.Box(
    np.array([-1, -1, -1, -2.4, -2.4, -2.4, 0], np.float32),
    np.array([1, 1, 1, 2.4, 2.4, 2.4, 1], np.float32),
)


def move_bounds(*, gripper: float = 1.0) -> Bounds:
    """Bounds of actions that only move: no turning, the gripper as given."""
    fixed = torch.tensor([0, 0, 0, gripper])
    side = torch.ones(3)
    return Bounds(torch.cat([-side, fixed]), torch.cat([side, fixed]))


class SkilledPolicy:
    """Does what led to the goal of ``reach``, blended with random actions; then holds still.

    Skill 1 knows the way, skill 0 nothing: a ladder of policies to compare worlds on.
    """

    def __init__(self, skill: float) -> None:
        self.skill = skill

    def reset(self, picture: Picture, info: Mapping[str, Any], seed: int, /) -> None:
        self._rng = np.random.default_rng((seed, int(1000 * self.skill)))
        self._way = list(info["solution"])
        self._rest = np.array([0, 0, 0, 0, 0, 0, self._way[-1][6]], np.float32)

    def act(self, picture: Picture, /) -> np.ndarray:
        if not self._way:
            return self._rest
        guess = self._rest.copy()
        guess[:3] = self._rng.uniform(-1, 1, 3)
        return self.skill * self._way.pop(0) + (1 - self.skill) * guess


class TrueWorld:
    """The simulator itself as a world model: what planning with a perfect model would give.

    It imagines from where ``env`` stands, whatever ``past`` shows.
    """

    past_frames = 1

    def __init__(self, env: "ArmEnv") -> None:
        self.env = env

    def rollout(
        self,
        past: Float[Tensor, "_ 3 p h w"],
        /,
        *,
        frames: int,
        controls: Mapping[str, Tensor] | None = None,
        prompts: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "b 3 f h w"]:
        """Try each row of ``controls["action"]``, and come back."""
        if controls is None or controls["action"].shape[1] != frames:
            raise ValueError(f"the simulator needs {frames} actions for {frames} frames")
        before = self.env.simulator.save()
        try:
            futures = [self._try(before, actions) for actions in controls["action"].numpy()]
        finally:
            self.env.simulator.restore(before)
        video = torch.from_numpy(np.stack(futures))
        return rearrange(video, "b f c h w -> b c f h w") / 127.5 - 1

    def _try(self, before: np.ndarray, actions: np.ndarray) -> np.ndarray:
        self.env.simulator.restore(before)
        return np.stack([self.env.simulator.step(action)[0].frame for action in actions])


class PushAlong:
    """Reward: an object comes to its place, and the tool gets behind the object first.

    Distances are in pixels of the picture: the object's from its place, plus ``approach`` times
    the tool's from a point ``behind`` pixels behind the object. The object is found by its colour,
    the tool by a reader of ``effector_pixel``. An object that is not found is where it was.
    """

    def __init__(
        self,
        info: Mapping[str, Any],
        reader: SmallVision,
        *,
        behind: float = 6.0,
        approach: float = 0.3,
    ) -> None:
        judge = info["judge"]
        self.colour, self.place = judge.colour, judge.pixel
        self.start = torch.as_tensor(info["object_pixel"]).float()
        self.reader, self.behind, self.approach = reader, behind, approach

    @torch.no_grad()
    def score(
        self, future: Float[Tensor, "b 3 f h w"], actions: Float[Tensor, "b s a"] | None, /
    ) -> Float[Tensor, " b"]:
        count, length = len(future), future.shape[2]
        mask: Bool[Tensor, "b f h w"] = colour_mask(future, self.colour.repeat(count, 1))
        thing = centroid(mask)
        thing = torch.where(thing.isnan(), self.start, thing)
        tool = self.reader(rearrange(future, "b c f h w -> (b f) c h w").clamp(-1, 1))
        way = self.place - thing
        left = way.norm(dim=-1)
        post = thing - self.behind * way / left.clamp_min(1e-3)[..., None]
        cost = left + self.approach * (tool.view(count, length, 2) - post).norm(dim=-1)
        weight = 2.0 ** torch.arange(length)
        return -(cost * weight / weight.sum()).sum(dim=1)


class ArmEnv(gymnasium.Env[Picture, np.ndarray]):
    """``ArmPushEnv`` behind gymnasium's interface, with a goal picture for planners.

    Task ``push``: bring an object to a place. ``info["judge"]`` decides from pictures.
    Task ``reach``: bring the tool where it was in ``info["goal_frame"]``.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012

    def __init__(
        self,
        task: str = "reach",
        *,
        size: tuple[int, int] = (64, 64),
        horizon: int = 20,
        render_mode: str | None = None,
    ) -> None:
        if task not in ("reach", "push"):
            raise ValueError(f"no task {task!r}; there are reach and push")
        self.task, self.horizon, self.render_mode = task, horizon, render_mode
        self.simulator = ArmPushEnv(size=size, horizon=10**9)
        self.action_space = ACTIONS
        self.observation_space = spaces.Box(0, 255, (*size, 3), np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Picture, dict[str, Any]]:
        super().reset(seed=seed)
        number = int(self.np_random.integers(2**31)) if seed is None else seed
        self._seen, _ = self.simulator.reset(number)
        self._steps = 0
        find = self._reachable_goal if self.task == "reach" else self._push_goal
        info = find(number)
        return self.render(), {**info, "distance": self.distance()}

    def step(self, action: np.ndarray) -> tuple[Picture, float, bool, bool, dict[str, Any]]:
        self._seen = self.simulator.step(np.asarray(action))[0]
        self._steps += 1
        distance = self.distance()
        success = distance <= REACHED
        truncated = self._steps >= self.horizon
        return self.render(), -distance, success, truncated, {
            "distance": distance, "success": success,
        }  # fmt: skip

    def render(self) -> Picture:
        """Return the latest picture."""
        return np.ascontiguousarray(self._seen.frame.transpose(1, 2, 0))

    def close(self) -> None:
        self.simulator.close()

    def distance(self) -> float:
        """Return the metres that are left to the goal."""
        if self.task == "push":
            return self.simulator.distance()
        return float(np.linalg.norm(self._seen.state[:3] - self._goal))

    def _reachable_goal(self, seed: int) -> dict[str, Any]:
        """Go a straight way with the arm, take a picture, and come back."""
        rng = np.random.default_rng((seed, 2))
        before = self.simulator.save()
        state = self._seen.state.astype(np.float64)
        target = state.copy()
        angle = rng.uniform(-np.pi, np.pi)
        way = np.array([np.cos(angle), np.sin(angle), rng.uniform(0, 0.3)])
        target[:3] += 0.04 * REACH_STEPS * way
        seen, actions = self._seen, []
        for step in range(REACH_STEPS):
            share = 1 / (REACH_STEPS - step)
            waypoint = seen.state + share * (target - seen.state)
            actions.append(action_towards(seen.state, waypoint))
            seen = self.simulator.step(actions[-1])[0]
        self.simulator.restore(before)
        self._goal = seen.state[:3].copy()
        goal, first = torch.from_numpy(seen.frame), torch.from_numpy(self._seen.frame)
        return {
            "goal_frame": seen.frame, "solution": np.stack(actions),
            "judge": NearerTo(goal, first),
        }  # fmt: skip

    def _push_goal(self, seed: int) -> dict[str, Any]:
        """Say in pixels which object is to go where, and what it looks like."""
        goal = self.simulator.goal
        assert goal is not None
        story = Story(scene="arm-push", seed=seed, fps=float(FPS), captions=("",))
        (episode,) = self.simulator.film().episodes(story)
        centre = self._seen.object_positions[goal.index].astype(np.float64)
        centres = np.array([*goal.place, centre[2]]) + goal.tolerance * np.eye(3)[[2, 0, 1]]
        centres[0, 2] = centre[2]
        there, *edges = project(centres, episode.camera_pose[0], episode.intrinsics[0])
        within = float(np.mean([np.linalg.norm(edge - there) for edge in edges]))
        video = torch.from_numpy(episode.frames) / 127.5 - 1
        mask = torch.from_numpy(episode.segmentation == goal.index + 1)
        colour = mean_colour(video, mask)[0]
        judge = ObjectAt(colour, torch.from_numpy(there).float(), within=within)
        return {
            "goal_frame": self.simulator.goal_frame(),
            "goal_pixel": there,
            "object_pixel": episode.object_pixel[0, goal.index],
            "judge": judge,
        }
