"""A few lines to write MuJoCo's XML, with textures given as arrays."""

from collections.abc import Iterable
from xml.sax.saxutils import quoteattr

import numpy as np

from .graphics import Model, mujoco
from .textures import Colour, Texture

Number = float | int
Numbers = tuple[Number, ...]
Vector = tuple[Number, Number, Number]


def tag(element: str, /, *children: str, **attributes: object) -> str:
    """Return one XML element; numbers and sequences of numbers are written out."""
    text = "".join(f" {key}={quoteattr(_text(value))}" for key, value in attributes.items())
    return (
        f"<{element}{text}>{''.join(children)}</{element}>" if children else f"<{element}{text}/>"
    )


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Iterable):
        return " ".join(f"{float(number):.6g}" for number in value)
    return f"{value:.6g}" if isinstance(value, float | np.floating) else str(value)


class Stage:
    """Collects bodies, materials and lights, and compiles them into a model."""

    def __init__(self, *, timestep: float, near: float, far: float, shadow_clip: float) -> None:
        self._visual = tag("map", znear=near, zfar=far, shadowclip=shadow_clip, shadowscale=0.9)
        self._timestep, self._reach = timestep, 2 * shadow_clip
        self.integrator = "implicitfast"
        # What pictures cost is mostly triangles, in each of three passes: of round things (slices
        # and stacks), of boxes (quads along an edge), of planes (the third number of their size).
        self.shadow_size, self.slices, self.stacks, self.quads = 1024, 24, 16, 4
        self._assets: list[str] = []
        self._world: list[str] = []
        self._tail: list[str] = []
        self._images: dict[str, Texture] = {}
        self._headlight = tag(
            "headlight", ambient=(0.32,) * 3, diffuse=(0.25,) * 3, specular=(0,) * 3
        )

    def add(self, *elements: str) -> None:
        """Put elements into the world."""
        self._world += elements

    def tail(self, *elements: str) -> None:
        """Put elements behind the world: equalities, actuators."""
        self._tail += elements

    def headlight(self, ambient: float, diffuse: float) -> None:
        """Set the light that shines from the camera."""
        self._headlight = tag(
            "headlight", ambient=(ambient,) * 3, diffuse=(diffuse,) * 3, specular=(0,) * 3
        )

    def sky(self, horizon: Colour, zenith: Colour) -> None:
        """Surround the world with a gradient."""
        self._assets.append(
            tag("texture", type="skybox", builtin="gradient", rgb1=zenith, rgb2=horizon,
                width=64, height=384)
        )  # fmt: skip

    def texture(self, name: str, image: Texture, *, cube: bool = False) -> None:
        """Store an image; ``cube`` wraps it around boxes and round things."""
        h, w, _ = image.shape
        self._images[name] = np.tile(image, (6, 1, 1)) if cube else image
        kind = "cube" if cube else "2d"
        self._assets.append(tag("texture", name=name, type=kind, builtin="flat", width=w, height=h))

    def material(self, name: str, **attributes: object) -> str:
        """Define a material and return its name."""
        settings = {"specular": 0.15, "shininess": 0.3} | attributes
        self._assets.append(tag("material", name=name, **settings))
        return name

    def sun(self, towards: Vector, colour: Colour, *, centre: Vector = (0, 0, 0)) -> None:
        """Add the one light that casts shadows: around ``centre``, as far as the shadow clip."""
        direction = np.array(towards) / np.linalg.norm(towards)
        self.add(
            tag("light", pos=np.array(centre) - self._reach * direction, dir=direction,
                diffuse=colour, specular=(0.25,) * 3, directional=True, castshadow=True)
        )  # fmt: skip

    def fill(self, towards: Vector, colour: Colour) -> None:
        """Add a soft light without shadows."""
        self.add(
            tag("light", pos=(0, 0, 3), dir=towards, diffuse=colour, specular=(0,) * 3,
                directional=True, castshadow=False)
        )  # fmt: skip

    def compile(self, size: tuple[int, int], *, supersample: int = 2) -> Model:
        """Return the model; ``size`` is the height and width of the pictures to come."""
        h, w = size
        visual = tag(
            "visual",
            tag("global", offheight=h * supersample, offwidth=w * supersample),
            tag("quality", shadowsize=self.shadow_size, offsamples=0,
                numslices=self.slices, numstacks=self.stacks, numquads=self.quads),
            self._headlight,
            self._visual,
        )  # fmt: skip
        xml = tag(
            "mujoco",
            tag("compiler", angle="radian"),
            # Near and far planes are multiples of the extent: fix it, or they follow the model.
            tag("statistic", extent=1, center=(0, 0, 0)),
            tag("option", timestep=self._timestep, integrator=self.integrator),
            visual,
            tag("asset", *self._assets),
            tag("worldbody", *self._world),
            *self._tail,
        )
        model = mujoco.MjModel.from_xml_string(xml)
        for name, image in self._images.items():
            start = model.tex_adr[model.texture(name).id]
            model.tex_data[start : start + image.size] = image.reshape(-1)
        return model
