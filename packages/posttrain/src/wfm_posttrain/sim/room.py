"""The ``room`` scene: a camera flies through a furnished room; its poses are exact.

World axes: z is up and the floor is at 0. Pictures come ten times a second.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64

from . import textures
from .episode import Episode
from .filming import Film, Story
from .graphics import Renderer, mujoco
from .mjcf import Numbers, Stage, tag
from .scenes import Capture
from .textures import COLOURS, Colour, Texture

FPS = 10
STREAM = 20  # keeps this scene's random numbers apart from the others'
WALLS = ("brick", "plaster", "striped", "panelled")
FLOORS = ("wooden", "tiled", "carpeted")
PIECES = ("sofa", "table", "shelf", "plant", "lamp", "crates", "armchair", "ball")
MOTIONS = {
    "forward": ("moves forward", "glides straight ahead", "flies forward"),
    "backward": ("moves backward", "pulls back", "flies backward"),
    "left": ("turns to the left", "pans left", "rotates to the left"),
    "right": ("turns to the right", "pans right", "rotates to the right"),
    "orbit-left": ("circles to the left around the middle", "orbits leftwards"),
    "orbit-right": ("circles to the right around the middle", "orbits rightwards"),
    "up": ("rises", "moves upwards"),
}
TEMPLATES = (
    "The camera {move} in a room with {wall} walls and a {floor} floor.",
    "A camera {move} through a furnished room: {things}.",
    "Indoors, the camera {move}; {things} can be found in the room.",
    "In a room with a {floor} floor and {wall} walls, the camera {move}.",
)


def record(seed: int, capture: Capture) -> tuple[Episode, ...]:
    """Return the episode of ``seed``, or several where views are asked for."""
    rng = np.random.default_rng((STREAM, seed))
    stage = Stage(timestep=0.01, near=0.05, far=16.0, shadow_clip=4.5)
    wall, floor = str(rng.choice(WALLS)), str(rng.choice(FLOORS))
    half = rng.uniform(2.3, 2.9, 2)
    _build_walls(stage, rng, half, wall, floor)
    objects = _furnish(stage, rng, half)
    stage.add(
        tag("body", tag("camera", name="fly", fovy=70), name="rig", mocap=True, pos=(0, 0, 1.2))
    )
    model = stage.compile(capture.size)
    data = mujoco.MjData(model)
    motion = str(rng.choice(list(MOTIONS)))
    path = fly(rng, motion, capture.frames)
    with Renderer(model, capture.size) as renderer:
        film = Film(model, renderer, capture.views or ("fly",), objects)
        for position, yaw, pitch in zip(path[:, :3], path[:, 3], path[:, 4], strict=True):
            data.mocap_pos[0] = position
            mujoco.mju_mat2Quat(data.mocap_quat[0], look(yaw, pitch).reshape(-1))
            mujoco.mj_kinematics(model, data)
            mujoco.mj_camlight(model, data)
            film.note(data)
    things = _list(list(objects.values()))
    captions = tuple(
        template.format(move=rng.choice(MOTIONS[motion]), wall=wall, floor=floor, things=things)
        for template in TEMPLATES
    )
    facts = {"motion": motion, "wall": wall, "floor": floor, "objects": list(objects.values())}
    return film.episodes(Story("room", seed, float(FPS), captions, facts))


def fly(rng: np.random.Generator, motion: str, frames: int) -> Float64[np.ndarray, "t 5"]:
    """Return x, y, z, yaw, pitch of the camera for each frame; yaw 0 looks along x.

    Speeds are steady, so that a longer recording goes on where a shorter one ends; the way
    stays within 1.3 m of the middle of the room.
    """
    t = np.arange(frames) / FPS
    yaw0, height = rng.uniform(-np.pi, np.pi), rng.uniform(1.05, 1.45)
    pitch = rng.uniform(-0.22, -0.08)
    ahead = np.array([np.cos(yaw0), np.sin(yaw0)])
    speed, turn = rng.uniform(0.6, 0.9), rng.uniform(0.45, 0.75)
    drift = rng.uniform(-0.12, 0.12)
    path = np.zeros((frames, 5))
    path[:, 2], path[:, 3], path[:, 4] = height, yaw0, pitch
    if motion in ("forward", "backward"):
        sign = 1 if motion == "forward" else -1
        path[:, :2] = sign * np.outer(_there_and_back(speed * t, 2.2) - 1.1, ahead)
        path[:, 3] += drift * np.sin(t)
    elif motion in ("left", "right"):
        sign = 1 if motion == "left" else -1
        path[:, :2] = -0.7 * ahead
        path[:, 3] += sign * turn * t
    elif motion.startswith("orbit"):
        # To circle leftwards is to move clockwise seen from above while facing the middle.
        sign = -1 if motion == "orbit-left" else 1
        angle = yaw0 + np.pi + sign * 0.8 * turn * t
        path[:, :2] = 1.3 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        path[:, 3] = angle + np.pi
        path[:, 4] = -0.3
    else:
        path[:, :2] = -1.0 * ahead
        path[:, 2] = 0.6 + _there_and_back(0.6 * speed * t, 1.4)
        path[:, 4] = -0.15 - 0.2 * (path[:, 2] - 0.6)
    return path


def look(yaw: float, pitch: float) -> Float64[np.ndarray, "3 3"]:
    """Return the rotation of an OpenGL camera (it looks along -z, y is up)."""
    forward = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)])
    right = np.array([np.sin(yaw), -np.cos(yaw), 0])
    return np.stack([right, np.cross(right, forward), -forward], axis=1)


def _there_and_back(way: Float64[np.ndarray, " t"], length: float) -> Float64[np.ndarray, " t"]:
    """Fold a growing way into 0..length, like a ball between two walls."""
    return length - np.abs(way % (2 * length) - length)


def _build_walls(
    stage: Stage, rng: np.random.Generator, half: np.ndarray, wall: str, floor: str
) -> None:
    tint: Colour = tuple(np.array([0.74, 0.72, 0.68]) + rng.uniform(-0.12, 0.10, 3))
    dark: Colour = tuple(np.array(tint) * 0.82)
    walls: Texture = {
        "brick": lambda: textures.bricks(rng, (0.62, 0.34, 0.25), (0.74, 0.72, 0.68)),
        "plaster": lambda: textures.mottled(rng, tint, contrast=0.06),
        "striped": lambda: textures.stripes(rng, tint, dark, count=8),
        "panelled": lambda: textures.wood(rng, (0.70, 0.55, 0.38), (0.52, 0.38, 0.25)),
    }[wall]()
    floors: Texture = {
        "wooden": lambda: textures.wood(rng, (0.62, 0.44, 0.28), (0.42, 0.28, 0.17), planks=6),
        "tiled": lambda: textures.tiles(rng, (0.80, 0.79, 0.75), (0.50, 0.49, 0.48)),
        "carpeted": lambda: textures.mottled(rng, (0.40, 0.36, 0.44), contrast=0.08, slope=0.6),
    }[floor]()
    stage.texture("walls", walls)
    stage.texture("floors", floors)
    stage.texture("ceiling", textures.mottled(rng, (0.90, 0.90, 0.88), contrast=0.02))
    stage.material("walls", texture="walls", texrepeat=(3, 1.5), specular=0.05)
    stage.material("floors", texture="floors", texrepeat=(3, 3), specular=0.2)
    stage.material("ceiling", texture="ceiling", specular=0.0)
    stage.headlight(0.46, 0.26)
    warmth = rng.uniform(-0.06, 0.06)
    # The ceiling would keep a sun out: a wide spot just below it lights the room.
    stage.add(
        tag("light", pos=(*rng.uniform(-0.5, 0.5, 2), 2.6), dir=(0, 0, -1), cutoff=89, exponent=0.6,
            diffuse=(0.50 + warmth, 0.48, 0.45 - warmth), specular=(0.2, 0.2, 0.2))
    )  # fmt: skip
    stage.fill((0.6, 0.35, -0.3), (0.14, 0.14, 0.16))
    x, y = half
    tall = 1.35
    solid = {"type": "plane", "material": "walls"}
    stage.add(
        tag("geom", type="plane", size=(x, y, 0.1), material="floors"),
        tag("geom", type="plane", size=(x, y, 0.1), pos=(0, 0, 2 * tall), zaxis=(0, 0, -1),
            material="ceiling"),
        tag("geom", size=(y, tall, 0.1), pos=(x, 0, tall), xyaxes=(0, -1, 0, 0, 0, 1), **solid),
        tag("geom", size=(y, tall, 0.1), pos=(-x, 0, tall), xyaxes=(0, 1, 0, 0, 0, 1), **solid),
        tag("geom", size=(x, tall, 0.1), pos=(0, y, tall), xyaxes=(1, 0, 0, 0, 0, 1), **solid),
        tag("geom", size=(x, tall, 0.1), pos=(0, -y, tall), xyaxes=(-1, 0, 0, 0, 0, 1), **solid),
    )  # fmt: skip
    for sx, sy, length in ((1, 0, y), (-1, 0, y), (0, 1, x), (0, -1, x)):
        thick = (0.012, length, 0.05) if sx else (length, 0.012, 0.05)
        stage.add(tag("geom", type="box", size=thick, pos=(sx * x, sy * y, 0.05),
                      rgba=(0.93, 0.92, 0.90, 1)))  # fmt: skip


def _furnish(stage: Stage, rng: np.random.Generator, half: np.ndarray) -> dict[str, str]:
    """Put furniture along the walls, pictures on them and a rug in the middle."""
    stage.texture("grain", textures.mottled(rng, (0.95, 0.95, 0.95), contrast=0.07), cube=True)
    stage.texture("timber", textures.wood(rng, (0.72, 0.52, 0.33), (0.50, 0.34, 0.20)), cube=True)
    stage.texture("rug", textures.checker(rng, *_two_colours(rng), count=8))
    stage.material("timber", texture="timber")
    stage.material("rug", texture="rug", specular=0.0)
    stage.add(tag("geom", type="box", size=(1.0, 0.7, 0.006), pos=(0, 0, 0.006), material="rug"))
    objects: dict[str, str] = {}
    x, y = half
    slots = [(s * (x - 0.45), t * y * 0.42, 90 * s) for s in (1, -1) for t in (1, -1)]
    slots += [(t * x * 0.42, s * (y - 0.45), 90 + 90 * s) for s in (1, -1) for t in (1, -1)]
    pieces = [*rng.permutation(PIECES), *rng.permutation(PIECES)]
    count = int(rng.integers(6, 9))
    for i, (px, py, degrees) in enumerate([slots[k] for k in rng.permutation(8)[:count]]):
        colour, piece = str(rng.choice(list(COLOURS))), str(pieces[i])
        material = stage.material(f"paint{i}", texture="grain", rgba=(*COLOURS[colour], 1))
        geoms = FURNITURE[piece](rng, material)
        body = f"piece{i}"
        # Every piece is built with its back at +y; turn the back to the wall.
        turn = np.radians(degrees - 180 if abs(degrees) != 90 else -degrees)
        stage.add(tag("body", *geoms, name=body, pos=(px, py, 0), euler=(0, 0, turn)))
        objects[body] = f"{colour} {piece}" if piece != "plant" else "plant"
    for i, (px, py, _) in enumerate(slots):
        stage.texture(f"art{i}", _painting(rng))
        stage.material(f"art{i}", texture=f"art{i}", specular=0.0)
        stage.add(*_picture(f"art{i}", px, py, half))
    return objects


def _two_colours(rng: np.random.Generator) -> tuple[Colour, Colour]:
    one, other = rng.permutation(list(COLOURS.values()))[:2]
    return tuple(0.7 * one + 0.15), tuple(0.5 * other + 0.35)


def _painting(rng: np.random.Generator) -> Texture:
    """An abstract landscape: bands of colour with a soft, noisy border."""
    noise = textures.fractal(rng, 64, slope=1.7) * 5
    rows = np.arange(64)[:, None] + noise
    colours = rng.uniform(0.15, 0.95, (4, 3))
    return textures.finish(colours[np.clip(rows // 16, 0, 3).astype(int)])


def _picture(material: str, px: float, py: float, half: np.ndarray) -> tuple[str, str]:
    """Return a framed picture on the wall behind a slot."""
    along_x = abs(py) > half[1] - 0.5
    if along_x:
        centre, thin = np.array([px, np.sign(py) * (half[1] - 0.015), 1.75]), 1
    else:
        centre, thin = np.array([np.sign(px) * (half[0] - 0.015), py, 1.75]), 0
    frame = np.array([0.36, 0.36, 0.27])
    frame[thin] = 0.012
    inward = -np.sign(centre[thin]) * 0.013
    front = centre.copy()
    front[thin] += inward
    normal = np.zeros(3)
    normal[thin] = np.sign(inward)
    right = np.cross([0, 0, 1], normal)
    return (
        tag("geom", type="box", size=frame, pos=centre, rgba=(0.15, 0.12, 0.10, 1)),
        tag("geom", type="plane", size=(0.32, 0.23, 0.1), pos=front, material=material,
            xyaxes=(*right, 0, 0, 1)),
    )  # fmt: skip


def _box(size: Numbers, at: Numbers, material: str) -> str:
    return tag("geom", type="box", size=size, pos=at, material=material)


def _sofa(rng: np.random.Generator, paint: str) -> list[str]:
    return [
        _box((0.75, 0.34, 0.20), (0, 0, 0.22), paint),
        _box((0.75, 0.09, 0.26), (0, 0.27, 0.56), paint),
        _box((0.10, 0.34, 0.14), (0.72, 0, 0.46), paint),
        _box((0.10, 0.34, 0.14), (-0.72, 0, 0.46), paint),
    ]


def _armchair(rng: np.random.Generator, paint: str) -> list[str]:
    return [
        _box((0.34, 0.32, 0.20), (0, 0, 0.22), paint),
        _box((0.34, 0.08, 0.28), (0, 0.26, 0.60), paint),
        _box((0.07, 0.32, 0.13), (0.33, 0, 0.46), paint),
        _box((0.07, 0.32, 0.13), (-0.33, 0, 0.46), paint),
    ]


def _table(rng: np.random.Generator, paint: str) -> list[str]:
    legs = [_box((0.03, 0.03, 0.35), (0.5 * s, 0.22 * t, 0.35), "timber")
            for s in (1, -1) for t in (1, -1)]  # fmt: skip
    bowl = tag("geom", type="cylinder", size=(0.12, 0.06), pos=(0.15, 0, 0.80), material="timber")
    return [*legs, _box((0.58, 0.30, 0.02), (0, 0, 0.72), paint), bowl]


def _shelf(rng: np.random.Generator, paint: str) -> list[str]:
    boards = [_box((0.50, 0.16, 0.015), (0, 0.2, 0.05 + 0.42 * k), paint) for k in range(5)]
    sides = [_box((0.015, 0.16, 0.86), (0.5 * s, 0.2, 0.88), paint) for s in (1, -1)]
    books = []
    for k in range(4):
        x = -0.46
        while x < 0.40:
            w, h = rng.uniform(0.012, 0.035), rng.uniform(0.10, 0.17)
            colour = (*rng.uniform(0.1, 0.85, 3), 1)
            books.append(tag("geom", type="box", size=(w, 0.11, h), rgba=colour,
                             pos=(x + w, 0.17, 0.07 + 0.42 * k + h)))  # fmt: skip
            x += 2 * w + rng.choice([0.004, 0.16], p=(0.85, 0.15))
    return [*boards, *sides, *books]


def _plant(rng: np.random.Generator, paint: str) -> list[str]:
    pot = tag("geom", type="cylinder", size=(0.16, 0.16), pos=(0, 0.1, 0.16), material=paint)
    return [pot, *(_leaf(rng) for _ in range(9))]


def _leaf(rng: np.random.Generator) -> str:
    angle = rng.uniform(-np.pi, np.pi)
    c, s = np.cos(angle), np.sin(angle)
    return tag("geom", type="ellipsoid", size=(0.07, 0.05, 0.24), euler=(-0.6 * s, 0.6 * c, 0),
               pos=(0.16 * c, 0.1 + 0.16 * s, rng.uniform(0.5, 0.95)),
               rgba=(0.12, rng.uniform(0.35, 0.6), 0.14, 1))  # fmt: skip


def _lamp(rng: np.random.Generator, paint: str) -> list[str]:
    return [
        tag("geom", type="cylinder", size=(0.16, 0.015), pos=(0, 0.1, 0.015), material="timber"),
        tag("geom", type="cylinder", size=(0.018, 0.68), pos=(0, 0.1, 0.7), material="timber"),
        tag("geom", type="cylinder", size=(0.20, 0.15), pos=(0, 0.1, 1.45), material=paint),
    ]


def _crates(rng: np.random.Generator, paint: str) -> list[str]:
    return [
        _box((0.26, 0.24, 0.22), (-0.15, 0.08, 0.22), paint),
        _box((0.20, 0.20, 0.18), (0.36, 0.06, 0.18), "timber"),
        _box((0.17, 0.17, 0.15), (-0.12, 0.08, 0.59), "timber"),
    ]


def _ball(rng: np.random.Generator, paint: str) -> list[str]:
    return [tag("geom", type="sphere", size=(0.32,), pos=(0, 0, 0.32), material=paint)]


FURNITURE: dict[str, Callable[[np.random.Generator, str], list[str]]] = {
    "sofa": _sofa,
    "table": _table,
    "shelf": _shelf,
    "plant": _plant,
    "lamp": _lamp,
    "crates": _crates,
    "armchair": _armchair,
    "ball": _ball,
}


def _list(names: list[str]) -> str:
    """Name up to four of the things, for a caption."""
    things = []
    for name in list(dict.fromkeys(names))[:4]:
        article = "" if name.endswith("crates") else "an " if name[0] in "ao" else "a "
        things.append(article + name)
    return ", ".join(things[:-1]) + " and " + things[-1]
