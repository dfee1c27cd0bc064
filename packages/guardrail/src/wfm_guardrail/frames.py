"""Take frames in the forms that callers have, and give them back in the same form."""

from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

CHUNK = 16  # frames looked at in one go


def as_pixels(frames: Any) -> UInt8[np.ndarray, "t 3 h w"]:
    """Return frames as a uint8 array, a copy only where they are not one already.

    ``frames`` is a torch tensor or an array, ``t 3 h w``: uint8, or float in [-1, 1].

    Raises:
        ValueError: another shape or type, no pixels, NaN or infinity, or values out of range.
    """
    if hasattr(frames, "detach"):
        frames = frames.detach().cpu()
        frames = (frames.float() if frames.is_floating_point() else frames).numpy()
    array = np.asarray(frames)
    shape = "x".join(map(str, array.shape)) or "a single number"
    if array.ndim != 4 or array.shape[1] != 3:
        raise ValueError(f"frames are {shape}; expected t x 3 x h x w")
    if not array.size:
        raise ValueError(f"frames are {shape}: there is no pixel to check")
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"frames are {array.dtype}; expected uint8, or float in [-1, 1]")
    if not np.isfinite(array).all():
        raise ValueError("frames hold NaN or infinity")
    low, high = float(array.min()), float(array.max())
    if low < -1.01 or high > 1.01:
        raise ValueError(f"float frames lie in [{low:.3g}, {high:.3g}]; expected [-1, 1]")
    return np.clip(np.round((array + 1) * 127.5), 0, 255).astype(np.uint8)


def like(pixels: UInt8[np.ndarray, "t 3 h w"], frames: Any) -> Any:
    """Return pixels in the container that ``frames`` came in: type, device, value range."""
    if not hasattr(frames, "detach"):
        floating = np.issubdtype(np.asarray(frames).dtype, np.floating)
        return (pixels / 127.5 - 1).astype(np.asarray(frames).dtype) if floating else pixels
    import torch

    tensor = torch.from_numpy(pixels)
    if frames.is_floating_point():
        tensor = (tensor / 127.5 - 1).to(frames.dtype)
    return tensor.to(frames.device)


def cell_means(
    planes: Float[np.ndarray, "n h w"], most: int, least: int = 1
) -> Float[np.ndarray, "n gh gw"]:
    """Means over a grid of at most ``most`` cells a side, each of ``least`` pixels or more."""
    for axis in (1, 2):
        size = planes.shape[axis]
        edges = np.linspace(0, size, max(1, min(size // least, most)) + 1).astype(int)
        counts = np.diff(edges).astype(planes.dtype)
        sums = np.add.reduceat(planes, edges[:-1], axis=axis)
        planes = sums / (counts[:, None] if axis == 1 else counts)
    return planes
