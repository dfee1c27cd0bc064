"""Camera control: the rays of every latent pixel as further input channels.

Cosmos 1.0 (arXiv 2501.03575), section 6.1. A ray is a Pluecker line: its moment ``c x d`` and
its unit direction ``d``, in that order (NVIDIA's code; the paper's text writes the direction
first).
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from .interfaces import LabelledClip, LatentCodec
from .steering import Condition, ConditionNet, Place, Steering, only, per_frame

RAY = ("moment", "direction")
SHORTEST = 1e-4
"""Metres: a path that spans less is a rotation on the spot, and keeps its scale."""


class Camera(Steering):
    """Follow a camera's path, given as poses and intrinsics."""

    inputs: ClassVar[tuple[str, ...]] = ("camera_pose", "intrinsics")
    framewise: ClassVar[Mapping[str, int]] = {"camera_pose": 1, "intrinsics": 1}

    kind: Literal["camera"] = "camera"
    metric: bool = False
    """Leave translations in metres, where the paper divides them by the path's extent."""
    ray: tuple[Literal["moment", "direction"], Literal["moment", "direction"]] = RAY

    @property
    def channels(self) -> int:
        return 6

    def read(self, clips: Sequence[LabelledClip], start: int, stop: int) -> Condition:
        (clip,) = clips
        return {name: per_frame(clip, name, "camera", start, stop) for name in self.inputs}

    def encoder(self, place: Place, codec: LatentCodec | None = None) -> ConditionNet:
        return CameraEncoder(place, self)


class CameraEncoder(ConditionNet):
    """Poses and intrinsics -> ``channels``; it has no weights of its own.

    ``camera_pose`` (b t 4 4) is camera to world with OpenCV axes, ``intrinsics`` (b t 3 3) in
    pixels of the frames; both have a row for every frame, of which a latent frame takes its
    middle one. ``padding`` (b 1 h w), 1 on pixels that show nothing, is optional.
    """

    def __init__(self, place: Place, settings: Camera) -> None:
        super().__init__()
        self.place, self.settings = place, settings

    def digest(self, inputs: Mapping[str, Tensor], /) -> Condition:
        """Return the rays, ``channels`` (b 6 tl hl wl).

        Raises:
            KeyError: unknown inputs.
            ValueError: an input is missing or of another shape.
        """
        only(inputs, (*Camera.inputs, "padding"), Camera.inputs)
        pose, pinhole = inputs["camera_pose"].float(), inputs["intrinsics"].float()
        if pose.ndim != 4 or pose.shape[2:] != (4, 4) or pinhole.shape != (*pose.shape[:2], 3, 3):
            raise ValueError(
                f"camera_pose is {tuple(pose.shape)} and intrinsics {tuple(pinhole.shape)}; "
                "they must be b t 4 4 and b t 3 3"
            )
        self.place.latents(pose.shape[1])
        path = relative_path(pose, metric=self.settings.metric)
        keep = latent_frames(pose.shape[1], self.place.compression[0])
        pinhole = normalised(pinhole, self.place.size)
        rays = plucker(path[:, keep], pinhole[:, keep], self.place.grid)
        if self.settings.ray != RAY:
            rays = torch.cat([rays[:, 3:], rays[:, :3]], dim=1)
        if "padding" in inputs:
            size = self.place.grid
            padding = torch.nn.functional.interpolate(inputs["padding"].float(), size, mode="area")
            rays = rays * (1 - padding.round()[:, :, None])
        return {"channels": rays}


def latent_frames(frames: int, stride: int) -> list[int]:
    """Return the frame whose pose stands for each latent frame.

    The first latent frame is the first frame; latent k covers the ``stride`` frames up to
    ``stride k``, of which the middle one is taken: 0, 4, 12, 20, ... at stride 8.
    """
    return [0, *range(stride - stride // 2, frames, stride)]


def relative_path(
    pose: Float[Tensor, "b t 4 4"], *, metric: bool = False
) -> Float[Tensor, "b t 4 4"]:
    """Bring a path to unit extent, then to the axes of its first camera.

    The extent is the largest distance between two of its camera centres.
    """
    pose = pose.double()
    centre = pose[..., :3, 3]
    extent = torch.cdist(centre, centre).amax(dim=(1, 2))
    if metric:
        extent = torch.ones_like(extent)
    extent = torch.where(extent < SHORTEST, torch.ones_like(extent), extent)
    pose = pose.clone()
    pose[..., :3, 3] = centre / extent[:, None, None]
    return (torch.linalg.inv(pose[:, :1]) @ pose).float()


def normalised(
    intrinsics: Float[Tensor, "b t 3 3"], size: tuple[int, int]
) -> Float[Tensor, "b t 3 3"]:
    """Divide pixel intrinsics by the picture's width and height, so that both sides are 1."""
    height, width = size
    return intrinsics / intrinsics.new_tensor([width, height, 1])[:, None]


def plucker(
    pose: Float[Tensor, "b t 4 4"], intrinsics: Float[Tensor, "b t 3 3"], grid: tuple[int, int]
) -> Float[Tensor, "b 6 t h w"]:
    """Return ``[c x d, d]`` for the centre of every cell of a grid over the picture.

    ``pose`` is camera to world, OpenCV axes, with centre c; ``intrinsics`` are those of a
    picture with sides of 1; ``d = R K^-1 [u v 1]^T``, of unit length.
    """
    h, w = grid
    v, u = torch.meshgrid(
        (torch.arange(h, device=pose.device) + 0.5) / h,
        (torch.arange(w, device=pose.device) + 0.5) / w,
        indexing="ij",
    )
    pixels = torch.stack([u, v, torch.ones_like(u)]).to(pose).flatten(1)
    d = pose[..., :3, :3] @ torch.linalg.inv(intrinsics) @ pixels
    d = d / torch.linalg.vector_norm(d, dim=2, keepdim=True)
    c = pose[..., :3, 3:].expand_as(d)
    line = torch.cat([torch.linalg.cross(c, d, dim=2), d], dim=2)
    return rearrange(line, "b t k (h w) -> b k t h w", h=h)
