"""The arm's model: a six-joint arm with a parallel gripper, a table, and two or three objects.

World axes: the base stands at the origin on the table (z = 0), x points to the camera, and y
to the right of the picture. The tool is the point between the finger tips.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from . import textures
from .graphics import Model
from .mjcf import Stage, Vector, tag
from .textures import COLOURS, Texture

THING_COLOURS = ("red", "blue", "green", "yellow", "purple", "cyan")
TABLES = ("oak", "walnut", "slate", "white", "felt")

SHOULDER = 0.27  # height of the shoulder above the table
UPPER, FOREARM, HAND = 0.38, 0.36, 0.10  # lengths of the links; HAND is from wrist to palm
TOOL = np.array([0.0, 0.0, -0.085])  # the tool in the palm's frame
LOW, HIGH = np.array([0.28, -0.22, 0.03]), np.array([0.64, 0.22, 0.22])  # where it may go
FINGER_OPEN, FINGER_CLOSED = 0.03, -0.02

WHITE, DARK, ACCENT = (0.90, 0.91, 0.93, 1), (0.16, 0.17, 0.20, 1), (0.98, 0.45, 0.06, 1)


@dataclass(frozen=True)
class Thing:
    """An object on the table."""

    colour: str
    shape: str
    size: tuple[float, float, float]
    position: tuple[float, float, float]
    yaw: float

    @property
    def name(self) -> str:
        """What captions call it."""
        return f"{self.colour} {self.shape}"

    @property
    def radius(self) -> float:
        """How far from its centre the gripper must stay, seen from above."""
        return float(np.hypot(*self.size[:2])) if self.shape != "cylinder" else self.size[0]


@dataclass(frozen=True)
class ArmScene:
    """A compiled table with its objects."""

    model: Model
    things: tuple[Thing, ...]
    table: str


def build_arm(
    rng: np.random.Generator, size: tuple[int, int], *, camera_jitter: float = 0.0
) -> ArmScene:
    """Return a random table scene; ``camera_jitter`` moves the camera by so many metres."""
    stage = Stage(timestep=0.004, near=0.05, far=8.0, shadow_clip=1.1)
    table = str(rng.choice(TABLES))
    _furnish(stage, rng, table)
    things = place_things(rng, count=int(rng.integers(2, 4)))
    stage.texture("grain", textures.mottled(rng, (0.93, 0.93, 0.93), contrast=0.05), cube=True)
    for i, thing in enumerate(things):
        _add_thing(stage, i, thing)
    stage.add(_arm(), tag("body", name="command", mocap=True, pos=(0.45, 0, 0.2)))
    stage.tail(_drive())
    shift = rng.uniform(-1, 1, 3) * camera_jitter
    eye = np.array([1.10, 0.0, 0.80]) + shift
    stage.add(
        tag("body", name="aim", pos=(0.43, 0, 0.05)),
        tag("camera", name="front", mode="targetbody", target="aim", pos=eye, fovy=33),
        tag("camera", name="side", mode="targetbody", target="aim", pos=(0.45, 1.0, 0.7), fovy=44),
    )
    return ArmScene(stage.compile(size), things, table)


def place_things(rng: np.random.Generator, *, count: int) -> tuple[Thing, ...]:
    """Return objects of distinct colours that do not touch."""
    colours = rng.permutation(list(THING_COLOURS))[:count]
    things: list[Thing] = []
    while len(things) < count:
        a, b, height = rng.uniform(0.042, 0.050), rng.uniform(0.058, 0.070), rng.uniform(0.04, 0.05)
        shape = str(rng.choice(["cube", "cylinder", "block"]))
        size = {"cube": (a, a, a), "cylinder": (a, a, height), "block": (0.038, b, 0.038)}[shape]
        x, y = rng.uniform(0.36, 0.58), rng.uniform(-0.17, 0.17)
        thing = Thing(
            str(colours[len(things)]), shape, size, (x, y, size[2]), rng.uniform(0, np.pi)
        )
        gaps = [np.hypot(x - o.position[0], y - o.position[1]) - o.radius for o in things]
        if all(gap > thing.radius + 0.02 for gap in gaps):
            things.append(thing)
    return tuple(things)


def inverse_kinematics(
    position: Float64[np.ndarray, " 3"], turn: Float64[np.ndarray, "3 3"]
) -> Float64[np.ndarray, " 6"]:
    """Return the joint angles that bring the tool to a pose, elbow up."""
    wrist = position + turn @ (np.array([0, 0, HAND]) - TOOL)
    base = np.arctan2(wrist[1], wrist[0])
    r, z = np.hypot(wrist[0], wrist[1]), wrist[2] - SHOULDER
    distance = min(np.hypot(r, z), UPPER + FOREARM - 1e-3)
    bend = np.arccos(np.clip((UPPER**2 + distance**2 - FOREARM**2) / (2 * UPPER * distance), -1, 1))
    shoulder = np.arctan2(r, z) - bend
    pitch = np.arctan2(UPPER * np.cos(shoulder) - z, r - UPPER * np.sin(shoulder))
    cb, sb, cp, sp = np.cos(base), np.sin(base), np.cos(pitch), np.sin(pitch)
    forearm = np.array([[cb, -sb, 0], [sb, cb, 0], [0, 0, 1]]) @ np.array(
        [[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]]
    )
    m = forearm.T @ turn
    return np.array(
        [
            base,
            shoulder,
            pitch - shoulder,
            np.arctan2(-m[1, 2], m[2, 2]),
            np.arcsin(np.clip(m[0, 2], -1, 1)),
            np.arctan2(-m[0, 1], m[0, 0]),
        ]
    )


def _table_texture(rng: np.random.Generator, table: str) -> Texture:
    match table:
        case "oak":
            return textures.wood(rng, (0.80, 0.62, 0.42), (0.62, 0.44, 0.27))
        case "walnut":
            return textures.wood(rng, (0.46, 0.31, 0.21), (0.29, 0.18, 0.12))
        case "slate":
            return textures.mottled(rng, (0.33, 0.36, 0.40), contrast=0.05)
        case "white":
            return textures.mottled(rng, (0.86, 0.85, 0.82), contrast=0.03)
        case _:
            return textures.mottled(rng, (0.38, 0.45, 0.50), contrast=0.04, slope=0.7)


def _furnish(stage: Stage, rng: np.random.Generator, table: str) -> None:
    stage.texture("table", _table_texture(rng, table))
    stage.material("table", texture="table", specular=0.25, shininess=0.5)
    wall = (rng.uniform(0.62, 0.80), rng.uniform(0.62, 0.76), rng.uniform(0.58, 0.76))
    stage.texture("floor", textures.wood(rng, (0.42, 0.36, 0.32), (0.28, 0.24, 0.21)))
    stage.texture("wall", textures.mottled(rng, wall, contrast=0.03))
    stage.material("floor", texture="floor", texrepeat=(4, 4))
    stage.material("wall", texture="wall", texrepeat=(2, 2))
    stage.headlight(rng.uniform(0.26, 0.34), 0.22)
    warmth = rng.uniform(-0.05, 0.05)
    stage.sun(
        (rng.uniform(-0.5, 0.1), rng.uniform(0.25, 0.6), -1),
        (0.62 + warmth, 0.60, 0.57 - warmth),
        centre=(0.35, 0, 0.1),
    )
    stage.fill((-0.6, -0.8, -0.5), (0.14, 0.15, 0.18))
    stage.add(
        tag("geom", type="box", size=(0.60, 0.75, 0.02), pos=(0.38, 0, -0.02), material="table",
            friction=(0.55, 0.005, 0.0001)),
        tag("geom", type="plane", size=(4, 4, 4), pos=(0, 0, -0.75), material="floor"),
        tag("geom", type="plane", size=(4, 4, 4), pos=(-1.1, 0, 0), material="wall",
            zaxis=(1, 0, 0)),
    )  # fmt: skip


def _add_thing(stage: Stage, index: int, thing: Thing) -> None:
    material = stage.material(f"thing{index}", texture="grain", rgba=(*COLOURS[thing.colour], 1))
    kind = "cylinder" if thing.shape == "cylinder" else "box"
    geom = tag("geom", type=kind, material=material, mass=0.08,
               size=thing.size if kind == "box" else thing.size[1:])  # fmt: skip
    turn = (np.cos(thing.yaw / 2), 0, 0, np.sin(thing.yaw / 2))
    stage.add(
        tag("body", tag("freejoint"), geom, name=f"thing{index}", pos=thing.position, quat=turn)
    )


def _link(end: Vector, radius: float) -> str:
    """A white tube from the joint to the next one; links do not collide."""
    return tag("geom", type="capsule", size=(radius,), fromto=(0, 0, 0, *end), rgba=WHITE,
               contype=0, conaffinity=0)  # fmt: skip


def _knuckle(radius: float, axis: Vector) -> str:
    """A dark joint with a ring in the accent colour."""
    common = {"type": "cylinder", "zaxis": axis, "contype": 0, "conaffinity": 0}
    return tag("geom", size=(radius, radius), rgba=DARK, **common) + tag(
        "geom", size=(radius * 0.8, radius * 1.06), rgba=ACCENT, **common
    )


def _joint(name: str, axis: Vector, damping: float, armature: float) -> str:
    return tag("joint", name=name, axis=axis, damping=damping, armature=armature)


def _body(*children: str, **attributes: object) -> str:
    return tag("body", *children, gravcomp=1, **attributes)


def _finger(side: int) -> str:
    name = "left" if side > 0 else "right"
    slide = tag("joint", name=name, type="slide", axis=(0, side, 0), damping=5, limited=True,
                range=(-0.022, 0.031))  # fmt: skip
    pad = tag("geom", type="box", size=(0.014, 0.009, 0.036), pos=(0, 0, -0.016), rgba=DARK,
              friction=(1.2, 0.005, 0.0001), mass=0.05)  # fmt: skip
    tip = tag("geom", type="box", size=(0.0145, 0.0095, 0.014), pos=(0, 0, -0.050), rgba=ACCENT,
              friction=(1.2, 0.005, 0.0001), mass=0.02)  # fmt: skip
    return _body(slide, pad, tip, pos=(0, 0.03 * side, -0.030), name=f"finger_{name}")


def _arm() -> str:
    palm = tag("geom", type="box", size=(0.026, 0.070, 0.020), rgba=DARK, mass=0.3)
    stem = tag("geom", type="cylinder", size=(0.034,), fromto=(0, 0, 0.015, 0, 0, 0.055),
               rgba=WHITE, contype=0, conaffinity=0)  # fmt: skip
    hand = _body(_joint("j6", (0, 0, 1), 0.3, 0.02), palm, stem, _finger(1), _finger(-1),
                 name="hand", pos=(0, 0, -HAND))  # fmt: skip
    wrist = _body(_joint("j4", (1, 0, 0), 0.5, 0.02), _joint("j5", (0, 1, 0), 0.5, 0.02),
                  _link((0, 0, -0.06), 0.034), _knuckle(0.042, (0, 1, 0)), hand,
                  name="wrist", pos=(FOREARM, 0, 0))  # fmt: skip
    forearm = _body(_joint("j3", (0, 1, 0), 1.5, 0.05), _link((FOREARM, 0, 0), 0.038),
                    _knuckle(0.052, (0, 1, 0)), wrist,
                    name="forearm", pos=(0, 0, UPPER))  # fmt: skip
    upper = _body(_joint("j2", (0, 1, 0), 1.5, 0.05), _link((0, 0, UPPER), 0.045),
                  _knuckle(0.060, (0, 1, 0)), forearm, name="upper", pos=(0, 0, 0.17))  # fmt: skip
    column = tag("geom", type="cylinder", size=(0.062,), fromto=(0, 0, 0, 0, 0, 0.15), rgba=WHITE,
                 contype=0, conaffinity=0)  # fmt: skip
    turret = _body(
        _joint("j1", (0, 0, 1), 1.5, 0.05), column, upper, name="turret", pos=(0, 0, 0.10)
    )
    foot = tag("geom", type="cylinder", size=(0.10, 0.05), pos=(0, 0, 0.05), rgba=DARK)
    return _body(foot, turret, name="base")


def _drive() -> str:
    # Without relpose a weld keeps the offset that the two bodies happen to start with.
    weld = tag("weld", body1="command", body2="hand", relpose=(0, 0, 0, 1, 0, 0, 0),
               solref=(0.012, 1), solimp=(0.95, 0.99, 0.001), torquescale=1)  # fmt: skip
    grip = [tag("position", joint=side, kp=120) for side in ("left", "right")]
    return tag("equality", weld) + tag("actuator", *grip)
