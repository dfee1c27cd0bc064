"""Train a policy in imagination: proximal policy optimisation on the vector environment.

A policy sees a picture and the goal's. It starts at random or from one that was cloned from
recordings, and is improved on what the world model imagines from real beginnings.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, UInt8
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from .env import Beginning, Judge, Picture, WorldVectorEnv, frames_of
from .interfaces import ClipDataset
from .plan import Bounds
from .vision import SmallVision

Progress = Callable[[int, int], None]


class ImaginationConfig(BaseModel):
    """How to improve a policy (Schulman et al. 2017, arXiv 1707.06347)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rounds: int = Field(20, ge=0, description="of imagining and learning from it")
    steps: int = Field(8, gt=0, description="imagined per world and round")
    epochs: int = Field(3, gt=0, description="passes over what a round imagined")
    batch: int = Field(64, gt=0)
    lr: float = Field(3e-4, gt=0)
    discount: float = Field(0.95, gt=0, le=1)
    decay: float = Field(0.95, ge=0, le=1, description="lambda of the advantages")
    clip: float = Field(0.2, gt=0, description="how far one round may change a likelihood ratio")
    entropy: float = Field(0.001, ge=0, description="weight of the entropy bonus")
    spread: float = Field(0.3, gt=0, description="first standard deviation, in half ranges")
    critic_rounds: int = Field(2, ge=0, description="first rounds that teach the critic only")
    seed: int = 0


class GoalContexts:
    """Real beginnings with a later frame of the same clip as the goal.

    ``wanted`` makes of the goal what is both reward and judge.
    """

    def __init__(
        self,
        clips: ClipDataset,
        frames: int,
        wanted: Callable[[UInt8[Tensor, "3 h w"]], Any],
        *,
        ahead: tuple[int, int] = (2, 4),
    ) -> None:
        self.clips, self.frames, self.wanted, self.ahead = clips, frames, wanted, ahead

    def __call__(self, generator: torch.Generator) -> Beginning:
        number, share, gap = torch.rand(3, generator=generator).tolist()
        clip = self.clips[int(number * len(self.clips))]
        near, far = self.ahead
        ahead = min(near + int(gap * (far - near + 1)), len(clip) - self.frames)
        start = int(share * (len(clip) - self.frames - ahead + 1))
        stop = start + self.frames
        goal = clip.read(stop + ahead - 1, stop + ahead)[0]
        wanted = self.wanted(goal)
        judge = wanted if isinstance(wanted, Judge) else None
        return Beginning(clip.read(start, stop), goal, reward=wanted, judge=judge)


class VisionPolicy:
    """Acts on a picture and the goal's: a network gives the numbers that are free.

    The network was cloned (``vision.fit`` on ``goal_examples``) or trained in imagination.
    """

    def __init__(self, net: SmallVision, bounds: Bounds) -> None:
        self.net, self.bounds = net, bounds

    def reset(self, picture: Picture, info: Mapping[str, Any], seed: int, /) -> None:
        self._goal = torch.from_numpy(np.ascontiguousarray(info["goal_frame"]))

    def act(self, picture: Picture, /) -> np.ndarray:
        seen = torch.cat([frames_of(picture)[0], self._goal])[None]
        return full_actions(self.net.read(seen), self.bounds)[0].numpy()


def free_numbers(bounds: Bounds) -> list[int]:
    """Return which numbers of an action are not held fixed."""
    return (bounds.low < bounds.high).nonzero()[:, 0].tolist()


def full_actions(free: Float[Tensor, "b k"], bounds: Bounds) -> Float[Tensor, "b a"]:
    """Put the free numbers beside the fixed ones, within bounds."""
    actions = bounds.middle.repeat(len(free), 1)
    actions[:, free_numbers(bounds)] = free
    return bounds.clip(actions)


@dataclass(frozen=True)
class Steps:
    """What a round imagined, step by step (s) and world by world (b).

    ``valid`` is False where a world began again and its action counted for nothing.
    """

    pictures: UInt8[Tensor, "s b 6 h w"]
    free: Float[Tensor, "s b k"]
    log_prob: Float[Tensor, "s b"]
    reward: Float[Tensor, "s b"]
    value: Float[Tensor, "s b"]
    following: Float[Tensor, "s b"]
    terminated: Bool[Tensor, "s b"]
    over: Bool[Tensor, "s b"]
    valid: Bool[Tensor, "s b"]

    def advantages(self, discount: float, decay: float) -> Float[Tensor, "s b"]:
        """Return generalised advantage estimates (arXiv 1506.02438), cut where a world ended."""
        known = self.following * (~self.terminated)
        surprise = self.reward + discount * known - self.value
        found, last = torch.zeros_like(surprise), torch.zeros_like(surprise[0])
        for step in reversed(range(len(surprise))):
            last = surprise[step] + discount * decay * last * (~self.over[step])
            found[step] = last
        return found

    def flat(self) -> dict[str, Tensor]:
        """Return the valid steps in one row."""
        return {f.name: getattr(self, f.name)[self.valid] for f in fields(self)}


class ActorCritic(nn.Module):
    """A normal distribution over the free numbers of an action, and the value of a picture."""

    def __init__(self, actor: SmallVision, bounds: Bounds, spread: float) -> None:
        super().__init__()
        self.actor, self.critic = actor, SmallVision(6, 1)
        half = bounds.half[free_numbers(bounds)]
        self.log_spread = nn.Parameter((spread * half).log())

    def distribution(self, seen: UInt8[Tensor, "b 6 h w"]) -> torch.distributions.Normal:
        return torch.distributions.Normal(self.actor(seen / 127.5 - 1), self.log_spread.exp())

    def value(self, seen: UInt8[Tensor, "b 6 h w"]) -> Float[Tensor, " b"]:
        return self.critic(seen / 127.5 - 1)[:, 0]


def improve(
    actor: SmallVision,
    env: WorldVectorEnv,
    bounds: Bounds,
    config: ImaginationConfig,
    *,
    progress: Progress | None = None,
) -> list[float]:
    """Train ``actor`` (picture and goal -> free numbers) in imagination, in place.

    Returns the mean imagined reward per step of each round. The beginnings of ``env`` must have
    goals. The same arguments give the same weights.
    """
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)  # the critic's first weights
        model = ActorCritic(actor, bounds, config.spread)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    dreams, rewards = _Dreams(env, bounds, config), []
    for done in range(config.rounds):
        steps = dreams.round(model, generator)
        rewards.append(steps.reward[steps.valid].mean().item())
        model.train()
        _learn(model, optimizer, steps, config, generator, critic_only=done < config.critic_rounds)
        model.eval()
        if progress:
            progress(done + 1, config.rounds)
    return rewards


class _Dreams:
    """Worlds that go on from round to round."""

    def __init__(self, env: WorldVectorEnv, bounds: Bounds, config: ImaginationConfig) -> None:
        self.env, self.bounds, self.config = env, bounds, config
        self.seen = _seen(*env.reset(seed=config.seed))
        self.ended = torch.zeros(env.num_envs, dtype=torch.bool)

    @torch.no_grad()
    def round(self, model: ActorCritic, generator: torch.Generator) -> Steps:
        """Act in all worlds for a round."""
        rows = [self._step(model, generator) for _ in range(self.config.steps)]
        return Steps(**{name: torch.stack([row[name] for row in rows]) for name in rows[0]})

    def _step(self, model: ActorCritic, generator: torch.Generator) -> dict[str, Tensor]:
        guess = model.distribution(self.seen)
        free = guess.mean + guess.stddev * torch.randn(guess.mean.shape, generator=generator)
        found = self.env.step(full_actions(free, self.bounds).numpy())
        pictures, reward, terminated, truncated, info = found
        row = {
            "pictures": self.seen, "free": free,
            "log_prob": guess.log_prob(free).sum(dim=1), "value": model.value(self.seen),
            "reward": torch.from_numpy(reward).float(),
            "terminated": torch.from_numpy(terminated),
            "over": torch.from_numpy(terminated | truncated),
            "valid": ~self.ended,
        }  # fmt: skip
        # A world that just ended keeps its goal until it begins again.
        self.seen, self.ended = _seen(pictures, info), row["over"]
        return row | {"following": model.value(self.seen)}


def _learn(
    model: ActorCritic,
    optimizer: torch.optim.Optimizer,
    steps: Steps,
    config: ImaginationConfig,
    generator: torch.Generator,
    *,
    critic_only: bool,
) -> None:
    """Improve actor and critic on one round."""
    advantage = steps.advantages(config.discount, config.decay)
    target = (advantage + steps.value)[steps.valid]
    gain = advantage[steps.valid]
    gain = (gain - gain.mean()) / (gain.std() + 1e-6)
    data = steps.flat()
    for _ in range(config.epochs):
        order = torch.randperm(len(gain), generator=generator)
        for picks in order.split(config.batch):
            seen = data["pictures"][picks]
            loss = (model.value(seen) - target[picks]).square().mean()
            if not critic_only:
                guess = model.distribution(seen)
                log_prob = guess.log_prob(data["free"][picks]).sum(dim=1)
                ratio = (log_prob - data["log_prob"][picks]).exp()
                cut = ratio.clamp(1 - config.clip, 1 + config.clip)
                loss = loss - torch.minimum(ratio * gain[picks], cut * gain[picks]).mean()
                loss = loss - config.entropy * guess.entropy().sum(dim=1).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()


def _seen(
    pictures: UInt8[np.ndarray, "b h w 3"], info: Mapping[str, Any]
) -> UInt8[Tensor, "b 6 h w"]:
    """Put each picture and its goal's together."""
    if "goal_frame" not in info:
        raise ValueError("the environment's beginnings have no goals; see GoalContexts")
    now = rearrange(torch.from_numpy(np.ascontiguousarray(pictures)), "b h w c -> b c h w")
    return torch.cat([now, torch.from_numpy(info["goal_frame"])], dim=1)
