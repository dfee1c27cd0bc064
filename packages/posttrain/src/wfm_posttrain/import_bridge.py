"""Bridge in the packaging of IRASim (arXiv 2406.14540): annotations beside videos.

``annotation/{train,val,test}/ID.json`` has ``state`` (x y z roll pitch yaw, world frame, one row
a frame), ``continuous_gripper_state`` (0 open to 1 closed), ``texts`` and ``videos``, whose
``video_path`` is relative to the folder.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from .imported import ImportedClip, ImportedClips, options
from .sim.actions import relative_actions
from .video import read_video

FPS = 5.0


def bridge(argument: str) -> ImportedClips:
    """Open ``FOLDER`` or ``FOLDER?split=train&camera=0&since=start``.

    Actions are computed from the states, in the gripper's frame and scaled, as Cosmos 1.0 does:
    each since the frame before or, with ``since=start``, since the first one.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no annotation in it, or a damaged one.
    """
    folder, chosen = options(argument, {"split": str, "camera": int, "since": _since})
    place = folder / "annotation" / chosen.get("split", "")
    files = sorted(place.rglob("*.json"), key=lambda p: (str(p.parent), len(p.stem), p.stem))
    makers: list[Callable[[], ImportedClip]] = [
        partial(_clip, folder, file, chosen.get("camera", 0), chosen.get("since", "frame"))
        for file in files
    ]
    return ImportedClips(makers, f"{place}: no annotation (ID.json)")


def _clip(folder: Path, file: Path, camera: int, since: str) -> ImportedClip:
    try:
        about = json.loads(file.read_text())
        states = _states(about)
        path = folder / about["videos"][camera]["video_path"]
    except (json.JSONDecodeError, KeyError, IndexError, ValueError) as e:
        raise ValueError(f"{file}: not an annotation of IRASim's ({e!r})") from e
    texts = [str(text) for text in about.get("texts", ()) if str(text)]
    return ImportedClip(
        stem=f"{file.parent.name}-{file.stem}",
        fps=float(about.get("fps", FPS)),
        caption=texts[0] if texts else "",
        length=len(states),
        film=lambda: read_video(path)[0][: len(states)],
        arrays=partial(_arrays, states, since),
        attributes={"episode": about.get("episode_id", file.stem), "split": file.parent.name},
    )


def _states(about: dict[str, Any]) -> np.ndarray:
    """Return position, angles and gripper; trailing rows that are not numbers are cut off."""
    state = np.asarray(about["state"], np.float64)[:, :6]
    gripper = np.asarray(about["continuous_gripper_state"], np.float64).reshape(len(state), -1)
    states = np.concatenate([state, gripper[:, :1]], axis=1)
    bad = np.flatnonzero(~np.isfinite(states).all(axis=1))
    end = int(bad[0]) if len(bad) else len(states)
    if end < 2 or len(bad) != len(states) - end:
        raise ValueError(f"{len(bad)} of {len(states)} states are not finite numbers")
    return states[:end]


def _arrays(states: np.ndarray, since: str) -> dict[str, Tensor]:
    actions = relative_actions(states) if since == "frame" else accumulated_actions(states)
    return {
        "state": torch.from_numpy(states.astype(np.float32)),
        "action": torch.from_numpy(actions),
    }


def accumulated_actions(states: Float[np.ndarray, "t 7"]) -> Float32[np.ndarray, "s 7"]:
    """Return the scaled actions from the first state to each other one (``s`` is ``t - 1``)."""
    first = states[0]
    pairs = [relative_actions(np.stack([first, state]))[0] for state in states[1:]]
    return np.stack(pairs)


def _since(text: str) -> str:
    if text not in ("frame", "start"):
        raise ValueError("frame or start")
    return text
