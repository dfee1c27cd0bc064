"""Physics scenes of things that fall, roll, and stand or do not."""

import numpy as np

from .mjcf import Vector, tag
from .workshop import Plot, Workshop


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


def stable_stack(shop: Workshop) -> Plot:
    """A pile that stands."""
    count, _ = _stack(shop, stable=True)
    return Plot(
        shop.objects,
        (
            f"A stack of {count} boxes stands still on the {shop.floor} floor.",
            f"{number_word(count)} boxes are piled up in a stable tower that does not move.",
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
            f"{number_word(count)} boxes are piled up unevenly, and the tower falls down.",
            f"An unstable tower of {count} coloured boxes collapses onto the {shop.floor} floor.",
        ),
        {"count": count, "topples": True},
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


def _list(names: list[str]) -> str:
    things = [f"a {name}" if name[0] not in "aeiou" else f"an {name}" for name in names]
    return things[0] if len(things) == 1 else ", ".join(things[:-1]) + " and " + things[-1]


def _first(text: str) -> str:
    return text[0].upper() + text[1:]


def number_word(count: int) -> str:
    return ("Four", "Five", "Six", "Seven", "Eight", "Nine")[count - 4]
