"""Film a simulation: cameras, objects and their labels, frame by frame."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from .episode import Episode
from .graphics import Data, Model, Renderer, Shot, camera_intrinsics, camera_pose, project


@dataclass(frozen=True)
class Story:
    """What a recording says of itself beside its pictures."""

    scene: str
    seed: int
    fps: float
    captions: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)


class Film:
    """Collects shots and poses; ``objects`` and ``parts`` map names of bodies to their labels.

    Objects are tracked and take the segments 1, 2, ...; parts are only segmented, with the
    ids given. Call ``note`` once per frame.
    """

    def __init__(
        self,
        model: Model,
        renderer: Renderer,
        cameras: Sequence[str],
        objects: Mapping[str, str],
        parts: Mapping[str, tuple[int, str]] | None = None,
    ) -> None:
        known = [model.camera(i).name for i in range(model.ncam)]
        if unknown := [camera for camera in cameras if camera not in known]:
            raise ValueError(f"no camera {unknown[0]!r}; there are {', '.join(known)}")
        self._model, self._renderer = model, renderer
        self._bodies = [model.body(body).id for body in objects]
        labels = {body: (i, name) for i, (body, name) in enumerate(objects.items(), start=1)}
        labels |= parts or {}
        self._segments = dict(labels.values())
        self._table = _segment_table(model, {body: i for body, (i, _) in labels.items()})
        self._shots: dict[str, list[Shot]] = {camera: [] for camera in cameras}
        self._views: dict[str, list[np.ndarray]] = {camera: [] for camera in cameras}
        self._poses: list[np.ndarray] = []

    def note(self, data: Data) -> None:
        """Film this moment."""
        for camera, shots in self._shots.items():
            shots.append(self._renderer.shoot(data, camera))
            self._views[camera].append(camera_pose(self._model, data, camera))
        poses = [data.xpos[self._bodies], data.xquat[self._bodies]]
        self._poses.append(np.concatenate(poses, axis=1))

    @property
    def object_poses(self) -> Float[np.ndarray, "t n 7"]:
        """The poses noted so far."""
        return np.stack(self._poses)

    def episodes(
        self,
        story: Story,
        *,
        effector: Float[np.ndarray, "t 3"] | None = None,
        **arrays: np.ndarray,
    ) -> tuple[Episode, ...]:
        """Return one episode per camera; ``arrays`` are fields of Episode, equal for all."""
        attributes = dict(story.attributes)
        if len(self._shots) > 1:
            group = f"{story.scene}-{story.seed:07d}"
            attributes |= {"views": list(self._shots), "group": group}
        poses = self.object_poses
        episodes = []
        for camera, shots in self._shots.items():
            views = np.stack(self._views[camera])
            size = shots[0].depth.shape
            pinhole = camera_intrinsics(self._model, camera, size)
            shown = [project(*pair, pinhole) for pair in zip(poses[..., :3], views, strict=True)]
            if effector is not None:
                tool = [project(*pair, pinhole) for pair in zip(effector, views, strict=True)]
                arrays["effector_pixel"] = np.stack(tool).astype(np.float32)
            episodes.append(
                Episode(
                    scene=story.scene,
                    seed=story.seed,
                    camera=camera,
                    fps=story.fps,
                    frames=np.stack([shot.rgb for shot in shots]),
                    captions=story.captions,
                    camera_pose=views.astype(np.float32),
                    intrinsics=np.tile(pinhole, (len(shots), 1, 1)).astype(np.float32),
                    depth=np.stack([shot.depth for shot in shots]).astype(np.float16),
                    segmentation=np.stack([self._table[shot.geoms] for shot in shots]),
                    segments=self._segments,
                    object_pose=poses.astype(np.float32),
                    object_pixel=np.stack(shown).astype(np.float32),
                    attributes=attributes,
                    **arrays,
                )
            )
        return tuple(episodes)


def _segment_table(model: Model, labels: Mapping[str, int]) -> np.ndarray:
    """Return the segment of every geom; the last entry serves geom -1, the background."""
    table = np.zeros(model.ngeom + 1, np.uint8)
    for geom in range(model.ngeom):
        table[geom] = labels.get(model.body(model.geom_bodyid[geom]).name, 0)
    return table
