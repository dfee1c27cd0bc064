"""Physics scenes of chains and machines: dominoes, a seesaw, a gyroscope."""

import numpy as np

from .falls import number_word
from .graphics import Data, Model, mujoco
from .mjcf import tag
from .workshop import VIVID, Plot, Workshop


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
            f"{number_word(count)} dominoes topple in a chain reaction towards the {side}.",
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


def _tilted(tilt: float, around: float) -> tuple[float, float, float, float]:
    """Return the quaternion of a turn by ``tilt`` about a level axis at ``around``."""
    s = np.sin(tilt / 2)
    return (float(np.cos(tilt / 2)), float(s * np.cos(around)), float(s * np.sin(around)), 0.0)
