import numpy as np
import pytest
import torch
from fakes import SquareWorld, square_video
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from wfm_posttrain.clips import ClipFolder
from wfm_posttrain.env import Beginning, ClipContexts, WorldEnv, WorldVectorEnv
from wfm_posttrain.plan import ObjectAt

ACTIONS = spaces.Box(-4, 4, (2,), np.float32)
RED = torch.tensor([220, 30, 30]) / 127.5 - 1
FRAMES = square_video(torch.zeros(1, 2))[0][:1]


def start(generator):
    return FRAMES


def where(picture):
    red = picture[..., 0].astype(int) - picture[..., 1] > 60
    rows, columns = np.nonzero(red)
    return np.array([columns.mean(), rows.mean()]) + 0.5


@pytest.mark.filterwarnings("ignore:.*For Box action spaces")
def test_gymnasium_finds_nothing_to_complain_about():
    env = WorldEnv(SquareWorld(noise=0.01), start, ACTIONS, horizon=5, render_mode="rgb_array")
    check_env(env, skip_render_check=True)


def test_actions_act_and_the_horizon_ends_the_episode():
    env = WorldEnv(SquareWorld(), start, ACTIONS, horizon=2)
    picture, _ = env.reset(seed=0)
    moved, _, terminated, truncated, _ = env.step(np.array([3, -2], np.float32))
    assert where(moved) - where(picture) == pytest.approx([3, -2])
    assert (terminated, truncated) == (False, False)
    assert env.step(np.zeros(2, np.float32))[3]


def test_actions_beyond_the_space_are_cut_to_it():
    env = WorldEnv(SquareWorld(), start, ACTIONS)
    before, _ = env.reset(seed=0)
    after = env.step(np.array([100, 0], np.float32))[0]
    assert where(after) - where(before) == pytest.approx([4, 0])


def test_reward_and_judge_say_when_it_is_done():
    goal = ObjectAt(RED, torch.tensor([20.0, 16.0]), within=1.0)
    env = WorldEnv(SquareWorld(), start, ACTIONS, reward=goal, judge=goal)
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step(np.array([1, 0], np.float32))
    assert reward == pytest.approx(-3)
    assert not terminated
    _, reward, terminated, _, info = env.step(np.array([3, 0], np.float32))
    assert reward == pytest.approx(0)
    assert terminated
    assert info["success"]


def test_an_episode_can_start_from_a_given_picture():
    env = WorldEnv(SquareWorld(), start, ACTIONS)
    frames = square_video(torch.tensor([[5.0, 5.0]]))[0]
    picture = np.ascontiguousarray(frames[1].permute(1, 2, 0))
    first, _ = env.reset(seed=0, options={"start": picture})
    assert np.array_equal(first, picture)


def test_a_seed_decides_everything(recordings):
    contexts = ClipContexts(ClipFolder(recordings), 1, anywhere=True)
    env = WorldEnv(SquareWorld(noise=0.1), contexts, ACTIONS)
    shows = []
    for seed in (1, 1, 2):
        first, _ = env.reset(seed=seed)
        shows.append((first, env.step(np.ones(2, np.float32))[0]))
    assert np.array_equal(shows[0][1], shows[1][1])
    assert not np.array_equal(shows[0][1], shows[2][1])


def test_several_worlds_go_together_and_begin_again():
    world = SquareWorld()
    env = WorldVectorEnv(world, start, ACTIONS, num_envs=3, horizon=2)
    first, _ = env.reset(seed=0)
    assert first.shape == (3, 32, 32, 3)
    moves = np.array([[1, 0], [2, 0], [3, 0]], np.float32)
    pictures = env.step(moves)[0]
    assert world.calls == 1
    shifts = [(where(b) - where(a))[0] for a, b in zip(first, pictures, strict=True)]
    assert shifts == pytest.approx([1, 2, 3])
    *_, truncated, _ = env.step(moves)
    assert truncated.all()
    again, rewards, _, truncated, _ = env.step(moves)
    assert np.array_equal(again, first)
    assert not truncated.any()
    assert not rewards.any()


def test_a_vector_of_one_equals_the_single_environment():
    single = WorldEnv(SquareWorld(), start, ACTIONS)
    several = WorldVectorEnv(SquareWorld(), start, ACTIONS, num_envs=1)
    single.reset(seed=4)
    several.reset(seed=4)
    action = np.array([2, 1], np.float32)
    assert np.array_equal(single.step(action)[0], several.step(action[None])[0][0])


def reaching(place, within=1.0):
    goal = ObjectAt(RED, torch.tensor(place), within=within)
    picture = square_video(torch.zeros(0, 2), start=place)[0][0]
    return Beginning(FRAMES, picture, reward=goal, judge=goal)


def test_a_beginning_brings_its_goal_reward_and_judge():
    env = WorldEnv(SquareWorld(), lambda _: reaching((20.0, 16.0)), ACTIONS)
    _, info = env.reset(seed=0)
    assert where(info["goal_frame"].transpose(1, 2, 0)) == pytest.approx([20, 16])
    _, reward, terminated, _, _ = env.step(np.array([4, 0], np.float32))
    assert reward == pytest.approx(0, abs=1e-4)
    assert terminated


def test_worlds_end_and_begin_again_each_for_itself():
    env = WorldVectorEnv(
        SquareWorld(), lambda _: reaching((20.0, 16.0)), ACTIONS, num_envs=2, horizon=3
    )
    first, info = env.reset(seed=0)
    assert info["goal_frame"].shape == (2, 3, 32, 32)
    moves = np.array([[4, 0], [0, 0]], np.float32)
    _, _, terminated, truncated, info = env.step(moves)
    assert terminated.tolist() == [True, False]
    assert info["success"].tolist() == [True, False]
    pictures, rewards, terminated, truncated, _ = env.step(moves)
    assert np.array_equal(pictures[0], first[0])
    assert rewards[0] == 0
    assert rewards[1] == pytest.approx(-4, abs=1e-3)
    *_, truncated, _ = env.step(moves)
    assert truncated.tolist() == [False, True]


def test_rewards_may_be_functions():
    seen = []

    def reward(future, actions):
        seen.append((tuple(future.shape), tuple(actions.shape)))
        return actions.sum(dim=(1, 2))

    env = WorldVectorEnv(SquareWorld(), start, ACTIONS, num_envs=2, reward=reward)
    env.reset(seed=0)
    assert env.step(np.array([[1, 2], [0, 1]], np.float32))[1].tolist() == [3, 1]
    assert seen == [((2, 3, 1, 32, 32), (2, 1, 2))]


def test_uncertainty_is_how_far_guesses_differ():
    doubts = {}
    for noise in (0.0, 0.1, 0.2):
        env = WorldEnv(SquareWorld(noise=noise), start, ACTIONS, guesses=6)
        env.reset(seed=0)
        doubts[noise] = env.step(np.zeros(2, np.float32))[4]["uncertainty"]
    assert doubts[0.0] == 0
    assert doubts[0.1] == pytest.approx(0.05, rel=0.1)
    assert doubts[0.2] == pytest.approx(2 * doubts[0.1], rel=0.1)


def test_caution_costs_what_is_uncertain():
    env = WorldVectorEnv(
        SquareWorld(noise=0.2), start, ACTIONS, num_envs=2, guesses=4, caution=10.0
    )
    env.reset(seed=0)
    _, rewards, _, _, info = env.step(np.zeros((2, 2), np.float32))
    assert rewards == pytest.approx(-10 * info["uncertainty"])
    with pytest.raises(ValueError, match="2 or more for caution"):
        WorldVectorEnv(SquareWorld(), start, ACTIONS, num_envs=1, caution=1.0)
