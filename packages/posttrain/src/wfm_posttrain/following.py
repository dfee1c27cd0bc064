"""Whether imagined clips do what they were told: camera, rig, masks, instructions.

Each score stands beside the same score of clips imagined under another clip's condition, and of
the real clips, which is the measure's own error.
"""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from . import geometry
from .comparison import pearson
from .evaluation import SMALLEST, near
from .fidelity import FidelityConfig, first_samples
from .imagine import ClipWorld
from .interfaces import ClipDataset, LabelledClip
from .metrics import Interval, bootstrap, centroid, colour_mask, mask_overlap, mean_colour
from .moments import Sample

KINDS = ("own", "shuffled", "real")
MORE_IS_BETTER = ("mask_iou", "obeyed")
MOVED = 3.0  # pixels that an object's centre goes, below which it counts as left alone
Scores = dict[str, float]
Turns = Float[np.ndarray, "n 2"]


@dataclass(frozen=True)
class Following:
    """Means over clips of each score, and how far ``own`` is ``better`` than ``shuffled``.

    ``rotation_deg``, ``direction_deg`` and ``way`` (metres) are errors of the recovered camera
    motion, ``tse`` and ``cse`` Sampson errors in pixels, ``mask_iou`` of objects by their colour.
    ``obeyed`` is the share of clips in which the object that an instruction moves goes at least
    half its way, within 45 degrees of where it should.
    ``turn_r`` correlates commanded with recovered turns (``geometry.pan``) from one latent frame
    to the next, over all clips.
    """

    clips: int
    scores: Mapping[str, Mapping[str, Interval]]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def table(self) -> str:
        """Draw the scores as a Markdown table."""
        rows = ["| score | own condition | another's | real | better by (95 %) |", "|---" * 5 + "|"]
        for name, found in self.scores.items():
            means = " | ".join(f"{found[kind].mean:.3f}" for kind in KINDS)
            gain = found["better"]
            rows.append(
                f"| {name} | {means} | {gain.mean:+.3f} ({gain.low:+.3f} to {gain.high:+.3f}) |"
            )
        return "\n".join(rows)


@torch.no_grad()
def follow_conditions(world: ClipWorld, clips: ClipDataset, config: FidelityConfig) -> Following:
    """Imagine held-out clips under their own and under another clip's condition; score both.

    Scores are those that the labels allow: of the camera with ``camera_pose`` and ``intrinsics`` of
    a camera that moves (of a rig: the first), of a rig with several cameras, of masks with
    ``segmentation``, of an instruction with ``segmentation`` and ``objects``, where one of these
    moves.

    Raises:
        ValueError: fewer than two samples.
    """
    found: dict[str, dict[str, list[float]]] = {}
    turns: dict[str, list[Turns]] = {kind: [] for kind in KINDS}
    chosen = first_samples(world, clips, config.samples)
    for number, sample in enumerate(chosen):
        other = chosen[number - 1]
        videos = {
            "own": _imagine(world, sample, sample, config.seed + number),
            "shuffled": _imagine(world, sample, other, config.seed + number),
            "real": sample.video(),
        }
        for kind, video in videos.items():
            shown = Shown(sample, video, world.past_frames, world.place.compression[0])
            scored = _score(shown, turns[kind])
            if world.steering.steers_text:
                scored |= _obedience(shown)
            for name, value in scored.items():
                found.setdefault(name, {k: [] for k in KINDS})[kind].append(value)
    scores = {name: _intervals(name, values) for name, values in found.items()}
    if turns["real"]:
        scores["turn_r"] = _turn_r(turns, config.seed)
    return Following(len(chosen), scores)


def _imagine(
    world: ClipWorld, sample: Sample, told: Sample, seed: int
) -> Float[Tensor, "v 3 t h w"]:
    """Continue a sample's past under the condition of ``told``; return past and future."""
    past, video = world.past_frames, sample.video()
    controls = told.inputs(world.steering, world.place.views)
    if "action" in controls:
        controls = {**controls, "action": controls["action"][:, past - 1 :]}
    speaker = told if world.steering.steers_text else sample
    captions = [clip.caption for clip in speaker.clips]
    new = world.rollout(
        rearrange(video[:, :, :past], "v c p h w -> 1 c (v p) h w"),
        frames=video.shape[2] - past,
        controls=dict(controls) or None,
        prompts=captions if world.text_encoder is not None else None,
        generator=torch.Generator().manual_seed(seed),
    )
    new = rearrange(new, "1 c (v f) h w -> v c f h w", v=len(video))
    return torch.cat([video[:, :, :past], new.to(video)], dim=2)


@dataclass(frozen=True)
class Shown:
    """What a sample looks like, its first ``past`` frames real; ``stride`` frames are a latent."""

    sample: Sample
    video: Float[Tensor, "v 3 t h w"]
    past: int
    stride: int


def _score(shown: Shown, turns: list[Turns]) -> Scores:
    """Score one sample's videos by whatever its labels allow."""
    sample, video, past = shown.sample, shown.video, shown.past
    pixels = ((video[:, :, past - 1 :].clamp(-1, 1) + 1) * 127.5).round().byte()
    frames = rearrange(pixels, "v c t h w -> v t c h w").numpy()
    labels = [_cut(clip, sample, past) for clip in sample.clips]
    found: Scores = {}
    if all({"camera_pose", "intrinsics"} <= label.keys() for label in labels):
        poses = [label["camera_pose"].double().numpy() for label in labels]
        pinholes = [label["intrinsics"].double().numpy()[0] for label in labels]
        if len(sample.clips) > 1:
            found |= _rig(frames, poses, pinholes)
        if np.abs(poses[0] - poses[0][:1]).max() > 1e-3:
            found |= _way(frames[0], poses[0], pinholes[0])
            some = slice(None, None, shown.stride)
            turns.append(_turns(frames[0][some], poses[0][some], pinholes[0]))
    if len(sample.clips) == 1 and "segmentation" in labels[0]:
        masks = _masks(video[:, :, past - 1 :], labels[0]["segmentation"])
        found |= {} if masks is None else {"mask_iou": masks}
    return found


def _cut(clip: LabelledClip, sample: Sample, past: int) -> dict[str, Tensor]:
    """Return the labels of the last past frame and the new ones."""
    found = clip.labels()
    names = ("camera_pose", "intrinsics", "segmentation")
    return {n: found[n][sample.start + past - 1 : sample.stop] for n in names if n in found}


def _way(
    frames: UInt8[np.ndarray, "t 3 h w"],
    poses: Float[np.ndarray, "t 4 4"],
    pinhole: Float[np.ndarray, "3 3"],
) -> Scores:
    """Compare the recovered way of a moving camera with the commanded one."""
    steps, wanted = geometry.recovered_steps(frames, pinhole), geometry.commanded_steps(poses)
    errors = geometry.step_errors(steps, wanted)
    lengths = np.linalg.norm(wanted[:, :3, 3], axis=1)
    way = geometry.recovered_way(steps, lengths)
    return {
        "rotation_deg": _median(errors.rotation), "direction_deg": _median(errors.direction),
        "way": geometry.following_error(way, poses)["ate"],
        "tse": geometry.temporal_sampson(frames).error,
    }  # fmt: skip


def _turns(
    frames: UInt8[np.ndarray, "t 3 h w"],
    poses: Float[np.ndarray, "t 4 4"],
    pinhole: Float[np.ndarray, "3 3"],
) -> Turns:
    """Return commanded and recovered turns, as sines, where one could be recovered."""
    steps = geometry.commanded_steps(poses)
    found = [geometry.pan(a, b, pinhole) for a, b in itertools.pairwise(frames)]
    pairs = [(w[0, 2], turn) for w, turn in zip(steps, found, strict=True) if turn is not None]
    return np.array(pairs).reshape(-1, 2)


def _turn_r(turns: Mapping[str, list[Turns]], seed: int, draws: int = 1000) -> dict[str, Interval]:
    """Correlate the turns of all clips; intervals resample clips."""
    count, rng = len(turns["real"]), np.random.default_rng(seed)

    def r(picks: Sequence[int]) -> dict[str, float]:
        both = {kind: np.concatenate([some[i] for i in picks]) for kind, some in turns.items()}
        found = {kind: pearson(*pairs.T) if len(pairs) else np.nan for kind, pairs in both.items()}
        return {**found, "better": found["own"] - found["shuffled"]}

    drawn = [r(rng.integers(count, size=count).tolist()) for _ in range(draws)]
    found = {}
    for name, value in r(range(count)).items():
        known = [draw[name] for draw in drawn if np.isfinite(draw[name])] or [np.nan]
        low, high = np.quantile(known, [0.025, 0.975]).tolist()
        found[name] = Interval(value, low, high, count)
    return found


def _rig(
    views: UInt8[np.ndarray, "v t 3 h w"],
    poses: list[np.ndarray],
    pinholes: list[np.ndarray],
) -> Scores:
    """Hold the matches of neighbouring cameras against the rig's calibration."""
    errors = []
    for i in range(len(views)):
        for j in range(i + 1, len(views)):
            mount = np.linalg.inv(poses[j][0]) @ poses[i][0]
            if mount[2, 2] < 0.2:  # they look more than 78 degrees apart
                continue
            f = geometry.fundamental_of(mount, pinholes[i], pinholes[j])
            errors.append(geometry.cross_view_sampson(views[i], views[j], f=f).error)
    return {"cse": _median(np.array(errors))}


def _obedience(shown: Shown) -> Scores:
    """Tell whether the object that goes farthest in truth goes its way here, too."""
    clip = shown.sample.clips[0]
    masks = _cut(clip, shown.sample, shown.past).get("segmentation")
    things = clip.attributes.get("objects")
    if masks is None or not isinstance(things, list):
        return {}
    every = [(masks == key)[None] for key in range(1, len(things) + 1)]
    seen = [mask for mask in every if mask[0, 0].sum() >= SMALLEST and mask[0, -1].any()]
    mask = max(seen, key=lambda mask: float(_move(mask).norm()), default=None)
    if mask is None or _move(mask).norm() < MOVED:
        return {}
    wanted = _move(mask)
    video = shown.video[:, :, shown.past - 1 :]
    colour = mean_colour(video[:, :, 0], mask[:, 0])
    reach = mask.any(dim=1, keepdim=True).expand_as(mask)
    way = _move(near(colour_mask(video, colour), reach))
    along = way @ wanted / wanted.norm()  # NaN where the object is lost: not obeyed
    within = way.norm() * math.cos(math.pi / 4)
    return {"obeyed": float(along >= wanted.norm() / 2 and along >= within)}


def _move(mask: Bool[Tensor, "1 t h w"]) -> Float[Tensor, "2"]:
    """Return how far the mask's centre goes from the first frame to the last, in pixels."""
    places = centroid(mask)[0]
    return places[-1] - places[0]


def _masks(video: Float[Tensor, "1 3 t h w"], segmentation: Tensor) -> float | None:
    """Return the mean IoU of objects found by their colour in the last past frame."""
    overlaps = []
    for key in segmentation.unique().tolist():
        mask = (segmentation == key)[None]
        if key in (0, 255) or mask[0, 0].sum() < SMALLEST:
            continue
        colour = mean_colour(video[:, :, 0], mask[:, 0])
        found = near(colour_mask(video[:, :, 1:], colour), mask[:, 1:])
        overlaps.append(mask_overlap(found, mask[:, 1:]).nanmean().item())
    return float(np.nanmean(overlaps)) if overlaps else None


def _intervals(name: str, values: Mapping[str, list[float]]) -> dict[str, Interval]:
    """Return means with intervals, and how much better ``own`` is, clip by clip."""
    columns = {kind: torch.tensor(values[kind], dtype=torch.double) for kind in KINDS}
    sign = 1 if name in MORE_IS_BETTER else -1
    better = sign * (columns["own"] - columns["shuffled"])
    return {**{kind: bootstrap(x) for kind, x in columns.items()}, "better": bootstrap(better)}


def _median(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else float("nan")
