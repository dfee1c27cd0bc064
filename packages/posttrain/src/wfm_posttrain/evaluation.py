"""Score a world model on held-out clips: how near, how long, and whether actions matter."""

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from .clips import actions_of
from .distribution import VideoFeatures, video_distances
from .interfaces import ClipDataset, LabelledClip, LatentCodec, WorldModel
from .metrics import (
    Horizon,
    Interval,
    bootstrap,
    centroid_error,
    colour_mask,
    fidelity_gap,
    latent_l2,
    markdown,
    mask_overlap,
    mean_colour,
    permanence,
    psnr,
    ssim,
)
from .motion import motion_scores, physics_iq
from .video import to_model
from .vision import SmallVision, r_squared

SMALLEST = 8  # pixels of an object in the last past frame, below which it is not followed


class EvaluationConfig(BaseModel):
    """Which clips, and how far."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    clips: int = Field(32, ge=2, description="at most so many of the held-out clips")
    frames: int = Field(8, gt=0, description="horizon of a rollout")
    batch: int = Field(16, gt=0, description="clips imagined at once")
    seed: int = 0
    strips: int = Field(6, ge=0, description="clips shown frame by frame in a report")


@dataclass(frozen=True)
class Readers:
    """What was learned from training recordings to judge imagined ones by.

    ``effector`` reads where the end effector is in a picture (column, row), ``inverse`` reads the
    action between two pictures.
    """

    effector: SmallVision | None = None
    inverse: SmallVision | None = None


@dataclass(frozen=True)
class Strip:
    """Frames of a clip for the eye: what was, and what was imagined (t 3 h w, in [-1, 1])."""

    caption: str
    real: Float[Tensor, "t 3 h w"]
    imagined: Float[Tensor, "t 3 h w"]


@dataclass(frozen=True)
class Evaluation(Horizon):
    """What a world that acts scored on held-out clips; distances in pixels.

    ``objects`` scores what can be followed by its colour in clips with a segmentation.
    ``effector`` is how far the end effector is read from where it should be: imagined, with
    shuffled actions, and in real pictures (the reader's own error). ``inverse`` is R^2, number
    by number, of the actions read from imagined and from real pictures. ``motion`` holds IoUs
    of what moves and, with second takes, the Physics-IQ score. ``distances`` compare
    distributions of videos, by the features of the network ``distances_of``.
    """

    objects: dict[str, list[Interval]] = field(default_factory=dict)
    seconds_per_frame: float = 0.0
    latent_l2: dict[str, list[float]] = field(default_factory=dict)
    motion: dict[str, Interval] = field(default_factory=dict)
    effector: dict[str, list[Interval]] = field(default_factory=dict)
    inverse: dict[str, list[float]] = field(default_factory=dict)
    distances: dict[str, float] = field(default_factory=dict)
    distances_of: str = ""
    strips: list[Strip] = field(default_factory=list, repr=False)

    def to_json(self) -> str:
        facts = asdict(replace(self, strips=[]))
        del facts["strips"]
        return json.dumps(facts, indent=2)

    def summary(self) -> str:
        """Put the first and the last frame of the horizon in one line."""
        first, last = (self._frame(i) for i in (0, -1))
        return f"{self.clips} clips: first frame {first}; frame {len(self.psnr)} {last}"

    def table(self) -> str:
        """Draw the horizon as a Markdown table."""
        return markdown(self.rows("actions"))

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
def evaluate_world(
    world: WorldModel,
    clips: ClipDataset,
    config: EvaluationConfig,
    *,
    readers: Readers | None = None,
    takes: ClipDataset | None = None,
    features: VideoFeatures | None = None,
    features_of: str = "a network of one's own",
) -> Evaluation:
    """Roll out the first clips from their first frames, with the right and the wrong actions.

    Args:
        world: imagines.
        clips: held-out recordings.
        config: which and how far.
        readers: judge actions and the end effector, if they are given.
        takes: second takes of the same events, in the same order; they normalise Physics-IQ.
        features: of the Frechet and kernel distances.
        features_of: whose features these are.

    Raises:
        ValueError: fewer than two clips are long enough, or one has no actions.
    """
    device, readers = _device(world), readers or Readers()
    sheet = _Sheet(getattr(world, "codec", None), readers, takes)
    for batch in _batches(clips, world.past_frames, config):
        start = time.perf_counter()
        imagined = _roll(world, batch, batch.action, config.seed, device)
        sheet.seconds += time.perf_counter() - start
        shuffled = _roll(world, batch, batch.action.roll(1, 0), config.seed, device)
        sheet.add(batch, imagined.clamp(-1, 1), shuffled.clamp(-1, 1))
    found = sheet.evaluation(config, features)
    return found if features is None else replace(found, distances_of=features_of)


class _Sheet:
    """Collects the scores of batches."""

    def __init__(self, codec: object, readers: Readers, takes: ClipDataset | None) -> None:
        self.codec = codec if isinstance(codec, LatentCodec) else None
        self.readers, self.takes, self.seconds = readers, takes, 0.0
        self.frames: dict[str, list[Float[Tensor, "b f"]]] = {}
        self.clips: dict[str, list[Float[Tensor, " b"]]] = {}
        self.rows: dict[str, list[Float[Tensor, "n a"]]] = {}
        self.objects: list[dict[str, Float[Tensor, "n f"]]] = []
        self.videos: dict[str, list[Float[Tensor, "b 3 t h w"]]] = {"imagined": [], "real": []}
        self.captions: list[str] = []

    def add(
        self,
        batch: "Batch",
        imagined: Float[Tensor, "b 3 f h w"],
        other: Float[Tensor, "b 3 f h w"],
    ) -> None:
        """Score one batch; ``other`` was imagined with another clip's actions."""
        real, repeated = batch.real, batch.past[:, :, -1:].expand_as(batch.real)
        self._note("psnr", psnr(imagined, real))
        self._note("shuffled", psnr(other, real))
        self._note("repeat", psnr(repeated, real))
        self._note("ssim", ssim(imagined, real))
        if self.codec is not None:
            self._note("latent imagined", latent_l2(self.codec, imagined, real))
            self._note("latent repeat", latent_l2(self.codec, repeated, real))
        self.objects += [_objects(batch, i, imagined[i : i + 1]) for i in range(len(batch.clips))]
        self._add_motion(batch, imagined)
        self._add_effector(batch, imagined, other)
        self._add_actions(batch, imagined)
        self.videos["imagined"].append(torch.cat([batch.past, imagined], dim=2))
        self.videos["real"].append(torch.cat([batch.past, real], dim=2))
        self.captions += [clip.caption for clip in batch.clips]

    def evaluation(self, config: EvaluationConfig, features: VideoFeatures | None) -> Evaluation:
        """Put everything together."""
        scores = {name: torch.cat(parts) for name, parts in self.frames.items()}
        means = {name: score.nanmean(0).tolist() for name, score in scores.items()}
        real, imagined = (torch.cat(self.videos[name]) for name in ("real", "imagined"))
        rows = {name: torch.cat(parts) for name, parts in self.rows.items()}
        count = len(scores["psnr"])
        return Evaluation(
            clips=count,
            psnr=means["psnr"],
            psnr_shuffled=means["shuffled"],
            psnr_repeat=means["repeat"],
            ssim=means["ssim"],
            gap=fidelity_gap(scores["psnr"], scores["shuffled"]),
            objects=_per_frame(self.objects),
            seconds_per_frame=self.seconds / (count * config.frames),
            latent_l2={n: means[f"latent {n}"] for n in ("imagined", "repeat") if self.codec},
            motion={name: bootstrap(torch.cat(parts)) for name, parts in self.clips.items()},
            effector={
                name.removeprefix("effector "): [bootstrap(column) for column in score.T]
                for name, score in scores.items()
                if name.startswith("effector ")
            },
            inverse={
                name: r_squared(rows[name], rows["true"]).tolist()
                for name in rows
                if name != "true"
            },
            distances={} if features is None else video_distances(imagined, real, features),
            strips=[
                Strip(caption, *(rearrange(v[i], "c t h w -> t c h w") for v in (real, imagined)))
                for i, caption in enumerate(self.captions[: config.strips])
            ],
        )

    def _note(self, name: str, scores: Float[Tensor, "b f"]) -> None:
        self.frames.setdefault(name, []).append(scores)

    def _add_motion(self, batch: "Batch", imagined: Tensor) -> None:
        """Compare what moves, from the last past frame on."""
        last, p = batch.past[:, :, -1:], batch.past.shape[2]
        real = torch.cat([last, batch.real], dim=2)
        scores = motion_scores(torch.cat([last, imagined], dim=2), real)
        found = {name: getattr(scores, name) for name in ("spatial", "weighted", "temporal")}
        if self.takes is not None:
            done, length = len(self.captions), p + batch.real.shape[2]
            some = [self.takes[done + i] for i in range(len(batch.clips))]
            second = torch.cat([to_model(clip.read(p - 1, length)) for clip in some])
            found["physics_iq"] = physics_iq(scores, motion_scores(second, real))
        for name, values in found.items():
            self.clips.setdefault(name, []).append(values)

    def _add_effector(self, batch: "Batch", imagined: Tensor, other: Tensor) -> None:
        reader, p = self.readers.effector, batch.past.shape[2]
        labels = [clip.labels().get("effector_pixel") for clip in batch.clips]
        places = [label[p : p + imagined.shape[2]].float() for label in labels if label is not None]
        if reader is None or len(places) < len(labels):
            return
        where = torch.stack(places)
        for name, video in (("imagined", imagined), ("shuffled", other), ("real", batch.real)):
            read = reader(rearrange(video, "b c f h w -> (b f) c h w")).view(*where.shape)
            self._note(f"effector {name}", (read - where).norm(dim=-1))

    def _add_actions(self, batch: "Batch", imagined: Tensor) -> None:
        if self.readers.inverse is None:
            return
        last = batch.past[:, :, -1:]
        for name, video in (("imagined", imagined), ("real", batch.real)):
            whole = torch.cat([last, video], dim=2)
            pairs = torch.cat([whole[:, :, :-1], whole[:, :, 1:]], dim=1)
            read = self.readers.inverse(rearrange(pairs, "b c f h w -> (b f) c h w"))
            self.rows.setdefault(name, []).append(read)
        self.rows.setdefault("true", []).append(rearrange(batch.action, "b f a -> (b f) a"))


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
    errors, areas, overlaps = [], [], []
    for key in range(1, len(things) + 1):
        mask = (segmentation == key)[None]
        if mask[0, p - 1].sum() < SMALLEST:
            continue
        colour = mean_colour(batch.past[i : i + 1, :, -1], mask[:, p - 1])
        found = near(colour_mask(imagined, colour), mask[:, p:])
        errors.append(centroid_error(found, mask[:, p:])[0])
        areas.append(permanence(found, mask[:, p:])[0])
        overlaps.append(mask_overlap(found, mask[:, p:])[0])
    if not errors:
        return {}
    scores = {"centroid_error": errors, "permanence": areas, "mask_iou": overlaps}
    return {name: torch.stack(rows) for name, rows in scores.items()}


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
