"""MuJoCo with an OpenGL backend that works here: a GPU's EGL, else OSMesa on the CPU.

The backend is chosen once per process, before MuJoCo is imported, so every other module of
this folder takes ``mujoco`` from here. A ``MUJOCO_GL`` set by the user is respected.
"""

import atexit
import contextlib
import functools
import importlib
import logging
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from ctypes.util import find_library
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int32, UInt8

from .scenes import GraphicsError

ADVICE = (
    "install a software renderer with `apt-get install libosmesa6`, "
    "or a GPU driver with EGL and `apt-get install libegl1`"
)
UNSEEN = 5
"""A group of geoms that MuJoCo does not draw unless told to."""
PROBE = "from mujoco.egl import GLContext; GLContext(16, 16).make_current()"


def gpu_can_render() -> bool:
    """Tell whether a GPU is here and its EGL gives a context (tried in a child process)."""
    nodes = [*Path("/dev").glob("nvidia[0-9]*"), *Path("/dev").glob("dri/renderD*")]
    if not nodes:
        return False
    environment = os.environ | {"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "egl"}
    probe = subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True)
    return probe.returncode == 0


def choose_backend(find: Callable[[str], str | None] = find_library) -> str | None:
    """Return the value that ``MUJOCO_GL`` should have; None when no library is found.

    OSMesa comes before EGL where no GPU is at hand: on a CPU it is about twice as fast.
    """
    if asked := os.environ.get("MUJOCO_GL", "").strip():
        return asked
    if platform.system() != "Linux":
        return ""
    has_egl = find("EGL") is not None
    if has_egl and gpu_can_render():
        return "egl"
    if find("OSMesa") is not None:
        return "osmesa"
    return "egl" if has_egl else None


_BACKEND = choose_backend()
os.environ["MUJOCO_GL"] = "disable" if _BACKEND is None else _BACKEND
if _BACKEND in ("egl", "osmesa"):
    os.environ["PYOPENGL_PLATFORM"] = _BACKEND
    logging.getLogger("OpenGL").setLevel(logging.WARNING)  # it tells of an extra it can do without
# Threads of llvmpipe's own only fight with the other worker processes.
os.environ.setdefault("LP_NUM_THREADS", "0")
if _BACKEND == "osmesa":
    # Triton, which CUDA builds of torch bring, and OSMesa each load an LLVM. After OSMesa's,
    # Triton's import ends the process; before it, both work.
    with contextlib.suppress(ImportError):
        importlib.import_module("triton")

try:
    mujoco: Any = importlib.import_module("mujoco")
except (AttributeError, OSError, RuntimeError) as error:
    raise GraphicsError(f"MUJOCO_GL={_BACKEND!r} cannot be used ({error}); {ADVICE}") from error

DIRECTIONAL = mujoco.mjtLightType.mjLIGHT_DIRECTIONAL.value
# MuJoCo's bindings are compiled; a type checker sees none of their classes.
Model: TypeAlias = Any
Data: TypeAlias = Any


@functools.cache
def gl_context() -> Any:
    """Return this process's OpenGL context.

    Raises:
        GraphicsError: no OpenGL library is here, or the one asked for does not work.
    """
    if _BACKEND is None or _BACKEND == "disable":
        raise GraphicsError(f"no OpenGL library found (looked for OSMesa and EGL); {ADVICE}")
    try:
        if _BACKEND in ("egl", "osmesa"):
            context = importlib.import_module(f"mujoco.{_BACKEND}").GLContext(64, 64)
        else:
            context = mujoco.GLContext(64, 64)
        # Left to the interpreter's end, it would be freed after PyOpenGL has gone.
        atexit.register(context.free)
        return context
    except Exception as error:  # each backend has exceptions of its own
        raise GraphicsError(f"MUJOCO_GL={_BACKEND!r} does not work ({error}); {ADVICE}") from error


@dataclass(frozen=True)
class Shot:
    """One picture: colour, metres along the optical axis, and the geom seen (-1: none)."""

    rgb: UInt8[np.ndarray, "3 h w"]
    depth: Float32[np.ndarray, "h w"]
    geoms: Int32[np.ndarray, "h w"]


class Renderer:
    """Renders a model's named cameras. One process shares one OpenGL context.

    Colour is drawn ``supersample`` times larger and averaged; depth and geoms are drawn at
    the final size, so that their pixel centres are exact.
    """

    def __init__(self, model: Model, size: tuple[int, int], *, supersample: int = 2) -> None:
        self._model, self._size, self._supersample = model, size, supersample
        gl_context().make_current()
        self._scene = mujoco.MjvScene(model, maxgeom=model.ngeom + 64)
        self._option = mujoco.MjvOption()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50.value)
        self._context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR
        self._groups = model.geom_group.copy()

    def __enter__(self) -> "Renderer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free what the renderer holds on the graphics side."""
        if self._context is not None:
            gl_context().make_current()
            self._context.free()
            self._context = None

    def shoot(self, data: Data, camera: str) -> Shot:
        """Take colour, depth and geoms through ``camera``."""
        rgb = self.colour(data, camera)
        depth, geoms = self._measure()
        return Shot(rgb, depth, geoms)

    def colour(self, data: Data, camera: str) -> UInt8[np.ndarray, "3 h w"]:
        """Take colour only."""
        self._aim(data, camera)
        (h, w), s = self._size, self._supersample
        large = np.empty((h * s, w * s, 3), np.uint8)
        self._draw(large, None)
        fine = large.reshape(h, s, w, s, 3).astype(np.uint16)
        mean = (fine.sum(axis=(1, 3)) + s * s // 2) // (s * s)
        return np.ascontiguousarray(mean[::-1].transpose(2, 0, 1).astype(np.uint8))

    def _aim(self, data: Data, camera: str) -> None:
        view = mujoco.MjvCamera()
        view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        view.fixedcamid = self._model.camera(camera).id
        every = mujoco.mjtCatBit.mjCAT_ALL.value
        unseen = ~self._may_be_seen(data, view.fixedcamid)
        self._model.geom_group[unseen] = UNSEEN
        mujoco.mjv_updateScene(self._model, data, self._option, None, view, every, self._scene)
        np.copyto(self._model.geom_group, self._groups)

    def _may_be_seen(self, data: Data, camera: int) -> Bool[np.ndarray, " g"]:
        """Tell which geoms' bounding spheres, or the shadows of these, reach into the picture.

        A shadow is the sphere swept along its light down to the ground, a convex thing: it is
        outside a plane of the view's pyramid if both its ends are.
        """
        model, radius = self._model, self._model.geom_rbound
        casting = model.light_castshadow.astype(bool) & model.light_active.astype(bool)
        if not np.isin(model.light_type[casting], DIRECTIONAL).all():
            return np.ones(model.ngeom, bool)
        ends = [data.geom_xpos]
        for ray in data.light_xdir[casting]:
            drop = np.maximum(data.geom_xpos[:, 2] + radius, 0) / max(-ray[2], 1e-3)
            ends.append(data.geom_xpos + drop[:, None] * ray)
        slope = np.tan(np.radians(model.cam_fovy[camera]) / 2)
        slopes = np.array([slope * self._size[1] / self._size[0], slope])
        axes = data.cam_xmat[camera].reshape(3, 3)  # right, up, backward
        inside = np.full((5, model.ngeom), -np.inf)
        for end in ends:
            across, depth = np.split((end - data.cam_xpos[camera]) @ axes, [2], axis=1)
            sides = [-depth * slopes - across, -depth * slopes + across]
            planes = np.concatenate([*sides, -depth * np.sqrt(1 + slopes[:1] ** 2)], axis=1)
            planes /= np.sqrt(1 + np.concatenate([slopes, slopes, slopes[:1]]) ** 2)
            inside = np.maximum(inside, planes.T)
        # Endless planes have a radius of 0.
        return (inside > -radius).all(axis=0) | (radius == 0)

    def _draw(self, rgb: np.ndarray, depth: np.ndarray | None) -> None:
        gl_context().make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        window = mujoco.MjrRect(0, 0, rgb.shape[1], rgb.shape[0])
        mujoco.mjr_render(window, self._scene, self._context)
        mujoco.mjr_readPixels(rgb, depth, window, self._context)

    def _measure(self) -> tuple[Float32[np.ndarray, "h w"], Int32[np.ndarray, "h w"]]:
        """Draw the aimed scene with one colour per geom; read its ids and its depth buffer."""
        flags = (mujoco.mjtRndFlag.mjRND_SEGMENT, mujoco.mjtRndFlag.mjRND_IDCOLOR)
        before = self._scene.flags.copy()
        for flag in flags:
            self._scene.flags[flag] = True
        rgb, depth = np.empty((*self._size, 3), np.uint8), np.empty(self._size, np.float32)
        self._draw(rgb, depth)
        np.copyto(self._scene.flags, before)
        return self._metres(depth[::-1]), self._geom_ids(rgb[::-1])

    def _geom_ids(self, rgb: UInt8[np.ndarray, "h w 3"]) -> Int32[np.ndarray, "h w"]:
        codes = rgb.astype(np.int32) @ np.array([1, 1 << 8, 1 << 16], np.int32)
        ids = np.full(self._scene.ngeom + 1, -1, np.int32)
        geom_type = mujoco.mjtObj.mjOBJ_GEOM.value
        for geom in self._scene.geoms[: self._scene.ngeom]:
            if geom.segid >= 0 and geom.objtype == geom_type:
                ids[geom.segid + 1] = geom.objid
        return ids[codes]

    def _metres(self, depth: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
        """Undo the reversed hyperbolic depth buffer: 1 at the near plane, 0 at the far one."""
        extent = self._model.stat.extent
        near, far = self._model.vis.map.znear * extent, self._model.vis.map.zfar * extent
        buffer = depth.astype(np.float64)
        return (near * far / (near + buffer * (far - near))).astype(np.float32)


def camera_pose(model: Model, data: Data, camera: str) -> Float64[np.ndarray, "4 4"]:
    """Return camera-to-world with OpenCV axes: x right, y down, z forward."""
    index = model.camera(camera).id
    pose = np.eye(4)
    pose[:3, :3] = data.cam_xmat[index].reshape(3, 3) @ np.diag([1.0, -1.0, -1.0])
    pose[:3, 3] = data.cam_xpos[index]
    return pose


def camera_intrinsics(
    model: Model, camera: str, size: tuple[int, int]
) -> Float64[np.ndarray, "3 3"]:
    """Return the pinhole matrix in pixels; pixel (row i, column j) has centre (j + .5, i + .5)."""
    h, w = size
    focal = h / 2 / np.tan(np.radians(model.cam_fovy[model.camera(camera).id]) / 2)
    return np.array([[focal, 0, w / 2], [0, focal, h / 2], [0, 0, 1]])


def project(
    points: Float[np.ndarray, "*n 3"],
    pose: Float[np.ndarray, "4 4"],
    intrinsics: Float[np.ndarray, "3 3"],
) -> Float64[np.ndarray, "*n 2"]:
    """Return where world points appear, as (column, row); NaN for points behind the camera."""
    local = (points.astype(np.float64) - pose[:3, 3]) @ pose[:3, :3]
    image = local @ intrinsics.T
    depth = np.where(image[..., 2:] > 0, image[..., 2:], np.nan)
    return image[..., :2] / depth
