import pytest
import torch
from fakes import PatchCodec, SquareWorld, square_video
from hypothesis import given
from hypothesis import strategies as st

from wfm_posttrain.plan import (
    PLANNERS,
    Bounds,
    ImaginedReturn,
    LooksLike,
    NearerTo,
    ObjectAt,
    SearchConfig,
    coloured_noise,
)
from wfm_posttrain.video import to_model

BOUNDS = Bounds(torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 2.0]))
BEST = torch.tensor([[0.3, -1.1], [-0.6, 0.4], [0.9, 1.5]])
RED = torch.tensor([220, 30, 30]) / 127.5 - 1


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def bowl(actions):
    return -(actions - BEST).square().sum(dim=(1, 2))


@pytest.mark.parametrize("name", PLANNERS)
def test_planners_find_the_top_of_a_hill(name):
    config = SearchConfig(horizon=3, samples=200, elites=20, iterations=15, colour=0.5)
    plan = PLANNERS[name](bowl, BOUNDS, config, generator=seeded())
    assert (plan.actions - BEST).abs().max() < 0.15
    assert plan.score == pytest.approx(bowl(plan.actions[None]).item(), abs=1e-6)
    assert plan.history[-1] >= plan.history[0]
    assert len(plan.history) == 15


@pytest.mark.parametrize("name", PLANNERS)
@given(seed=st.integers(0, 100))
def test_plans_stay_within_bounds_and_fixed_numbers_fixed(name, seed):
    fixed = Bounds(torch.tensor([-1.0, 0.7]), torch.tensor([1.0, 0.7]))
    seen = []

    def far(actions):
        seen.append(actions)
        return actions.sum(dim=(1, 2))

    config = SearchConfig(horizon=2, samples=12, elites=3, iterations=3)
    plan = PLANNERS[name](far, fixed, config, generator=seeded(seed))
    for actions in [*seen, plan.actions]:
        assert (actions[..., 0].abs() <= 1 + 1e-6).all()
        torch.testing.assert_close(actions[..., 1], torch.full_like(actions[..., 1], 0.7))


@pytest.mark.parametrize("name", PLANNERS)
def test_the_same_seed_gives_the_same_plan(name):
    config = SearchConfig(horizon=3, samples=16, elites=4, iterations=2)
    plans = [PLANNERS[name](bowl, BOUNDS, config, generator=seeded(3)) for _ in range(2)]
    assert torch.equal(plans[0].actions, plans[1].actions)


@pytest.mark.parametrize("name", PLANNERS)
def test_what_is_not_a_number_is_never_chosen(name):
    def broken(actions):
        return torch.where(actions[:, 0, 0] > 0, torch.nan, bowl(actions))

    config = SearchConfig(horizon=3, samples=64, elites=4, iterations=4)
    plan = PLANNERS[name](broken, BOUNDS, config, generator=seeded())
    assert plan.actions[0, 0] <= 0


@pytest.mark.parametrize("name", PLANNERS)
def test_a_search_goes_on_from_an_earlier_plan(name):
    config = SearchConfig(horizon=3, samples=16, elites=4, iterations=1, spread=0.02)
    plan = PLANNERS[name](bowl, BOUNDS, config, generator=seeded(), start=BEST)
    assert (plan.actions - BEST).abs().max() < 0.2


def test_coloured_noise_has_unit_variance_and_is_smooth():
    white, red = (coloured_noise((4000, 12, 1), c, seeded()) for c in (0.0, 2.0))
    assert red.var().item() == pytest.approx(1, rel=0.1)
    assert red.diff(dim=1).var() < 0.5 * white.diff(dim=1).var()


def test_bounds_the_wrong_way_round_are_refused():
    with pytest.raises(ValueError, match="bounds from"):
        Bounds(torch.ones(2), torch.zeros(2))


@pytest.mark.parametrize("name", PLANNERS)
def test_planning_in_an_imagined_world_brings_the_square_to_its_place(name):
    frames, _ = square_video(torch.zeros(1, 2))
    objective = ImaginedReturn(
        SquareWorld(), to_model(frames[:1]), ObjectAt(RED, torch.tensor([22.0, 11.0]))
    )
    bounds = Bounds(torch.full((2,), -4.0), torch.full((2,), 4.0))
    config = SearchConfig(horizon=3, samples=48, elites=8, iterations=5)
    plan = PLANNERS[name](objective, bounds, config, generator=seeded())
    reached = torch.tensor([16.0, 16.0]) + plan.actions.sum(dim=0)
    assert (reached - torch.tensor([22.0, 11.0])).norm() < 2


def test_imagined_returns_do_not_depend_on_how_they_are_batched():
    frames, _ = square_video(torch.zeros(1, 2))
    goal = square_video(torch.tensor([[4.0, 2.0]]))[0][-1]
    actions = torch.randn(5, 2, 2, generator=seeded())
    scores = [
        ImaginedReturn(SquareWorld(), to_model(frames[:1]), LooksLike(goal), batch=batch)(actions)
        for batch in (2, 5)
    ]
    torch.testing.assert_close(*scores)


@pytest.mark.parametrize("codec", [None, PatchCodec()], ids=["pixels", "latents"])
def test_the_goal_itself_looks_most_like_the_goal(codec):
    frames, _ = square_video(torch.tensor([[8.0, 0.0]]))
    reward = LooksLike(frames[1], codec)
    videos = torch.cat([to_model(frames[1:]), to_model(frames[:1])])
    scores = reward.score(videos, None)
    assert scores[0] == pytest.approx(0, abs=1e-6)
    assert scores[1] < scores[0]


def test_a_missing_object_is_the_farthest():
    reward = ObjectAt(RED, torch.tensor([0.0, 0.0]))
    frames, _ = square_video(torch.zeros(1, 2))
    empty = torch.full_like(frames, 90)
    scores = reward.score(torch.cat([to_model(frames), to_model(empty)]), None)
    assert scores[1] < scores[0]
    assert not reward.reached(empty[0])
    assert ObjectAt(RED, torch.tensor([16.0, 16.0])).reached(frames[0])


def test_a_judge_knows_the_goal_from_the_start():
    first, goal = square_video(torch.tensor([[8.0, 0.0]]))[0]
    judge = NearerTo(goal, first)
    assert judge.reached(goal)
    assert not judge.reached(first)
