"""What is lost from round to round when a future goes on beyond one grid.

The hand-over: the last frames of a round are encoded again and become the given frames of the
next. Tokens cannot be handed over as they are: in a causal codec the first latent frame stands
for one frame and each later one for several, so the last latent frames of a grid are not what a
grid begins with. Models that encode each frame alone keep their tokens and have no hand-over.
"""

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from .evaluation import Progress, psnr, samples
from .interfaces import ClipDataset, DiscreteCodec
from .world import WorldModel


@torch.no_grad()
def drift(
    world: WorldModel,
    clips: ClipDataset,
    *,
    rounds: int = 4,
    count: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Return what each round is like, the means over clips.

    ``psnr`` is against the recording, NaN after the first round; ``colour`` and ``detail`` are
    the spread of the pixels and of their differences to neighbours, as parts of those of the
    given frames; ``motion``, the mean change from frame to frame, likewise; and ``recoded``, the
    PSNR of the given frames after as many hand-overs without any imagining.

    Raises:
        ValueError: no clip is long enough for one round.
    """
    length = world.settings.frames
    rows: list[list[list[float]]] = [[] for _ in range(rounds)]
    for i, sample in enumerate(samples(world, clips, length, count)):
        if sample.controls is not None:
            raise ValueError(
                "drift is of models without controls: no recorded action goes on so long"
            )
        prompts = [sample.caption] if world.text_encoder is not None and sample.caption else None
        generator = torch.Generator().manual_seed(seed)
        future = world.rollout(
            sample.past, frames=rounds * length, prompts=prompts, generator=generator
        )
        passed = sample.past
        usual = liveliness(sample.past)
        for k, part in enumerate(future.split(length, 2)):
            passed = hand_over(world.codec, passed, alone=world.settings.latents == "image")
            fidelity = psnr(part, sample.real).mean() if k == 0 else torch.tensor(torch.nan)
            relative = liveliness(part) / usual.clamp(min=1e-6)
            again = psnr(passed, sample.past).mean()
            rows[k].append([fidelity.item(), *relative.tolist(), again.item()])
        if progress is not None:
            progress(i + 1, min(count, len(clips)))
    names = ("psnr", "colour", "detail", "motion", "recoded")
    means = (torch.tensor(row).mean(0).tolist() for row in rows)
    return [{"round": k + 1} | dict(zip(names, mean, strict=True)) for k, mean in enumerate(means)]


def hand_over(
    codec: DiscreteCodec, video: Float[Tensor, "1 3 t h w"], *, alone: bool
) -> Float[Tensor, "1 3 t h w"]:
    """Encode and decode frames once."""
    if not alone:
        return codec.decode(codec.encode(video)).clamp(-1, 1)
    single = rearrange(video, "1 c t h w -> t c 1 h w")
    return rearrange(codec.decode(codec.encode(single)), "t c 1 h w -> 1 c t h w").clamp(-1, 1)


def liveliness(video: Float[Tensor, "1 3 t h w"]) -> Float[Tensor, " three"]:
    """Return the spread of the pixels, of their differences to neighbours, and the motion."""
    across = video.diff(dim=-1).abs().mean() + video.diff(dim=-2).abs().mean()
    motion = video.diff(dim=2).abs().mean() if video.shape[2] > 1 else across.new_zeros(())
    return torch.stack([rearrange(video, "1 c t h w -> t c (h w)").std(-1).mean(), across, motion])


def table(rows: list[dict[str, Any]]) -> str:
    """Put the rounds in Markdown."""
    lines = [
        "| round | dB against the recording | colour | detail | motion | dB of hand-overs alone |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        fidelity = f"{row['psnr']:.2f}" if row["psnr"] == row["psnr"] else "-"
        cells = [f"{row[k]:.2f}" for k in ("colour", "detail", "motion")]
        lines.append(
            f"| {row['round']} | {fidelity} | {' | '.join(cells)} | {row['recoded']:.2f} |"
        )
    return "\n".join(lines)
