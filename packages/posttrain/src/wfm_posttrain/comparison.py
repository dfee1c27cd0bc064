"""Whether a world model tells good policies from bad ones.

A policy is tried from the same beginnings in the simulator (or on the robot) and in the
imagined world. A world model is of use for evaluation when the two success rates agree:
Pearson's r near 1, and few and small ranking mistakes (MMRV).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from .env import Judge, frames_of
from .metrics import Interval
from .policies import Policy, StepEnv, Trial, run_trial

NAN = float("nan")
CLOSE = 0.15  # success rates that differ by less make a close pair


@dataclass(frozen=True)
class PolicyEvaluation:
    """Successes of each policy (rows) from each beginning (columns), imagined and real.

    ``judged`` is what the judge of the imagined world says of the real pictures: where it
    differs from ``real``, the judge errs and not the world. ``families`` names each policy's.
    """

    names: tuple[str, ...]
    imagined: Bool[np.ndarray, "n e"]
    real: Bool[np.ndarray, "n e"]
    judged: Bool[np.ndarray, "n e"] | None = None
    families: tuple[str, ...] | None = None

    @property
    def rates(self) -> dict[str, tuple[float, float]]:
        """Success rate of each policy: imagined, real."""
        pairs = zip(self.imagined.mean(1).tolist(), self.real.mean(1).tolist(), strict=True)
        return dict(zip(self.names, pairs, strict=True))

    def pearson(self, *, policies: bool = False, draws: int = 2000, seed: int = 0) -> Interval:
        """Correlation of the success rates; the interval resamples beginnings, or policies too."""
        return self._interval(pearson, policies, draws, seed)

    def mmrv(self, *, policies: bool = False, draws: int = 2000, seed: int = 0) -> Interval:
        """Mean maximum rank violation; the interval resamples as that of ``pearson``."""
        return self._interval(lambda i, r: mmrv(imagined=i, real=r), policies, draws, seed)

    def family(self, name: str) -> "PolicyEvaluation":
        """Return the policies of one family only."""
        rows = [i for i, family in enumerate(self.families or ()) if family == name]
        if not rows:
            raise ValueError(f"no family {name!r}; there are {sorted(set(self.families or ()))}")
        judged = None if self.judged is None else self.judged[rows]
        names = tuple(self.names[i] for i in rows)
        return PolicyEvaluation(names, self.imagined[rows], self.real[rows], judged)

    def judge_accuracy(self) -> float:
        """Share of the real trials that the judge calls as they were; NaN if not known."""
        return NAN if self.judged is None else float((self.judged == self.real).mean())

    def close_pairs(self) -> tuple[int, int]:
        """Count the pairs of policies with near but unequal real rates, and those ranked right."""
        real, imagined = self.real.mean(1), self.imagined.mean(1)
        gap = real[:, None] - real
        i, j = np.nonzero((gap > 0) & (gap < CLOSE))
        return len(i), int((imagined[i] > imagined[j]).sum())

    def summary(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        close, right = self.close_pairs()
        facts: dict[str, Any] = {
            "episodes": self.real.shape[1],
            "success": {
                name: {
                    "imagined": i,
                    "real": r,
                    "differ_p": kruskal(self.imagined[k], self.real[k]),
                }
                for k, (name, (i, r)) in enumerate(self.rates.items())
            },
            "pearson": plain(self.pearson()),
            "pearson_over_policies": plain(self.pearson(policies=True)),
            "mmrv": plain(self.mmrv()),
            "close_pairs": {"count": close, "ranked_right": right},
        }
        if self.judged is not None:
            facts["judge_accuracy"] = self.judge_accuracy()
        if self.families is not None:
            facts["families"] = {
                name: plain(self.family(name).pearson())
                for name in sorted(set(self.families))
                if self.families.count(name) > 1
            }
        return facts

    def _interval(
        self,
        score: Callable[[np.ndarray, np.ndarray], float],
        policies: bool,
        draws: int,
        seed: int,
    ) -> Interval:
        rng = np.random.default_rng(seed)
        rows, count = self.real.shape
        found = []
        for _ in range(draws):
            picks = rng.integers(count, size=count)
            chosen = rng.integers(rows, size=rows) if policies else np.arange(rows)
            imagined, real = self.imagined[chosen][:, picks], self.real[chosen][:, picks]
            found.append(score(imagined.mean(1), real.mean(1)))
        known = np.array(found)[~np.isnan(found)]
        low, high = np.quantile(known, [0.025, 0.975]).tolist() if len(known) else (NAN, NAN)
        return Interval(score(self.imagined.mean(1), self.real.mean(1)), low, high, count)


def evaluate_policy(
    policies: Mapping[str, Policy],
    *,
    imagined: StepEnv,
    real: StepEnv,
    seeds: Sequence[int],
    steps: int = 20,
    judge: Callable[[Mapping[str, Any]], Judge] | None = None,
    families: Mapping[str, str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PolicyEvaluation:
    """Try every policy from every seed's beginning, in the real world and in the imagined.

    The imagined world starts from the real one's first picture (``options={"start": ...,
    "judge": ...}``). ``judge`` makes the judge of an episode from the ``info`` of the real
    reset; without it, ``info["judge"]`` serves. ``families`` names each policy's.

    Raises:
        ValueError: nothing to compare.
    """
    if not policies or not seeds:
        raise ValueError(f"{len(policies)} policies and {len(seeds)} beginnings: nothing to do")
    found = np.zeros((3, len(policies), len(seeds)), bool)
    done, total, judged = 0, len(policies) * len(seeds), True
    for row, policy in enumerate(policies.values()):
        for column, seed in enumerate(seeds):
            truth = run_trial(real, policy, seed=seed, steps=steps)
            says = judge(truth.info) if judge else truth.info.get("judge")
            options = {"start": truth.pictures[0], "judge": says}
            dream = run_trial(
                imagined, policy, seed=seed, steps=steps, options=options, told=truth.info
            )
            judged = judged and says is not None
            called = bool(says and _judged(says, truth))
            found[:, row, column] = dream.success, truth.success, called
            done += 1
            if progress:
                progress(done, total)
    groups = tuple((families or {}).get(name, "") for name in policies) if families else None
    return PolicyEvaluation(
        tuple(policies), found[0], found[1], found[2] if judged else None, groups
    )


def _judged(judge: Judge, trial: Trial) -> bool:
    """Tell whether the judge sees success in any picture after the first."""
    return any(judge.reached(frame) for frame in frames_of(trial.pictures)[1:])


def pearson(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Correlation of two lists; NaN when one of them does not vary."""
    a, b = a - a.mean(), b - b.mean()
    length = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum() / length) if length > 1e-8 else NAN


def spearman(a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"]) -> float:
    """Correlation of the ranks of two lists; equal values share their mean rank."""
    return pearson(_ranks(a), _ranks(b))


def mmrv(*, imagined: Float[np.ndarray, " n"], real: Float[np.ndarray, " n"]) -> float:
    """Mean maximum rank violation (SIMPLER, arXiv 2405.05941): 0 when the ranking is right.

    A pair ranked otherwise than in reality costs the difference of its real success rates.
    It is not symmetric, hence the names.
    """
    wrong = (imagined[:, None] > imagined) != (real[:, None] > real)
    return float((np.abs(real[:, None] - real) * wrong).max(axis=1).mean())


def kruskal(a: np.ndarray, b: np.ndarray) -> float:
    """Return the p-value that two samples come from one distribution (Kruskal and Wallis 1952).

    Corrected for ties; 1 when all values are equal.
    """
    ranks = _ranks(np.concatenate([a, b]).astype(float))
    n, groups = len(ranks), (ranks[: len(a)], ranks[len(a) :])
    between = sum(len(g) * (g.mean() - (n + 1) / 2) ** 2 for g in groups)
    within = ((ranks - (n + 1) / 2) ** 2).sum()
    statistic = (n - 1) * between / within if within > 0 else 0.0
    return math.erfc(math.sqrt(statistic / 2))  # chi-squared with one degree of freedom


def plain(interval: Interval) -> dict[str, float | None]:
    """Return an interval as JSON values; None for what is not known."""
    values = {"value": interval.mean, "low": interval.low, "high": interval.high}
    return {name: None if np.isnan(x) else x for name, x in values.items()}


def _ranks(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Return ranks from 1; equal values share their mean."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[which]
