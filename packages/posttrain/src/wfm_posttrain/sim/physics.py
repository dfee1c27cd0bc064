"""The eight rigid-body scenes of the Cosmos physics test (arXiv 2501.03575, section 5.3.2).

Gravity is 9.81 m/s2; pictures come 15 times a second.
"""

from collections.abc import Callable

import numpy as np

from . import falls, machines
from .episode import Episode
from .filming import Film, Story
from .graphics import Data, Model, Renderer, mujoco
from .scenes import PHYSICS, Capture
from .workshop import CAMERAS, FPS, SUBSTEPS, Plot, Workshop, add_cameras

# What a second take differs by: metres, metres per second, radians per second.
SHIFT, PUSH, TURN = 0.002, 0.01, 0.1

BUILDERS: dict[str, Callable[[Workshop], Plot]] = {
    "free-fall": falls.free_fall,
    "tilted-plane": falls.tilted_plane,
    "u-slope": falls.u_slope,
    "stable-stack": falls.stable_stack,
    "unstable-stack": falls.unstable_stack,
    "dominoes": machines.dominoes,
    "seesaw": machines.seesaw,
    "gyroscope": machines.gyroscope,
}


def record(scene: str, seed: int, capture: Capture, *, take: int = 0) -> tuple[Episode, ...]:
    """Return the episodes of ``seed``: from one camera of four, or from those asked for.

    Another ``take`` of the same scene starts a little differently, as nobody can repeat an
    experiment exactly; how far two takes come apart is what nature leaves open.
    """
    rng = np.random.default_rng((2 + PHYSICS.index(scene), seed))
    camera = str(rng.choice(list(CAMERAS)))
    shop = Workshop(rng)
    plot = BUILDERS[scene](shop)
    add_cameras(shop.stage, rng, capture.camera_jitter)
    model = shop.stage.compile(capture.size)
    data = mujoco.MjData(model)
    if plot.prepare is not None:
        plot.prepare(model, data)
    if take:
        _disturb(model, data, np.random.default_rng((2 + PHYSICS.index(scene), seed, take)))
    mujoco.mj_forward(model, data)
    with Renderer(model, capture.size) as renderer:
        film = Film(model, renderer, capture.views or (camera,), plot.objects)
        film.note(data)
        for _ in range(capture.frames - 1):
            mujoco.mj_step(model, data, SUBSTEPS)
            mujoco.mj_forward(model, data)
            film.note(data)
    facts = {"objects": list(plot.objects.values()), "floor": shop.floor, **plot.facts}
    facts |= {"take": take} if take else {}
    return film.episodes(Story(scene, seed, float(FPS), plot.captions, facts))


def _disturb(model: Model, data: Data, rng: np.random.Generator) -> None:
    """Shift and push every free body a little, and turn what hangs in a ball joint."""
    for joint in range(model.njnt):
        if model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_FREE:
            place, speed = model.jnt_qposadr[joint], model.jnt_dofadr[joint]
            # Sideways only: up or down would start a contact, or a fall.
            data.qpos[place : place + 2] += rng.normal(0, SHIFT, 2)
            data.qvel[speed : speed + 2] += rng.normal(0, PUSH, 2)
        elif model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_BALL:
            speed = model.jnt_dofadr[joint]
            data.qvel[speed : speed + 3] += rng.normal(0, TURN, 3)
