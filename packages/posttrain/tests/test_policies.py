import numpy as np
import pytest
import torch
from fakes import SquareWorld, square_video
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from wfm_posttrain.comparison import (
    PolicyEvaluation,
    evaluate_policy,
    kruskal,
    mmrv,
    pearson,
    spearman,
)
from wfm_posttrain.env import WorldEnv
from wfm_posttrain.plan import Bounds, ObjectAt, SearchConfig
from wfm_posttrain.policies import MPCPolicy, RandomPolicy, TumblePolicy, run_trial

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
    policy = MPCPolicy(
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
    policy = MPCPolicy(
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
        MPCPolicy(SquareWorld(), lambda _: None, BOUNDS, method="sgd")


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


def test_the_judge_is_measured_on_real_pictures():
    class Easy:
        def reached(self, frame, /):
            return True

    found = evaluate_policy(
        POLICIES,
        imagined=imagined(SquareWorld()),
        real=SquareTask(),
        seeds=range(6),
        steps=2,
        judge=lambda info: Easy(),
        families=dict.fromkeys(POLICIES, "skilled"),
    )
    assert found.imagined.all()
    assert found.judge_accuracy() == pytest.approx(found.real.mean())
    assert found.summary()["families"]["skilled"]["value"] is None
    fair = evaluate_policy(
        POLICIES, imagined=imagined(SquareWorld()), real=SquareTask(), seeds=range(6), steps=2
    )
    assert fair.judge_accuracy() == 1


def test_families_are_scored_apart():
    real = np.zeros((4, 100), bool)
    for row, rate in enumerate((10, 30, 50, 90)):
        real[row, :rate] = True
    found = PolicyEvaluation(
        ("a", "b", "c", "d"), real[[1, 0, 2, 3]], real, families=("x", "x", "y", "y")
    )
    assert found.family("x").pearson().mean == pytest.approx(-1)
    assert found.family("y").pearson().mean == pytest.approx(1)
    assert set(found.summary()["families"]) == {"x", "y"}
    with pytest.raises(ValueError, match="no family 'z'"):
        found.family("z")


def test_close_pairs_are_counted_and_their_order_checked():
    real = np.zeros((3, 10), bool)
    for row, rate in enumerate((4, 5, 9)):
        real[row, :rate] = True
    right = PolicyEvaluation(("a", "b", "c"), real, real)
    assert right.close_pairs() == (1, 1)
    wrong = PolicyEvaluation(("a", "b", "c"), real[[1, 0, 2]], real)
    assert wrong.close_pairs() == (1, 0)


def test_resampling_policies_widens_the_interval():
    rng = np.random.default_rng(0)
    skill = np.linspace(0.1, 0.9, 8)[:, None]
    found = PolicyEvaluation(
        tuple("abcdefgh"), rng.random((8, 60)) < skill, rng.random((8, 60)) < skill
    )
    narrow, wide = found.pearson(draws=500), found.pearson(policies=True, draws=500)
    assert wide.low < narrow.low < narrow.mean == wide.mean


def test_samples_of_one_distribution_are_not_told_apart():
    same = np.array([True, False] * 10)
    assert kruskal(same, same) == pytest.approx(1)
    assert kruskal(np.ones(5), np.ones(5)) == 1
    # H = (n - 1) between / within = 39 * 10 / 10: chi-squared of 39 with one degree of freedom.
    assert kruskal(np.ones(20), np.zeros(20)) == pytest.approx(4.24e-10, rel=0.01)


def test_rank_correlation_sees_order_only():
    a = np.array([1.0, 2.0, 3.0, 4.0])
    assert spearman(a, np.exp(a)) == pytest.approx(1)
    assert spearman(a, -(a**3)) == pytest.approx(-1)
    assert spearman(np.array([1.0, 1.0, 2.0]), np.array([5.0, 5.0, 9.0])) == pytest.approx(1)


def test_tumbling_keeps_a_direction_that_pays():
    goal = square_video(torch.zeros(0, 2), start=(26.0, 16.0))[0][0].numpy()
    policy = TumblePolicy(BOUNDS)
    pictures = [square_video(torch.zeros(0, 2), start=(x, 16.0))[0][0] for x in (16, 20, 24, 18)]
    shown = [np.ascontiguousarray(p.permute(1, 2, 0)) for p in pictures]
    policy.reset(shown[0], {"goal_frame": goal}, 0)
    first, second, third, fourth = (policy.act(picture) for picture in shown)
    assert np.array_equal(first, second)
    assert np.array_equal(second, third)
    assert not np.array_equal(third, fourth)
