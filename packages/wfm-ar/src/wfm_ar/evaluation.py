"""Score a world model on held-out clips: pixels, objects, perplexity, failures, actions, speed.

Everything stands beside what costs nothing: the last frame repeated, raw and through the codec.
The failures are those that the Cosmos paper counts by eye (arXiv 2501.03575, section 5.3.3): a
large object that is there all at once, and a picture that collapses to one colour.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor

from . import objects
from .clips import every, fit, fit_segments
from .config import Grid
from .interfaces import ClipDataset, LabelledClip
from .world import WorldModel

# A pixel has changed when a channel differs by a sixth of its range [-1, 1].
CHANGED = 1 / 3
# An object pops up when so large a part changes at once, and no such part ever changed before.
POP, UNHEARD = 0.08, 2.0
# One colour: the spread of the pixels is below this part of that of the given frames.
COLLAPSED = 0.3

Progress = Callable[[int, int], None]


class Sample(NamedTuple):
    """One clip, cut into what is given and what is to be imagined; b is 1, [-1, 1]."""

    scene: str
    past: Float[Tensor, "1 3 p h w"]
    real: Float[Tensor, "1 3 f h w"]
    caption: str
    controls: Mapping[str, Tensor] | None
    masks: Sequence[Bool[Tensor, "t h w"]] = ()
    """of the objects that move, from the last given frame on"""


class Score(NamedTuple):
    """What one clip's future is worth, frame by frame."""

    psnr: Float[Tensor, " f"]
    recoded: Float[Tensor, " f"]
    repeated: Float[Tensor, " f"]
    nats: Float[Tensor, " n"]
    popped: bool
    collapsed: bool
    alarm: bool
    seconds: float
    place: Float[Tensor, "k f"]
    """pixels between objects and their recorded places"""
    place_still: Float[Tensor, "k f"]
    """the same of the last frame repeated, through the codec"""
    wrong: Mapping[str, Float[Tensor, " f"]]
    """PSNR under other actions than those that were taken"""


def samples(world: WorldModel, clips: ClipDataset, frames: int, count: int) -> Iterator[Sample]:
    """Yield the first ``count`` clips that are long enough, evenly spread over the set."""
    settings, steered = world.settings, world.condition_encoder is not None
    found = 0
    for i in spread(len(clips), count):
        clip = clips[i]
        kept = every(len(clip), clip.fps, settings.fps)
        if len(kept) < settings.past_frames + frames:
            continue
        controls = _actions(clip, settings.past_frames, frames) if steered else None
        if steered and controls is None:
            continue
        video = fit(clip.read(0, len(clip))[kept], settings.height, settings.width)
        video = rearrange(video, "t c h w -> 1 c t h w")
        cut = settings.past_frames
        masks: list[Tensor] = []
        if (segments := clip.labels().get("segmentation")) is not None:
            seen = segments[kept[cut - 1 : cut + frames]]
            poses = clip.labels().get("object_pose")  # t k 7; of objects 1 to k
            masks = objects.moving_masks(
                fit_segments(seen, settings.height, settings.width),
                highest=None if poses is None else poses.shape[1],
            )
        found += 1
        yield Sample(
            str(clip.attributes.get("scene", "all")),
            video[:, :, :cut],
            video[:, :, cut : cut + frames],
            clip.caption,
            controls,
            masks,
        )
    if not found:
        wants = " and actions" if steered else ""
        raise ValueError(
            f"none of {len(clips)} clips has {settings.past_frames + frames} frames at "
            f"{settings.fps:g} Hz{wants}"
        )


def spread(length: int, count: int) -> list[int]:
    """Return ``count`` indices evenly over a length, or all of them."""
    return torch.linspace(0, length - 1, min(count, length)).round().long().tolist()


def _actions(clip: LabelledClip, past: int, frames: int) -> Mapping[str, Tensor] | None:
    """Return the actions of the frames to come; action i leads from frame i to frame i + 1."""
    action = clip.labels().get("action")
    if action is None or len(action) < past + frames - 1:
        return None
    return {"action": action[past - 1 : past - 1 + frames].float()[None]}


@torch.no_grad()
def score(
    world: WorldModel,
    sample: Sample,
    seed: int = 0,
    *,
    others: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> Score:
    """Imagine one clip's future and compare; ``others`` are controls that are not its own."""
    prompts = [sample.caption] if world.text_encoder is not None and sample.caption else None

    def imagine(controls: Mapping[str, Tensor] | None) -> Float[Tensor, "1 3 f h w"]:
        return world.rollout(
            sample.past,
            frames=sample.real.shape[2],
            controls=controls,
            prompts=None if controls else prompts,
            generator=torch.Generator().manual_seed(seed),
        ).clamp(-1, 1)

    began = time.perf_counter()
    future = imagine(sample.controls)
    seconds = time.perf_counter() - began
    last = sample.past[:, :, -1:]
    recoded = world.codec.decode(world.codec.encode(last)).clamp(-1, 1)
    still = recoded.expand_as(sample.real)
    # What is imagined has been through the codec: jumps are looked for from the recoded frame on.
    whole = torch.cat([recoded, future], 2)
    return Score(
        psnr(future, sample.real),
        psnr(still, sample.real),
        psnr(last.expand_as(sample.real), sample.real),
        surprise(world, sample),
        pops(whole, sample.past),
        collapses(future, sample.past),
        pops(torch.cat([last, sample.real], 2), sample.past) or collapses(sample.real, sample.past),
        seconds,
        _places(future, sample),
        _places(still, sample),
        {name: psnr(imagine(other), sample.real) for name, other in (others or {}).items()},
    )


def _places(video: Float[Tensor, "1 3 f h w"], sample: Sample) -> Float[Tensor, "k f"]:
    last = sample.past[0, :, -1]
    found = [objects.displacement(video[0], last, mask) for mask in sample.masks]
    return torch.stack(found) if found else video.new_empty(0, video.shape[2])


def other_controls(found: Sequence[Sample], seed: int = 0) -> list[dict[str, dict[str, Tensor]]]:
    """Return for each sample another one's controls, and random ones of the same spread."""
    if found[0].controls is None or len(found) < 2:
        return [{} for _ in found]
    generator = torch.Generator().manual_seed(seed)
    controls = [dict(sample.controls or {}) for sample in found]
    drawn: list[dict[str, Tensor]] = [{} for _ in found]
    for name in controls[0]:
        taken = torch.stack([each[name] for each in controls])
        noise = torch.randn(taken.shape, generator=generator)
        axes = tuple(range(taken.ndim - 1))
        made = taken.mean(axes) + noise * taken.std(axes)
        for each, one in zip(drawn, made, strict=True):
            each[name] = one
    shuffled = controls[-1:] + controls[:-1]
    return [{"shuffled": a, "drawn": b} for a, b in zip(shuffled, drawn, strict=True)]


def psnr(a: Float[Tensor, "1 3 f h w"], b: Float[Tensor, "1 3 f h w"]) -> Float[Tensor, " f"]:
    """Return the peak signal-to-noise ratio of each frame, dB; the range is 2."""
    error = reduce((a - b).square(), "1 c t h w -> t", "mean").clamp(min=1e-10)
    return 10 * torch.log10(4 / error)


def pops(video: Float[Tensor, "1 3 t h w"], past: Float[Tensor, "1 3 p h w"]) -> bool:
    """Tell whether something large is there all at once: far more changes than ever before."""
    usual = changes(past).max().item() if past.shape[2] > 1 else 0.0
    return bool((changes(video) > max(POP, UNHEARD * usual)).any())


def changes(video: Float[Tensor, "1 3 t h w"]) -> Float[Tensor, " s"]:
    """Return the part of the pixels that changes from each frame to the next."""
    differ: Bool[Tensor, "1 s h w"] = video.diff(dim=2).abs().amax(1) > CHANGED
    return reduce(differ.float(), "1 s h w -> s", "mean")


def collapses(video: Float[Tensor, "1 3 t h w"], past: Float[Tensor, "1 3 p h w"]) -> bool:
    """Tell whether a frame has lost its colours: the pixels of it are nearly all alike."""
    return bool((_spread_of(video) < COLLAPSED * _spread_of(past).mean()).any())


def _spread_of(video: Float[Tensor, "1 3 t h w"]) -> Float[Tensor, " t"]:
    return rearrange(video, "1 c t h w -> t c (h w)").std(-1).mean(-1)


@torch.no_grad()
def surprise(world: WorldModel, sample: Sample) -> Float[Tensor, " n"]:
    """Return the nats of each real future token, given all real tokens before it."""
    if world.settings.latents == "image":
        return torch.cat(list(_frame_surprise(world, sample)))
    (ct, _, _), t = world.codec.compression, world.grid[0]
    known = world.past_frames - (world.past_frames - 1) % ct
    video = torch.cat([sample.past[:, :, -known:], sample.real], 2)
    video = video[:, :, : min(1 + ct * (t - 1), video.shape[2] - (video.shape[2] - 1) % ct)]
    tokens = world.codec.encode(video)
    text = None
    if world.text_encoder is not None and sample.caption:
        text, _ = world.text_encoder.encode([sample.caption])
    return nats(world, tokens, 1 + (known - 1) // ct, text)


def _frame_surprise(world: WorldModel, sample: Sample) -> Iterator[Float[Tensor, " n"]]:
    """Score each frame after a window of real ones, under its own action."""
    alone = rearrange(torch.cat([sample.past, sample.real], 2), "1 c t h w -> t c 1 h w")
    tokens = rearrange(world.codec.encode(alone), "t 1 h w -> 1 t h w")
    for i in range(sample.real.shape[2]):
        stop = sample.past.shape[2] + i
        context = None
        if sample.controls is not None:
            context = world.context_of({k: v[:, i : i + 1] for k, v in sample.controls.items()})
        start = max(stop - world.past_frames, 0)
        yield nats(world, tokens[:, start : stop + 1], stop - start, context)


def nats(
    world: WorldModel, tokens: Tensor, given: int, context: Tensor | None
) -> Float[Tensor, " n"]:
    """Return -log p of the tokens after ``given`` latent frames."""
    _, t, h, w = tokens.shape
    flat = rearrange(tokens, "1 t h w -> 1 (t h w)")
    bov = world.lm.bov_token
    if bov is not None:
        flat = torch.cat([torch.full_like(flat[:, :1], bov), flat], 1)
    grid: Grid = (max(t, world.grid[0]), h, w)
    logs = world.lm(flat[:, :-1], context, grid=grid).float().log_softmax(-1)
    answers = flat[:, 1:]
    found = -logs.gather(-1, answers[..., None])[0, :, 0]
    return found[-(t - given) * h * w :]


def evaluate(
    world: WorldModel,
    clips: ClipDataset,
    *,
    frames: int | None = None,
    count: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, dict[str, Any]]:
    """Return the figures of each scene, and of ``all`` of them.

    Args:
        world: the model.
        clips: held-out ones; their attribute ``scene`` groups them.
        frames: how many to imagine; more than the model's own go on in further rounds.
        count: of clips, evenly spread.
        seed: of the sampling, the same for each clip.
        progress: told clips done and clips in all.

    Raises:
        ValueError: no clip is long enough.
    """
    frames = frames or world.settings.frames
    found: dict[str, list[Score]] = {"all": []}
    taken = list(samples(world, clips, frames, count))
    others = other_controls(taken, seed)
    for i, (sample, other) in enumerate(zip(taken, others, strict=True)):
        one = score(world, sample, seed, others=other)
        found["all"].append(one)
        if sample.scene != "all":
            found.setdefault(sample.scene, []).append(one)
        if progress is not None:
            progress(i + 1, len(taken))
    return {name: summary(scores) for name, scores in sorted(found.items())}


def summary(scores: list[Score]) -> dict[str, Any]:
    """Average the scores of clips."""
    model, recoded, repeated = (
        torch.stack([getattr(s, name) for s in scores]).mean(0).tolist()
        for name in ("psnr", "recoded", "repeated")
    )
    n, frames = len(scores), len(model)
    right, wrong = torch.stack([s.psnr for s in scores]).mean(), scores[0].wrong
    gaps = {k: right - torch.stack([s.wrong[k] for s in scores]).mean() for k in wrong}
    places = [torch.cat([getattr(s, k) for s in scores]) for k in ("place", "place_still")]
    (place, lost), (still, lost_still) = map(objects.summary, places)
    return {
        "clips": n,
        "psnr": model,
        "recoded": recoded,
        "repeated": repeated,
        "perplexity": torch.cat([s.nats for s in scores]).mean().exp().item(),
        "popping": sum(s.popped for s in scores) / n,
        "collapse": sum(s.collapsed for s in scores) / n,
        "false_alarms": sum(s.alarm for s in scores) / n,
        "frames_per_s": n * frames / sum(s.seconds for s in scores),
        "objects": len(places[0]),
        "centroid_px": place,
        "centroid_px_recoded": still,
        "lost": lost,
        "lost_recoded": lost_still,
        "action_gap_db": {name: gap.item() for name, gap in gaps.items()},
    }


def table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """Put the figures of :func:`evaluate` in Markdown, for a model card."""
    frames = len(figures["all"]["psnr"])
    marks = sorted({0, frames // 2, frames - 1})
    heads = ["scene", "clips"]
    heads += [f"dB frame {i + 1} (recoded)" for i in marks]
    heads += ["mean dB", "recoded", "raw", "perplexity", "popping", "one colour", "false alarms"]
    heads += ["centroid px (recoded)", "lost (recoded)"]
    heads += [f"gap dB, {name} actions" for name in figures["all"]["action_gap_db"]]
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for name in [*sorted(set(figures) - {"all"}), "all"]:
        row = figures[name]
        means = [sum(row[k]) / frames for k in ("psnr", "recoded", "repeated")]
        cells = [name, str(row["clips"])]
        cells += [f"{row['psnr'][i]:.1f} ({row['recoded'][i]:.1f})" for i in marks]
        cells += [f"{mean:.2f}" for mean in means] + [f"{row['perplexity']:.0f}"]
        cells += [f"{row[k]:.0%}" for k in ("popping", "collapse", "false_alarms")]
        cells += [
            f"{_told(row[key], digits)} ({_told(row[f'{key}_recoded'], digits)})"
            for key, digits in (("centroid_px", ".1f"), ("lost", ".0%"))
        ]
        cells += [f"{gap:+.2f}" for gap in row["action_gap_db"].values()]
        lines.append(f"| {' | '.join(cells)} |")
    whole = figures["all"]
    said = f"{whole['objects']} objects move. {whole['frames_per_s']:.1f} frames/s"
    return "\n".join([*lines, "", f"{said}, one clip at a time."])


def _told(figure: float | None, digits: str) -> str:
    return "-" if figure is None else format(figure, digits)
