"""Imagined recordings to train on: labelled, marked as synthetic, and sorted by quality.

A recording of a real beginning is continued with other actions than it had. The files are those
of ``wfm-posttrain simulate``; the JSON file says ``"synthetic": true`` and what made it.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import repeat
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from .checkpoint import replacing, write_weights
from .clips import actions_of
from .interfaces import ClipDataset, Fingerprinted, LabelledClip, WorldModel
from .sim.actions import apply_action
from .video import to_frames, to_model, write_video

Progress = Callable[[int, int], None]


class SyntheticConfig(BaseModel):
    """How much to imagine, and what to keep."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    clips: int = Field(64, gt=0, description="recordings to imagine")
    frames: int = Field(8, gt=0, description="new frames in each")
    guesses: int = Field(2, ge=2, description="futures imagined of each; they tell uncertainty")
    keep: float = Field(0.7, gt=0, le=1, description="share kept, the most certain")
    # A small codec alone takes most of a picture's Laplacian; less than this shows nothing.
    least_sharpness: float = Field(0.05, ge=0, description="of the last frame, over the first's")
    least_motion: float = Field(0.1, ge=0, description="over that of the recordings")
    seed: int = 0


@dataclass(frozen=True)
class Quality:
    """Scores of an imagined clip.

    ``uncertainty`` is how far the guesses differ, in [0, 1]; ``sharpness`` that of the last frame
    over the first's, and ``motion`` the mean change of a pixel over that of the recording that
    the actions are from: 1 is as in truth.
    """

    uncertainty: float
    sharpness: float
    motion: float

    def fault(self, config: SyntheticConfig, most_uncertain: float) -> str | None:
        """Name what is wrong, if anything is."""
        if self.uncertainty > most_uncertain:
            return "uncertain"
        if self.sharpness < config.least_sharpness:
            return "blurred"
        return "still" if self.motion < config.least_motion else None


@dataclass(frozen=True)
class Imagined:
    """An imagined clip before it is written."""

    video: Float[Tensor, "1 3 t h w"]
    action: Float[Tensor, "s a"]
    state: Float[Tensor, "t 7"] | None
    source: str
    actions_from: str
    fps: float
    quality: Quality


@dataclass(frozen=True)
class Harvest:
    """What was kept, and why the others were not."""

    kept: int
    dropped: Mapping[str, int]


def synthesize(
    world: WorldModel,
    clips: ClipDataset,
    folder: Path,
    config: SyntheticConfig,
    *,
    name: str = "",
    progress: Progress | None = None,
) -> Harvest:
    """Write imagined recordings; ``name`` is how the world model was asked for.

    The first frames of one recording are continued with the actions of another. Labels are
    ``action``, and ``state`` of a 7-number arm as the actions command it. Recordings of the same
    settings in ``folder`` are replaced.

    Raises:
        ValueError: fewer than two recordings are long enough.
    """
    imagined = []
    for number in range(config.clips):
        imagined.append(_imagine(world, clips, config, number))
        if progress:
            progress(number + 1, config.clips)
    doubts = torch.tensor([clip.quality.uncertainty for clip in imagined])
    limit = doubts.quantile(config.keep).item()
    generator = {
        "model": name or type(world).__name__,
        "fingerprint": world_fingerprint(world),
        "guidance": getattr(world, "guidance", None),
        "steps": getattr(world, "steps", None),
    }
    dropped: dict[str, int] = {}
    for number, clip in enumerate(imagined):
        stem = folder / f"imagined-{config.seed:03d}-{number:06d}"
        stem.with_suffix(".json").unlink(missing_ok=True)
        if fault := clip.quality.fault(config, limit):
            dropped[fault] = dropped.get(fault, 0) + 1
            continue
        _write(clip, stem, {"generator": {**generator, "seed": config.seed + number}})
    return Harvest(len(imagined) - sum(dropped.values()), dropped)


def world_fingerprint(world: WorldModel) -> str:
    """Return a hash of a world model's weights, or the name of its class if it shows none."""
    parts = [getattr(world, name, None) for name in ("net", "model", "condition_encoder")]
    digest, known = hashlib.sha256(), False
    for part in parts:
        if isinstance(part, nn.Module):
            for weight in part.state_dict().values():
                digest.update(weight.detach().cpu().float().numpy().tobytes())
                known = True
    codec = getattr(world, "codec", None)
    if isinstance(codec, Fingerprinted):
        digest.update(codec.fingerprint.encode())
    return digest.hexdigest()[:16] if known else type(world).__name__


def sharpness(frames: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Return the mean square of the Laplacian of the grey picture: blur makes it fall."""
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])
    edges = F.conv2d(frames.mean(dim=1, keepdim=True), kernel.to(frames)[None, None])
    return edges.square().mean(dim=(1, 2, 3))


@torch.no_grad()
def _imagine(
    world: WorldModel, clips: ClipDataset, config: SyntheticConfig, number: int
) -> Imagined:
    """Continue the beginning of one recording with the actions of another."""
    generator = torch.Generator().manual_seed(config.seed + number)
    past, length = world.past_frames, world.past_frames + config.frames
    body, mind = _pair(clips, length, generator)
    action = actions_of(mind, mind.caption)[past - 1 : length - 1]
    begun = to_model(body.read(0, past))
    device = torch.device(getattr(world, "device", "cpu"))
    controls = repeat(action, "s a -> k s a", k=config.guesses).to(device)
    guessed = world.rollout(
        repeat(begun, "1 c p h w -> k c p h w", k=config.guesses).to(device),
        frames=config.frames,
        controls={"action": controls},
        generator=generator,
    ).cpu()
    video = torch.cat([begun, guessed[:1]], dim=2)
    truth = to_model(mind.read(past - 1, length))
    own = actions_of(body, body.caption)[: past - 1]
    quality = Quality(
        uncertainty=(guessed.std(dim=0).mean() / 2).item(),
        sharpness=(sharpness(video[:, :, -1]) / sharpness(video[:, :, past - 1])).item(),
        motion=(_change(video[:, :, past - 1 :]) / _change(truth).clamp_min(1e-6)).item(),
    )
    every = torch.cat([own, action])
    return Imagined(video, every, _states(body, every), _name(body), _name(mind), body.fps, quality)


def _pair(
    clips: ClipDataset, length: int, generator: torch.Generator
) -> tuple[LabelledClip, LabelledClip]:
    """Draw two different recordings that are long enough."""
    order = torch.randperm(len(clips), generator=generator).tolist()
    found: list[LabelledClip] = []
    for index in order:
        if len(clip := clips[index]) >= length:
            found.append(clip)
        if len(found) == 2:
            return found[0], found[1]
    raise ValueError(f"{len(found)} recordings have {length} frames; two are the least")


def _states(clip: LabelledClip, action: Float[Tensor, "s a"]) -> Float[Tensor, "t 7"] | None:
    """Add up the actions from the recording's first state, as far as it is an arm's."""
    state = clip.labels().get("state")
    if state is None or state.shape[1] != 7 or action.shape[1] != 7:
        return None
    states = [state[0].double().numpy()]
    for step in action.numpy():
        states.append(apply_action(states[-1], step))
    return torch.stack([torch.from_numpy(s).float() for s in states])


def _change(video: Float[Tensor, "1 3 t h w"]) -> Float[Tensor, ""]:
    return video.diff(dim=2).abs().mean()


def _name(clip: LabelledClip) -> str:
    return str(getattr(clip, "stem", clip.caption)).rsplit("/", 1)[-1]


def _write(clip: Imagined, stem: Path, about: Mapping[str, Any]) -> None:
    """Write the three files of a recording; the JSON file last, it vouches for the others."""
    write_video(stem.with_suffix(".mp4"), to_frames(clip.video), clip.fps, crf=8, pixels="yuv444p")
    labels = {"action": clip.action, **({} if clip.state is None else {"state": clip.state})}
    write_weights(stem.with_suffix(".safetensors"), labels)
    facts = {
        "caption": "", "fps": clip.fps, "synthetic": True, **about,
        "source": clip.source, "actions_from": clip.actions_from, "quality": asdict(clip.quality),
    }  # fmt: skip
    with replacing(stem.with_suffix(".json")) as partial:
        partial.write_text(json.dumps(facts, indent=1) + "\n")
        partial.chmod(0o644)
