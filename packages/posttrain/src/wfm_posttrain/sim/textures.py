"""Procedural textures: uint8 RGB, tileable where the pattern allows it."""

import numpy as np
from jaxtyping import Float64, UInt8

Colour = tuple[float | int, float | int, float | int]
Texture = UInt8[np.ndarray, "h w 3"]

COLOURS: dict[str, Colour] = {
    "red": (0.82, 0.10, 0.08),
    "blue": (0.08, 0.28, 0.85),
    "green": (0.08, 0.58, 0.20),
    "yellow": (0.97, 0.80, 0.08),
    "purple": (0.50, 0.16, 0.68),
    "cyan": (0.10, 0.72, 0.78),
    "orange": (0.98, 0.48, 0.06),
    "white": (0.93, 0.93, 0.91),
    "black": (0.10, 0.10, 0.12),
    "pink": (0.95, 0.50, 0.66),
}


def fractal(
    rng: np.random.Generator, size: int, *, slope: float = 1.5, stretch: float = 1.0
) -> Float64[np.ndarray, "size size"]:
    """Return tileable noise of mean 0 and deviation 1, with power falling as f^(-2 slope).

    ``stretch`` > 1 draws the noise out along the columns' axis (wood grain, brushed metal).
    """
    fy = np.fft.fftfreq(size)[:, None] * size
    fx = np.fft.rfftfreq(size)[None, :] * size
    frequency = np.hypot(fy, fx * stretch)
    frequency[0, 0] = np.inf
    phase = rng.uniform(0, 2 * np.pi, frequency.shape)
    noise = np.fft.irfft2(np.exp(1j * phase) / frequency**slope, s=(size, size))
    return noise / noise.std()


def finish(values: Float64[np.ndarray, "h w 3"]) -> Texture:
    """Clip colours in [0, 1] to uint8."""
    return (np.clip(values, 0, 1) * 255).round().astype(np.uint8)


def mottled(
    rng: np.random.Generator, colour: Colour, *, contrast: float = 0.06, slope: float = 1.2
) -> Texture:
    """Plaster, stone, felt or grass: one colour with soft variation."""
    noise = fractal(rng, 128, slope=slope)[..., None]
    tint = fractal(rng, 128, slope=1.8)[..., None] * np.array([0.3, 0.0, -0.3])
    return finish(np.array(colour) + contrast * (noise + tint) / 2)


def wood(rng: np.random.Generator, light: Colour, dark: Colour, *, planks: int = 4) -> Texture:
    """Boards with grain along the x axis, each of its own tone, and dark joints."""
    size = 256
    rows = np.arange(size)
    board = rows * planks // size
    warp = fractal(rng, size, slope=2.0, stretch=0.15) * 2.5
    rings = np.sin(rows[:, None] / size * 10 * planks + warp + board[:, None] * 1.7)
    grain = fractal(rng, size, slope=1.0, stretch=0.08)
    mix = 0.5 + 0.22 * rings + 0.16 * grain
    mix += rng.uniform(-0.15, 0.15, planks)[board][:, None]
    image = np.array(dark) + np.clip(mix, 0, 1)[..., None] * (np.array(light) - np.array(dark))
    joint = (rows * planks % size) < planks * 2
    image[joint] *= 0.6
    return finish(image)


def bricks(rng: np.random.Generator, colour: Colour, mortar: Colour, *, rows: int = 8) -> Texture:
    """Running-bond brickwork."""
    size, columns = 256, rows // 2
    y, x = np.mgrid[:size, :size]
    row = y * rows // size
    shifted = x + (row % 2) * (size // columns // 2)
    column = shifted * columns // size % columns
    tone = rng.uniform(0.78, 1.15, (rows, columns, 1)) + rng.normal(0, 0.03, (rows, columns, 3))
    image = np.array(colour) * tone[row, column] + 0.03 * fractal(rng, size, slope=1.0)[..., None]
    gap = (y * rows % size < rows * 2) | (shifted * columns % size < columns * 2)
    return finish(np.where(gap[..., None], np.array(mortar), image))


def tiles(rng: np.random.Generator, colour: Colour, grout: Colour, *, count: int = 4) -> Texture:
    """Square tiles with a light marbling and thin grout."""
    size = 256
    y, x = np.mgrid[:size, :size]
    tone = rng.uniform(0.9, 1.06, (count, count, 1))[y * count // size, x * count // size]
    image = np.array(colour) * tone + 0.025 * fractal(rng, size, slope=1.6)[..., None]
    gap = (y * count % size < count * 3) | (x * count % size < count * 3)
    return finish(np.where(gap[..., None], np.array(grout), image))


def checker(rng: np.random.Generator, one: Colour, other: Colour, *, count: int = 4) -> Texture:
    """A chessboard with a little wear."""
    size = 128
    y, x = np.mgrid[:size, :size]
    odd = (y * count // size + x * count // size) % 2 == 1
    image = np.where(odd[..., None], np.array(one), np.array(other))
    return finish(image + 0.02 * fractal(rng, size, slope=1.0)[..., None])


def stripes(rng: np.random.Generator, one: Colour, other: Colour, *, count: int = 6) -> Texture:
    """Vertical stripes, as on a wallpaper or a toy."""
    size = 128
    odd = (np.arange(size) * count // size % 2 == 1)[None, :, None]
    image = np.where(odd, np.array(one), np.array(other)) * np.ones((size, 1, 1))
    return finish(image + 0.015 * fractal(rng, size, slope=1.0)[..., None])


def facade(rng: np.random.Generator, wall: Colour, *, floors: int = 4) -> Texture:
    """One tile of a building's front: rows of framed windows, some of them lit."""
    size, columns = 256, 4
    y, x = np.mgrid[:size, :size]
    v, u = y * floors % size / size, x * columns % size / size
    cell = (y * floors // size, x * columns // size)
    glass = np.array([0.16, 0.22, 0.30]) * rng.uniform(0.7, 1.6, (floors, columns, 1))
    lit = rng.random((floors, columns, 1)) < 0.15
    glass = np.where(lit, np.array([0.95, 0.85, 0.55]), glass)
    image = np.array(wall) + 0.03 * fractal(rng, size, slope=1.2)[..., None]
    frame = (abs(u - 0.5) < 0.29) & (abs(v - 0.5) < 0.33)
    pane = (abs(u - 0.5) < 0.24) & (abs(v - 0.5) < 0.28) & (abs(u - 0.5) > 0.02)
    image = np.where(frame[..., None], np.array([0.86, 0.85, 0.82]), image)
    image = np.where(pane[..., None], glass[cell] + 0.15 * (1 - v[..., None]), image)
    image[v < 0.04] *= 0.75
    return finish(image)


def road(rng: np.random.Generator) -> Texture:
    """Asphalt seen from above; travel is along the rows: edge lines and a dashed middle."""
    size = 256
    y, x = np.mgrid[:size, :size] / size
    image = 0.27 + 0.02 * fractal(rng, size, slope=0.8)[..., None] * np.ones(3)
    image = image + 0.02 * np.cos(8 * np.pi * x)[..., None]
    dash = (abs(x - 0.5) < 0.010) & (y < 0.45)
    edge = abs(abs(x - 0.5) - 0.46) < 0.009
    image[dash | edge] = [0.90, 0.89, 0.84]
    return finish(image)
