"""What lies beside a recording: ``STEM.json``, ``STEM.txt`` and arrays in ``STEM.safetensors``.

Arrays whose first axis has one row for each frame, or for each step between frames, are cut
with the video; others are carried whole. They are cut as bytes, so any dtype passes unchanged.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

RANKS = {  # axes of the arrays that must belong to frames or steps, if they have as many
    "action": 2,
    "camera_pose": 3,
    "depth": 3,
    "effector_pixel": 2,
    "object_pixel": 3,
    "object_pose": 3,
    "segmentation": 3,
    "state": 2,
}
BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "I16": 16, "U16": 16, "F16": 16}
BITS |= {"BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64}
LARGEST_HEADER = 100_000_000


class SidecarError(ValueError):
    """A side-car file that cannot be read or does not fit the video."""


@dataclass(frozen=True)
class Array:
    """``data`` are the bytes of an array in row-major order."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def rows(self, start: int, stop: int) -> "Array":
        size = len(self.data) // self.shape[0]
        data = self.data[size * start : size * stop]
        return Array(self.dtype, (stop - start, *self.shape[1:]), data)


def paths(video: Path) -> tuple[Path, Path, Path]:
    """Return where the JSON, text and arrays of a recording would be."""
    return video.with_suffix(".json"), video.with_suffix(".txt"), video.with_suffix(".safetensors")


def read_attributes(path: Path) -> dict[str, object]:
    """Read a JSON object; no file is an empty one."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:  # bad JSON or bad UTF-8
        raise SidecarError(f"{path}: not JSON ({e})") from e
    if not isinstance(value, dict):
        raise SidecarError(f"{path}: an object is wanted, this is a {type(value).__name__}")
    return value


def read_text(path: Path) -> str:
    """Read a caption file; no file is an empty text."""
    try:
        return path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    except UnicodeDecodeError as e:
        raise SidecarError(f"{path}: not UTF-8 text") from e


def read_arrays(path: Path) -> dict[str, Array]:
    """Read a safetensors file; no file is no arrays."""
    if not path.is_file():
        return {}
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or size > LARGEST_HEADER or len(content) < 8 + size:
        raise SidecarError(f"{path}: not a safetensors file, or cut off")
    try:
        header = json.loads(content[8 : 8 + size])
        header.pop("__metadata__", None)
        body = memoryview(content)[8 + size :]
        return {name: _array(body, entry) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise SidecarError(f"{path}: damaged safetensors file ({e})") from e


def _array(body: memoryview, entry: Mapping) -> Array:
    first, last = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not 0 <= first <= last <= len(body):
        raise ValueError("data are cut off")
    if (last - first) * 8 != math.prod(shape) * BITS[entry["dtype"]]:
        raise ValueError(f"{last - first} bytes do not make {shape} of {entry['dtype']}")
    return Array(entry["dtype"], shape, bytes(body[first:last]))


def check(path: Path, arrays: Mapping[str, Array], frames: int) -> None:
    """Refuse arrays that belong to frames but fit neither the frames nor the steps between.

    Raises:
        SidecarError: labels and video have come apart.
    """
    for name, rank in RANKS.items():
        array = arrays.get(name)
        if array and len(array.shape) == rank and array.shape[0] not in (frames, frames - 1):
            have = f"{name} has {array.shape[0]} rows"
            raise SidecarError(f"{path}: {have}, the video {frames} frames")


def cut(arrays: Mapping[str, Array], start: int, stop: int, frames: int) -> dict[str, Array]:
    """Return the arrays of frames ``start`` to ``stop`` of a video of ``frames``."""

    def of_clip(array: Array) -> Array:
        length = array.shape[0] if array.shape else -1
        if length == frames:
            return array.rows(start, stop)
        if length == frames - 1 and length > 0:
            return array.rows(start, stop - 1)
        return array

    return {name: of_clip(array) for name, array in arrays.items()}


def dump(arrays: Mapping[str, Array]) -> bytes:
    """Return a safetensors file; the same arrays give the same bytes."""
    order = sorted(arrays, key=lambda name: (-BITS[arrays[name].dtype], name))
    header, offset = {}, 0
    for name in order:
        array = arrays[name]
        limits = [offset, offset + len(array.data)]
        header[name] = {"dtype": array.dtype, "shape": list(array.shape), "data_offsets": limits}
        offset = limits[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(arrays[n].data for n in order)
