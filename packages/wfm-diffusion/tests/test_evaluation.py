import json

import pytest
import torch
from fakes import Codec, Text, network, squares
from test_world import VIDEO

import wfm_diffusion as wd
from wfm_diffusion.cli import main
from wfm_diffusion.evaluation import Scores, evaluate, psnr, resampled, standing_still
from wfm_diffusion.latents import open_clips


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = squares(tmp_path_factory.mktemp("clips"), count=3)
    for i, scene in enumerate(("slide", "slide", "fall")):
        side = folder / f"{i}.json"
        side.write_text(json.dumps({**json.loads(side.read_text()), "scene": scene}))
    return folder


def test_frames_are_scored_one_by_one():
    real = torch.zeros(1, 3, 2, 4, 4)
    off = real.clone()
    off[:, :, 1] = 0.2
    assert psnr(off, real).tolist() == [[pytest.approx(106.02, abs=0.01), pytest.approx(20.0)]]


def test_an_interval_holds_the_mean_and_shrinks_with_more_clips():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0))
    few, many = resampled(values[:25]), resampled(values)
    assert few.low < few.mean < few.high
    assert many.high - many.low < 0.4 * (few.high - few.low)
    assert resampled(values) == many


def test_a_perfect_model_beats_a_still_picture_at_every_horizon(clips):
    class Seer(wd.WorldModel):
        def video2world(self, past, prompts, *, frames, fps, seed):
            assert prompts == ["a red square moves", "a green square moves", "a blue square moves"]
            read = [open_clips(str(clips))[i].read(9, 9 + frames) for i in range(3)]
            return torch.stack(read).transpose(1, 2) / 127.5 - 1

    world = Seer(network(), Codec(), Text(), settings=VIDEO)
    scores = evaluate(world, open_clips(str(clips)), frames=8)
    facts = scores.facts()
    assert scores.ours.shape == (3, 8)
    assert scores.kinds == ("slide", "slide", "fall")
    assert facts["slide"]["clips"] == 2
    assert all(lead["low"] > 0 for lead in facts["slide"]["lead"])
    assert "8 of 8" in scores.table()


def test_the_baseline_is_the_last_frame_through_the_codec(clips):
    world = wd.WorldModel(network(), Codec(), Text(), settings=VIDEO)
    seen = open_clips(str(clips))[0].read(0, 9)[None].transpose(1, 2) / 127.5 - 1
    still = standing_still(world, seen, 5)
    once = Codec().decode(Codec().encode(seen[:, :, -1:]))
    torch.testing.assert_close(still, once.expand(-1, -1, 5, -1, -1))


def test_groups_are_by_kind_and_by_what_happens():
    ours, still = torch.full((3, 2), 26.0), torch.tensor([[20.0, 20], [30, 24], [26, 20]])
    scores = Scores(("a", "a", "b"), ours, still)
    facts = scores.facts()
    assert {name: x["clips"] for name, x in facts.items()} == {
        "a": 2,
        "b": 1,
        "baseline below 25 dB": 2,
        "baseline 25 dB or more": 1,
        "frames below 25 dB": 3,
        "frames of 25 dB or more": 2,
    }
    assert facts["baseline below 25 dB"]["lead_overall"]["mean"] == pytest.approx(4.5)
    frames = facts["frames below 25 dB"]
    assert frames["baseline"] == pytest.approx([20.0, 64 / 3])
    assert frames["lead_overall"]["mean"] == pytest.approx((6 + 2 + 6) / 3)
    easy = facts["frames of 25 dB or more"]
    assert easy["lead"][0]["mean"] == pytest.approx(-2.0)
    assert easy["lead"][1] is None
    assert "| frames of 25 dB or more | 2 | 26.00 | 28.00 |" in scores.table()


def test_the_command_prints_a_table_and_writes_all_of_it(tmp_path, clips, capsys):
    wd.save_network(network(), tmp_path / "m", card="card", world=VIDEO)
    words = ["evaluate", str(clips), "-m", str(tmp_path / "m"), "--guard", "none", "--steps", "2"]
    words += ["--codec", "fakes:codec", "--text-encoder", "fakes:text", "--device", "cpu"]
    assert main([*words, "--frames", "8", "-o", str(tmp_path / "scores.json")]) == 0
    assert "| fall | 1 |" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "scores.json").read_text())["slide"]["lead"]) == 8
    assert main(words) == 2
    assert "no clip has 25 frames" in capsys.readouterr().err
