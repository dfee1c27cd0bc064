"""A table and an arm to act in: the true simulator behind ``arm-push`` recordings.

The interface is gymnasium's, without the dependency:

    env = ArmPushEnv(size=(64, 64))
    observation, info = env.reset(seed=3)
    observation, reward, terminated, truncated, info = env.step(action)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, UInt8

from .actions import ACTION_SCALE, apply_action, euler, relative_actions, rotation
from .arm import (
    FINGER_CLOSED,
    FINGER_OPEN,
    HIGH,
    LOW,
    TOOL,
    ArmScene,
    build_arm,
    inverse_kinematics,
)
from .filming import Film
from .graphics import Renderer, mujoco

FPS = 5
SUBSTEPS = 50
# A command is reached after this share of a step; the hand rests for what is left, so that
# a recorded pose is the commanded one.
MOVING = 0.8
MAX_STEP, MAX_TURN, MAX_TILT = 0.05, 0.12, 0.25
PARTS = dict.fromkeys(("base", "turret", "upper", "forearm", "wrist"), (101, "robot arm"))
PARTS |= dict.fromkeys(("hand", "finger_left", "finger_right"), (102, "gripper"))
STREAM = 1  # keeps this scene's random numbers apart from the others'


@dataclass(frozen=True)
class Observation:
    """What one step shows: the picture, the arm's state (see ``actions``), objects in metres."""

    frame: UInt8[np.ndarray, "3 h w"]
    state: Float32[np.ndarray, " 7"]
    object_positions: Float32[np.ndarray, "n 3"]


@dataclass(frozen=True)
class Goal:
    """Bring object ``index`` within ``tolerance`` of a place on the table (x, y in metres)."""

    index: int
    place: tuple[float, float]
    tolerance: float = 0.03


class ArmPushEnv:
    """One arm, one table. Use it in one thread, and ``close()`` it, or use ``with``."""

    def __init__(
        self, *, size: tuple[int, int] = (64, 64), horizon: int = 32, camera_jitter: float = 0.0
    ) -> None:
        self.size, self.horizon, self.camera_jitter = size, horizon, camera_jitter
        self.scene: ArmScene
        self.goal: Goal | None = None
        self._renderer: Renderer | None = None
        self._rng = np.random.default_rng(0)

    def __enter__(self) -> "ArmPushEnv":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the renderer."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    @property
    def rng(self) -> np.random.Generator:
        """The random numbers of the running episode, from its seed."""
        return self._rng

    @property
    def object_names(self) -> tuple[str, ...]:
        """Names such as "red cube", in the order of ``object_positions``."""
        return tuple(thing.name for thing in self.scene.things)

    def reset(self, seed: int = 0) -> tuple[Observation, dict[str, object]]:
        """Build the scene of ``seed`` and sample a goal.

        Returns:
            The first observation, and a dict with ``goal`` and ``objects`` (their names).
        """
        self.close()
        self._rng = np.random.default_rng((STREAM, seed))
        self.scene = build_arm(self._rng, self.size, camera_jitter=self.camera_jitter)
        self._model = self.scene.model
        self._data = mujoco.MjData(self._model)
        self._hand = self._model.body("hand").id
        self._things = [self._model.body(f"thing{i}").id for i in range(len(self.scene.things))]
        self._steps = 0
        self._place_arm(self._start_state())
        self.goal = self.sample_goal(np.random.default_rng((STREAM, seed, 1)))
        return self.observe(), {"goal": self.goal, "objects": self.object_names}

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, object]]:
        """Do one scaled relative action (see ``actions``): 0.2 s of simulated time.

        The tool stays in its workspace, and moves at most 5 cm and 0.12 rad per axis.

        Returns:
            Observation, reward (minus the distance to the goal, metres), terminated (goal
            reached), truncated (``horizon`` reached), and a dict with ``distance`` and
            ``success``.
        """
        action = np.asarray(action, np.float64)
        if action.shape != (7,) or not np.isfinite(action).all():
            raise ValueError(f"an action is 7 finite numbers, not {action.tolist()}")
        self._move(self._target(action))
        self._steps += 1
        distance = self.distance()
        success = self.success()
        truncated = self._steps >= self.horizon
        info: dict[str, object] = {"distance": distance, "success": success}
        return self.observe(), -distance, success, truncated, info

    def render(self) -> UInt8[np.ndarray, "3 h w"]:
        """Return the picture of the front camera."""
        return self._camera().colour(self._data, "front")

    def film(self, cameras: Sequence[str] = ("front",)) -> Film:
        """Start a film of this episode, with this moment as its first frame."""
        things = {f"thing{i}": name for i, name in enumerate(self.object_names)}
        film = Film(self._model, self._camera(), cameras, things, PARTS)
        film.note(self._data)
        return film

    def note(self, film: Film) -> None:
        """Add this moment to a film."""
        film.note(self._data)

    def observe(self) -> Observation:
        """Return the observation of this moment."""
        return Observation(self.render(), self.state(), self.object_positions())

    def state(self) -> Float32[np.ndarray, " 7"]:
        """Return the measured pose of the tool and the opening of the gripper."""
        turn = self._data.xmat[self._hand].reshape(3, 3)
        position = self._data.xpos[self._hand] + turn @ TOOL
        fingers = self._data.joint("left").qpos[0] + self._data.joint("right").qpos[0]
        closed = (FINGER_OPEN - fingers / 2) / (FINGER_OPEN - FINGER_CLOSED)
        grip = [np.clip(closed, 0, 1)]
        return np.concatenate([position, euler(turn), grip]).astype(np.float32)

    def object_positions(self) -> Float32[np.ndarray, "n 3"]:
        """Return the centres of the objects."""
        return self._data.xpos[self._things].astype(np.float32)

    def sample_goal(
        self, rng: np.random.Generator, *, distance: tuple[float, float] = (0.08, 0.15)
    ) -> Goal:
        """Draw an object and a free place on the table for it."""
        positions = self.object_positions()[:, :2]
        for _ in range(200):
            index = int(rng.integers(len(positions)))
            angle = rng.uniform(-np.pi, np.pi)
            shift = rng.uniform(*distance) * np.array([np.cos(angle), np.sin(angle)])
            place = positions[index] + shift
            others = np.delete(positions, index, axis=0)
            free = np.linalg.norm(others - place, axis=1).min() > 0.10
            if free and (place > LOW[:2] + 0.04).all() and (place < HIGH[:2] - 0.04).all():
                break
        return Goal(index, (float(place[0]), float(place[1])))

    def distance(self) -> float:
        """Return how far the goal's object is from its place, in metres."""
        goal = self._goal()
        return float(np.linalg.norm(self.object_positions()[goal.index, :2] - goal.place))

    def success(self) -> bool:
        """Tell whether the goal is reached."""
        return self.distance() <= self._goal().tolerance

    def goal_frame(self) -> UInt8[np.ndarray, "3 h w"]:
        """Return a picture of this moment with the goal's object already in its place."""
        goal, snapshot = self._goal(), self.save()
        joint = self._model.body(self._things[goal.index]).jntadr[0]
        address = self._model.jnt_qposadr[joint]
        self._data.qpos[address : address + 2] = goal.place
        mujoco.mj_forward(self._model, self._data)
        frame = self.render()
        self.restore(snapshot)
        return frame

    def save(self) -> Float64[np.ndarray, " k"]:
        """Return the physical state; give it to ``restore`` of the same episode."""
        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        snapshot = np.empty(mujoco.mj_stateSize(self._model, kind))
        mujoco.mj_getState(self._model, self._data, snapshot, kind)
        return snapshot

    def restore(self, snapshot: Float64[np.ndarray, " k"]) -> None:
        """Return to a saved physical state; the step count goes on."""
        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        mujoco.mj_setState(self._model, self._data, snapshot, kind)
        mujoco.mj_forward(self._model, self._data)

    def _goal(self) -> Goal:
        if self.goal is None:
            raise RuntimeError("call reset() first")
        return self.goal

    def _camera(self) -> Renderer:
        if self._renderer is None:
            self._renderer = Renderer(self._model, self.size)
        return self._renderer

    def _start_state(self) -> Float64[np.ndarray, " 7"]:
        """Draw a state of the arm near an object, free of all of them."""
        rng, things = self._rng, self.scene.things
        centres = np.array([thing.position[:2] for thing in things])
        radii = np.array([thing.radius for thing in things])
        while True:
            angle, reach = rng.uniform(-np.pi, np.pi), rng.uniform(0.11, 0.18)
            place = centres[rng.integers(len(things))] + reach * np.array(
                [np.cos(angle), np.sin(angle)]
            )
            z = rng.uniform(LOW[2], 0.15)
            clear = (np.linalg.norm(centres - place, axis=1) > radii + 0.07).all() or z > 0.13
            if clear and (place > LOW[:2]).all() and (place < HIGH[:2]).all():
                break
        tilt = rng.normal(0, 0.05, 2)
        return np.array([*place, z, *tilt, rng.uniform(-0.9, 0.9), float(rng.random() < 0.5)])

    def _place_arm(self, state: Float64[np.ndarray, " 7"]) -> None:
        turn = rotation(state[3:6])
        for i, angle in enumerate(inverse_kinematics(state[:3], turn)):
            self._data.joint(f"j{i + 1}").qpos[0] = angle
        opening = FINGER_OPEN + state[6] * (FINGER_CLOSED - FINGER_OPEN)
        for side in ("left", "right"):
            self._data.joint(side).qpos[0] = opening
        self._command(state[:3] - turn @ TOOL, turn.reshape(-1))
        self._grip(state[6])
        mujoco.mj_forward(self._model, self._data)
        mujoco.mj_step(self._model, self._data, SUBSTEPS)

    def _target(self, action: Float64[np.ndarray, " 7"]) -> Float64[np.ndarray, " 7"]:
        """Return the state to reach: the action from where the tool is, within the limits."""
        step = action / ACTION_SCALE
        length = np.linalg.norm(step[:3])
        step[:3] *= min(1.0, MAX_STEP / max(length, 1e-9))
        step[3:6] = np.clip(step[3:6], -MAX_TURN, MAX_TURN)
        target = apply_action(self.state(), step * ACTION_SCALE)
        target[:3] = np.clip(target[:3], LOW, HIGH)
        target[3:5] = np.clip(target[3:5], -MAX_TILT, MAX_TILT)
        target[6] = np.clip(target[6], 0, 1)
        return target

    def _move(self, target: Float64[np.ndarray, " 7"]) -> None:
        """Lead the hand to ``target`` along a straight line."""
        start = self.state().astype(np.float64)
        turn = (target[3:6] - start[3:6] + np.pi) % (2 * np.pi) - np.pi
        share = np.minimum(1.0, np.arange(1, SUBSTEPS + 1) / (SUBSTEPS * MOVING))[:, None]
        turns = rotation(start[3:6] + share * turn)
        hands = start[:3] + share * (target[:3] - start[:3]) - turns @ TOOL
        self._grip(target[6])
        for hand, matrix in zip(hands, turns.reshape(-1, 9), strict=True):
            self._command(hand, matrix)
            mujoco.mj_step(self._model, self._data)
        mujoco.mj_forward(self._model, self._data)

    def _command(self, hand: Float64[np.ndarray, " 3"], matrix: Float64[np.ndarray, " 9"]) -> None:
        """Ask the hand to be somewhere; the weld pulls it there."""
        self._data.mocap_pos[0] = hand
        mujoco.mju_mat2Quat(self._data.mocap_quat[0], matrix)

    def _grip(self, closed: float) -> None:
        self._data.ctrl[:] = FINGER_OPEN + closed * (FINGER_CLOSED - FINGER_OPEN)


def action_towards(
    state: Float[np.ndarray, " 7"], target: Float[np.ndarray, " 7"]
) -> Float32[np.ndarray, " 7"]:
    """Return the scaled action that leads from one state to another."""
    return relative_actions(np.stack([state, target]))[0]
