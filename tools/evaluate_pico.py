"""Score world models on held-out arm clips, beside trivial baselines; print and save a table.

    python tools/evaluate_pico.py CLIPS pico-diffusion pico-ar pico-arm-diffusion -o scores.json

CLIPS is what the curator wrote. Every model sees the first 9 frames (or as many of the last of
them as it takes) and imagines the next 8. The baselines are the last frame repeated, raw and
passed through the model's codec, and the mean of the past frames. Objects are followed by their
colour, in clips where one is moved at least 2 cm in those 8 frames ("contact"). Tokens are the
likeliest ones, not drawn.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from wfm_curator import ShardedDataset
from wfm_posttrain import metrics
from wfm_posttrain.evaluation import near
from wfm_posttrain.interfaces import DiscreteCodec, LabelledClip, WorldModel
from wfm_posttrain.references import resolve
from wfm_tokenizer.video import to_model

PAST, FUTURE, MOVED, SEEN = 9, 8, 0.02, 8
BASELINES = ("repeat last frame", "mean of the past")
ROOT = Path(__file__).resolve().parent.parent
CARDS = {
    "pico-diffusion": "packages/wfm-diffusion/src/wfm_diffusion/weights/pico",
    "pico-ar": "packages/wfm-ar/src/wfm_ar/weights/pico-ar",
    "pico-arm-diffusion": "packages/posttrain/src/wfm_posttrain/weights/pico-arm-diffusion",
    "pico-arm-ar": "packages/posttrain/src/wfm_posttrain/weights/pico-arm-ar",
}
HEADING = "## On held-out arm clips"
EXPLANATION = """
Made by `python tools/evaluate_pico.py`, from simulated arm clips of seeds that nothing was
trained on: 9 frames seen, the next 8 imagined. Centroid and area errors are of objects that are
moved by 2 cm or more in those frames, a lost one a picture's diagonal off; an area error of 0 is
an object as large as it should be. "recoded" is the last frame after the codec, repeated.
"""


@dataclass(frozen=True)
class Batch:
    """Held-out clips: ``past`` and ``real`` are b 3 t h w in [-1, 1]."""

    past: Tensor
    real: Tensor
    action: Tensor
    clips: Sequence[LabelledClip]


def read(folder: Path, count: int) -> Batch:
    """Read the first clips that are long enough and have actions."""
    data = ShardedDataset(folder)
    clips = [c for c in map(data.__getitem__, range(len(data))) if len(c) >= PAST + FUTURE]
    clips = [c for c in clips if "action" in c.labels()][:count]
    if len(clips) < 2:
        raise ValueError(f"{folder}: {len(clips)} clips with actions and {PAST + FUTURE} frames")
    video = torch.cat([to_model(c.read(0, PAST + FUTURE)) for c in clips])
    action = torch.stack([c.labels()["action"][PAST - 1 : PAST + FUTURE - 1] for c in clips])
    return Batch(video[:, :, :PAST], video[:, :, PAST:], action.float(), clips)


def objects(batch: Batch, imagined: Tensor) -> tuple[Tensor, Tensor]:
    """Return centroid errors (pixels) and area errors (|1 - area / true area|) of moved objects."""
    errors, areas = [], []
    for i, clip in enumerate(batch.clips):
        labels = clip.labels()
        masks = labels["segmentation"][: PAST + FUTURE]
        poses = labels["object_pose"][PAST - 1 : PAST + FUTURE, :, :3]
        travelled = (poses - poses[:1]).norm(dim=-1).amax(dim=0)
        for key in range(1, poses.shape[1] + 1):
            mask = (masks == key)[None]
            if travelled[key - 1] < MOVED or mask[0, PAST - 1].sum() < SEEN:
                continue
            colour = metrics.mean_colour(batch.past[i : i + 1, :, -1], mask[:, PAST - 1])
            found = metrics.colour_mask(imagined[i : i + 1], colour)
            found = near(found, mask[:, PAST - 1 :].any(1, keepdim=True).expand_as(found))
            errors.append(metrics.centroid_error(found, mask[:, PAST:]))
            areas.append((1 - metrics.permanence(found, mask[:, PAST:])).abs())
    return torch.cat(errors), torch.cat(areas)


def score(name: str, batch: Batch, imagine: Callable[[Batch], Tensor]) -> dict[str, object]:
    """Imagine the future of all clips and score it."""
    began = time.perf_counter()
    imagined = imagine(batch).clamp(-1, 1)
    seconds = time.perf_counter() - began
    place, area = objects(batch, imagined)
    peak = metrics.psnr(imagined, batch.real)
    return {
        "name": name,
        "clips": len(batch.clips),
        "psnr": vars(metrics.bootstrap(peak.mean(1))),
        "psnr_per_frame": peak.mean(0).tolist(),
        "ssim": metrics.ssim(imagined, batch.real).mean().item(),
        "centroid_error": vars(metrics.bootstrap(place.nanmean(1))),
        "centroid_median": place.nanmean(1).nanmedian().item(),
        "area_error": vars(metrics.bootstrap(area.nanmean(1))),
        "frames_per_second": len(batch.clips) * FUTURE / max(seconds, 1e-9),
    }


def models(world: WorldModel, batch: Batch) -> dict[str, Callable[[Batch], Tensor]]:
    """Return what is to be scored for one world model: itself, wrong actions, its baselines."""

    def roll(past: Tensor, action: Tensor | None) -> Tensor:
        prompts = [clip.caption for clip in batch.clips]
        return world.rollout(
            past[:, :, -max(world.past_frames, 1) :],
            frames=FUTURE,
            controls=None if action is None else {"action": action},
            prompts=prompts if action is None else None,
            generator=torch.Generator().manual_seed(0),
        )

    def recoded(batch: Batch) -> Tensor:
        codec = world.codec  # ty: ignore[missing-attribute]
        last = codec.decode(codec.encode(batch.past[:, :, -1:]))
        return last.expand(-1, -1, FUTURE, -1, -1)

    if getattr(world, "condition_encoder", None) is None:
        return {"": lambda b: roll(b.past, None), "repeat, recoded": recoded}
    return {
        "": lambda b: roll(b.past, b.action),
        "shuffled actions": lambda b: roll(b.past, b.action.roll(1, 0)),
        "repeat, recoded": recoded,
    }


@torch.no_grad()
def evaluate(folder: Path, names: Sequence[str], count: int) -> list[dict[str, object]]:
    """Score the named world models and the baselines."""
    batch = read(folder, count)
    rows = [
        score(BASELINES[0], batch, lambda b: b.past[:, :, -1:].expand_as(b.real)),
        score(BASELINES[1], batch, lambda b: b.past.mean(2, keepdim=True).expand_as(b.real)),
    ]
    for name in names:
        world = resolve(name, "wfm.world_models")
        if not isinstance(world, WorldModel):
            raise ValueError(f"{name}: not a world model")
        if isinstance(getattr(world, "codec", None), DiscreteCodec):
            world.temperature = 0.0  # ty: ignore[missing-attribute]
        for variant, imagine in models(world, batch).items():
            rows.append(score(f"{name} {variant}".strip(), batch, imagine))
            print(line(rows[-1]), flush=True)
    return rows


def table(rows: Sequence[dict[str, object]]) -> str:
    """Put all rows in a Markdown table."""
    head = (
        "| model | PSNR dB (95 %) | centroid error px | median | area error | SSIM |\n"
        "|---|---|---|---|---|---|"
    )
    return "\n".join([head, *map(line, rows)])


def write_cards(rows: Sequence[dict[str, object]], names: Sequence[str]) -> None:
    """Put each model's rows, and the baselines', at the end of its card in this repository."""
    for name in names:
        card = ROOT / CARDS[name] / "README.md"
        mine = [r for r in rows if r["name"] in BASELINES or str(r["name"]).split(" ")[0] == name]
        text = card.read_text().partition(HEADING)[0].rstrip()
        card.write_text(f"{text}\n\n{HEADING}\n{EXPLANATION}\n{table(mine)}\n")


def line(row: dict[str, object]) -> str:
    """Put one row in words."""
    bounded = {k: row[k] for k in ("psnr", "centroid_error", "area_error")}
    cells = [
        f"{b['mean']:6.2f} ({b['low']:.2f} to {b['high']:.2f})"  # ty: ignore[not-subscriptable]
        for b in bounded.values()
    ]
    cells.insert(2, f"{row['centroid_median']:.2f}")
    return f"| {row['name']:36} | {' | '.join(cells)} | {row['ssim']:.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("clips", type=Path, help="folder of shards with held-out arm clips")
    parser.add_argument("worlds", nargs="+", help="names, or module:callable=SOURCE")
    parser.add_argument("--count", type=int, default=48, help="at most so many clips")
    parser.add_argument("--cards", action="store_true", help="put the table into model cards")
    parser.add_argument("-o", "--out", type=Path, help="also write the scores as JSON")
    args = parser.parse_args()
    rows = evaluate(args.clips, args.worlds, args.count)
    print(table(rows))
    if args.cards:
        write_cards(rows, args.worlds)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
