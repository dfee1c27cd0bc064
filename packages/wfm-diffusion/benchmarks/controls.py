"""Ask whether the text controls what the built-in model imagines: its kind of scene, and details.

    python benchmarks/controls.py TRAIN HELD_OUT --guidance 1.5 3 --temperature 0.8 1

TRAIN and HELD_OUT are clips with captions and attributes, each a reference such as
`wfm_curator:ShardedDataset=runs/pico/clips/train/sim`. A small convolutional probe learns from
TRAIN, passed through the model's codec, what a clip shows: the kind of scene, and within it
colour, direction and count. Then the model imagines a clip for every caption of HELD_OUT, and the
probe says what it sees. For the kind of scene that is compared with the caption on 50 captions, as
many of each kind as can be; for a detail, with the caption's and with those of all other captions
of that scene that ask for another: without control the two agree equally often. Intervals are
95 %, from resampling the captions. What the probe finds on real clips of HELD_OUT is the most that
can be. How real it all looks: the kernel distance (KID's, of the probe's features) of what is
imagined from the real clips, beside that of two halves of the real ones.
"""

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import wfm_diffusion as wd
from wfm_diffusion.evaluation import AT_ONCE, resampled
from wfm_diffusion.interfaces import LabelledClip
from wfm_diffusion.latents import decode_video, encode_video, fit, open_clips
from wfm_diffusion.video import to_model

PROMPTS, FRAMES, SIDE, HUES = 50, 5, 32, 12
DETAILS = ("colour", "direction", "count")
FEWEST = 5
"""Clips of a scene below which nothing can be said of it alone."""


def facts(clip: LabelledClip) -> dict[str, str]:
    """Return what a caption asks for: scene, and the details that it names."""
    known, caption = clip.attributes, clip.caption.lower()
    found = {"scene": str(known["scene"])}
    colour = known.get("colour") or (str(known["objects"][0]).split()[0] if lone(known) else "")
    direction = known.get("direction") or known.get("motion") or known.get("spin")
    for name, value in (
        ("colour", colour),
        ("direction", direction),
        ("count", known.get("count")),
    ):
        if value and (name == "direction" or said(str(value), caption)):
            found[name] = str(value)
    return found


def lone(known: Mapping[str, object]) -> bool:
    objects = known.get("objects")
    return isinstance(objects, list) and len(objects) == 1 and isinstance(objects[0], str)


def said(value: str, caption: str) -> bool:
    numbers = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    words = {value, numbers[int(value)]} if value.isdigit() and int(value) < 10 else {value}
    return any(f" {word} " in f" {caption} ".replace(".", " ").replace(",", " ") for word in words)


@dataclass
class Labels:
    """The values of every fact, numbered."""

    values: dict[str, list[str]]
    within: dict[tuple[str, str], set[int]]

    @classmethod
    def of(cls, all_facts: Sequence[Mapping[str, str]]) -> "Labels":
        values = {
            name: sorted({x[name] for x in all_facts if name in x}) for name in ("scene", *DETAILS)
        }
        within: dict[tuple[str, str], set[int]] = defaultdict(set)
        for x in all_facts:
            for name in x.keys() & set(DETAILS):
                within[x["scene"], name].add(values[name].index(x[name]))
        return cls(values, dict(within))

    def number(self, name: str, found: Mapping[str, str]) -> int:
        """Return the number of a fact's value, -1 if there is none or it is new."""
        value = found.get(name)
        return self.values[name].index(value) if value in self.values[name] else -1


class Probe(nn.Module):
    """Five frames of 32x32 -> logits of every value of every fact; colours from the hues alone."""

    def __init__(self, labels: Labels, width: int = 32) -> None:
        super().__init__()
        self.frames = nn.Sequential(
            nn.Conv2d(3, width, 5, stride=2, padding=2), nn.GELU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.GELU(),
            nn.Conv2d(2 * width, width, 3, stride=2, padding=1), nn.GELU(), nn.Flatten(),
        )  # fmt: skip
        self.clip = nn.Sequential(nn.Linear(FRAMES * width * 16, 192), nn.GELU(), nn.Dropout(0.2))
        self.heads = nn.ModuleDict({k: nn.Linear(192, len(v)) for k, v in labels.values.items()})
        colours = len(labels.values["colour"])
        self.heads["colour"] = nn.Sequential(
            nn.Linear(2 * HUES, 64), nn.GELU(), nn.Dropout(0.2), nn.Linear(64, colours)
        )

    def features(self, seen: Tensor) -> Tensor:
        return self.clip(self.frames(seen.flatten(0, 1)).unflatten(0, seen.shape[:2]).flatten(1))

    def forward(self, seen: Tensor) -> dict[str, Tensor]:
        x = self.features(seen)
        hues = palette(seen)
        return {k: head(hues if k == "colour" else x) for k, head in self.heads.items()}


def palette(seen: Tensor) -> Tensor:
    """Return how much of each hue there is, and how much of it moves, as logarithms."""
    low, high = seen.amin(2), seen.amax(2)
    red, green, blue = seen.unbind(2)
    range_ = (high - low).clamp(min=1e-6)
    of_red = (green - blue) / range_ % 6
    others = torch.where(high == green, (blue - red) / range_ + 2, (red - green) / range_ + 4)
    hue = torch.where(high == red, of_red, others) / 6 * HUES
    vivid = ((high - low) > 0.35 * (high + 1)) & (high > -0.6)
    moves = F.pad((seen[:, 1:] - seen[:, :-1]).abs().amax(2) > 0.2, (0, 0, 0, 0, 0, 1))
    found = []
    for kept in (vivid, vivid & moves):
        bins = F.one_hot(hue.long().clamp(0, HUES - 1), HUES) * kept[..., None]
        found.append((bins.float().mean(dim=(1, 2, 3)) + 1e-3).log() + 6)
    return torch.cat(found, dim=1)


def seen_by_probe(video: Tensor) -> Tensor:
    """Return ``b f 3 h w``: a few frames, small."""
    chosen = torch.linspace(0, video.shape[2] - 1, FRAMES).round().long()
    frames = video[:, :, chosen].transpose(1, 2)
    small = F.interpolate(frames.flatten(0, 1), size=(SIDE, SIDE), mode="area")
    return small.unflatten(0, frames.shape[:2])


def balanced(clips: Sequence[LabelledClip], most: int) -> list[LabelledClip]:
    """Return at most so many clips of each scene."""
    taken: Counter[str] = Counter()
    found = []
    for clip in clips:
        scene = str(clip.attributes["scene"])
        taken[scene] += 1
        if taken[scene] <= most:
            found.append(clip)
    return found


@torch.no_grad()
def recoded(
    world: wd.WorldModel, clips: Sequence[LabelledClip], starts: Sequence[int]
) -> tuple[Tensor, list[dict[str, str]]]:
    """Return what the probe sees of clips that went through the codec, and their facts."""
    s = world.settings
    length = s.past_frames + s.frames
    seen, found = [], []
    for start in starts:
        for i in range(0, len(clips), AT_ONCE):
            few = clips[i : i + AT_ONCE]
            frames = (fit(c.read(start, start + length), s.height, s.width) for c in few)
            video = torch.cat([to_model(x) for x in frames])
            latents = encode_video(world.codec, video, s.latents)
            seen.append(seen_by_probe(decode_video(world.codec, latents, s.latents)))
            found += [facts(clip) for clip in few]
        sys.stderr.write(f"encoded {len(found)} clips\n")
    return torch.cat(seen), found


def train_probe(seen: Tensor, targets: Mapping[str, Tensor], labels: Labels, steps: int) -> Probe:
    """Train the probe; each scene is drawn as often as the others."""
    torch.manual_seed(0)
    probe = Probe(labels)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    counts = targets["scene"].bincount()
    weight = 1 / counts[targets["scene"]].float().sqrt()
    for step in range(steps):
        index = torch.multinomial(weight, 64, replacement=True)
        shift = torch.randint(-2, 3, (2,)).tolist()
        answers = probe(seen[index].roll(shift, (-2, -1)) + 0.05 * torch.randn(64, 1, 3, 1, 1))
        losses = []
        for name, logits in answers.items():
            wanted = targets[name][index]
            if (wanted >= 0).any():
                losses.append(F.cross_entropy(logits, wanted, ignore_index=-1))
        loss = torch.stack(losses).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            sys.stderr.write(f"probe, step {step + 1}: loss {loss.item():.3f}\n")
    return probe.eval()


def imagine(
    world: wd.WorldModel, clips: Sequence[LabelledClip], guidance: float, seed: int
) -> Iterator[tuple[LabelledClip, Tensor]]:
    """Yield every clip with what the probe sees of the model's answer to its caption."""
    rates: dict[float, list[LabelledClip]] = defaultdict(list)
    for clip in clips:
        rates[clip.fps].append(clip)
    for fps, same in rates.items():
        for i in range(0, len(same), AT_ONCE):
            few = same[i : i + AT_ONCE]
            words = [clip.caption for clip in few]
            # A seed for each batch: the noise of a clip is nobody else's.
            video = world.text2world(words, guidance=guidance, fps=fps, seed=seed * 10_000 + i)
            yield from zip(few, seen_by_probe(video), strict=True)


@torch.no_grad()
def read(probe: Probe, seen: Tensor, found: Sequence[Mapping[str, str]], labels: Labels) -> dict:
    """Return the probe's guess of each fact; of a detail, among those that occur in that scene."""
    answers = probe(seen)
    guesses = {"scene": answers["scene"].argmax(1)}
    for name in DETAILS:
        logits = answers[name].clone()
        for row, x in zip(logits, found, strict=True):
            possible = labels.within.get((x["scene"], name), set())
            row[[i for i in range(len(row)) if i not in possible]] = -torch.inf
        guesses[name] = logits.argmax(1)
    return guesses


def control(
    name: str, guesses: Tensor, found: Sequence[Mapping[str, str]], labels: Labels, scene: str
) -> Tensor:
    """Return for each caption: does the clip match it, less how often it matches the others'.

    The others are the captions of the scene that ask for another value.
    """
    mine = [i for i, x in enumerate(found) if x["scene"] == scene and name in x]
    wanted = torch.tensor([labels.number(name, found[i]) for i in mine])
    own = torch.tensor([float(guesses[i] == w) for i, w in zip(mine, wanted, strict=True)])
    leads = []
    for i, w, hit in zip(mine, wanted, own, strict=True):
        others = wanted[wanted != w]
        if len(others):
            leads.append(hit - (others == guesses[i]).float().mean())
    return torch.stack(leads) if leads else torch.zeros(0)


def rows(
    probe: Probe, labels: Labels, real: tuple, imagined: tuple, prompts: int, seeds: int
) -> Iterator[tuple[str, ...]]:
    """Yield the lines of the table; all captions were imagined in a row, ``seeds`` times."""
    (real_seen, real_facts), (seen, found) = real, imagined
    guesses = read(probe, seen, found, labels)
    real_guesses = read(probe, real_seen, real_facts, labels)
    wanted = torch.tensor([labels.number("scene", x) for x in found])
    truth = torch.tensor([labels.number("scene", x) for x in real_facts])
    chosen, taken = [], Counter()
    for rank in range(len(found)):  # the first of every scene, then the second of every scene ...
        counts: Counter[str] = Counter()
        for i, x in enumerate(found):
            counts[x["scene"]] += 1
            if counts[x["scene"]] == rank + 1 and len(chosen) < prompts:
                chosen.append(i)
                taken[x["scene"]] += 1
    hits = (guesses["scene"] == wanted).float()[chosen]
    accuracy = (real_guesses["scene"] == truth).float().mean()
    yield "kind of scene", str(len(chosen)), share(hits), f"{accuracy:.0%}"
    for scene in taken:
        part = [i for i in chosen if found[i]["scene"] == scene]
        hit = (guesses["scene"] == wanted).float()[part]
        yield f"of these, {scene}", str(len(part)), f"{hit.mean():.0%}", ""
    for name in DETAILS:
        whole = []
        for scene in labels.values["scene"]:
            lead = control(name, guesses[name], found, labels, scene)
            best = control(name, real_guesses[name], real_facts, labels, scene)
            if len(lead) >= FEWEST * seeds:
                lead = lead.reshape(seeds, -1).mean(0)
                whole.append((lead, best))
                count = f"{len(lead)} x {seeds}"
                yield f"{name}, {scene}", count, share(lead), f"{best.mean():+.0%}"
        if whole:
            lead, best = (torch.cat(x) for x in zip(*whole, strict=True))
            count = f"{len(lead)} x {seeds}"
            yield f"{name}, all scenes", count, share(lead), f"{best.mean():+.0%}"
    apart = kernel_distance(probe, real_seen, seen)
    halves = kernel_distance(probe, real_seen[::2], real_seen[1::2])
    yield "kernel distance", str(len(seen)), f"{apart:.4f}", f"{halves:.4f}"


@torch.no_grad()
def kernel_distance(probe: Probe, a: Tensor, b: Tensor) -> float:
    """Return KID's unbiased distance of what the probe makes of two sets of clips."""
    x, y = (probe.features(seen).double() for seen in (a, b))

    def kernel(p: Tensor, q: Tensor) -> Tensor:
        return (p @ q.T / p.shape[1] + 1) ** 3

    def within(p: Tensor) -> Tensor:
        return (kernel(p, p).sum() - kernel(p, p).trace()) / (len(p) * (len(p) - 1))

    return float(within(x) + within(y) - 2 * kernel(x, y).mean())


def share(hits: Tensor) -> str:
    found = resampled(hits)
    return f"{found.mean:.0%} ({found.low:.0%} to {found.high:.0%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", help="clips that the model was trained on")
    parser.add_argument("held_out", help="clips that it was not")
    parser.add_argument("-m", "--model", default="builtin:pico")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.5])
    parser.add_argument(
        "--temperature", type=float, nargs="+", help="as many (default: the model's)"
    )
    parser.add_argument("--steps", type=int, help="of the sampler (default: the model's)")
    parser.add_argument("--sampler", choices=tuple(wd.SAMPLERS), default=None)
    parser.add_argument("--seeds", type=int, default=2, help="clips imagined for each caption")
    parser.add_argument("--most", type=int, default=300, help="clips of one scene for the probe")
    parser.add_argument("--probe-steps", type=int, default=600)
    args = parser.parse_args()
    torch.set_num_threads(1)
    world = wd.load_world(args.model)
    world.steps, world.sampler = args.steps or world.steps, args.sampler or world.sampler
    temperatures = args.temperature or [world.temperature] * len(args.guidance)
    if len(temperatures) != len(args.guidance):
        parser.error(f"{len(temperatures)} temperatures for {len(args.guidance)} guidances")
    held_in, held_out = (
        [clips[i] for i in range(len(clips))]
        for clips in map(open_clips, (args.train, args.held_out))
    )
    seen, found = recoded(world, balanced(held_in, args.most), (0, 8))
    labels = Labels.of(found)
    targets = {
        name: torch.tensor([labels.number(name, x) for x in found]) for name in labels.values
    }
    probe = train_probe(seen, targets, labels, args.probe_steps)
    real = recoded(world, held_out, (0,))
    for guidance, temperature in zip(args.guidance, temperatures, strict=True):
        world.temperature = temperature
        answers = [
            x for seed in range(args.seeds) for x in imagine(world, held_out, guidance, seed)
        ]
        imagined = torch.stack([x for _, x in answers]), [facts(clip) for clip, _ in answers]
        how = f"{world.steps} steps of {world.sampler}, temperature {temperature:g}"
        sys.stdout.write(f"\nguidance {guidance:g}, {how}\n\n")
        sys.stdout.write(
            "| what | clips | match, or lead over others' captions (95 %) | real clips |\n"
        )
        sys.stdout.write("| --- | --- | --- | --- |\n")
        for row in rows(probe, labels, real, imagined, PROMPTS, args.seeds):
            sys.stdout.write(f"| {' | '.join(row)} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
