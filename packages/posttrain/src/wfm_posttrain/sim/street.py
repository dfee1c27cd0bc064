"""The ``street`` scene: a car with six cameras drives through a town.

World axes: the main road runs along y, a side road crosses it, z is up. Pictures come ten
times a second. The cameras are those of the Cosmos multi-view model (arXiv 2501.03575,
section 6.3), in its order; ``trajectory`` is the ego car's way for 6.4 s, one point each
0.1 s, seen from its first pose: x forward, y left, z up, in metres.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, Float64

from . import textures
from .episode import Episode
from .filming import Film, Story
from .graphics import Renderer, mujoco
from .mjcf import Numbers, Stage, tag
from .scenes import Capture
from .textures import COLOURS, Colour

FPS = 10
STREAM = 21  # keeps this scene's random numbers apart from the others'
TRAJECTORY_POINTS = 64
CAMERAS = {
    "front": 0.0,
    "left": 55.0,
    "right": -55.0,
    "back": 180.0,
    "rear-left": 125.0,
    "rear-right": -125.0,
}
FACING = {
    "front": "forward",
    "left": "to the left",
    "right": "to the right",
    "back": "backward",
    "rear-left": "to the rear left",
    "rear-right": "to the rear right",
}
LANE, HALF_ROAD, PAVEMENT = 1.9, 3.8, 2.2  # metres; traffic keeps to the right
MANOEUVRES = {
    "straight": ("drives straight on", "goes straight ahead"),
    "turn-left": ("turns left at a crossing", "makes a left turn"),
    "turn-right": ("turns right at a crossing", "makes a right turn"),
    "lane-left": ("changes to the left lane", "moves over to the left lane"),
    "brake": ("slows down", "brakes"),
    "accelerate": ("speeds up", "accelerates"),
}


@dataclass(frozen=True)
class Light:
    """A time of the day."""

    name: str
    horizon: Colour
    zenith: Colour
    sun: Colour
    ambient: float
    height: float


LIGHTS = (
    Light("at noon", (0.80, 0.87, 0.95), (0.30, 0.52, 0.86), (0.72, 0.70, 0.64), 0.34, 1.6),
    Light("in the evening", (0.98, 0.72, 0.48), (0.38, 0.42, 0.68), (0.78, 0.52, 0.32), 0.34, 0.8),
    Light("on a cloudy day", (0.78, 0.80, 0.82), (0.62, 0.66, 0.70), (0.34, 0.34, 0.35), 0.46, 1.8),
    Light("in the morning", (0.92, 0.88, 0.78), (0.42, 0.62, 0.88), (0.68, 0.62, 0.50), 0.34, 0.9),
)
TEMPLATES = (
    "The video is captured from a camera mounted on a car. The camera is facing {facing}. "
    "The car {move} in a town {light}.",
    "A car {move} along a street with {count} other cars {light}; the camera faces {facing}.",
    "Driving through a town {light}: the car {move}, seen from its camera facing {facing}.",
)


def record(seed: int, capture: Capture) -> tuple[Episode, ...]:
    """Return one episode per camera of the ego car; their frames are of the same moments."""
    rng = np.random.default_rng((STREAM, seed))
    light = LIGHTS[rng.integers(len(LIGHTS))]
    manoeuvre = str(rng.choice(list(MANOEUVRES)))
    stage = Stage(timestep=0.01, near=0.2, far=180.0, shadow_clip=38.0)
    stage.shadow_size, stage.slices, stage.stacks, stage.quads = 256, 12, 8, 1
    _build_town(stage, rng, light)
    ego = drive(rng, manoeuvre, max(capture.frames, TRAJECTORY_POINTS))
    names, ways = _traffic(stage, rng, ego, manoeuvre)
    stage.add(_ego())
    model = stage.compile(capture.size)
    data = mujoco.MjData(model)
    with Renderer(model, capture.size) as renderer:
        film = Film(model, renderer, capture.views or tuple(CAMERAS), names)
        for t in range(capture.frames):
            for body, way in (("ego", ego), *ways.items()):
                mocap = model.body(body).mocapid[0]
                x, y, yaw, _ = way[t]
                data.mocap_pos[mocap] = (x, y, 0)
                data.mocap_quat[mocap] = (np.cos(yaw / 2), 0, 0, np.sin(yaw / 2))
            mujoco.mj_kinematics(model, data)
            mujoco.mj_camlight(model, data)
            film.note(data)
    facts = {"manoeuvre": manoeuvre, "light": light.name, "cars": len(names)}
    story = Story("street", seed, float(FPS), (), facts)
    state = ego[: capture.frames].astype(np.float32)
    episodes = film.episodes(story, state=state, trajectory=ego_frame(ego[:TRAJECTORY_POINTS]))
    return tuple(_caption(episode, manoeuvre, light, len(names)) for episode in episodes)


def drive(rng: np.random.Generator, manoeuvre: str, count: int) -> Float64[np.ndarray, "t 4"]:
    """Return x, y, yaw (0 looks along y) and speed of the ego car, ten times a second."""
    speed0 = rng.uniform(7, 11)
    start = rng.uniform(-32, -22)
    t = np.arange(count) / FPS
    speed = np.full(count, speed0)
    if manoeuvre == "brake":
        speed = np.maximum(speed0 - rng.uniform(2.5, 4.0) * t, 0.5)
    elif manoeuvre == "accelerate":
        speed = 0.6 * speed0 + rng.uniform(1.5, 2.5) * np.minimum(t, 3)
    elif manoeuvre.startswith("turn"):
        speed = np.full(count, rng.uniform(5.0, 6.5))
    way = np.concatenate([[0], np.cumsum(speed[:-1]) / FPS])
    if manoeuvre.startswith("turn"):
        return np.column_stack([*_turn(rng, way, manoeuvre), speed])
    x = np.full(count, LANE)
    yaw = np.zeros(count)
    if manoeuvre == "lane-left":
        length = rng.uniform(14, 18)
        u = np.clip((way - 2) / length, 0, 1)
        x = LANE - 2 * LANE * (3 * u**2 - 2 * u**3)
        slope = np.where((u > 0) & (u < 1), -2 * LANE * 6 * u * (1 - u) / length, 0)
        yaw = -np.arctan(slope)
    return np.column_stack([x, start + way, yaw, speed])


def _turn(
    rng: np.random.Generator, way: Float64[np.ndarray, " t"], manoeuvre: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return x, y, yaw of a quarter circle into the side road, which lies along y = 0."""
    sign = 1 if manoeuvre == "turn-left" else -1
    radius = HALF_ROAD + LANE + 2.5 if sign > 0 else HALF_ROAD + 1.2
    target = sign * LANE  # the lane of the side road, right of its middle when driving out
    begin = target - radius
    ahead = rng.uniform(0.5, 3.0)
    arc = radius * np.pi / 2
    straight = np.minimum(way, ahead)
    angle = np.clip((way - ahead) / radius, 0, np.pi / 2)
    beyond = np.maximum(way - ahead - arc, 0)
    y = begin - ahead + straight + radius * np.sin(angle)
    x = LANE - sign * (radius * (1 - np.cos(angle)) + beyond)
    return x, y, sign * angle


def ego_frame(way: Float64[np.ndarray, "p 4"]) -> Float32[np.ndarray, "p 3"]:
    """Return the points of a way seen from its first pose: x forward, y left, z up."""
    dx, dy = (way[:, :2] - way[0, :2]).T
    c, s = np.cos(way[0, 2]), np.sin(way[0, 2])
    # Forward is (-sin yaw, cos yaw), left is (-cos yaw, -sin yaw).
    points = [-s * dx + c * dy, -c * dx - s * dy, np.zeros(len(way))]
    return np.stack(points, axis=1).astype(np.float32)


def _caption(episode: Episode, manoeuvre: str, light: Light, count: int) -> Episode:
    rng = np.random.default_rng((STREAM, episode.seed, 1))
    captions = tuple(
        template.format(facing=FACING[episode.camera], move=rng.choice(MANOEUVRES[manoeuvre]),
                        light=light.name, count=count)
        for template in TEMPLATES
    )  # fmt: skip
    return replace(episode, captions=captions)


def _ego() -> str:
    """Return the ego car: six cameras on its roof, and no body that they could see."""
    cameras = []
    for name, degrees in CAMERAS.items():
        t = np.radians(degrees)
        forward, right = np.array([-np.sin(t), np.cos(t)]), np.array([np.cos(t), np.sin(t)])
        cameras.append(
            tag("camera", name=name, pos=(*(forward * (0.5, 0.9)), 1.75), fovy=75,
                xyaxes=(*right, 0, 0.06 * forward[0], 0.06 * forward[1], 1))
        )  # fmt: skip
    return tag("body", *cameras, name="ego", mocap=True)


def _box(size: Numbers, at: Numbers, **look: object) -> str:
    return tag("geom", type="box", size=size, pos=at, **look)


def _car(name: str, colour: Colour, van: bool) -> str:
    """Return a car at the origin that faces +y."""
    paint = {"material": "paint", "rgba": (*colour, 1)}
    glass = {"rgba": (0.10, 0.13, 0.17, 1)}
    body = [_box((0.88, 2.1, 0.36), (0, 0, 0.62), **paint)]
    if van:
        body.append(_box((0.86, 1.7, 0.62), (0, -0.35, 1.5), **paint))
        body.append(_box((0.80, 0.05, 0.35), (0, 1.36, 1.6), **glass))
    else:
        body.append(_box((0.76, 1.10, 0.27), (0, -0.2, 1.22), **glass))
        body.append(_box((0.74, 0.95, 0.03), (0, -0.2, 1.5), **paint))
    for x in (-0.84, 0.84):
        for y in (-1.3, 1.3):
            body.append(tag("geom", type="cylinder", size=(0.34, 0.11), pos=(x, y, 0.34),
                            zaxis=(1, 0, 0), rgba=(0.06, 0.06, 0.07, 1)))  # fmt: skip
    for x in (-0.62, 0.62):
        white, red = (1, 1, 0.85, 1), (0.85, 0.05, 0.05, 1)
        body.append(
            tag("geom", type="box", size=(0.16, 0.03, 0.08), pos=(x, 2.09, 0.7), rgba=white)
        )
        body.append(tag("geom", type="box", size=(0.16, 0.03, 0.08), pos=(x, -2.09, 0.7), rgba=red))
    return tag("body", *body, name=name, mocap=True)


def _traffic(
    stage: Stage, rng: np.random.Generator, ego: Float64[np.ndarray, "t 4"], manoeuvre: str
) -> tuple[dict[str, str], dict[str, Float64[np.ndarray, "t 4"]]]:
    """Add cars that go ahead, that come towards us, and that are parked."""
    count = len(ego)
    t = np.arange(count) / FPS
    names: dict[str, str] = {}
    ways: dict[str, np.ndarray] = {}

    def add(x: float, y: np.ndarray, yaw: float, speed: float) -> None:
        colour = str(rng.choice(list(COLOURS)))
        van = bool(rng.random() < 0.25)
        name = f"car{len(names)}"
        names[name] = f"{colour} {'van' if van else 'car'}"
        ways[name] = np.column_stack(
            [np.full(count, x), y, np.full(count, yaw), np.full(count, speed)]
        )
        stage.add(_car(name, COLOURS[colour], van))

    y0 = ego[0, 1]
    if rng.random() < 0.8:
        lead = rng.uniform(11, 18)
        # The car ahead keeps its distance on the main road, whatever we do.
        pace = max(ego[0, 3], 4.0)
        add(LANE, y0 + lead + pace * t, 0.0, pace)
    if rng.random() < 0.6:
        pace = ego[:, 3].min()
        add(LANE, y0 - rng.uniform(9, 14) + pace * t, 0.0, float(pace))
    gap = y0 + rng.uniform(18, 30)
    # Nobody comes towards us on the lane that we are about to cross.
    oncoming = 0 if manoeuvre.endswith("left") else int(rng.integers(1, 4))
    for _ in range(oncoming):
        pace = rng.uniform(6, 10)
        add(-LANE, gap - pace * t, np.pi, pace)
        gap += rng.uniform(14, 24)
    for side in (1, -1):
        for y in np.arange(-60, 70, 6.5):
            if abs(y) > 14 and rng.random() < 0.3:
                x = side * (HALF_ROAD + 0.75)
                add(x, np.full(count, y + rng.uniform(-0.4, 0.4)), 0.0 if side > 0 else np.pi, 0.0)
    return names, ways


def _build_town(stage: Stage, rng: np.random.Generator, light: Light) -> None:
    stage.sky(light.horizon, light.zenith)
    stage.headlight(light.ambient, 0.12)
    east = rng.choice([-1.0, 1.0])
    stage.sun((east * rng.uniform(0.4, 0.9), rng.uniform(-0.5, 0.5), -light.height), light.sun,
              centre=(0, -8, 0))  # fmt: skip
    stage.fill((-east, 0.2, -0.4), tuple(0.22 * np.array(light.zenith)))
    stage.texture("road", textures.road(rng))
    stage.texture("asphalt", textures.mottled(rng, (0.27, 0.27, 0.28), contrast=0.03, slope=0.8))
    stage.texture("grass", textures.mottled(rng, (0.30, 0.42, 0.20), contrast=0.10, slope=0.9))
    stage.texture("paving", textures.tiles(rng, (0.60, 0.59, 0.56), (0.45, 0.44, 0.43)))
    stage.texture("grain", textures.mottled(rng, (0.95, 0.95, 0.95), contrast=0.03), cube=True)
    stage.texture(
        "leaves", textures.mottled(rng, (0.22, 0.40, 0.14), contrast=0.16, slope=0.7), cube=True
    )
    stage.material("road", texture="road", texrepeat=(1, 11), specular=0.05)
    stage.material("asphalt", texture="asphalt", texrepeat=(2, 2), specular=0.05)
    stage.material("grass", texture="grass", texrepeat=(40, 40), specular=0.0)
    stage.material("paving", texture="paving", texrepeat=(2, 30), specular=0.05)
    stage.material("paint", texture="grain", specular=0.6, shininess=0.8)
    stage.material("leaves", texture="leaves", specular=0.0)
    stage.add(tag("geom", type="plane", size=(170, 170, 170), material="grass", pos=(0, 0, -0.02)))
    _lay_roads(stage)
    _build_houses(stage, rng)
    _plant_and_walk(stage, rng)


def _lay_roads(stage: Stage) -> None:
    """Lay four arms of road, the crossing with its stripes, and the pavements."""
    arm, w = 45.0, HALF_ROAD
    turn = (np.cos(np.pi / 4), 0, 0, np.sin(np.pi / 4))
    for sign in (1, -1):
        middle = sign * (w + 0.6 + arm)
        stage.add(
            _box((w, arm, 0.01), (0, middle, 0), material="road"),
            _box((w, arm, 0.01), (middle, 0, 0), quat=turn, material="road"),
        )
    stage.add(_box((w + 0.6, w + 0.6, 0.009), (0, 0, 0), material="asphalt"))
    white = (0.88, 0.87, 0.83, 1)
    for offset in np.arange(-w + 0.5, w, 0.9):
        for place in (w + 2.2, -w - 2.2):
            stage.add(_box((0.22, 1.1, 0.012), (offset, place, 0), rgba=white))
            stage.add(_box((1.1, 0.22, 0.012), (place, offset, 0), rgba=white))
    inner = w + 1.7  # parked cars stand between the road and the pavement
    half = (90 - inner) / 2
    for sx in (1, -1):
        for sy in (1, -1):
            x, y = sx * (inner + PAVEMENT / 2), sy * (inner + half)
            size = (PAVEMENT / 2, half, 0.07)
            stage.add(
                _box((0.85, half, 0.008), (sx * (w + 0.85), y, 0), material="asphalt"),
                _box(size, (x, y, 0.03), material="paving"),
                _box(size, (y, x, 0.03), quat=turn, material="paving"),
            )


def _build_houses(stage: Stage, rng: np.random.Generator) -> None:
    """Line both roads with houses: facades for walls, boxes for roofs."""
    for k in range(6):
        base = np.array([0.68, 0.60, 0.52]) + rng.uniform(-0.22, 0.2, 3)
        if k % 3 == 2:
            base = np.array([0.58, 0.33, 0.26]) + rng.uniform(-0.06, 0.06, 3)
        stage.texture(f"facade{k}", textures.facade(rng, tuple(base)), cube=True)
        stage.material(f"facade{k}", texture=f"facade{k}", specular=0.1)
    front = HALF_ROAD + 1.7 + PAVEMENT
    for side in (1, -1):
        for way in (1, -1):
            along = front + 1.0
            while along < 75:
                width, depth = rng.uniform(4, 6.5), rng.uniform(4, 6)
                tall = rng.uniform(3, 8.5)
                centre = along + width
                x, y = side * (front + depth + rng.uniform(0, 1.2)), way * centre
                _house(stage, rng, (x, y), (depth, width, tall))
                if rng.random() < 0.8 and centre > front + 12:
                    _house(
                        stage,
                        rng,
                        (way * centre, side * (front + depth + 0.5)),
                        (width, depth, tall),
                    )
                along += 2 * width + rng.choice([0.2, 3.5], p=(0.65, 0.35))


def _house(
    stage: Stage,
    rng: np.random.Generator,
    at: tuple[float, float],
    half: tuple[float, float, float],
) -> None:
    grey = rng.uniform(0.22, 0.42)
    roof = (half[0] + 0.25, half[1] + 0.25, 0.18)
    stage.add(
        _box(half, (*at, half[2]), material=f"facade{rng.integers(6)}"),
        _box(roof, (*at, 2 * half[2] + 0.18), rgba=(grey + 0.08, grey, grey, 1)),
    )


def _plant_and_walk(stage: Stage, rng: np.random.Generator) -> None:
    """Put trees, lamp posts and people on the pavements of the main road."""
    kerb = HALF_ROAD + 1.7
    for side in (1, -1):
        for y in np.arange(-70, 76, 8.0):
            if abs(y) < 9:
                continue
            kind, at = rng.random(), y + rng.uniform(-1.5, 1.5)
            if kind < 0.5:
                _tree(stage, rng, side * (kerb + 0.5), at)
            elif kind < 0.75:
                _lamp_post(stage, side, side * (kerb + 0.5), at)
            if rng.random() < 0.35:
                x = side * (kerb + rng.uniform(1.0, 1.9))
                _person(stage, rng, x, at + rng.uniform(-3, 3))


def _tree(stage: Stage, rng: np.random.Generator, x: float, y: float) -> None:
    r = rng.uniform(0.9, 1.4)
    bark = (0.33, 0.24, 0.16, 1)
    stage.add(
        tag("geom", type="cylinder", size=(0.12, 1.1), pos=(x, y, 1.1), rgba=bark),
        tag("geom", type="ellipsoid", size=(r, r, 1.2 * r), pos=(x, y, 3.0), material="leaves"),
    )


def _lamp_post(stage: Stage, side: int, x: float, y: float) -> None:
    iron = (0.2, 0.21, 0.22, 1)
    stage.add(
        tag("geom", type="cylinder", size=(0.06, 2.4), pos=(x, y, 2.4), rgba=iron),
        _box((0.5, 0.09, 0.05), (x - side * 0.45, y, 4.8), rgba=iron),
    )


def _person(stage: Stage, rng: np.random.Generator, x: float, y: float) -> None:
    coat, trousers = (*rng.uniform(0.08, 0.85, 3), 1), (*rng.uniform(0.08, 0.35, 3), 1)
    limb = {"type": "capsule"}
    stage.add(
        tag("geom", size=(0.14,), fromto=(x, y, 0.2, x, y, 0.75), rgba=trousers, **limb),
        tag("geom", size=(0.20,), fromto=(x, y, 0.95, x, y, 1.3), rgba=coat, **limb),
        tag("geom", type="sphere", size=(0.13,), pos=(x, y, 1.66), rgba=(0.80, 0.60, 0.48, 1)),
    )
