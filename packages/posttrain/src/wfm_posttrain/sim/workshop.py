"""Where the physics scenes are built: a stage with a floor, a wall, light, cameras, and toys.

The scene fills the plane y = 0 before a wall; left and right in captions are the picture's,
which all four cameras agree on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from . import textures
from .graphics import Data, Model
from .mjcf import Numbers, Stage, Vector, tag
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


def add_cameras(stage: Stage, rng: np.random.Generator, jitter: float) -> None:
    stage.add(tag("body", name="aim", pos=(0, 0.05, 0.52)))
    shift = rng.uniform(-1, 1, 3) * jitter
    for name, (turn, height) in CAMERAS.items():
        t = np.radians(turn)
        eye = np.array([2.25 * np.sin(t), -2.25 * np.cos(t), height]) + shift
        stage.add(tag("camera", name=name, mode="targetbody", target="aim", pos=eye, fovy=42))


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
        tag("geom", type="plane", size=(4, 4, 4), material="floor",
            friction=(0.7, 0.005, 0.0005)),
        tag("geom", type="plane", size=(4, 4, 4), pos=(0, 1.3, 0), zaxis=(0, -1, 0),
            material="wall", contype=0, conaffinity=0),
        tag("geom", type="box", size=(4, 0.02, 0.05), pos=(0, 1.29, 0.05), contype=0, conaffinity=0,
            rgba=(0.92, 0.92, 0.90, 1)),
    )  # fmt: skip
