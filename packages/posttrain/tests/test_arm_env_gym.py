import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from wfm_posttrain.policies import run_trial
from wfm_posttrain.simulator import ACTIONS, REACHED, ArmEnv, SkilledPolicy, move_bounds


@pytest.fixture(scope="module")
def reach():
    env = ArmEnv("reach")
    yield env
    env.close()


@pytest.mark.filterwarnings("ignore:.*For Box action spaces")
def test_gymnasium_finds_nothing_to_complain_about(reach):
    check_env(reach, skip_render_check=True)


def test_the_solution_of_reach_reaches(reach):
    trial = run_trial(reach, SkilledPolicy(1.0), seed=1, steps=6)
    assert trial.info["distance"] > 2 * REACHED
    assert trial.success
    assert len(trial.actions) <= 4


def test_the_goal_picture_is_what_reaching_looks_like(reach):
    _, info = reach.reset(seed=2)
    for action in info["solution"]:
        picture = reach.step(action)[0]
    judge = info["judge"]
    assert judge.reached(torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1))))
    first, _ = reach.reset(seed=2)
    assert not judge.reached(torch.from_numpy(np.ascontiguousarray(first.transpose(2, 0, 1))))


def test_skill_decides_how_near_one_comes(reach):
    ends = {
        skill: np.mean(
            [-run_trial(reach, SkilledPolicy(skill), seed=s, steps=4).rewards[-1] for s in range(3)]
        )
        for skill in (0.0, 1.0)
    }
    assert ends[1.0] < ends[0.0]


def test_push_tells_where_the_object_is_to_go():
    env = ArmEnv("push", horizon=1)
    try:
        picture, info = env.reset(seed=5)
        assert info["distance"] > 0.05
        assert {"goal_frame", "goal_pixel", "object_pixel", "judge"} <= info.keys()
        frame = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))
        assert not info["judge"].reached(frame)
        assert info["judge"].reached(torch.from_numpy(info["goal_frame"].copy()))
        *_, truncated, about = env.step(np.zeros(7, np.float32))
        assert truncated
        assert not about["success"]
    finally:
        env.close()


def test_searched_moves_lie_in_the_action_space():
    bounds = move_bounds(gripper=0.5)
    assert ACTIONS.contains(bounds.low.numpy())
    assert ACTIONS.contains(bounds.high.numpy())


def test_an_unknown_task_is_named():
    with pytest.raises(ValueError, match="no task 'dance'"):
        ArmEnv("dance")
