import numpy as np
import pytest
import torch
from fakes import SquareWorld, square_video
from gymnasium import spaces

from wfm_posttrain.clips import ClipFolder
from wfm_posttrain.env import Beginning, WorldVectorEnv
from wfm_posttrain.imagination import (
    GoalContexts,
    ImaginationConfig,
    Steps,
    VisionPolicy,
    full_actions,
    improve,
)
from wfm_posttrain.plan import Bounds, ObjectAt
from wfm_posttrain.policies import run_trial
from wfm_posttrain.vision import SmallVision

ACTIONS = spaces.Box(-4, 4, (2,), np.float32)
BOUNDS = Bounds(torch.full((2,), -4.0), torch.full((2,), 4.0))
RED = torch.tensor([220, 30, 30]) / 127.5 - 1


def squares(generator):
    """Start in the middle; the goal is a few pixels away."""
    start, goal = torch.tensor([16.0, 16.0]), 10 + 12 * torch.rand(2, generator=generator)
    wanted = ObjectAt(RED, goal, within=2.0)
    frames = [square_video(torch.zeros(0, 2), start=place)[0] for place in (start, goal)]
    return Beginning(frames[0], frames[1][0], reward=wanted, judge=wanted)


def vector(world=None, envs=16):
    return WorldVectorEnv(world or SquareWorld(), squares, ACTIONS, num_envs=envs, horizon=4)


def actor():
    torch.manual_seed(0)
    return SmallVision(6, 2, width=8)


def progress_of(net, seeds=range(12)):
    """How many pixels nearer the policy comes in the true world of squares."""
    from wfm_posttrain.env import WorldEnv

    env = WorldEnv(SquareWorld(), squares, ACTIONS, horizon=3)
    policy = VisionPolicy(net, BOUNDS)
    ends = []
    for seed in seeds:
        trial = run_trial(env, policy, seed=seed, steps=3)
        ends.append(trial.rewards[-1])
    return np.mean(ends)


@pytest.mark.slow
def test_imagination_alone_teaches_to_reach_goals():
    net = actor()
    before = progress_of(net)
    config = ImaginationConfig(rounds=60, steps=4, epochs=4, lr=1e-3, spread=0.5)
    improve(net, vector(), BOUNDS, config)
    assert progress_of(net) > before + 2.0


def test_learning_is_seeded_and_changes_the_policy():
    config = ImaginationConfig(rounds=3, steps=3, epochs=1, critic_rounds=1)
    nets = [actor() for _ in range(3)]
    rewards = [improve(net, vector(envs=4), BOUNDS, config) for net in nets[:2]]
    assert rewards[0] == rewards[1]
    assert len(rewards[0]) == 3
    one, two, start = (torch.cat([p.flatten() for p in net.parameters()]) for net in nets)
    assert torch.equal(one, two)
    assert not torch.equal(one, start)


def test_the_critic_learns_first():
    config = ImaginationConfig(rounds=2, steps=3, epochs=1, critic_rounds=2)
    net, start = actor(), actor()
    improve(net, vector(envs=4), BOUNDS, config)
    for a, b in zip(net.parameters(), start.parameters(), strict=True):
        assert torch.equal(a, b)


def steps(reward, value, following, *, terminated=(), over=(), renewed=()):
    """One world's steps; the three lists are of numbers of steps."""
    count = len(reward)

    def flags(numbers):
        return torch.tensor([[i in numbers] for i in range(count)])

    column = torch.tensor
    return Steps(
        pictures=torch.zeros(count, 1, 6, 8, 8, dtype=torch.uint8),
        free=torch.zeros(count, 1, 2),
        log_prob=torch.zeros(count, 1),
        reward=column(reward)[:, None],
        value=column(value)[:, None],
        following=column(following)[:, None],
        terminated=flags(terminated),
        over=flags(over),
        valid=~flags(renewed),
    )


def test_advantages_are_discounted_sums_of_surprises():
    found = steps([1.0, 2.0, 3.0], [0.5, 0.5, 0.5], [0.5, 0.5, 4.0]).advantages(0.5, 1.0)
    # With lambda 1: the discounted rewards and the last value, minus the value at first.
    assert found[0].item() == pytest.approx(1 + 0.5 * 2 + 0.25 * 3 + 0.125 * 4 - 0.5)


def test_nothing_follows_an_end_and_time_limits_are_no_ends():
    done = steps([1.0, 9.0], [0.0, 0.0], [7.0, 7.0], terminated=[0], over=[0], renewed=[1])
    assert done.advantages(0.5, 1.0)[0].item() == pytest.approx(1.0)
    cut = steps([1.0, 9.0], [0.0, 0.0], [7.0, 7.0], over=[0], renewed=[1])
    assert cut.advantages(0.5, 1.0)[0].item() == pytest.approx(1 + 0.5 * 7)
    assert len(cut.flat()["reward"]) == 1


def test_goals_come_from_later_in_the_same_clip(recordings):
    folder = ClipFolder(recordings)
    contexts = GoalContexts(folder, 2, lambda goal: ObjectAt(RED, torch.zeros(2)), ahead=(3, 3))
    for seed in range(5):
        beginning = contexts(torch.Generator().manual_seed(seed))
        last = beginning.frames[-1]
        matches = []
        for clip in (folder[i] for i in range(len(folder))):
            frames = clip.read(0, len(clip))
            here = (frames[:-3] == last).flatten(1).all(1)
            matches.append(here & (frames[3:] == beginning.goal).flatten(1).all(1))
        assert any(match.any() for match in matches)
        assert beginning.judge is beginning.reward


def test_fixed_numbers_stay_fixed():
    bounds = Bounds(torch.tensor([-1.0, 0.5, -2.0]), torch.tensor([1.0, 0.5, 2.0]))
    full = full_actions(torch.tensor([[0.3, -9.0]]), bounds)
    torch.testing.assert_close(full, torch.tensor([[0.3, 0.5, -2.0]]))


def test_an_environment_without_goals_is_refused():
    frames = square_video(torch.zeros(0, 2))[0]
    env = WorldVectorEnv(SquareWorld(), lambda _: frames, ACTIONS, num_envs=2)
    with pytest.raises(ValueError, match="have no goals"):
        improve(actor(), env, BOUNDS, ImaginationConfig(rounds=1))
