"""The eight rigid-body scenes of the Cosmos physics test (arXiv 2501.03575, section 5.3.2).

The scene fills the plane y = 0 before a wall; left and right in captions are the picture's,
which all four cameras agree on. Gravity is 9.81 m/s2; pictures come 15 times a second.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from . import textures
from .episode import Episode
from .filming import Film, Story
from .graphics import Data, Model, Renderer, mujoco
from .mjcf import Numbers, Stage, Vector, tag
from .scenes import PHYSICS, Capture
from .textures import COLOURS, Texture

FPS, SUBSTEPS = 15, 30
CAMERAS = {"front": (0.0, 0.75), "left": (-28.0, 0.95), "right": (28.0, 0.95), "high": (12.0, 1.6)}
VIVID = ("red", "blue", "green", "yellow", "purple", "orange", "cyan", "pink")
FLOORS = ("wooden", "tiled", "stone", "carpeted")


@dataclass(frozen=True)
class Plot:
    """What a scene's builder tells: its objects, its captions, facts, and a first push."""

    objects: Mapping[str, str]
    captions: tuple[str, ...]
    facts: Mapping[str, object] = field(default_factory=dict)
    prepare: Callable[[Model, Data], None] | None = None


class Workshop:
    """A stage with toys: draws colours that differ, and remembers what the toys are called."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.stage = Stage(timestep=1 / (FPS * SUBSTEPS), near=0.05, far=12.0, shadow_clip=1.9)
        self.floor = str(rng.choice(FLOORS))
        self.objects: dict[str, str] = {}
        self._colours = [str(colour) for colour in rng.permutation(VIVID)]
        self._finishes = ("plain", "checker", "stripes")
        _furnish(self.stage, rng, self.floor)

    def side(self) -> tuple[str, int]:
        """Draw left or right, and its sign along x."""
        return ("left", -1) if self.rng.random() < 0.5 else ("right", 1)

    def material(self, colour: str) -> str:
        """Return a new material of a colour, plain or patterned."""
        light, rng = np.array(COLOURS[colour]), self.rng
        dark = tuple(0.62 * light)
        name = f"toy{len(self.objects)}"
        finish = str(rng.choice(self._finishes, p=(0.6, 0.2, 0.2)))
        image: Texture = {
            "plain": lambda: textures.mottled(rng, tuple(light), contrast=0.04),
            "checker": lambda: textures.checker(rng, tuple(light), dark),
            "stripes": lambda: textures.stripes(rng, tuple(light), dark),
        }[finish]()
        self.stage.texture(name, image, cube=True)
        return self.stage.material(name, texture=name, specular=0.3, shininess=0.5)

    def toy(
        self,
        shape: str,
        size: Numbers,
        position: Vector,
        *,
        euler: Vector = (0, 0, 0),
        **geom: object,
    ) -> str:
        """Add a free body and return what captions call it, such as "red ball"."""
        colour = self._colours[len(self.objects) % len(self._colours)]
        material = self.material(colour)
        kind = {"ball": "sphere", "cylinder": "cylinder"}.get(shape, "box")
        solid = tag("geom", type=kind, size=size, material=material, condim=6,
                    **{"friction": (0.7, 0.005, 0.0005)} | geom)  # fmt: skip
        body = f"toy{len(self.objects)}"
        name = f"{colour} {shape}"
        self.stage.add(tag("body", tag("freejoint"), solid, name=body, pos=position, euler=euler))
        self.objects[body] = name
        return name


def record(scene: str, seed: int, capture: Capture) -> tuple[Episode, ...]:
    """Return the episodes of ``seed``: from one camera of four, or from those asked for."""
    rng = np.random.default_rng((2 + PHYSICS.index(scene), seed))
    camera = str(rng.choice(list(CAMERAS)))
    shop = Workshop(rng)
    plot = BUILDERS[scene](shop)
    _add_cameras(shop.stage, rng, capture.camera_jitter)
    model = shop.stage.compile(capture.size)
    data = mujoco.MjData(model)
    if plot.prepare is not None:
        plot.prepare(model, data)
    mujoco.mj_forward(model, data)
    with Renderer(model, capture.size) as renderer:
        film = Film(model, renderer, capture.views or (camera,), plot.objects)
        film.note(data)
        for _ in range(capture.frames - 1):
            mujoco.mj_step(model, data, SUBSTEPS)
            mujoco.mj_forward(model, data)
            film.note(data)
    facts = {"objects": list(plot.objects.values()), "floor": shop.floor, **plot.facts}
    return film.episodes(Story(scene, seed, float(FPS), plot.captions, facts))


def free_fall(shop: Workshop) -> Plot:
    """One to three things fall, and bounce a little."""
    rng, count = shop.rng, int(shop.rng.integers(1, 4))
    places = (np.arange(count) - (count - 1) / 2) * 0.42
    names = []
    for x in places:
        shape = str(rng.choice(["ball", "cube", "cylinder"]))
        a = rng.uniform(0.09, 0.14)
        size = {"ball": (a,), "cube": (a, a, a), "cylinder": (a, a)}[shape]
        spot = (x + rng.uniform(-0.05, 0.05), rng.uniform(-0.15, 0.25), rng.uniform(0.9, 1.45))
        tilt = tuple(rng.uniform(-0.7, 0.7, 3))
        # A damping ratio below 1 makes the contact springy.
        names.append(shop.toy(shape, size, spot, euler=tilt, solref=(0.02, 0.25)))
    things = _list(names)
    verb = "falls" if count == 1 else "fall"
    return Plot(
        shop.objects,
        (
            f"{_first(things)} {verb} onto the {shop.floor} floor.",
            f"{_first(things)} {verb} freely under gravity and hits the ground."
            if count == 1
            else f"{_first(things)} fall freely under gravity and hit the ground.",
            f"Dropped from above, {things} {verb} down to a {shop.floor} floor and "
            f"{'bounces' if count == 1 else 'bounce'}.",
        ),
        {"count": count},
    )


def tilted_plane(shop: Workshop) -> Plot:
    """A ball rolls and a cube slides down a board."""
    rng = shop.rng
    side, sign = shop.side()
    angle = np.radians(rng.uniform(16, 30))
    half, thick = 0.85, 0.025
    middle = half * np.sin(angle) + 0.03
    tilt = (0, sign * angle, 0)
    board = tag("geom", type="box", size=(half, 0.34, thick), pos=(0, 0, middle), euler=tilt,
                material="board", friction=(0.12, 0.005, 0.0001))  # fmt: skip
    shop.stage.add(board)

    def spot(along: float, y: float, above: float) -> Vector:
        dx, dz = -sign * along * np.cos(angle), along * np.sin(angle)
        up = thick + above + 0.002
        return (dx + sign * up * np.sin(angle), y, middle + dz + up * np.cos(angle))

    r, a = rng.uniform(0.08, 0.11), rng.uniform(0.07, 0.09)
    ball = shop.toy("ball", (r,), spot(0.70, -0.16, r), friction=(0.7, 0.005, 0.0005))
    cube = shop.toy("cube", (a, a, a), spot(0.68, 0.17, a), euler=tilt, friction=(0.12, 0.005, 0))
    return Plot(
        shop.objects,
        (
            f"A {ball} rolls and a {cube} slides down a tilted board to the {side}.",
            f"Down an inclined plane go a {ball} and a {cube}, towards the {side}.",
            f"A {ball} and a {cube} move down a ramp that slopes to the {side}.",
        ),
        {"direction": side, "angle": round(float(np.degrees(angle)), 2)},
    )


def u_slope(shop: Workshop) -> Plot:
    """A ball rolls to and fro in a half-pipe."""
    rng, radius, pieces = shop.rng, 0.62, 28
    side, sign = shop.side()
    width = radius * np.pi / pieces / 2 * 1.06
    for k in range(pieces):
        t = -np.pi / 2 + np.pi * (k + 0.5) / pieces
        shop.stage.add(
            tag("geom", type="box", size=(width, 0.24, 0.02), material="board",
                pos=(radius * np.sin(t), 0, 0.05 + radius - radius * np.cos(t)),
                euler=(0, -t, 0), friction=(0.7, 0.005, 0.0001))
        )  # fmt: skip
    r = rng.uniform(0.07, 0.10)
    start = sign * np.radians(rng.uniform(50, 78))
    inner = radius - 0.02 - r - 0.002
    spot = (inner * np.sin(start), 0, 0.05 + radius - inner * np.cos(start))
    ball = shop.toy("ball", (r,), spot)
    other = "left" if side == "right" else "right"
    return Plot(
        shop.objects,
        (
            f"A {ball} rolls down a U-shaped slope, starting on the {side}.",
            f"In a half-pipe, a {ball} rolls from the {side} to the {other}.",
            f"A {ball} is let go on the {side} side of a U-shaped track and rolls to and fro.",
        ),
        {"start": side, "direction": other},
    )


def _stack(shop: Workshop, *, stable: bool) -> tuple[int, list[float]]:
    """Pile up boxes; unstable piles lean well beyond a box's edge, stable ones do not.

    The lean at a joint is how far the centre of mass of what lies above is from the middle
    of the lower box, in half widths: beyond 1 it tips over.
    """
    rng = shop.rng
    count = int(rng.integers(4, 7))
    while True:
        half = rng.uniform(0.10, 0.16, count)
        tall = rng.uniform(0.06, 0.09, count)
        centre = np.cumsum(rng.uniform(-1, 1, count) * (0.015 if stable else 0.10))
        mass = half**2 * tall
        above = np.array(
            [np.average(centre[k + 1 :], weights=mass[k + 1 :]) for k in range(count - 1)]
        )
        lean = np.abs(above - centre[:-1]) / np.minimum(half[:-1], half[1:])
        if (stable and lean.max() < 0.35) or (not stable and 1.35 < lean.max() < 2.5):
            break
    centre -= centre[0] / 2
    z = 0.0
    for k in range(count):
        z += tall[k]
        shop.toy("box", (half[k], half[k], tall[k]), (centre[k], 0, z), density=300)
        z += tall[k] + 0.0005
    return count, lean.tolist()


def stable_stack(shop: Workshop) -> Plot:
    """A pile that stands."""
    count, _ = _stack(shop, stable=True)
    return Plot(
        shop.objects,
        (
            f"A stack of {count} boxes stands still on the {shop.floor} floor.",
            f"{_number(count)} boxes are piled up in a stable tower that does not move.",
            f"A tower of {count} coloured boxes stays upright.",
        ),
        {"count": count, "topples": False},
    )


def unstable_stack(shop: Workshop) -> Plot:
    """A pile that falls."""
    count, _ = _stack(shop, stable=False)
    return Plot(
        shop.objects,
        (
            f"A badly balanced stack of {count} boxes topples over.",
            f"{_number(count)} boxes are piled up unevenly, and the tower falls down.",
            f"An unstable tower of {count} coloured boxes collapses onto the {shop.floor} floor.",
        ),
        {"count": count, "topples": True},
    )


def dominoes(shop: Workshop) -> Plot:
    """A row of dominoes; the first leans, and all fall one after another."""
    rng = shop.rng
    side, sign = shop.side()
    count, gap, tall = int(rng.integers(5, 9)), rng.uniform(0.15, 0.18), 0.20
    first = -sign * (count - 1) * gap / 2
    for i in range(count):
        lean = np.radians(22) if i == 0 else 0.0
        rise = tall * np.cos(lean) + 0.02 * np.sin(lean) + 0.001
        shop.toy("domino", (0.02, 0.10, tall), (first + sign * i * gap, 0, rise),
                 euler=(0, sign * lean, 0), friction=(0.5, 0.005, 0.0001))  # fmt: skip
    return Plot(
        shop.objects,
        (
            f"A row of {count} dominoes falls over one by one to the {side}.",
            f"The first of {count} dominoes tips to the {side} and knocks down the rest.",
            f"{_number(count)} dominoes topple in a chain reaction towards the {side}.",
        ),
        {"count": count, "direction": side},
    )


def seesaw(shop: Workshop) -> Plot:
    """A heavy box drops on one end of a seesaw and lifts the other."""
    rng = shop.rng
    side, sign = shop.side()
    plank = tag("geom", type="box", size=(0.78, 0.16, 0.02), material="board", density=250)
    hinge = tag("joint", type="hinge", axis=(0, 1, 0), damping=0.02, limited=True,
                range=(-0.27, 0.27), name="hinge")  # fmt: skip
    shop.stage.add(
        tag("geom", type="cylinder", size=(0.10, 0.18), pos=(0, 0, 0.10), zaxis=(0, 1, 0),
            material="metal"),
        tag("body", hinge, plank, name="plank", pos=(0, 0, 0.225)),
    )  # fmt: skip
    a, b = rng.uniform(0.06, 0.08), rng.uniform(0.10, 0.13)
    lean = 0.25 * sign  # the light end is down: there the plank touches the floor
    place = 0.62
    light_z = 0.225 - place * np.sin(0.25) + (0.02 + a) * np.cos(0.25) + 0.004
    light_x = -sign * (place * np.cos(0.25)) - sign * (0.02 + a) * np.sin(0.25)
    light = shop.toy("cube", (a, a, a), (light_x, 0, light_z), euler=(0, -lean, 0), density=250)
    heavy_x = sign * rng.uniform(0.48, 0.60)
    heavy = shop.toy("box", (b, b, b), (heavy_x, 0, rng.uniform(0.95, 1.3)), density=900)

    def prepare(model: Model, data: Data) -> None:
        data.joint("hinge").qpos[0] = -lean

    return Plot(
        shop.objects,
        (
            f"A heavy {heavy} drops onto the {side} end of a seesaw and throws up a {light}.",
            f"The {side} end of a seesaw goes down when a {heavy} falls on it; a {light} flies up.",
            f"A {heavy} lands on the {side} side of a seesaw and launches a {light}.",
        ),
        {"direction": side, "heavy": heavy, "light": light},
        prepare,
    )


def gyroscope(shop: Workshop) -> Plot:
    """A tilted spinning disc on a stand precesses instead of falling."""
    rng = shop.rng
    colour = str(rng.choice(VIVID))
    disc = shop.material(colour)
    way, sign = ("counter-clockwise", 1) if rng.random() < 0.5 else ("clockwise", -1)
    tilt = rng.uniform(0.25, 0.55)
    around = rng.uniform(-np.pi, np.pi)
    quat = _tilted(tilt, around)
    shop.stage.add(
        tag("geom", type="cylinder", size=(0.14, 0.015), pos=(0, 0, 0.015), material="metal"),
        tag("geom", type="cylinder", size=(0.03, 0.17), pos=(0, 0, 0.2), material="metal"),
        tag(
            "body",
            tag("joint", name="pivot", type="ball"),
            tag("geom", type="capsule", size=(0.014,), fromto=(0, 0, 0.02, 0, 0, 0.48),
                material="metal", contype=0, conaffinity=0, mass=0.05),
            tag("geom", type="cylinder", size=(0.25, 0.022), pos=(0, 0, 0.28), material=disc,
                contype=0, conaffinity=0, mass=1.0),
            tag("geom", type="box", size=(0.235, 0.02, 0.0245), pos=(0, 0, 0.28),
                rgba=(0.95, 0.95, 0.95, 1), contype=0, conaffinity=0, mass=0.01),
            name="top", pos=(0, 0, 0.38), quat=quat,
        ),
    )  # fmt: skip
    spin = sign * rng.uniform(45, 70)
    # The other integrators feed energy into a fast spin: the disc would climb and tumble.
    shop.stage.integrator = "RK4"

    def prepare(model: Model, data: Data) -> None:
        mujoco.mj_forward(model, data)
        body = model.body("top")
        # Steady precession, m g l / (I omega), leaves little nutation.
        inertia = 0.5 * 1.0 * 0.25**2
        precession = body.mass[0] * 9.81 * body.ipos[2] / (inertia * spin)
        up = data.body("top").xmat.reshape(3, 3)[2]
        data.joint("pivot").qvel[:] = np.array([0, 0, spin]) + precession * up

    return Plot(
        {"top": f"{colour} gyroscope"},
        (
            f"A {colour} gyroscope spins {way} on a stand and slowly precesses.",
            f"On a metal stand, a tilted {colour} disc spins {way} without falling.",
            f"A spinning {colour} gyroscope turns {way} about its stand.",
        ),
        {"colour": colour, "spin": way, "spin_rate": round(spin, 3)},
        prepare,
    )


BUILDERS: dict[str, Callable[[Workshop], Plot]] = {
    "free-fall": free_fall,
    "tilted-plane": tilted_plane,
    "u-slope": u_slope,
    "stable-stack": stable_stack,
    "unstable-stack": unstable_stack,
    "dominoes": dominoes,
    "seesaw": seesaw,
    "gyroscope": gyroscope,
}


def _tilted(tilt: float, around: float) -> tuple[float, float, float, float]:
    """Return the quaternion of a turn by ``tilt`` about a level axis at ``around``."""
    s = np.sin(tilt / 2)
    return (float(np.cos(tilt / 2)), float(s * np.cos(around)), float(s * np.sin(around)), 0.0)


def _list(names: list[str]) -> str:
    things = [f"a {name}" if name[0] not in "aeiou" else f"an {name}" for name in names]
    return things[0] if len(things) == 1 else ", ".join(things[:-1]) + " and " + things[-1]


def _first(text: str) -> str:
    return text[0].upper() + text[1:]


def _number(count: int) -> str:
    return ("Four", "Five", "Six", "Seven", "Eight", "Nine")[count - 4]


def _furnish(stage: Stage, rng: np.random.Generator, floor: str) -> None:
    wall = np.array([0.74, 0.74, 0.72]) + rng.uniform(-0.08, 0.07, 3)
    image: Texture = {
        "wooden": lambda: textures.wood(rng, (0.72, 0.54, 0.36), (0.50, 0.35, 0.22)),
        "tiled": lambda: textures.tiles(rng, (0.76, 0.75, 0.72), (0.52, 0.51, 0.50)),
        "stone": lambda: textures.mottled(rng, (0.48, 0.49, 0.50), contrast=0.07),
        "carpeted": lambda: textures.mottled(rng, (0.36, 0.40, 0.50), contrast=0.05, slope=0.6),
    }[floor]()
    stage.texture("floor", image)
    stage.texture("wall", textures.mottled(rng, tuple(wall), contrast=0.03))
    stage.texture("board", textures.wood(rng, (0.84, 0.68, 0.48), (0.68, 0.50, 0.32)), cube=True)
    stage.material("floor", texture="floor", texrepeat=(5, 5))
    stage.material("wall", texture="wall", texrepeat=(3, 3))
    stage.material("board", texture="board")
    stage.material("metal", rgba=(0.55, 0.57, 0.60, 1), specular=0.6, shininess=0.7)
    stage.headlight(rng.uniform(0.28, 0.36), 0.22)
    warmth = rng.uniform(-0.05, 0.05)
    stage.sun(
        (rng.uniform(-0.5, 0.5), rng.uniform(0.25, 0.55), -1), (0.6 + warmth, 0.58, 0.56 - warmth),
        centre=(0, 0.2, 0.5),
    )  # fmt: skip
    stage.fill((rng.uniform(-0.6, 0.6), 0.8, -0.5), (0.12, 0.13, 0.15))
    stage.add(
        tag("geom", type="plane", size=(4, 4, 0.1), material="floor",
            friction=(0.7, 0.005, 0.0005)),
        tag("geom", type="plane", size=(4, 4, 0.1), pos=(0, 1.3, 0), zaxis=(0, -1, 0),
            material="wall", contype=0, conaffinity=0),
        tag("geom", type="box", size=(4, 0.02, 0.05), pos=(0, 1.29, 0.05), contype=0, conaffinity=0,
            rgba=(0.92, 0.92, 0.90, 1)),
    )  # fmt: skip


def _add_cameras(stage: Stage, rng: np.random.Generator, jitter: float) -> None:
    stage.add(tag("body", name="aim", pos=(0, 0.05, 0.52)))
    shift = rng.uniform(-1, 1, 3) * jitter
    for name, (turn, height) in CAMERAS.items():
        t = np.radians(turn)
        eye = np.array([2.25 * np.sin(t), -2.25 * np.cos(t), height]) + shift
        stage.add(tag("camera", name=name, mode="targetbody", target="aim", pos=eye, fovy=42))
