"""A small network from pictures to numbers, and what is read off recordings to train it on.

It serves as a reader of states (judges and rewards for imagined pictures), as an inverse
dynamics model, and as a policy. A minute of one CPU core trains one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from .clips import actions_of
from .interfaces import ClipDataset, WorldModel

Progress = Callable[[int, int], None]


class SmallVision(nn.Module):
    """Pictures, stacked on channels -> numbers: convolutions, then the places of what they found.

    The places are the expected positions under each feature map's softmax (spatial softmax,
    Finn et al. 2016, arXiv 1509.06113). Outputs are in the units of the data, once ``settle``
    has been told their mean and scale.
    """

    mean: Float[Tensor, " k"]
    scale: Float[Tensor, " k"]

    def __init__(self, channels: int, outputs: int, *, width: int = 24) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(channels, width, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
        )
        self.head = nn.Sequential(nn.Linear(6 * width, 128), nn.ReLU(), nn.Linear(128, outputs))
        self.register_buffer("mean", torch.zeros(outputs))
        self.register_buffer("scale", torch.ones(outputs))

    def settle(self, targets: Float[Tensor, "n k"]) -> None:
        """Take the mean and the scale of what is to be told."""
        self.mean.copy_(targets.mean(dim=0))
        self.scale.copy_(targets.std(dim=0).clamp_min(1e-3))

    def forward(self, pictures: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Tell the numbers; pictures are RGB in [-1, 1]."""
        return self.head(self.features(pictures)) * self.scale + self.mean

    def features(self, pictures: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d"]:
        """Return where each feature map points to, in [-1, 1], and how strong it is."""
        maps = self.trunk(pictures)
        weight = rearrange(maps, "b d h w -> b d (h w)").softmax(dim=-1)
        weight = weight.view_as(maps)
        h, w = maps.shape[2:]
        x = (weight.sum(dim=2) * torch.linspace(-1, 1, w, device=maps.device)).sum(dim=-1)
        y = (weight.sum(dim=3) * torch.linspace(-1, 1, h, device=maps.device)).sum(dim=-1)
        return torch.cat([x, y, F.relu(maps).mean(dim=(2, 3))], dim=1)

    @torch.no_grad()
    def read(self, pictures: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Tell the numbers of pictures as files have them."""
        return self(pictures / 127.5 - 1)


@dataclass(frozen=True)
class Gallery:
    """The frames of all clips in one row, with what led from each to the next.

    ``action[i]`` leads from frame i to i + 1, and is zero at a clip's last frame; ``state[i]``
    is the arm's (no numbers, if the clips have no states); ``clip[i]`` is frame i's clip.
    """

    frames: UInt8[Tensor, "n 3 h w"]
    action: Float[Tensor, "n a"]
    state: Float[Tensor, "n k"]
    clip: Int64[Tensor, " n"]

    def pairs(self, ahead: int) -> Int64[Tensor, "m 2"]:
        """Return numbers of frames that lie ``ahead`` frames apart in the same clip."""
        first = torch.arange(len(self.clip) - ahead)
        first = first[self.clip[first] == self.clip[first + ahead]]
        return torch.stack([first, first + ahead], dim=1)


@dataclass(frozen=True)
class Examples:
    """What to learn: the frames of each row, stacked on channels, and the row's targets."""

    frames: UInt8[Tensor, "n 3 h w"]
    rows: Int64[Tensor, "m f"]
    targets: Float[Tensor, "m k"]

    def inputs(self, picks: Int64[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        """Return the pictures of some rows, in [-1, 1]."""
        return rearrange(self.frames[self.rows[picks]], "b f c h w -> b (f c) h w") / 127.5 - 1


def read_gallery(
    clips: ClipDataset, limit: int | None = None, *, state: str = "state", numbers: int = 3
) -> Gallery:
    """Read the first ``limit`` clips, with actions and, where there are some, states.

    ``state`` names the label that serves as the state, such as ``effector_pixel``; its first
    ``numbers`` are kept, by default those of the tool's place.

    Raises:
        ValueError: a clip without actions.
    """
    frames, actions, states, places = [], [], [], []
    for i in range(min(len(clips), limit or len(clips))):
        clip = clips[i]
        action = actions_of(clip, f"clip {i} ({clip.caption})")
        frames.append(clip.read(0, len(clip)))
        actions.append(torch.cat([action, torch.zeros_like(action[:1])]))
        states.append(clip.labels().get(state, torch.zeros(len(clip), 0)).float()[:, :numbers])
        places.append(torch.full((len(clip),), i))
    return Gallery(*(torch.cat(parts) for parts in (frames, actions, states, places)))


def state_examples(gallery: Gallery) -> Examples:
    """Pictures and the arm's state.

    Raises:
        ValueError: the clips have no states.
    """
    if not gallery.state.shape[1]:
        raise ValueError("the clips have no such label to learn to read")
    rows = torch.arange(len(gallery.frames))[:, None]
    return Examples(gallery.frames, rows, gallery.state)


@torch.no_grad()
def imagined_examples(
    gallery: Gallery, world: WorldModel, *, windows: int = 400, frames: int = 4, seed: int = 0
) -> Examples:
    """Add to real pictures those that a world makes of the recorded actions, as often.

    A reader that learned from both bears the world's blur, and reads what it shows where the
    arm truly was: a steady error of the world goes into the reading. Beginnings are drawn at
    random; before a clip's first frame stands that frame, as at the beginning of an episode.
    """
    device = getattr(world, "device", "cpu")
    generator = torch.Generator().manual_seed(seed)
    starts = gallery.pairs(frames)[:, 0]
    windows = min(windows, len(starts))
    starts = starts[torch.randint(len(starts), (windows,), generator=generator)]
    begin = torch.searchsorted(gallery.clip, gallery.clip[starts])
    before = starts[:, None] - torch.arange(world.past_frames - 1, -1, -1)
    new = starts[:, None] + torch.arange(1, frames + 1)
    shown = []
    for part in torch.arange(windows).split(32):
        past = gallery.frames[torch.maximum(before[part], begin[part, None])]
        future = world.rollout(
            rearrange(past, "b p c h w -> b c p h w").to(device) / 127.5 - 1,
            frames=frames,
            controls={"action": gallery.action[new[part] - 1].to(device)},
            generator=generator,
        )
        pixels = ((future.clamp(-1, 1) + 1) * 127.5).round().byte().cpu()
        shown.append(rearrange(pixels, "b c f h w -> (b f) c h w"))
    count = len(gallery.frames)
    imagined = count + torch.arange(count) % new.numel()
    rows = torch.cat([torch.arange(count), imagined])
    states = torch.cat([gallery.state, gallery.state[new.flatten()]])
    return Examples(torch.cat([gallery.frames, *shown]), rows[:, None], states[rows])


def inverse_examples(gallery: Gallery) -> Examples:
    """Two frames, one after the other, and the action between them."""
    rows = gallery.pairs(1)
    return Examples(gallery.frames, rows, gallery.action[rows[:, 0]])


def goal_examples(
    gallery: Gallery, numbers: list[int] | slice = slice(None), *, ahead: int = 4
) -> Examples:
    """A frame, a later one as the goal, and the first action of the way there.

    What was reached counts as what was wanted (hindsight relabelling, Andrychowicz et al.
    2017, arXiv 1707.01495); goals lie 1 to ``ahead`` steps away.
    """
    rows = torch.cat([gallery.pairs(k) for k in range(1, ahead + 1)])
    return Examples(gallery.frames, rows, gallery.action[rows[:, 0]][:, numbers])


def fit(
    net: SmallVision,
    examples: Examples,
    *,
    steps: int = 400,
    batch: int = 64,
    lr: float = 2e-3,
    seed: int = 0,
    progress: Progress | None = None,
) -> SmallVision:
    """Train by least squares, Adam and a cosine schedule; return the same network.

    The errors are measured in standard deviations of the targets. The same arguments give the
    same weights.

    Raises:
        ValueError: fewer than two examples.
    """
    if len(examples.rows) < 2:
        raise ValueError(f"{len(examples.rows)} examples to learn from; two are the least")
    generator = torch.Generator().manual_seed(seed)
    net.settle(examples.targets)
    net.train()
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    for step in range(steps):
        picks = torch.randint(len(examples.rows), (batch,), generator=generator)
        error = (net(examples.inputs(picks)) - examples.targets[picks]) / net.scale
        loss = error.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if progress:
            progress(step + 1, steps)
    return net.eval()


@torch.no_grad()
def predictions(net: SmallVision, examples: Examples, *, batch: int = 256) -> Float[Tensor, "m k"]:
    """Return what the network says of every example."""
    return torch.cat(
        [net(examples.inputs(p)) for p in torch.arange(len(examples.rows)).split(batch)]
    )


def r_squared(predicted: Float[Tensor, "n k"], true: Float[Tensor, "n k"]) -> Float[Tensor, " k"]:
    """Share of the variance that is explained, per number; NaN where nothing varies."""
    left = (predicted - true).square().sum(dim=0)
    total = (true - true.mean(dim=0)).square().sum(dim=0)
    return torch.where(total > 1e-8 * len(true), 1 - left / total, torch.nan)


class SeenDistance:
    """Reward and judge: minus how far what a reader sees is from what it sees in the goal.

    With a reader of the tool's place the unit is metres. Later frames weigh more, as in
    ``plan.LooksLike``.
    """

    def __init__(
        self, reader: SmallVision, goal: UInt8[Tensor, "3 h w"], *, within: float, base: float = 2.0
    ) -> None:
        self.reader, self.within, self.base = reader, within, base
        self.place = reader.read(goal[None])[0]

    @torch.no_grad()
    def score(
        self, future: Float[Tensor, "b 3 f h w"], actions: Float[Tensor, "b s a"] | None, /
    ) -> Float[Tensor, " b"]:
        count = len(future)
        seen = self.reader(rearrange(future, "b c f h w -> (b f) c h w").clamp(-1, 1))
        distance = (seen - self.place).norm(dim=-1).view(count, -1)
        weight = self.base ** torch.arange(distance.shape[1], dtype=distance.dtype)
        return -(distance * weight / weight.sum()).sum(dim=1)

    def reached(self, frame: UInt8[Tensor, "3 h w"]) -> bool:
        """Tell whether it is ``within`` reach of the goal."""
        return bool((self.reader.read(frame[None])[0] - self.place).norm() <= self.within)
