"""What a simulated recording holds, and its three files on disk."""

import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import Float16, Float32, UInt8
from safetensors.numpy import save

MEMBERS = (".mp4", ".safetensors", ".json")


@dataclass(frozen=True)
class Episode:
    """A recording of one camera, with everything that the simulator knows about it.

    Lengths are metres, angles radians, pixels (column, row) with centres at halves. Poses of
    objects are position and quaternion (w x y z). ``camera_pose`` is camera-to-world with
    OpenCV axes. ``segmentation`` holds the keys of ``segments``; 0 is everything else.
    ``state`` and ``action`` belong to scenes with an arm (see ``actions``), ``trajectory`` to
    scenes with a car. ``captions`` are paraphrases that are all true of the recording.
    """

    scene: str
    seed: int
    camera: str
    fps: float
    frames: UInt8[np.ndarray, "t 3 h w"]
    captions: tuple[str, ...]
    camera_pose: Float32[np.ndarray, "t 4 4"]
    intrinsics: Float32[np.ndarray, "t 3 3"]
    depth: Float16[np.ndarray, "t h w"]
    segmentation: UInt8[np.ndarray, "t h w"]
    segments: Mapping[int, str]
    object_pose: Float32[np.ndarray, "t n 7"]
    object_pixel: Float32[np.ndarray, "t n 2"]
    state: Float32[np.ndarray, "t k"] | None = None
    action: Float32[np.ndarray, "s a"] | None = None
    effector_pixel: Float32[np.ndarray, "t 2"] | None = None
    trajectory: Float32[np.ndarray, "p 3"] | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def caption(self) -> str:
        """The caption of this recording; its seed picks one of the paraphrases."""
        return self.captions[self.seed % len(self.captions)]

    @property
    def stem(self) -> str:
        """The file name without its suffix; recordings of several cameras name theirs."""
        views = self.attributes.get("views")
        suffix = f"-{self.camera}" if views is not None else ""
        return f"{self.scene}-{self.seed:07d}{suffix}"

    def arrays(self) -> dict[str, np.ndarray]:
        """Return every array beside the frames, under its name in the file."""
        names = (
            "camera_pose", "intrinsics", "depth", "segmentation", "object_pose", "object_pixel",
            "state", "action", "effector_pixel", "trajectory",
        )  # fmt: skip
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def description(self) -> dict[str, object]:
        """Return what the JSON file says."""
        return {
            "caption": self.caption,
            "captions": list(self.captions),
            "fps": self.fps,
            "scene": self.scene,
            "seed": self.seed,
            "camera": self.camera,
            "segments": {str(key): name for key, name in self.segments.items()},
            **self.attributes,
        }


def encode_mp4(frames: UInt8[np.ndarray, "t 3 h w"], fps: float, *, crf: int = 8) -> bytes:
    """Return an H.264 file without chroma subsampling, which small pictures cannot afford."""
    t, _, h, w = frames.shape
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1001)
        # On small pictures x264's vector code goes by what lay in memory; its plain code does not.
        options = {"crf": str(crf), "x264-params": "cpu-independent=1"}
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = w, h, "yuv444p"
        stream.codec_context.thread_count = 1
        for i in range(t):
            image = np.ascontiguousarray(frames[i].transpose(1, 2, 0))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def write_episode(
    episode: Episode,
    folder: Path,
    stem: str | None = None,
    *,
    extra: Mapping[str, object] | None = None,
) -> Path:
    """Write ``STEM.mp4``, ``STEM.safetensors`` and ``STEM.json``; return the last.

    The JSON file comes last: where it is, the recording is complete. When a file cannot be
    written, none of the three stays. ``extra`` is added to the JSON file.
    """
    stem = stem or episode.stem
    description = episode.description() | dict(extra or {})
    contents = (
        encode_mp4(episode.frames, episode.fps),
        save({name: np.ascontiguousarray(value) for name, value in episode.arrays().items()}),
        (json.dumps(description, indent=1) + "\n").encode(),
    )
    folder.mkdir(parents=True, exist_ok=True)
    # A JSON file of an older recording must not vouch for the new members.
    paths = [folder / (stem + suffix) for suffix in MEMBERS]
    paths[-1].unlink(missing_ok=True)
    try:
        for path, content in zip(paths, contents, strict=True):
            write_atomically(path, content)
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
        raise
    return paths[-1]


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and rename it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
