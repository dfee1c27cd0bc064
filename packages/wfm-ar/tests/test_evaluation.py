"""Figures of model cards: what is measured must be there when it is, and not when it is not."""

import json

import pytest
import torch
from fakes import GreyCodec, LengthEncoder, clip_folder, imagined, moving_square, pushed, tiny

import wfm_ar as wa
from wfm_ar import drift, evaluation, trial
from wfm_ar.cli import main
from wfm_ar.clips import find_clips
from wfm_ar.evaluation import collapses, evaluate, nats, pops, psnr, samples, surprise


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
