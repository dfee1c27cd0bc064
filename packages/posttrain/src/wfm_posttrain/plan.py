"""Search for the actions whose imagined future scores best: CEM, iCEM and MPPI.

The three maximise any function of action sequences. :class:`ImaginedReturn` makes one of a
world model, what has been seen, and a reward.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import reduce, repeat
from jaxtyping import Float, UInt8
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from .interfaces import LatentCodec, Reward, WorldModel
from .metrics import centroid, colour_mask

Objective = Callable[[Float[Tensor, "b s a"]], Float[Tensor, " b"]]


class SearchConfig(BaseModel):
    """How long the plan, and how hard to search."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    horizon: int = Field(4, gt=0, description="actions in a plan")
    samples: int = Field(32, gt=1, description="plans tried per iteration")
    elites: int = Field(6, gt=0, description="best plans that the next iteration starts from")
    iterations: int = Field(3, gt=0)
    spread: float = Field(0.5, gt=0, description="first standard deviation, in half ranges")
    least_spread: float = Field(0.02, ge=0, description="smallest one, in half ranges")
    momentum: float = Field(0.1, ge=0, lt=1, description="share of the old mean and spread kept")
    colour: float = Field(2.0, ge=0, description="iCEM: noise falls with frequency ** -colour / 2")
    keep: float = Field(0.3, ge=0, le=1, description="iCEM: share of the elites tried again")
    temperature: float = Field(0.5, gt=0, description="MPPI: weights are exp(score / temperature)")


@dataclass(frozen=True)
class Bounds:
    """Least and greatest value of each number of an action; equal ones hold it fixed."""

    low: Float[Tensor, " a"]
    high: Float[Tensor, " a"]

    def __post_init__(self) -> None:
        if self.low.shape != self.high.shape or not (self.low <= self.high).all():
            raise ValueError(f"bounds from {self.low.tolist()} to {self.high.tolist()} are not any")

    @property
    def middle(self) -> Float[Tensor, " a"]:
        return (self.low + self.high) / 2

    @property
    def half(self) -> Float[Tensor, " a"]:
        return (self.high - self.low) / 2

    def clip(self, actions: Float[Tensor, "*b a"]) -> Float[Tensor, "*b a"]:
        return torch.minimum(torch.maximum(actions, self.low), self.high)


@dataclass(frozen=True)
class Plan:
    """Actions, their imagined score, and the best score after each iteration."""

    actions: Float[Tensor, "s a"]
    score: float
    history: tuple[float, ...]


def cem(
    objective: Objective,
    bounds: Bounds,
    config: SearchConfig,
    *,
    generator: torch.Generator,
    start: Float[Tensor, "s a"] | None = None,
) -> Plan:
    """Cross-entropy method: refit a normal distribution to the best samples; return its mean."""
    mean, spread = _begin(bounds, config, start)
    history: list[float] = []
    for _ in range(config.iterations):
        noise = torch.randn(config.samples, *mean.shape, generator=generator)
        actions = bounds.clip(mean + spread * noise)
        actions[0] = mean
        scores = _scored(objective, actions)
        history.append(scores.max().item())
        mean, spread = _refit(actions[scores.topk(_elites(config)).indices], mean, spread, config)
        spread = spread.clamp_min(0).maximum(config.least_spread * bounds.half)
    return _finish(objective, mean, history)


def icem(
    objective: Objective,
    bounds: Bounds,
    config: SearchConfig,
    *,
    generator: torch.Generator,
    start: Float[Tensor, "s a"] | None = None,
) -> Plan:
    """CEM with smooth noise, kept elites and the best sample as answer (arXiv 2008.06389)."""
    mean, spread = _begin(bounds, config, start)
    history: list[float] = []
    kept = mean[None]
    best, best_score = mean, -torch.inf
    for _ in range(config.iterations):
        shape = (config.samples - len(kept), *mean.shape)
        noise = coloured_noise(shape, config.colour, generator)
        actions = torch.cat([kept, bounds.clip(mean + spread * noise)])
        scores = _scored(objective, actions)
        elites = actions[scores.topk(_elites(config)).indices]
        if scores.max().item() > best_score:
            best, best_score = elites[0], scores.max().item()
        history.append(best_score)
        mean, spread = _refit(elites, mean, spread, config)
        spread = spread.maximum(config.least_spread * bounds.half)
        kept = torch.cat([mean[None], elites[: int(config.keep * len(elites))]])
        kept = kept[: config.samples - 1]
    return Plan(best, best_score, tuple(history))


def mppi(
    objective: Objective,
    bounds: Bounds,
    config: SearchConfig,
    *,
    generator: torch.Generator,
    start: Float[Tensor, "s a"] | None = None,
) -> Plan:
    """Path-integral control: the mean of the best samples, weighted by exp(score)."""
    mean, spread = _begin(bounds, config, start)
    history: list[float] = []
    for _ in range(config.iterations):
        noise = torch.randn(config.samples, *mean.shape, generator=generator)
        actions = bounds.clip(mean + spread * noise)
        actions[0] = mean
        scores = _scored(objective, actions)
        history.append(scores.max().item())
        top = scores.topk(_elites(config))
        # Scores of any unit: the temperature counts in standard deviations of the elites.
        unit = top.values.std(correction=0).clamp_min(1e-8)
        weight = ((top.values - top.values.max()) / (config.temperature * unit)).softmax(0)
        elites, weight = actions[top.indices], weight[:, None, None]
        fresh = (weight * elites).sum(dim=0)
        spread = (weight * (elites - fresh) ** 2).sum(dim=0).sqrt()
        spread = spread.maximum(config.least_spread * bounds.half)
        mean = config.momentum * mean + (1 - config.momentum) * fresh
    return _finish(objective, mean, history)


PLANNERS = {"cem": cem, "icem": icem, "mppi": mppi}


def coloured_noise(
    shape: tuple[int, ...], colour: float, generator: torch.Generator
) -> Float[Tensor, "b s a"]:
    """Draw unit-variance noise whose power falls with frequency: 0 white, 2 a random walk."""
    white = torch.randn(shape, generator=generator)
    if shape[1] < 2 or colour == 0:
        return white
    frequency = torch.fft.rfftfreq(shape[1]).clamp_min(1 / shape[1])
    scaled = torch.fft.rfft(white, dim=1) * frequency[:, None] ** (-colour / 2)
    noise = torch.fft.irfft(scaled, n=shape[1], dim=1)
    power = frequency**-colour
    double = torch.full_like(power, 2.0)
    double[0] = 1
    if shape[1] % 2 == 0:
        double[-1] = 1
    return noise / ((power * double).sum() / shape[1]).sqrt()


class ImaginedReturn:
    """What a world model and a reward make of action sequences, after what has been seen.

    Every call imagines with the same noise, so that plans are compared and not luck.
    """

    def __init__(
        self,
        world: WorldModel,
        past: Float[Tensor, "1 3 p h w"],
        reward: Reward,
        *,
        seed: int = 0,
        batch: int = 64,
    ) -> None:
        self.world, self.past, self.reward = world, past, reward
        self.seed, self.batch = seed, batch

    @torch.no_grad()
    def __call__(self, actions: Float[Tensor, "b s a"]) -> Float[Tensor, " b"]:
        return torch.cat([self._score(part) for part in actions.split(self.batch)])

    def _score(self, actions: Float[Tensor, "b s a"]) -> Float[Tensor, " b"]:
        past = self.past.expand(len(actions), -1, -1, -1, -1)
        future = self.world.rollout(
            past,
            frames=actions.shape[1],
            controls={"action": actions.to(past.device)},
            generator=torch.Generator().manual_seed(self.seed),
        )
        return self.reward.score(future, actions).cpu()


class LooksLike:
    """Reward: minus the mean squared difference to a goal picture, in pixels or in latents.

    Later frames weigh more, twice as much each, as in DINO-WM: to arrive early is better.
    """

    def __init__(
        self, goal: UInt8[Tensor, "3 h w"], codec: LatentCodec | None = None, *, base: float = 2.0
    ) -> None:
        self.goal = goal[None, :, None] / 127.5 - 1
        self.codec, self.base = codec, base

    def score(
        self, future: Float[Tensor, "b 3 f h w"], actions: Float[Tensor, "b s a"] | None, /
    ) -> Float[Tensor, " b"]:
        goal = self._coded(self.goal.to(future))
        error = reduce((self._coded(future) - goal) ** 2, "b c f h w -> b f", "mean")
        weight = self.base ** torch.arange(error.shape[1], dtype=error.dtype, device=error.device)
        return -(error * weight / weight.sum()).sum(dim=1)

    def _coded(self, video: Float[Tensor, "b 3 f h w"]) -> Float[Tensor, "b c f hl wl"]:
        """Encode each frame alone."""
        if self.codec is None:
            return video
        parts = [self.codec.encode(frame.clamp(-1, 1)) for frame in video.split(1, dim=2)]
        return torch.cat(parts, dim=2)


class ObjectAt:
    """Reward: minus the distance in pixels of a coloured object from a place, at the end.

    An object that is not found is one picture diagonal away.
    """

    def __init__(
        self, colour: Float[Tensor, " 3"], pixel: Float[Tensor, " 2"], *, within: float = 3.0
    ) -> None:
        self.colour, self.pixel, self.within = colour, pixel, within

    def score(
        self, future: Float[Tensor, "b 3 f h w"], actions: Float[Tensor, "b s a"] | None, /
    ) -> Float[Tensor, " b"]:
        last = future[:, :, -1:]
        colour = repeat(self.colour, "c -> b c", b=len(future)).to(future)
        place = centroid(colour_mask(last, colour))[:, 0]
        h, w = last.shape[3:]
        distance = (place - self.pixel.to(place)).norm(dim=-1)
        return -distance.nan_to_num(nan=(h**2 + w**2) ** 0.5)

    def reached(self, frame: UInt8[Tensor, "3 h w"]) -> bool:
        """Tell whether the object is ``within`` so many pixels of its place."""
        video = frame[None, :, None] / 127.5 - 1
        return bool(self.score(video, None)[0] >= -self.within)


class NearerTo:
    """Judge: the picture has come much nearer to the goal's than the first one was."""

    def __init__(
        self, goal: UInt8[Tensor, "3 h w"], first: UInt8[Tensor, "3 h w"], *, share: float = 0.35
    ) -> None:
        self.goal, self.most = goal.float(), share * (first.float() - goal).square().mean()

    def reached(self, frame: UInt8[Tensor, "3 h w"]) -> bool:
        """Tell whether the squared difference is below ``share`` of the first one."""
        return bool((frame.float() - self.goal).square().mean() < self.most)


def _begin(
    bounds: Bounds, config: SearchConfig, start: Tensor | None
) -> tuple[Float[Tensor, "s a"], Float[Tensor, "s a"]]:
    """Return the first mean (the middle, or a plan to better) and spread."""
    mean = repeat(bounds.middle, "a -> s a", s=config.horizon).clone()
    if start is not None:
        known = min(len(start), config.horizon)
        mean[:known] = bounds.clip(start[:known])
    return mean, repeat(config.spread * bounds.half, "a -> s a", s=config.horizon).clone()


def _scored(objective: Objective, actions: Tensor) -> Float[Tensor, " b"]:
    """Score actions; what is not a number is the worst."""
    return objective(actions).nan_to_num(nan=-torch.inf)


def _elites(config: SearchConfig) -> int:
    return min(config.elites, config.samples)


def _refit(
    elites: Float[Tensor, "e s a"], mean: Tensor, spread: Tensor, config: SearchConfig
) -> tuple[Float[Tensor, "s a"], Float[Tensor, "s a"]]:
    old, new = config.momentum, 1 - config.momentum
    fresh = elites.std(dim=0, correction=0)
    return old * mean + new * elites.mean(dim=0), old * spread + new * fresh


def _finish(objective: Objective, mean: Tensor, history: list[float]) -> Plan:
    return Plan(mean, _scored(objective, mean[None]).item(), tuple(history))
