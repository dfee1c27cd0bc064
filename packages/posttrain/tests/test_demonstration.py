"""The uses of a world model on the simulated arm, with the simulator itself for a world model."""

import json

import pytest
import torch

from wfm_posttrain.cli import main
from wfm_posttrain.clips import ClipFolder
from wfm_posttrain.demonstration import Errand, Learner, agreement, compare_policies, contest
from wfm_posttrain.experiments import attempt, join
from wfm_posttrain.plan import SearchConfig
from wfm_posttrain.policies import run_trial
from wfm_posttrain.simulator import ArmEnv, PushAlong, SkilledPolicy, TrueWorld
from wfm_posttrain.vision import read_gallery

SEARCH = SearchConfig(horizon=2, samples=10, elites=3, iterations=2)


class Frozen:
    """A world in which nothing ever happens."""

    past_frames = 1

    def rollout(self, past, /, *, frames, controls=None, prompts=None, generator=None):
        count = len(controls["action"])
        return past[:, :, -1:].expand(count, -1, frames, -1, -1)


def frozen():
    return Frozen()


@pytest.fixture(scope="module")
def arm_clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arm")
    command = ["simulate", "--scene", "arm-push", "--clips", "4", "--frames", "8", "--workers", "1"]
    assert main([*command, "-o", str(folder), "-q"]) == 0
    return folder


@pytest.fixture(scope="module")
def learner(arm_clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("learned")
    return Learner(ClipFolder(arm_clips), folder, "arm", steps=20)


def test_the_simulator_is_a_world_model_that_imagines_the_truth():
    env = ArmEnv("reach")
    try:
        _, info = env.reset(seed=3)
        actions = torch.from_numpy(info["solution"])[None]
        before = env.simulator.save()
        past = torch.zeros(1, 3, 1, 64, 64)
        twice = TrueWorld(env).rollout(
            past, frames=actions.shape[1], controls={"action": actions.repeat(2, 1, 1)}
        )
        assert (env.simulator.save() == before).all()
        assert torch.equal(twice[0], twice[1])
        trial = run_trial(env, SkilledPolicy(1.0), seed=3, steps=4)
        last = torch.from_numpy(trial.pictures[-1].copy()).permute(2, 0, 1) / 127.5 - 1
        frame = twice[0, :, len(trial.actions) - 1]
        assert (frame - last).abs().mean() < 0.01
        with pytest.raises(ValueError, match="needs 3 actions for 3 frames"):
            TrueWorld(env).rollout(past, frames=3, controls={"action": actions[:, :2]})
    finally:
        env.close()


def test_planners_meet_their_rivals_on_the_same_goals(tmp_path, learner):
    errand = Errand(steps=2, config=SEARCH)
    found = contest(
        Frozen(), [5, 6], tmp_path, errand, rivals=["random", "tumble", "cloned", "simulator"],
        learner=learner,
    )  # fmt: skip
    starts = {name: [goal["start"] for goal in facts["goals"]] for name, facts in found.items()}
    assert len({tuple(start) for start in starts.values()}) == 1
    assert found["simulator"]["end"]["value"] < found["model"]["end"]["value"]
    assert found["simulator"]["model_nearer"]["value"] < 0
    assert found["simulator"]["seconds_per_plan"] > 0 == found["random"]["seconds_per_plan"]
    assert len(list(tmp_path.glob("*.mp4"))) == 10


def test_the_order_of_plans_is_right_in_the_truth_and_unknown_in_a_frozen_world():
    class Standing:
        """The simulator, wherever the demonstration's own environment stands."""

        past_frames = 1

        def __init__(self):
            self.env = ArmEnv("reach")

        def rollout(self, past, /, **keywords):
            self.env.reset(seed=4)
            return TrueWorld(self.env).rollout(past, **keywords)

    errand, world = Errand(steps=2, config=SEARCH), Standing()
    try:
        assert agreement(world, [4], errand, plans=4)["rho"] == [pytest.approx(1)]
        frozen = agreement(Frozen(), [4], errand, plans=4)
        assert frozen["mean"]["value"] is None
    finally:
        world.env.close()


def test_an_unknown_rival_or_errand_is_named(tmp_path):
    with pytest.raises(ValueError, match="no rival 'luck'; there are random"):
        contest(Frozen(), [1], tmp_path, Errand(config=SEARCH), rivals=["luck"])
    with pytest.raises(ValueError, match="no 'fly' by 'pixels'"):
        Errand(task="fly")
    with pytest.raises(ValueError, match="give --clips"):
        contest(Frozen(), [1], tmp_path, Errand(reward="seen", config=SEARCH))
    with pytest.raises(ValueError, match="Frozen shows none"):
        contest(Frozen(), [1], tmp_path, Errand(reward="latents", config=SEARCH))


def test_what_was_learned_is_kept(learner):
    reader = learner.tool()
    path = learner.folder / "state-0.safetensors"
    written = path.stat().st_mtime_ns
    again = learner.tool()
    assert path.stat().st_mtime_ns == written
    for a, b in zip(reader.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    other = Learner(learner.clips, learner.folder, "other recordings", steps=1)
    other.tool()
    assert path.stat().st_mtime_ns != written


def test_a_policy_of_no_training_is_another_than_one_of_some(learner):
    policies = [learner.policy(steps=steps) for steps in (0, 2)]
    first, second = (policy.net.head[0].weight for policy in policies)
    assert not torch.equal(first, second)
    assert (learner.folder / f"policy-{learner.limit}-0-0.safetensors").is_file()


def test_pushing_is_rewarded_for_getting_behind_the_object_and_along(learner):
    env = ArmEnv("push", horizon=2)
    try:
        picture, info = env.reset(seed=5)
    finally:
        env.close()
    reward = PushAlong(info, learner.tool(pixels=True))
    goal = torch.from_numpy(info["goal_frame"].copy())
    first = torch.from_numpy(picture.copy()).permute(2, 0, 1)
    videos = torch.stack([goal, first])[:, :, None] / 127.5 - 1
    scores = reward.score(videos, None)
    assert scores[0] > scores[1] + 1


def test_two_families_of_policies_are_compared(learner):
    found = compare_policies(Frozen(), [0.0, 1.0], [7, 8], steps=3, learner=learner, cloned=[1, 2])
    assert set(found["families"]) == {"scripted", "cloned"}
    assert set(found["success"]) == {"skill 0", "skill 1", "cloned 1 steps", "cloned 2 steps"}
    assert found["success"]["skill 1"]["real"] > 0.4
    assert 0 <= found["judge_accuracy"] <= 1


def test_galleries_are_joined_clip_by_clip(arm_clips):
    gallery = read_gallery(ClipFolder(arm_clips), 2)
    both = join(gallery, gallery)
    assert len(both.frames) == 2 * len(gallery.frames)
    assert both.clip.unique().tolist() == [0, 1, 2, 3]


def test_attempts_count_metres_and_successes():
    env = ArmEnv("reach", horizon=4)
    try:
        found = attempt(env, SkilledPolicy(1.0), [1, 2], steps=4)
    finally:
        env.close()
    assert (found.nearer > 0.03).all()
    assert found.facts()["success"]["value"] == 1


@pytest.mark.slow
def test_the_commands_of_the_uses_run(arm_clips, tmp_path, capsys):
    model = ["-m", "test_demonstration:frozen", "-q"]
    learn = ["--clips", str(arm_clips), "--learned", str(tmp_path / "nets"), "--learn-steps", "2"]
    out = tmp_path / "found.json"
    commands = {
        "evaluate-policy": ["--episodes", "2", "--skills", "0,1", "--cloned", "1", "-o", str(out)],
        "train-policy": ["--episodes", "2", "--set", "rounds=1", "-o", str(out)],
        "plan": ["--goals", "1", "--steps", "1", "--set", "samples=2", "--set", "elites=1",
                 "--rivals", "random", "--agreement", "-o", str(tmp_path / "plans")],
    }  # fmt: skip
    for name, arguments in commands.items():
        assert main([name, *model, *learn, *arguments]) == 0, capsys.readouterr().err
        assert capsys.readouterr().out
    assert {"real", "gap", "ahead"} <= json.loads(out.read_text()).keys()
    made = tmp_path / "imagined"
    settings = ["--set", "clips=2", "--set", "frames=3", "--set", "least_motion=0"]
    command = ["synthesize", *model, "--clips", str(arm_clips), "-o", str(made), *settings]
    assert main(command) == 0
    assert "kept" in capsys.readouterr().out
    assert main(["probe", *model, *learn, "--held-out", str(arm_clips)]) == 2
    assert "no denoiser and codec to probe" in capsys.readouterr().err
