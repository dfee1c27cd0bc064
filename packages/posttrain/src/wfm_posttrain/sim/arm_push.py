"""The ``arm-push`` scene: a scripted policy pushes objects about, and captions say what moved."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Float64

from .actions import relative_actions
from .arm import HIGH, LOW
from .arm_env import FPS, MAX_TURN, ArmPushEnv, Observation, action_towards
from .episode import Episode
from .filming import Story
from .scenes import Capture

MOVED = 0.02  # an object that moved less than this counts as still

DIRECTIONS = {
    "left": ("to the left", "leftwards", "towards the left side"),
    "right": ("to the right", "rightwards", "towards the right side"),
    "near": ("towards the camera", "closer to the viewer", "forward, towards the viewer"),
    "far": ("away from the camera", "back towards the robot", "further away from the viewer"),
}
VECTORS = {"left": (0, -1), "right": (0, 1), "near": (1, 0), "far": (-1, 0)}
PUSHED = (
    "A robot arm pushes the {thing} {way}.",
    "The robot arm pushes the {thing} {way} across the {table} table.",
    "The gripper slides the {thing} {way}.",
    "A white robot arm moves the {thing} {way} on a {table} table.",
    "On the table, the {thing} is pushed {way} by a robot arm.",
)
STILL = (
    "A robot arm moves above the {table} table without pushing anything.",
    "The robot arm moves, and the objects on the {table} table stay where they are.",
    "The gripper moves through the air above {things}.",
)
ORDERS = (
    "push the {thing} {way}",
    "move the {thing} {way}",
    "slide the {thing} {way}",
)


class PushPolicy:
    """Goes behind an object, pushes it along, and chooses the next; with some noise."""

    def __init__(self, env: ArmPushEnv, rng: np.random.Generator) -> None:
        self._env, self._rng = env, rng
        self._speed = rng.uniform(0.035, 0.05)
        self._way: list[Float64[np.ndarray, " 3"]] = []
        self._yaw = 0.0
        self._grip = float(env.state()[6] > 0.5)

    def act(self, observation: Observation) -> Float32[np.ndarray, " 7"]:
        """Return the next action."""
        state = observation.state.astype(np.float64)
        if not self._way:
            self._plan(state, observation.object_positions.astype(np.float64))
        if self._rng.random() < 0.06:
            self._grip = 1 - self._grip
        target = state.copy()
        target[:3] += self._stride(state[:3])
        target[3:5] = 0.8 * state[3:5] + self._rng.normal(0, 0.02, 2)
        # Half a turn gives the same gripper, so the nearer of the two yaws will do.
        turn = (self._yaw - state[5] + np.pi / 2) % np.pi - np.pi / 2
        target[5] += np.clip(turn, -0.8 * MAX_TURN, 0.8 * MAX_TURN) + self._rng.normal(0, 0.015)
        target[6] = self._grip
        return action_towards(state, target)

    def _stride(self, position: Float64[np.ndarray, " 3"]) -> Float64[np.ndarray, " 3"]:
        step = self._way[0] - position
        distance = np.linalg.norm(step)
        if distance <= self._speed:
            self._way.pop(0)
        else:
            step *= self._speed / distance
        return step + self._rng.normal(0, 0.003, 3)

    def _plan(self, state: Float64[np.ndarray, " 7"], centres: Float64[np.ndarray, "n 3"]) -> None:
        """Choose an object and a direction, the near ones rather, and lay the way."""
        options, costs = [], []
        for index, thing in enumerate(self._env.scene.things):
            for vector in VECTORS.values():
                aim = np.array(vector) + self._rng.normal(0, 0.15, 2)
                aim /= np.linalg.norm(aim)
                behind = centres[index, :2] - aim * (thing.radius + 0.05)
                end = centres[index, :2] + aim * self._rng.uniform(0.06, 0.16)
                if self._reachable(behind) and self._reachable(end):
                    options.append((behind, end, vector))
                    costs.append(np.linalg.norm(behind - state[:2]))
        if not options:
            self._way = [self._rng.uniform(LOW, HIGH)]
            return
        weights = np.exp(-np.array(costs) / 0.06)
        behind, end, vector = options[self._rng.choice(len(options), p=weights / weights.sum())]
        low = self._rng.uniform(LOW[2], LOW[2] + 0.012)
        self._way = [np.array([*behind, low]), np.array([*end, low])]
        if self._blocked(state[:2], behind, centres):
            self._way[:0] = [np.array([*state[:2], 0.14]), np.array([*behind, 0.14])]
        self._yaw = 0.0 if vector[1] == 0 else np.pi / 2

    def _reachable(self, place: Float64[np.ndarray, " 2"]) -> bool:
        return bool((place > LOW[:2]).all() and (place < HIGH[:2]).all())

    def _blocked(
        self,
        start: Float64[np.ndarray, " 2"],
        end: Float64[np.ndarray, " 2"],
        centres: Float64[np.ndarray, "n 3"],
    ) -> bool:
        points = start + np.linspace(0, 1, 12)[:, None] * (end - start)
        gaps = np.linalg.norm(points[:, None] - centres[None, :, :2], axis=-1)
        radii = np.array([thing.radius for thing in self._env.scene.things])
        return bool((gaps < radii + 0.03).any())


class WanderPolicy:
    """Swings about low above the table; what it meets, it pushes."""

    def __init__(self, env: ArmPushEnv, rng: np.random.Generator) -> None:
        self._rng = rng
        self._velocity = np.zeros(3)
        self._grip = float(env.state()[6] > 0.5)

    def act(self, observation: Observation) -> Float32[np.ndarray, " 7"]:
        """Return the next action."""
        state = observation.state.astype(np.float64)
        centre = np.array([*observation.object_positions[:, :2].mean(axis=0), 0.05])
        pull = 0.12 * (centre - state[:3])
        self._velocity = 0.75 * self._velocity + pull + self._rng.normal(0, 0.016, 3)
        if self._rng.random() < 0.1:
            self._grip = 1 - self._grip
        target = state.copy()
        target[:3] += self._velocity
        target[3:5] = 0.7 * state[3:5] + self._rng.normal(0, 0.04, 2)
        target[5] += self._rng.normal(0, 0.06)
        target[6] = self._grip
        return action_towards(state, target)


def record(seed: int, capture: Capture) -> tuple[Episode, ...]:
    """Return the episode of ``seed``, seen by the front camera or by those asked for."""
    with ArmPushEnv(size=capture.size, camera_jitter=capture.camera_jitter) as env:
        observation, _ = env.reset(seed)
        wander = env.rng.random() < 0.15
        policy = (WanderPolicy if wander else PushPolicy)(env, env.rng)
        film = env.film(capture.views or ("front",))
        states = [env.state()]
        for _ in range(capture.frames - 1):
            observation = env.step(policy.act(observation))[0]
            env.note(film)
            states.append(env.state())
        poses = film.object_poses
        captions, attributes = _describe(env, poses[-1, :, :3] - poses[0, :, :3], seed)
        attributes["policy"] = "wander" if wander else "push"
        state = np.stack(states)
        story = Story("arm-push", seed, float(FPS), captions, attributes)
        return film.episodes(
            story, effector=state[:, :3], state=state, action=relative_actions(state)
        )


def _describe(
    env: ArmPushEnv, moved: Float64[np.ndarray, "n 3"], seed: int
) -> tuple[tuple[str, ...], dict[str, object]]:
    """Return captions of what happened, and the same as attributes."""
    rng = np.random.default_rng((seed, 2))
    table, names = env.scene.table, env.object_names
    attributes: dict[str, object] = {
        "objects": [
            {"name": thing.name, "colour": thing.colour, "shape": thing.shape}
            for thing in env.scene.things
        ],
        "table": table,
        "moved": [round(float(length), 4) for length in np.linalg.norm(moved[:, :2], axis=1)],
    }
    best = int(np.argmax(np.linalg.norm(moved[:, :2], axis=1)))
    if np.linalg.norm(moved[best, :2]) < MOVED:
        things = "the " + " and the ".join(names)
        captions = tuple(text.format(table=table, things=things) for text in STILL)
        attributes |= {"pushed": None, "colour": None, "shape": None, "direction": None}
        return captions, attributes | {"instructions": ["do not touch anything"]}
    direction = max(VECTORS, key=lambda name: float(np.dot(VECTORS[name], moved[best, :2])))
    thing = env.scene.things[best]

    def phrase(templates: Sequence[str]) -> tuple[str, ...]:
        ways = DIRECTIONS[direction]
        return tuple(
            text.format(thing=thing.name, table=table, way=ways[rng.integers(len(ways))])
            for text in templates
        )

    attributes |= {
        "pushed": thing.name,
        "colour": thing.colour,
        "shape": thing.shape,
        "direction": direction,
        "distance": round(float(np.linalg.norm(moved[best, :2])), 4),
    }
    captions = phrase(PUSHED)
    return captions, attributes | {"instructions": list(phrase(ORDERS))}
