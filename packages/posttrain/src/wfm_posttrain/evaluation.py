"""Score a world model on held-out clips: how near, how long, and whether actions matter."""

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

import torch
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from .clips import actions_of
from .interfaces import ClipDataset, LabelledClip, WorldModel
from .metrics import (
    Interval,
    bootstrap,
    centroid_error,
    colour_mask,
    fidelity_gap,
    mean_colour,
    permanence,
    psnr,
    ssim,
)
from .video import to_model

SMALLEST = 8  # pixels of an object in the last past frame, below which it is not followed


class EvaluationConfig(BaseModel):
    """Which clips, and how far."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    clips: int = Field(32, ge=2, description="at most so many of the held-out clips")
    frames: int = Field(8, gt=0, description="horizon of a rollout")
    batch: int = Field(16, gt=0, description="clips imagined at once")
    seed: int = 0


@dataclass(frozen=True)
class Evaluation:
    """Means over clips, one number per frame of the horizon; PSNR in dB, distances in pixels.

    ``gap`` is PSNR with the clip's own actions minus PSNR with another clip's, ``objects``
    scores what can be followed by its colour in clips with a segmentation.
    """

    clips: int
    psnr: list[float]
    psnr_shuffled: list[float]
    psnr_repeat: list[float]
    ssim: list[float]
    gap: list[Interval]
    objects: dict[str, list[Interval]] = field(default_factory=dict)
    seconds_per_frame: float = 0.0

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def summary(self) -> str:
        """Put the first and the last frame of the horizon in one line."""
        first, last = (self._frame(i) for i in (0, -1))
        return f"{self.clips} clips: first frame {first}; frame {len(self.psnr)} {last}"

    def table(self) -> str:
        """Draw the horizon as a Markdown table."""
        rows = [
            "| frame | PSNR | shuffled actions | repeat last | gap (95 %) | SSIM |",
            "|---" * 6 + "|",
        ]
        for i, gap in enumerate(self.gap):
            scores = f"{self.psnr[i]:.2f} | {self.psnr_shuffled[i]:.2f} | {self.psnr_repeat[i]:.2f}"
            bounds = f"{gap.mean:+.2f} ({gap.low:+.2f} to {gap.high:+.2f})"
            rows.append(f"| {i + 1} | {scores} | {bounds} | {self.ssim[i]:.3f} |")
        return "\n".join(rows)

    def _frame(self, i: int) -> str:
        return (
            f"{self.psnr[i]:.2f} dB (shuffled actions {self.psnr_shuffled[i]:.2f}, "
            f"repeat {self.psnr_repeat[i]:.2f}, gap {self.gap[i].mean:+.2f})"
        )


@dataclass(frozen=True)
class Batch:
    """Clips cut to what a rollout sees and what it should show."""

    past: Float[Tensor, "b 3 p h w"]
    real: Float[Tensor, "b 3 f h w"]
    action: Float[Tensor, "b f a"]
    clips: list[LabelledClip]


@torch.no_grad()
def evaluate_world(world: WorldModel, clips: ClipDataset, config: EvaluationConfig) -> Evaluation:
    """Roll out the first clips from their first frames, with the right and the wrong actions.

    Raises:
        ValueError: fewer than two clips are long enough, or one has no actions.
    """
    device = _device(world)
    spent, scores, objects = 0.0, [], []
    for batch in _batches(clips, world.past_frames, config):
        size = config.frames
        start = time.perf_counter()
        imagined = _roll(world, batch, batch.action, config.seed, device)
        spent += time.perf_counter() - start
        shuffled = _roll(world, batch, batch.action.roll(1, 0), config.seed, device)
        repeated = batch.past[:, :, -1:].expand(-1, -1, size, -1, -1)
        scores.append(
            torch.stack(
                [
                    psnr(imagined, batch.real),
                    psnr(shuffled, batch.real),
                    psnr(repeated, batch.real),
                    ssim(imagined, batch.real),
                ]
            )
        )
        objects += [_objects(batch, i, imagined[i : i + 1]) for i in range(len(batch.clips))]
    own, others, repeat, similar = torch.cat(scores, dim=1)
    return Evaluation(
        clips=len(own),
        psnr=own.mean(0).tolist(),
        psnr_shuffled=others.mean(0).tolist(),
        psnr_repeat=repeat.mean(0).tolist(),
        ssim=similar.mean(0).tolist(),
        gap=fidelity_gap(own, others),
        objects=_per_frame(objects),
        seconds_per_frame=spent / (len(own) * config.frames),
    )


def _batches(clips: ClipDataset, past: int, config: EvaluationConfig) -> Iterable[Batch]:
    """Cut the clips that are long enough; a last batch of one joins the one before."""
    length = past + config.frames
    chosen = [i for i in range(len(clips)) if len(clips[i]) >= length][: config.clips]
    if len(chosen) < 2:
        raise ValueError(
            f"{len(chosen)} clips have {length} frames ({past} past and {config.frames} new); "
            "two are the least, so that actions can be shuffled between them"
        )
    cuts = list(range(0, len(chosen), config.batch))
    if len(chosen) - cuts[-1] == 1 and len(cuts) > 1:
        cuts.pop()
    for start, stop in zip(cuts, [*cuts[1:], len(chosen)], strict=True):
        some = [clips[i] for i in chosen[start:stop]]
        video = torch.cat([to_model(clip.read(0, length)) for clip in some])
        action = torch.stack([actions_of(c, c.caption)[past - 1 : length - 1] for c in some])
        yield Batch(video[:, :, :past], video[:, :, past:], action, some)


def _roll(
    world: WorldModel, batch: Batch, action: Tensor, seed: int, device: torch.device
) -> Float[Tensor, "b 3 f h w"]:
    generator = torch.Generator().manual_seed(seed)
    controls = {"action": action.to(device)}
    frames = batch.real.shape[2]
    past = batch.past.to(device)
    return world.rollout(past, frames=frames, controls=controls, generator=generator).cpu()


def _objects(
    batch: Batch, i: int, imagined: Float[Tensor, "1 3 f h w"]
) -> dict[str, Float[Tensor, "n f"]]:
    """Score the objects of one clip: their places, and whether they are still there."""
    clip = batch.clips[i]
    things = clip.attributes.get("objects")
    labels = clip.labels()
    if "segmentation" not in labels or not isinstance(things, list):
        return {}
    p, f = batch.past.shape[2], imagined.shape[2]
    segmentation = labels["segmentation"][: p + f]
    errors, areas = [], []
    for key in range(1, len(things) + 1):
        mask = (segmentation == key)[None]
        if mask[0, p - 1].sum() < SMALLEST:
            continue
        colour = mean_colour(batch.past[i : i + 1, :, -1], mask[:, p - 1])
        found = near(colour_mask(imagined, colour), mask[:, p:])
        errors.append(centroid_error(found, mask[:, p:])[0])
        areas.append(permanence(found, mask[:, p:])[0])
    if not errors:
        return {}
    return {"centroid_error": torch.stack(errors), "permanence": torch.stack(areas)}


def near(
    found: Bool[Tensor, "b t h w"], real: Bool[Tensor, "b t h w"], *, margin: int = 16
) -> Bool[Tensor, "b t h w"]:
    """Leave out found pixels farther than ``margin`` from the box around the real ones.

    Colour alone also finds other things of that hue.
    """
    rows, columns = real.any(dim=3), real.any(dim=2)
    grow = torch.nn.MaxPool1d(2 * margin + 1, stride=1, padding=margin)
    rows, columns = grow(_filled(rows)) > 0, grow(_filled(columns)) > 0
    return found & rows[..., :, None] & columns[..., None, :]


def _filled(line: Bool[Tensor, "b t n"]) -> Float[Tensor, "b t n"]:
    """Fill a line between its first and last True."""
    value = line.float()
    ahead = value.cummax(dim=-1).values
    behind = value.flip(-1).cummax(dim=-1).values.flip(-1)
    return ahead * behind


def _per_frame(objects: list[dict[str, Tensor]]) -> dict[str, list[Interval]]:
    """Put the objects of all clips together; a bootstrap for each frame."""
    found = [scores for scores in objects if scores]
    if not found:
        return {}
    together = {name: torch.cat([scores[name] for scores in found]) for name in found[0]}
    return {name: [bootstrap(column) for column in rows.T] for name, rows in together.items()}


def _device(world: WorldModel) -> torch.device:
    """Return where a world model computes; the CPU if it does not say."""
    return torch.device(getattr(world, "device", "cpu"))
