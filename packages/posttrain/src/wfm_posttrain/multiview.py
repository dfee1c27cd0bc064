"""Several cameras at once, and the way that the car takes (Cosmos 1.0, section 6.3).

The latents of the cameras follow each other along time. Each has the same positions and
attends to its own text; all attend to each other. An embedding tells the cameras apart, and
a linear layer brings in the trajectory; both are further input channels.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from .interfaces import LabelledClip, LatentCodec
from .steering import Condition, ConditionNet, Place, Steering, label, only

POINT_RATE = 10.0
"""Points of a trajectory a second."""


class Multiview(Steering):
    """Predict what several cameras see, which drive along a given trajectory."""

    inputs: ClassVar[tuple[str, ...]] = ("view", "trajectory")
    grouped: ClassVar[bool] = True

    kind: Literal["multiview"] = "multiview"
    views: tuple[str, ...] | None = Field(
        None, description="names of the cameras, in order; None: those of the data"
    )
    view_channels: int = Field(6, gt=0, description="features of a camera's embedding")
    trajectory: tuple[int, int] | None = Field(
        (64, 3), description="points and numbers per point; None: no trajectory"
    )
    trajectory_channels: int = Field(12, gt=0, description="features of the trajectory")

    @property
    def channels(self) -> int:
        return self.view_channels + (self.trajectory_channels if self.trajectory else 0)

    def read(self, clips: Sequence[LabelledClip], start: int, stop: int) -> Condition:
        """Return the trajectory from the frame ``start`` on, as the clips have it.

        Raises:
            ValueError: there is none, or of another size.
        """
        if self.trajectory is None:
            return {}
        found = label(clips[0], "trajectory", "multiview").float()
        if tuple(found.shape) != self.trajectory:
            raise ValueError(
                f"{getattr(clips[0], 'stem', clips[0].caption)}: trajectory is "
                f"{tuple(found.shape)}; condition.trajectory asks for {self.trajectory}"
            )
        return {"trajectory": from_there(found, points(start, clips[0].fps))}

    def encoder(self, place: Place, codec: LatentCodec | None = None) -> ConditionNet:
        return ViewEncoder(place, self)


class ViewEncoder(ConditionNet):
    """Numbers of cameras and a trajectory -> ``view`` and ``channels`` (b k v 1 1).

    ``view`` (b v) numbers the cameras of the sample in the order of their latents;
    ``trajectory`` (b p 3), x forward, y left and z up in metres, is divided by its spread over
    the training data. Without one the answer is that of a standing car.
    """

    scale: Float[Tensor, ""]

    def __init__(self, place: Place, settings: Multiview) -> None:
        super().__init__()
        self.settings, self.names = settings, place.views
        self.view = nn.Embedding(max(len(place.views), 1), settings.view_channels)
        self.register_buffer("scale", torch.ones(()))
        if settings.trajectory:
            points, numbers = settings.trajectory
            self.way = nn.Linear(points * numbers, settings.trajectory_channels)

    def fit(self, digest: Mapping[str, Tensor]) -> None:
        if "trajectory" in digest:
            self.scale.copy_(digest["trajectory"].float().std().clamp_min(1e-3))

    def condition(self, digest: Mapping[str, Tensor], /) -> Condition:
        """Return the condition.

        Raises:
            KeyError: unknown inputs.
            ValueError: no cameras, cameras that were not trained on, or another trajectory.
        """
        only(digest, Multiview.inputs, ("view",))
        view = digest["view"].long().to(self.scale.device)
        known = self.view.num_embeddings
        if view.ndim != 2 or not view.numel() or view.min() < 0 or view.max() >= known:
            raise ValueError(
                f"view is {view.tolist()}; it must be b v numbers from 0 to {known - 1} "
                f"({', '.join(self.names)})"
            )
        planes = [rearrange(self.view(view), "b v k -> b k v 1 1")]
        if self.settings.trajectory:
            points, numbers = self.settings.trajectory
            way = digest.get("trajectory", self.scale.new_zeros(len(view), points, numbers))
            if way.shape[1:] != (points, numbers):
                raise ValueError(
                    f"trajectory is {tuple(way.shape)}; it must be b {points} {numbers}"
                )
            found = self.way(rearrange(way.to(self.scale) / self.scale, "b p k -> b (p k)"))
            planes.append(repeat(found, "b k -> b k v 1 1", v=view.shape[1]))
        return {"view": view, "channels": torch.cat(planes, dim=1)}


def points(frames: int, fps: float) -> int:
    """Return how many points of a trajectory, ten a second, so many frames take."""
    return round(frames * POINT_RATE / fps)


def from_there(trajectory: Float[Tensor, "p 3"], first: int) -> Float[Tensor, "p 3"]:
    """Return a trajectory as seen from one of its points; its last point is repeated.

    Axes are those of the car there: x along its way, y left, z up.
    """
    if not first:
        return trajectory
    first = min(first, len(trajectory) - 1)
    rest = trajectory[first:] - trajectory[first]
    ahead = rest[min(1, len(rest) - 1), :2]
    if ahead.norm() > 1e-6:
        c, s = (ahead / ahead.norm()).tolist()
        turn = trajectory.new_tensor([[c, s, 0], [-s, c, 0], [0, 0, 1]])
        rest = rest @ turn.T
    return torch.cat([rest, rest[-1:].expand(first, -1)])
