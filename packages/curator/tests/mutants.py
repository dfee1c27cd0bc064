"""Damaged videos: cut off, with flipped bits, with headers that lie."""

import struct

import numpy as np
from conftest import numbered, write

LIES = (0, 1, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
BOXES = (b"mvhd", b"tkhd", b"mdhd", b"stsz", b"stts", b"stsc", b"stco", b"ctts", b"avc1", b"avcC")


def originals(place):
    """Small good videos of several kinds, as bytes by suffix."""
    film = numbered(20)
    made = (
        write(place / "a.mp4", film, bf="2", preset="fast"),
        write(place / "b.mkv", film),
        write(place / "c.avi", film, codec="mpeg4"),
        write(place / "d.webm", film, codec="libvpx-vp9", deadline="realtime"),
        write(place / "e.ts", film, codec="mpeg2video"),
        write(place / "f.mov", film, codec="mjpeg", pixels="yuvj420p"),
    )
    return [(path.suffix, path.read_bytes()) for path in made]


def mutate(content, rng):
    """Damage a video in one of many ways; return what was done and the bytes."""
    data = bytearray(content)
    way = int(rng.integers(8))
    match way:
        case 0:
            return "cut off", bytes(data[: rng.integers(len(data))])
        case 1:
            for place in rng.integers(0, len(data), 2 ** rng.integers(0, 8)):
                data[place] ^= 1 << int(rng.integers(8))
            return "bits flipped", bytes(data)
        case 2:
            start = int(rng.integers(len(data)))
            data[start : start + int(rng.integers(1, 600))] = b""
            return "a piece missing", bytes(data)
        case 3:
            start, size = int(rng.integers(len(data))), int(rng.integers(1, 600))
            data[start : start + size] = bytes(len(data[start : start + size]))
            return "a piece zeroed", bytes(data)
        case 4:
            start = int(rng.integers(len(data)))
            size = int(rng.integers(1, 600))
            data[start:start] = rng.integers(0, 256, size, dtype=np.uint8).tobytes()
            return "noise inserted", bytes(data)
        case 5:
            return "a lying header", lie(data, rng)
        case 6:
            return "huge dimensions", huge(data, rng)
        case _:
            return "empty", b"" if rng.random() < 0.3 else bytes(data[: rng.integers(64)])


def lie(data, rng):
    """Overwrite a number after the name of a box, or in the first 200 bytes."""
    found = [data.find(box) for box in BOXES]
    found = [place + 4 for place in found if place >= 0] or [int(rng.integers(0, 200))]
    place = int(rng.choice(found)) + 4 * int(rng.integers(0, 6))
    data[place : place + 4] = struct.pack(">I", LIES[rng.integers(len(LIES))])
    return bytes(data)


def huge(data, rng):
    """Claim pictures of up to 65535x65535: in an mp4's sample entry, else anywhere early."""
    place = max((data.find(name) for name in (b"avc1", b"jpeg")), default=-1)
    place = place + 28 if place >= 0 else int(rng.integers(20, 400))
    data[place : place + 4] = struct.pack(">HH", *rng.integers(9000, 65536, 2))
    return bytes(data)
