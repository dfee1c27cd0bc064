import numpy as np
import pytest
import torch
from fakes import SquareWorld, square_video
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from wfm_posttrain.env import WorldEnv
from wfm_posttrain.plan import Bounds, ObjectAt, SearchConfig
from wfm_posttrain.policies import (
    PlanningPolicy,
    PolicyEvaluation,
    RandomPolicy,
    evaluate_policy,
    mmrv,
    pearson,
    run_trial,
)

ACTIONS = spaces.Box(-4, 4, (2,), np.float32)
BOUNDS = Bounds(torch.full((2,), -4.0), torch.full((2,), 4.0))
RED = torch.tensor([220, 30, 30]) / 127.5 - 1


class SquareTask(WorldEnv):
    """The true world of squares: each seed has its own goal."""

    def __init__(self):
        super().__init__(SquareWorld(), lambda _: square_video(torch.zeros(1, 2))[0][:1], ACTIONS)

    def reset(self, *, seed=None, options=None):
        x, y = np.random.default_rng(seed).uniform(8, 24, 2)
        judge = ObjectAt(RED, torch.tensor([x, y]).float(), within=2.5)
        picture, info = super().reset(seed=seed, options={"judge": judge})
        return picture, {**info, "goal": np.array([x, y]), "judge": judge}


class Skilled:
    """Goes towards the goal with some skill."""

    def __init__(self, skill):
        self.skill = skill

    def reset(self, picture, info, seed, /):
        self.rng = np.random.default_rng(seed)
        self.left = info["goal"] - 16

    def act(self, picture, /):
        good = np.clip(self.left, -4, 4)
        self.left = self.left - good
        return self.skill * good + (1 - self.skill) * self.rng.uniform(-4, 4, 2)


def imagined(world):
    return WorldEnv(world, lambda _: square_video(torch.zeros(1, 2))[0][:1], ACTIONS)


def test_planning_again_after_every_step_reaches_goals():
    policy = PlanningPolicy(
        SquareWorld(noise=0.02),
        lambda info: info["judge"],
        BOUNDS,
        SearchConfig(horizon=2, samples=32, elites=6, iterations=3),
    )
    trials = [run_trial(SquareTask(), policy, seed=seed, steps=5) for seed in range(4)]
    assert all(trial.success for trial in trials)
    assert len(policy.plans) == len(trials[-1].actions)
    lucky = [run_trial(SquareTask(), RandomPolicy(BOUNDS), seed=s, steps=5) for s in range(4)]
    assert sum(trial.success for trial in lucky) < 4


def test_several_actions_of_a_plan_can_be_done():
    policy = PlanningPolicy(
        SquareWorld(),
        lambda info: info["judge"],
        BOUNDS,
        SearchConfig(horizon=3, samples=8, elites=2, iterations=1),
        method="mppi",
        execute=2,
    )
    trial = run_trial(SquareTask(), policy, seed=0, steps=4)
    assert len(policy.plans) == -(-len(trial.actions) // 2)


def test_an_unknown_planner_is_named():
    with pytest.raises(ValueError, match="no planner 'sgd'; there are cem, icem, mppi"):
        PlanningPolicy(SquareWorld(), lambda _: None, BOUNDS, method="sgd")


POLICIES = {f"skill {s}": Skilled(s) for s in (0.0, 0.4, 0.7, 1.0)}


def test_a_faithful_world_ranks_policies_as_the_real_one_does():
    found = evaluate_policy(
        POLICIES, imagined=imagined(SquareWorld()), real=SquareTask(), seeds=range(12), steps=5
    )
    assert np.array_equal(found.imagined, found.real)
    assert found.pearson().mean == pytest.approx(1)
    assert found.mmrv().mean == 0
    assert found.rates["skill 1.0"][1] > found.rates["skill 0.0"][1]


def test_a_world_that_does_not_move_tells_nothing():
    found = evaluate_policy(
        POLICIES, imagined=imagined(SquareWorld(gain=0.0)), real=SquareTask(), seeds=range(6)
    )
    summary = found.summary()
    assert summary["pearson"]["value"] is None
    assert summary["mmrv"]["value"] > 0
    assert summary["episodes"] == 6


def test_nothing_to_compare_is_refused():
    with pytest.raises(ValueError, match="0 policies and 1 beginnings"):
        evaluate_policy({}, imagined=SquareTask(), real=SquareTask(), seeds=[0])


@given(st.lists(st.integers(0, 100), min_size=2, max_size=6))
def test_no_order_is_violated_by_a_rising_map(real):
    real = np.array(real) / 100
    assert mmrv(imagined=real**3 + 2, real=real) == 0


def test_violations_are_measured_in_real_units():
    real, imagined = np.array([0.1, 0.5, 0.9]), np.array([0.2, 0.9, 0.6])
    # The last two are ranked the wrong way round: each is 0.4 off, the first is right.
    assert mmrv(imagined=imagined, real=real) == pytest.approx(0.8 / 3)


def test_correlation_of_a_constant_is_unknown():
    assert pearson(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 5.0])) == pytest.approx(1)
    assert np.isnan(pearson(np.ones(3), np.arange(3.0)))


def test_intervals_resample_beginnings():
    rng = np.random.default_rng(0)
    skill = np.array([0.1, 0.4, 0.8])[:, None]
    luck = rng.random((3, 40))
    noisy = PolicyEvaluation(("a", "b", "c"), luck < skill, rng.random((3, 40)) < skill)
    interval = noisy.pearson(draws=300)
    assert interval.low < interval.mean <= interval.high <= 1
