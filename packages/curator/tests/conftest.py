"""Real video files, made here: every frame carries its number in squares of black and white."""

import os
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("here", deadline=None, max_examples=25)
settings.register_profile("ci", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")

BITS, SQUARE = 10, 6


def number_of(picture):
    """Read a frame's number off its squares."""
    bits = [picture[2:4, SQUARE * k + 2 : SQUARE * k + 4].mean() > 128 for k in range(BITS)]
    return sum(bit << k for k, bit in enumerate(bits))


def stamp(picture, number):
    """Write a frame's number on it."""
    for k in range(BITS):
        picture[:SQUARE, SQUARE * k : SQUARE * (k + 1)] = 255 * (number >> k & 1)
    return picture


def scene(seed, height=48, width=64):
    """A smooth coloured picture, unlike that of another seed."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 8, 3)).astype(np.uint8)
    rows = np.linspace(0, 5, height).round().astype(int)
    columns = np.linspace(0, 7, width).round().astype(int)
    return coarse[rows][:, columns]


def moving(seed, frames, height=48, width=64):
    """A fixed camera on a scene where one block goes its way; the way depends on the seed."""
    back = scene(seed % 3, height, width)  # few scenes, many ways
    rng = np.random.default_rng(seed)
    y, x = rng.uniform(12, height - 20), rng.uniform(2, width - 14)
    dy, dx = rng.uniform(-1.0, 1.0), rng.choice([-1, 1]) * rng.uniform(1, 2)
    pictures = []
    for t in range(frames):
        picture = back.copy()
        top = int(np.clip(y + dy * t, 8, height - 12))
        left = int(abs((x + dx * t + width) % (2 * width - 24) - width + 12))
        picture[top : top + 12, left : left + 12] = (250, 240, 20)
        pictures.append(picture)
    return np.stack(pictures)


def numbered(frames, seed=0, height=48, width=64):
    film = moving(seed, frames, height, width)
    return np.stack([stamp(picture, n) for n, picture in enumerate(film)])


def write(path, pictures, fps=10, *, codec="libx264", pixels="yuv420p", times=None, **options):
    """Write uint8 ``t h w 3`` as a video; ``times`` are in units of 1 / 1000 s."""
    path.parent.mkdir(parents=True, exist_ok=True)
    turn = options.pop("turn", 0)
    given = {"crf": "10", "preset": "ultrafast", "g": "12"} if codec == "libx264" else {}
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt, stream.options = pixels, given | options
        if turn:
            stream.set_display_rotation(turn)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for n, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
            if times is not None:
                frame.pts, frame.time_base = int(times[n]), Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


@pytest.fixture
def folder(tmp_path):
    """Six short recordings, as a simulator writes them."""
    place = tmp_path / "in"
    for n in range(6):
        write(place / f"sim-{n}.mp4", moving(n, 17))
    return place
