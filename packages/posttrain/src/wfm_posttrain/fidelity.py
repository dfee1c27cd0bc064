"""How well a model follows its condition: with its own against with another clip's."""

import itertools
import json
from dataclasses import asdict, dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from .imagine import ClipWorld
from .interfaces import ClipDataset
from .metrics import Horizon, Interval, bootstrap, markdown, psnr, ssim
from .moments import Sample, samples


class FidelityConfig(BaseModel):
    """Which samples, and how many at once."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    samples: int = Field(32, ge=2, description="at most so many of the held-out ones")
    batch: int = Field(8, ge=2, description="samples imagined at once")
    seed: int = 0


@dataclass(frozen=True)
class Fidelity(Horizon):
    """Means over samples and cameras; ``overall`` is the gap averaged over a sample's frames."""

    condition: str
    overall: Interval

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def summary(self) -> str:
        """Put the result in one line."""
        mean = sum(self.psnr) / len(self.psnr)
        gap = self.overall
        return (
            f"{self.clips} samples: {mean:.2f} dB, {gap.mean:+.2f} dB over another's "
            f"{self.condition} (95 %: {gap.low:+.2f} to {gap.high:+.2f})"
        )

    def table(self) -> str:
        """Draw the horizon as a Markdown table."""
        return f"{markdown(self.rows(self.condition))}\n\n{self.summary()}"


@torch.no_grad()
def measure(world: ClipWorld, clips: ClipDataset, config: FidelityConfig) -> Fidelity:
    """Imagine the first samples twice from the same noise: with the right and a wrong condition.

    Raises:
        ValueError: fewer than two samples, or clips without the condition.
    """
    chosen = first_samples(world, clips, config.samples)
    cuts = list(range(0, len(chosen), config.batch))
    if len(chosen) - cuts[-1] == 1 and len(cuts) > 1:
        cuts.pop()
    scores = [
        _compare(world, chosen[a:b], config.seed)
        for a, b in zip(cuts, [*cuts[1:], len(chosen)], strict=True)
    ]
    own, others, repeat, similar = torch.cat(scores, dim=1)
    difference = own - others
    return Fidelity(
        clips=len(own),
        condition=str(getattr(world.steering, "kind", "condition")),
        psnr=own.mean(0).tolist(),
        psnr_shuffled=others.mean(0).tolist(),
        psnr_repeat=repeat.mean(0).tolist(),
        ssim=similar.mean(0).tolist(),
        gap=[bootstrap(column) for column in difference.T],
        overall=bootstrap(difference.mean(dim=1)),
    )


def first_samples(world: ClipWorld, clips: ClipDataset, count: int) -> list[Sample]:
    """Return at most so many samples of a world's length.

    Raises:
        ValueError: fewer than two.
    """
    every = samples(clips, world.frames, views=world.place.views or None)
    chosen = list(itertools.islice(every, count))
    if len(chosen) < 2:
        raise ValueError(
            f"{len(chosen)} samples of {world.frames} frames; two are the least, so that "
            "conditions can be exchanged"
        )
    return chosen


def _compare(world: ClipWorld, chosen: list[Sample], seed: int) -> Float[Tensor, "4 b f"]:
    """Score some samples: own condition, another's, the last past frame repeated, and SSIM."""
    past, text = world.past_frames, world.steering.steers_text
    inputs = [sample.inputs(world.steering, world.place.views) for sample in chosen]
    controls = {name: torch.cat([x[name] for x in inputs]) for name in inputs[0]}
    if "action" in controls:
        controls["action"] = controls["action"][:, past - 1 :]
    captions = [[clip.caption for clip in sample.clips] for sample in chosen]
    wrong = {k: x if k == "view" else x.roll(1, 0) for k, x in controls.items()}
    video = torch.stack([sample.video() for sample in chosen])
    b, v = video.shape[:2]
    before = rearrange(video[:, :, :, :past], "b v c p h w -> b c (v p) h w")
    real = rearrange(video[:, :, :, past:], "b v c f h w -> (b v) c f h w")

    def imagine(controls: dict[str, Tensor], captions: list[list[str]]) -> Tensor:
        prompts = [words for some in captions for words in some]
        found = world.rollout(
            before, frames=real.shape[2], controls=controls or None,
            prompts=prompts if world.text_encoder is not None else None,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        return rearrange(found, "b c (v f) h w -> (b v) c f h w", v=v)

    own = imagine(controls, captions)
    other = imagine(wrong, [captions[-1], *captions[:-1]] if text else captions)
    last = rearrange(video[:, :, :, past - 1 : past], "b v c p h w -> (b v) c p h w")
    repeated = last.expand_as(real)
    scores = (psnr(own, real), psnr(other, real), psnr(repeated, real), ssim(own, real))
    return torch.stack([rearrange(x, "(b v) f -> b v f", b=b).mean(dim=1) for x in scores])
