"""Figures of model cards: what is measured must be there when it is, and not when it is not."""

import json

import pytest
import torch
from fakes import GreyCodec, LengthEncoder, clip_folder, imagined, moving_square, pushed, tiny

import wfm_ar as wa
from wfm_ar import drift, evaluation, trial
from wfm_ar.cli import main
from wfm_ar.clips import find_clips, fit, fit_segments
from wfm_ar.evaluation import collapses, evaluate, nats, pops, psnr, samples, surprise
from wfm_ar.objects import displacement, moving_masks, summary


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return clip_folder(tmp_path_factory.mktemp("clips"), clips=3)


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_psnr_is_of_the_range_two():
    a = torch.zeros(1, 3, 2, 4, 4)
    found = psnr(a, torch.stack([torch.full((1, 3, 4, 4), 0.2), a[:, :, 0]], 2))
    torch.testing.assert_close(found, torch.tensor([20.0, 106.0206]), rtol=0, atol=1e-3)


def test_large_things_pop_up_small_and_slow_ones_do_not():
    past = noise(1, 3, 3, 20, 20) * 0.05
    quiet = past[:, :, :1].expand(-1, -1, 4, -1, -1).clone()
    assert not pops(quiet, past)
    small, large, slow = quiet.clone(), quiet.clone(), quiet.clone()
    small[:, :, 2:, :4, :4] = 1
    large[:, :, 2:, :8, :8] = 1
    for i in range(4):
        slow[:, :, i, :8, :8] = 0.3 * i
    assert not pops(small, past)
    assert pops(large, past)
    assert not pops(slow, past)
    busy = torch.where(torch.arange(3)[:, None, None] % 2 == 0, past, -1.0 + past)
    assert not pops(large, busy)  # as much has changed before


def test_one_colour_is_a_collapse():
    past = noise(1, 3, 3, 20, 20)
    assert not collapses(noise(1, 3, 4, 20, 20, seed=1), past)
    last = noise(1, 3, 4, 20, 20, seed=1)
    last[:, :, 3] = last[:, :, 3] * 0.05 + 0.4
    assert collapses(last, past)


def test_perplexity_is_of_the_future_alone():
    world = imagined()
    tokens = torch.randint(40, (1, 3, 2, 2), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logs = world.lm.logits(tokens.flatten(1)).log_softmax(-1)[0]
        found = nats(world, tokens, 2, None)
    expected = [-logs[i - 1, tokens.flatten()[i]].item() for i in range(8, 12)]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    bov = wa.WorldModel(tiny(bov=True, max_positions=64), GreyCodec())
    with torch.no_grad():
        assert len(nats(bov, tokens, 2, None)) == 4


def test_frames_of_their_own_are_scored_one_by_one():
    sample = evaluation.Sample(
        "a", moving_square(2), moving_square(3, start=2), "", {"action": noise(1, 3, 7)}
    )
    world = pushed()
    found = surprise(world, sample)
    assert len(found) == 3 * 4
    other = sample._replace(controls={"action": noise(1, 3, 7, seed=1) * 9})
    assert not torch.allclose(surprise(world, other), found)


def test_a_card_has_every_scene(clips):
    figures = evaluate(imagined(), find_clips(str(clips)), count=3)
    assert set(figures) == {"all"}
    row = figures["all"]
    assert (row["clips"], len(row["psnr"]), len(row["recoded"])) == (3, 2, 2)
    assert row["perplexity"] > 1
    assert row["false_alarms"] == 0
    text = evaluation.table(figures)
    assert text.splitlines()[2].startswith("| all | 3 |")
    assert "frames/s" in text
    longer = evaluate(imagined(), find_clips(str(clips)), count=3, frames=6)
    assert len(longer["all"]["psnr"]) == 6
    with pytest.raises(ValueError, match="none of 3 clips has 12 frames at 10 Hz"):
        evaluate(imagined(), find_clips(str(clips)), frames=9)
    with pytest.raises(ValueError, match="and actions"):
        list(samples(pushed(), find_clips(str(clips)), 1, 3))


class Recording:
    """A red square that an action pushes to the right, two pixels a frame; with labels."""

    fps, caption = 10.0, "pushed"

    def __init__(self, scene, frames=6):
        self.attributes, self.frames = {"scene": scene}, frames

    def __len__(self):
        return self.frames

    def masks(self):
        masks = torch.zeros(self.frames, 16, 24, dtype=torch.int64)
        for i in range(self.frames):
            masks[i, :12, 2 * i : 2 * i + 8] = 1
            masks[i, 12:, 4 * i : 4 * i + 4] = 2  # moves too, but is no object
        return masks

    def read(self, start, stop, /):
        red = (self.masks() == 1).to(torch.uint8)[start:stop, None] * 200 + 20
        return torch.cat([red, red // red * 20, red // red * 20], 1)

    def labels(self):
        action = torch.full((self.frames, 7), float(len(self.attributes["scene"])))
        poses = torch.zeros(self.frames, 1, 7)
        return {"segmentation": self.masks(), "object_pose": poses, "action": action}


def test_objects_are_followed_by_their_colour():
    clip = Recording("a")
    (mask,) = moving_masks(clip.masks(), highest=1)
    assert len(moving_masks(clip.masks())) == 2
    assert moving_masks(clip.masks()[:1].expand(3, -1, -1)) == []
    video = fit(clip.read(0, 6), 16, 24).transpose(0, 1)
    assert displacement(video[:, 1:], video[:, 0], mask).tolist() == [0.0] * 5
    still = video[:, :1].expand(-1, 5, -1, -1)
    assert displacement(still, video[:, 0], mask).tolist() == [2.0, 4.0, 6.0, 8.0, 10.0]
    gone = torch.full_like(still, -0.8)
    assert displacement(gone, video[:, 0], mask).isinf().all()
    assert summary(torch.tensor([[1.0, torch.inf], [3.0, torch.nan]])) == (
        2.0,
        pytest.approx(1 / 3),
    )
    assert summary(torch.empty(0, 4)) == (None, None)
    mask = mask.clone()
    mask[2] = False  # hidden in truth: no error
    assert displacement(still, video[:, 0], mask).isnan().tolist() == [False, True] + [False] * 3
    small = fit_segments(clip.masks(), 8, 8)  # 8 x 12, of which the middle is kept
    assert small.shape == (6, 8, 8)
    columns = [(frame == 1).any(0).nonzero().flatten().tolist() for frame in small]
    assert columns[:3] == [[0, 1], [0, 1, 2], [0, 1, 2, 3]]


def test_a_card_follows_objects_and_tries_other_actions():
    world = pushed()
    clips = [Recording("a"), Recording("bb"), Recording("bb")]
    figures = evaluate(world, clips, count=3)
    assert set(figures) == {"a", "bb", "all"}
    row = figures["all"]
    assert row["objects"] == 3
    assert 0 <= row["lost"] <= 1
    assert set(row["action_gap_db"]) == {"shuffled", "drawn"}
    taken = list(samples(world, clips, 2, 3))
    others = evaluation.other_controls(taken)
    assert torch.equal(others[0]["shuffled"]["action"], taken[2].controls["action"])
    same = evaluation.score(world, taken[0], others={"same": taken[0].controls})
    assert torch.equal(same.wrong["same"], same.psnr)
    text = evaluation.table(figures)
    assert "gap dB, drawn actions" in text
    assert len({line.count("|") for line in text.splitlines()[:5]}) == 1


def test_drift_tells_the_rounds_apart(clips):
    rows = drift.drift(imagined(), find_clips(str(clips)), rounds=3, count=2)
    assert [row["round"] for row in rows] == [1, 2, 3]
    assert rows[0]["psnr"] == rows[0]["psnr"]
    assert rows[1]["psnr"] != rows[1]["psnr"]
    assert rows[0]["recoded"] >= rows[2]["recoded"] - 1e-4
    assert len(drift.table(rows).splitlines()) == 5


def test_drafts_are_exact_on_clips(clips):
    world = imagined()
    rows = trial.try_drafts(world, find_clips(str(clips)), trial.copies(world), count=3)
    assert {row["draft"] for row in rows} == {"copy 2", "copy 4"}
    assert all(row["same_tokens"] == row["clips"] for row in rows)
    assert all(row["tokens_per_pass"] >= 1 for row in rows)
    with pytest.raises(ValueError, match="without controls"):
        trial.try_drafts(pushed(), find_clips(str(clips)), {})


def test_still_and_moving_scenes_differ():
    still = evaluation.Sample("a", moving_square(1), moving_square(1), "", None)
    assert not trial.moves(still)
    assert trial.moves(still._replace(real=moving_square(3)))


@pytest.fixture
def folder(tmp_path):
    world, settings = imagined(), imagined().settings
    told = settings.model_copy(
        update={"codec": "fakes:codec", "text_encoder": "fakes:text_encoder"}
    )
    wa.save(world.lm, tmp_path / "model", files={"world.json": told.model_dump_json()})
    assert isinstance(world.text_encoder, LengthEncoder)
    return tmp_path / "model"


def test_the_commands(folder, clips, tmp_path, capsys):
    shared = [str(clips), "-m", str(folder), "--device", "cpu", "-q"]
    out = tmp_path / "card.md"
    assert main(["evaluate", *shared, "-n", "2", "--json", "-o", str(out)]) == 0
    assert json.loads(capsys.readouterr().out)["scenes"]["all"]["clips"] == 2
    assert "| all | 2 |" in out.read_text()
    assert main(["evaluate", *shared, "-n", "2", "--rounds", "2", "--temperature", "0"]) == 0
    assert "| round |" in capsys.readouterr().out
    heads = str(tmp_path / "heads")
    train = ["train-heads", *shared, "-o", heads, "--steps", "2", "--count", "2", "--json"]
    assert main(train) == 0
    assert len(json.loads(capsys.readouterr().out)["held_out_accuracy"]) == 2
    assert main(["drafts", *shared, "-n", "2", "--heads", heads, "--weights", "float32"]) == 0
    said = capsys.readouterr().out
    assert "| heads |" in said
    assert "| copy 4 |" in said
    assert main(["drafts", *shared, "--heads", str(clips)]) == 2
    assert "no such file" in capsys.readouterr().err
