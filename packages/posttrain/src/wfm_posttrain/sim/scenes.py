"""The scenes that can be simulated, by name."""

import importlib
from dataclasses import dataclass

from .episode import Episode

# Recordings with these seeds are for tests and evaluation only: nothing is trained on them.
HELD_OUT_SEED = 1_000_000

PHYSICS = (
    "free-fall",
    "tilted-plane",
    "u-slope",
    "stable-stack",
    "unstable-stack",
    "dominoes",
    "seesaw",
    "gyroscope",
)
SCENES = ("arm-push", "street", "room", *PHYSICS)


class GraphicsError(ImportError):
    """No OpenGL library can render on this machine; the text says how to get one."""


@dataclass(frozen=True)
class Capture:
    """How to film a scene.

    Attributes:
        size: Height and width in pixels.
        frames: Length of the recording.
        views: Cameras to film with; None takes the scene's default.
        camera_jitter: How far, in metres, the seed may move the camera (arm and physics).
    """

    size: tuple[int, int] = (64, 64)
    frames: int = 17
    views: tuple[str, ...] | None = None
    camera_jitter: float = 0.0

    def __post_init__(self) -> None:
        h, w = self.size
        if not (8 <= h <= 2048 and 8 <= w <= 2048):
            raise ValueError(f"size is {h}x{w}; sides must be from 8 to 2048 pixels")
        if self.frames < 1:
            raise ValueError(f"frames is {self.frames}; a recording has at least 1")


def generate(
    scene: str,
    seed: int,
    *,
    size: tuple[int, int] = (64, 64),
    frames: int = 17,
    camera_jitter: float = 0.0,
) -> Episode:
    """Simulate and film one recording; the same arguments give the same bits.

    Raises:
        ValueError: no such scene, or a size or length that cannot be.
        GraphicsError: no OpenGL library on this machine.
    """
    capture = Capture(size, frames, camera_jitter=camera_jitter)
    return generate_views(scene, seed, capture)[0]


def generate_views(
    scene: str, seed: int, capture: Capture, *, take: int = 0
) -> tuple[Episode, ...]:
    """Simulate once and film with every camera that ``capture`` asks for.

    ``take`` 1 and up repeat a physics scene with slightly other beginnings.
    """
    if scene not in SCENES:
        raise ValueError(f"no scene {scene!r}; there are {', '.join(SCENES)}")
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must not be negative")
    if scene in PHYSICS:
        module = importlib.import_module(".physics", __package__)
        return module.record(scene, seed, capture, take=take)
    if take:
        raise ValueError(f"{scene} has one take only; those with more are {', '.join(PHYSICS)}")
    module = importlib.import_module("." + scene.replace("-", "_"), __package__)
    return module.record(seed, capture)
