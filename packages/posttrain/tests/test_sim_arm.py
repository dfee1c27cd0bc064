"""Actions and the environment that they act in."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wfm_posttrain import sim
from wfm_posttrain.sim.actions import ACTION_SCALE, apply_action, euler, relative_actions, rotation

SMALL = (16, 16)
angles = st.floats(-1.4, 1.4)
states = st.tuples(*[st.floats(-1, 1)] * 3, angles, angles, st.floats(-3, 3), st.floats(0, 1)).map(
    np.array
)


@given(states)
def test_euler_angles_are_those_that_made_the_rotation(state):
    assert euler(rotation(state[3:6])) == pytest.approx(state[3:6], abs=1e-9)


@given(states, states)
@settings(max_examples=50)
def test_the_action_between_two_states_leads_from_one_to_the_other(one, other):
    action = relative_actions(np.stack([one, other]))[0]
    reached = apply_action(one, action)
    assert reached[:3] == pytest.approx(other[:3], abs=1e-5)
    assert rotation(reached[3:6]) == pytest.approx(rotation(other[3:6]), abs=1e-5)
    assert reached[6] == pytest.approx(other[6], abs=1e-6)


def test_an_action_is_seen_from_the_gripper_and_scaled_by_twenty():
    quarter = np.pi / 2
    states = np.array([[0, 0, 0, 0, 0, quarter, 0], [0, 0.01, 0, 0, 0, quarter, 1]])
    # Turned by a quarter about z, the gripper's x axis points along the world's y.
    assert relative_actions(states)[0] == pytest.approx([0.2, 0, 0, 0, 0, 0, 1], abs=1e-6)


def test_recorded_actions_follow_from_the_recorded_states():
    episode = sim.generate("arm-push", 5, size=SMALL)
    assert episode.action is not None
    assert episode.state is not None
    for t, action in enumerate(episode.action.astype(np.float64)):
        before, after = episode.state[t : t + 2].astype(np.float64)
        back = rotation(before[3:6]).T
        expected = [
            *(20 * back @ (after[:3] - before[:3])),
            *(20 * euler(back @ rotation(after[3:6]))),
            after[6],
        ]
        assert action == pytest.approx(expected, abs=1e-5)


def test_most_recordings_move_an_object_by_more_than_two_centimetres():
    moved = [
        max(sim.generate("arm-push", seed, size=(8, 8)).attributes["moved"]) for seed in range(12)
    ]
    assert np.mean(np.array(moved) > 0.02) >= 0.8


def test_what_captions_say_was_pushed_is_what_moved():
    for seed in range(4):
        episode = sim.generate("arm-push", seed, size=(8, 8))
        name = episode.attributes["pushed"]
        if name is None:
            assert max(episode.attributes["moved"]) < 0.02
            continue
        index = [thing["name"] for thing in episode.attributes["objects"]].index(name)
        moved = episode.object_pose[-1, index, :2] - episode.object_pose[0, index, :2]
        axis, sign = {"left": (1, -1), "right": (1, 1), "near": (0, 1), "far": (0, -1)}[
            episode.attributes["direction"]
        ]
        assert sign * moved[axis] == pytest.approx(np.abs(moved).max())
        assert all(name in text for text in episode.captions)


@pytest.fixture
def env():
    with sim.ArmPushEnv(size=SMALL, horizon=4) as env:
        yield env


def test_a_step_brings_the_tool_where_the_action_says(env):
    before = env.reset(seed=3)[0].state
    action = np.array([0.4, -0.3, 0.2, 0.0, 0.0, 0.5, 1.0])
    after = env.step(action)[0].state
    wanted = apply_action(before, action)
    assert after[:3] == pytest.approx(wanted[:3], abs=1.5e-3)
    assert after[3:6] == pytest.approx(wanted[3:6], abs=5e-3)


def test_the_tool_stays_in_its_workspace(env):
    env.reset(seed=0)
    for _ in range(6):
        observation = env.step(np.array([0, 0, -100.0, 0, 0, 0, 0]))[0]
    assert observation.state[2] > 0.025


def test_steps_are_gymnasiums_five_values(env):
    observation, info = env.reset(seed=1)
    assert info["objects"] == env.object_names
    assert observation.frame.shape == (3, *SMALL)
    for _ in range(4):
        observation, reward, terminated, truncated, info = env.step(np.zeros(7))
    assert reward == -info["distance"] < 0
    assert not terminated
    assert truncated


def test_a_reset_with_the_same_seed_starts_the_same_episode(env):
    first, one = env.reset(seed=8)
    env.step(np.ones(7) * 0.3)
    again, two = env.reset(seed=8)
    assert np.array_equal(first.frame, again.frame)
    assert one["goal"] == two["goal"]


def test_a_goal_is_reached_when_its_object_is_there(env):
    env.reset(seed=2)
    assert not env.success()
    here = env.object_positions()[env.goal.index]
    env.goal = type(env.goal)(env.goal.index, (float(here[0]) + 0.02, float(here[1])))
    assert env.success()
    assert env.distance() == pytest.approx(0.02, abs=1e-6)


def test_the_goal_frame_shows_the_goal_and_changes_nothing(env):
    env.reset(seed=4)
    before = env.save()
    picture = env.goal_frame()
    assert np.array_equal(before, env.save())
    assert not np.array_equal(picture, env.render())


def test_a_restored_state_has_the_same_future(env):
    env.reset(seed=6)
    snapshot = env.save()
    action = np.array([0.5, 0.2, -0.2, 0, 0, 0, 0])
    once = env.step(action)[0]
    env.restore(snapshot)
    again = env.step(action)[0]
    assert np.array_equal(once.state, again.state)
    assert np.array_equal(once.frame, again.frame)


@pytest.mark.parametrize("action", [np.zeros(6), np.full(7, np.nan)])
def test_an_action_of_another_kind_is_a_value_error(env, action):
    env.reset()
    with pytest.raises(ValueError, match="7 finite numbers"):
        env.step(action)


def test_the_scale_is_the_published_one():
    assert ACTION_SCALE.tolist() == [20, 20, 20, 20, 20, 20, 1]
