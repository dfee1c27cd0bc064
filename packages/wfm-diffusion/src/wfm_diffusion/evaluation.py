"""Video to world on clips that were held out: how good each new frame is, beside standing still.

The baseline is the last frame that was seen, repeated for as long and passed through the codec,
so that both sides lose what the codec loses.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .interfaces import ClipDataset, LabelledClip
from .latents import decode_video, encode_video, fit
from .video import to_model
from .world import WorldModel

HARD = 25.0
"""Clips, or frames, whose baseline scores less (dB) are those in which something happens."""
SLACK = 0.5
"""How much (dB) a model may be behind the baseline where nothing does."""
RESAMPLES = 1000
AT_ONCE = 8


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval, from resampling the clips."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:+.2f} ({self.low:+.2f} to {self.high:+.2f})"


@dataclass(frozen=True)
class Scores:
    """PSNR in dB of every clip's new frames, by horizon: the model's and the baseline's."""

    kinds: tuple[str, ...]
    ours: Float[Tensor, "n f"]
    still: Float[Tensor, "n f"]

    def groups(self) -> dict[str, Bool[Tensor, "n f"]]:
        """Return which frames are of each kind of clip, and of clips that are hard or easy.

        Hard or easy for the baseline, on average over a clip, and then frame by frame.
        """
        frames = self.still.shape[1]
        kinds = torch.tensor([sorted(set(self.kinds)).index(kind) for kind in self.kinds])
        clips = {name: kinds == i for i, name in enumerate(sorted(set(self.kinds)))}
        hard = self.still.mean(1) < HARD
        clips |= {f"baseline below {HARD:g} dB": hard, f"baseline {HARD:g} dB or more": ~hard}
        found = {name: chosen[:, None].expand(-1, frames) for name, chosen in clips.items()}
        hard = self.still < HARD
        found |= {f"frames below {HARD:g} dB": hard, f"frames of {HARD:g} dB or more": ~hard}
        return {name: chosen for name, chosen in found.items() if chosen.any()}

    def facts(self) -> dict[str, dict[str, object]]:
        """Return for each group the means, and the lead with its interval at each horizon."""
        found: dict[str, dict[str, object]] = {}
        for name, chosen in self.groups().items():
            leads = self._leads(chosen)
            found[name] = {
                "clips": int(chosen.any(1).sum()),
                "model": means(self.ours, chosen),
                "baseline": means(self.still, chosen),
                "lead": [vars(resampled(lead)) if len(lead) else None for lead in leads[1:]],
                "lead_overall": vars(resampled(leads[0])),
            }
        return found

    def _leads(self, chosen: Bool[Tensor, "n f"]) -> list[Float[Tensor, " m"]]:
        """Return the leads of the clips of a group, on average and then at each horizon."""
        lead = self.ours - self.still
        some = chosen.any(1)
        mean = (lead * chosen).sum(1)[some] / chosen.sum(1)[some]
        return [mean, *(x[c] for x, c in zip(lead.T, chosen.T, strict=True))]

    def table(self) -> str:
        """Return the groups as Markdown: overall, and at the first, middle and last horizon."""
        last = self.ours.shape[1] - 1
        shown = sorted({0, last // 2, last})
        heads = ["clips of", "number", "model dB", "baseline dB", "lead (95 %)"]
        heads += [f"lead, frame {i + 1}" for i in shown] + ["frames ahead"]
        lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
        for name, chosen in self.groups().items():
            leads = self._leads(chosen)
            both = (f"{x[chosen].mean():.2f}" for x in (self.ours, self.still))
            cells = [name, str(int(chosen.any(1).sum())), *both, str(resampled(leads[0]))]
            cells += [str(resampled(leads[1 + i])) if len(leads[1 + i]) else "" for i in shown]
            ahead = sum(len(lead) > 0 and float(lead.mean()) > 0 for lead in leads[1:])
            lines.append(f"| {' | '.join([*cells, f'{ahead} of {last + 1}'])} |")
        return "\n".join(lines)

    def to_json(self) -> str:
        return json.dumps(self.facts(), indent=2)


def evaluate(
    world: WorldModel,
    clips: ClipDataset,
    *,
    past: int | None = None,
    frames: int = 16,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Let the model go on from the start of every clip that is long enough, and score it.

    ``past`` None is as many frames as it looks back at. Prompts are the clips' captions.

    Raises:
        ValueError: no clip has as many frames.
    """
    past = past or world.settings.past_frames
    chosen = [clips[i] for i in range(len(clips))]
    chosen = [clip for clip in chosen if len(clip) >= past + frames]
    if not chosen:
        raise ValueError(f"no clip has {past + frames} frames")
    ours, still, kinds = [], [], []
    for batch in batched(chosen):
        s = world.settings
        read = [fit(clip.read(0, past + frames), s.height, s.width) for clip in batch]
        video = torch.cat([to_model(x) for x in read])
        seen, real = video[:, :, :past], video[:, :, past:]
        words = [clip.caption for clip in batch] if world.text_encoder is not None else None
        new = world.video2world(seen, words, frames=frames, fps=batch[0].fps, seed=seed)
        ours.append(psnr(new.to(real), real))
        still.append(psnr(standing_still(world, seen, frames).to(real), real))
        kinds += [str(clip.attributes.get("scene", "all")) for clip in batch]
        if progress is not None:
            progress(len(kinds), len(chosen))
    return Scores(tuple(kinds), torch.cat(ours), torch.cat(still))


def batched(clips: Sequence[LabelledClip]) -> Iterator[list[LabelledClip]]:
    """Yield clips of one frame rate, a few at a time."""
    rates: dict[float, list[LabelledClip]] = {}
    for clip in clips:
        rates.setdefault(clip.fps, []).append(clip)
    for same in rates.values():
        for i in range(0, len(same), AT_ONCE):
            yield same[i : i + AT_ONCE]


@torch.no_grad()
def standing_still(
    world: WorldModel, seen: Float[Tensor, "b 3 p h w"], frames: int
) -> Float[Tensor, "b 3 f h w"]:
    """Return the last frame, repeated and passed through the codec."""
    ct = world.codec.compression[0]
    repeated = seen[:, :, -1:].repeat_interleave(1 + -(-frames // ct) * ct, dim=2)
    kind = world.settings.latents
    passed = decode_video(world.codec, encode_video(world.codec, repeated, kind), kind)
    return passed[:, :, 1 : 1 + frames].clamp(-1, 1)


def psnr(
    video: Float[Tensor, "b 3 t h w"], real: Float[Tensor, "b 3 t h w"]
) -> Float[Tensor, "b t"]:
    """Return each frame's peak signal-to-noise ratio in dB; values are in [-1, 1]."""
    error = (video - real).square().mean(dim=(1, 3, 4))
    return 10 * torch.log10(4 / error.clamp(min=1e-10))


def means(scores: Float[Tensor, "n f"], chosen: Bool[Tensor, "n f"]) -> list[float | None]:
    """Return the mean at each horizon over the frames that are chosen; None if there are none."""
    pairs = zip(scores.T, chosen.T, strict=True)
    return [float(x[some].mean()) if some.any() else None for x, some in pairs]


def resampled(values: Float[Tensor, " n"]) -> Interval:
    """Return the mean and its 95 % interval by the bootstrap, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    low, high = values[picks].mean(1).quantile(torch.tensor([0.025, 0.975])).tolist()
    return Interval(values.mean().item(), low, high)
