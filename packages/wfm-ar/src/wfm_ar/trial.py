"""Try drafts on real clips: passes saved and time, static and moving scenes apart."""

import statistics
from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from .bench import clock
from .decoding import Sampler, decode
from .evaluation import CHANGED, Progress, Sample, samples
from .interfaces import ClipDataset
from .speculation import Draft, PreviousFrame, speculate
from .world import WorldModel

# A scene moves when so large a part of its last frame differs from the last given one.
MOVED = 0.02


def moves(sample: Sample) -> bool:
    """Tell whether more than :data:`MOVED` of the pixels change until the end."""
    differ = (sample.real[:, :, -1] - sample.past[:, :, -1]).abs().amax(1) > CHANGED
    return differ.float().mean().item() > MOVED


@torch.no_grad()
def try_drafts(
    world: WorldModel,
    clips: ClipDataset,
    drafts: Mapping[str, Draft],
    *,
    temperature: float | int = 0,
    top_p: float | None = None,
    count: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Return, for each draft and kind of scene, tokens a pass and speed over plain decoding.

    Raises:
        ValueError: no clip is long enough, or the model takes controls.
    """
    if world.settings.latents != "video" or world.condition_encoder is not None:
        raise ValueError("drafts are tried on models that imagine whole clips, without controls")
    found: dict[tuple[str, str], list[tuple[float, float, bool]]] = {}
    for i, sample in enumerate(samples(world, clips, world.settings.frames, count)):
        prompt, n, context = _task(world, sample)
        noise = torch.Generator()
        sampler = Sampler(temperature, top_p=top_p, generator=noise.manual_seed(seed))
        began = clock()
        plain = decode(world.lm, prompt, n, sampler, context=context)
        seconds = clock() - began
        for name, draft in drafts.items():
            noise.manual_seed(seed)
            began = clock()
            fast = speculate(world.lm, prompt, n, sampler, draft, context=context)
            took = clock() - began
            kind = "moving" if moves(sample) else "static"
            same = torch.equal(fast.tokens, plain)
            row = (fast.tokens_per_pass, seconds / took, same)
            found.setdefault((name, kind), []).append(row)
        if progress is not None:
            progress(i + 1, min(count, len(clips)))
    return [
        {
            "draft": name,
            "scenes": kind,
            "clips": len(rows),
            "tokens_per_pass": statistics.mean(r[0] for r in rows),
            "speed": statistics.median(r[1] for r in rows),
            "same_tokens": sum(r[2] for r in rows),
        }
        for (name, kind), rows in sorted(found.items())
    ]


def _task(world: WorldModel, sample: Sample) -> tuple[Tensor, int, Tensor | None]:
    """Return the tokens that are given, how many to add, and the context."""
    tokens, context = world.codec.encode(sample.past), None
    _, given, h, w = tokens.shape
    prompt = rearrange(tokens, "1 t h w -> 1 (t h w)")
    if world.lm.bov_token is not None:
        prompt = torch.cat([torch.full_like(prompt[:, :1], world.lm.bov_token), prompt], 1)
    if world.text_encoder is not None:
        context, _ = world.text_encoder.encode([sample.caption])
    return prompt, (world.grid[0] - given) * h * w, context


def copies(world: WorldModel, counts: tuple[int, ...] = (2, 4, 8)) -> dict[str, Draft]:
    """Return drafts that copy the previous latent frame, so many tokens a pass."""
    _, h, w = world.grid
    begin = int(world.lm.bov_token is not None)
    return {
        f"copy {count}": PreviousFrame(h * w, count, begin) for count in counts if count <= h * w
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Put the figures of :func:`try_drafts` in Markdown."""
    lines = [
        "| draft | scenes | clips | tokens a pass | speed over plain | same tokens |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        lines.append(
            f"| {row['draft']} | {row['scenes']} | {row['clips']} | {row['tokens_per_pass']:.2f} "
            f"| {row['speed']:.2f} | {row['same_tokens']} of {row['clips']} |"
        )
    return "\n".join(lines)
