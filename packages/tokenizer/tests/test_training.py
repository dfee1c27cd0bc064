import json
import os
import random
import subprocess
import sys

import av
import pytest
import torch
from conftest import FAMILIES, make, noise, write_film
from pydantic import ValidationError
from safetensors.torch import load_file

from wfm_tokenizer import TrainConfig, load, train
from wfm_tokenizer.data import BatchShape, ClipCache, Source, shrink
from wfm_tokenizer.evaluation import latent_statistics
from wfm_tokenizer.metrics import block_mean, perplexity, psnr
from wfm_tokenizer.processes import Processes
from wfm_tokenizer.training import Run, learning_rate

TINY = {"channels": 4, "channels_mult": (1, 1, 1), "num_res_blocks": 1, "z_channels": 4}


@pytest.fixture
def films(tmp_path):
    folder = tmp_path / "films"
    folder.mkdir()
    for i in range(4):
        write_film(folder / f"{i}.mp4", frames=12, height=32, width=40, seed=i)
    return folder


def config_for(films, out, **changes):
    settings = {
        "out": out,
        "model": {"temporal_compression": 4, "latent_channels": 4, **TINY},
        "sources": [{"clips": str(films)}],
        "shapes": [
            {"frames": 1, "size": 16, "batch": 2},
            {"frames": 5, "size": 16, "batch": 2},
            {"frames": 9, "size": 32, "batch": 2},
        ],
        "steps": 6,
        "warmup": 2,
        "log_every": 1,
        "evaluate_every": 4,
        "checkpoint_every": 4,
        "evaluate_clips": 2,
        "evaluate_frames": 9,
        "statistics_batches": 3,
    }
    return TrainConfig.model_validate(settings | changes)


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_the_same_seed_gives_the_same_tokenizer(films, tmp_path):
    a = train(config_for(films, tmp_path / "a", steps=3))
    b = train(config_for(films, tmp_path / "b", steps=3))
    other = train(config_for(films, tmp_path / "c", steps=3, seed=1))
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert same_weights(a, b)
    assert a.fingerprint == b.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "muon"},
        {"optimizer": "adamw", "loss": {"adversarial": 0.1, "adversarial_from": 2, "gram": 0.1}},
    ],
)
def test_a_resumed_run_is_bit_for_bit_the_uninterrupted_one(films, tmp_path, settings):
    whole = train(config_for(films, tmp_path / "whole", **settings))
    calls = []

    def interrupt(step, _):
        calls.append(step)
        if step == 5:
            raise KeyboardInterrupt

    config = config_for(films, tmp_path / "parts", **settings)
    with pytest.raises(KeyboardInterrupt):
        train(config, log=interrupt)
    resumed = train(config, resume=True)
    assert same_weights(resumed, whole)
    assert resumed.config == whole.config
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_a_frozen_encoder_keeps_latents_while_the_decoder_learns(films, tmp_path):
    first = train(config_for(films, tmp_path / "first", steps=3))
    again = config_for(films, tmp_path / "again", steps=9).model_dump(exclude={"model"})
    again |= {"start": str(tmp_path / "first/model"), "freeze_encoder": True}
    second = train(TrainConfig.model_validate(again))
    video = noise(1, 3, 9, 32, 32)
    assert torch.equal(second.encode(video), first.encode(video))
    assert second.config == first.config
    assert not torch.equal(second(video), first(video))
    figures = [json.loads((tmp_path / f"{name}/model/metrics.json").read_text())
               for name in ("first", "again")]  # fmt: skip
    assert figures[1]["psnr_video"] > figures[0]["psnr_video"]
    assert "the encoder stayed" in (tmp_path / "again/model/README.md").read_text()

    def interrupt(step, _):
        if step == 5:
            raise KeyboardInterrupt

    parts = TrainConfig.model_validate(again | {"out": tmp_path / "parts"})
    with pytest.raises(KeyboardInterrupt):
        train(parts, log=interrupt)
    assert same_weights(train(parts, resume=True), second)


def test_a_start_that_cannot_be_is_refused_before_any_work(films, tmp_path):
    with pytest.raises(ValidationError, match="needs start"):
        config_for(films, tmp_path / "run", freeze_encoder=True)
    with pytest.raises(ValidationError, match="not the one of builtin:pico-cv4x8x8; leave it out"):
        config_for(films, tmp_path / "run", start="builtin:pico-cv4x8x8")
    settings = {"out": tmp_path / "run", "sources": [{"clips": str(films)}], "start": "nowhere"}
    with pytest.raises(ValidationError, match="start: nowhere"):
        TrainConfig.model_validate(settings)


TRAIN = """
import sys
from wfm_tokenizer.train_config import TrainConfig
from wfm_tokenizer.training import Run, train

whole, parts = (TrainConfig.model_validate_json(open(path).read()) for path in sys.argv[1:])
train(whole)
update = Run.update

def interrupt(run, step, cache):
    if step == 5:
        raise KeyboardInterrupt
    update(run, step, cache)

Run.update = interrupt
try:
    train(parts)
except KeyboardInterrupt:
    Run.update = update
    train(parts, resume=True)
"""


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adamw", "lr": 1e-3, "loss": {"adversarial": 0.05, "gram": 0.1}},
        {"optimizer": "adamw", "lr": 1e-3, "loss": {"adversarial": 0.05}, "shard": True},
        {"optimizer": "muon", "shard": True},
    ],
)
def test_two_processes_take_the_steps_of_one_with_their_batch(films, tmp_path, changes):
    """By torchrun and gloo; equal up to the order of additions, and resumed bit for bit."""
    train(config_for(films, tmp_path / "one", **changes))
    (tmp_path / "train.py").write_text(TRAIN)
    for out in ("two", "parts"):
        config = config_for(films, tmp_path / out, **changes)
        (tmp_path / f"{out}.json").write_text(config.model_dump_json())
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, *(str(tmp_path / name) for name in ("train.py", "two.json", "parts.json"))],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for (step, a), (_, b) in zip(losses(tmp_path / "one"), losses(tmp_path / "two"), strict=True):
        assert a == pytest.approx(b, rel=1e-4), step
    one, two, parts = (
        load_file(tmp_path / out / "checkpoint.safetensors") for out in ("one", "two", "parts")
    )
    for name, x in one.items():
        torch.testing.assert_close(x, two[name], rtol=1e-3, atol=1e-4, msg=name)
        assert torch.equal(two[name], parts[name]), name
    whole, resumed = (load(tmp_path / out / "model") for out in ("two", "parts"))
    assert resumed.fingerprint == whole.fingerprint


def test_a_batch_is_shared_evenly(films, tmp_path):
    shapes = [{"frames": 9, "size": 32, "batch": 3}]
    with pytest.raises(ValueError, match="3 clips cannot be shared by 2 processes"):
        Run(config_for(films, tmp_path / "odd", shapes=shapes), None, Processes(0, 2))


def test_batches_need_not_be_square_and_samples_are_drawn(films, tmp_path):
    shapes = [{"frames": 5, "size": 16, "width": 32, "batch": 2}]
    train(config_for(films, tmp_path / "run", shapes=shapes, steps=4))
    with av.open(str(tmp_path / "run" / "samples" / "step_000004.png")) as picture:
        (frame,) = picture.decode(video=0)
    assert (frame.height, frame.width) == (32, 3 * 2 * 40)  # a clip of 9 frames of 32x40
    clips = ClipCache.read([Source(clips=str(films))])
    with pytest.raises(ValueError, match="no clip has 5 frames of 16x48"):
        clips.batch(BatchShape(frames=5, size=16, width=48, batch=1), random.Random(0))


def test_a_discrete_tokenizer_is_exported_ready_to_load(films, tmp_path):
    small = {"name": "small", "kind": "discrete", "spatial_compression": 16}
    model = small | TINY | {"latent_channels": 2, "levels": (5, 4)}
    shapes = [{"frames": 1, "size": 32, "batch": 2}, {"frames": 9, "size": 16, "batch": 2}]
    tokenizer = train(config_for(films, tmp_path / "run", model=model, shapes=shapes))
    loaded = load(tmp_path / "run" / "model")
    assert loaded.fingerprint == tokenizer.fingerprint
    assert same_weights(loaded, tokenizer)
    figures = json.loads((tmp_path / "run" / "model" / "metrics.json").read_text())
    assert {
        "psnr_video",
        "psnr_image",
        "psnr_block_mean_video",
        "token_perplexity",
    } <= figures.keys()
    assert figures["steps"] == 6
    assert "# small" in (tmp_path / "run" / "model" / "README.md").read_text()


def test_exported_latents_have_zero_mean_and_unit_variance(films, tmp_path):
    config = config_for(films, tmp_path / "run", statistics_batches=40)
    tokenizer = train(config)
    assert tokenizer.config.latent_mean is not None
    assert len(tokenizer.config.latent_mean[0]) == 3  # 9 frames are 3 latent frames
    cache, _ = ClipCache.read(config.sources).hold_out(20)
    dice = random.Random(5)
    batches = [cache.batch(BatchShape(frames=9, size=32, batch=4), dice) for _ in range(8)]
    latents = torch.cat([tokenizer.encode(batch) for batch in batches])
    assert latents.mean((0, 2, 3, 4)).abs().max() < 0.5
    assert 0.5 < float(latents.std()) < 1.5


def test_training_lowers_the_loss(films, tmp_path):
    shapes = [{"frames": 5, "size": 32, "batch": 2}]
    train(config_for(films, tmp_path / "run", steps=25, lr=5e-3, shapes=shapes))
    curve = [loss for _, loss in losses(tmp_path / "run")]
    assert sum(curve[-5:]) < 0.7 * sum(curve[:5])


def test_a_run_stops_when_its_time_is_up(films, tmp_path):
    train(config_for(films, tmp_path / "run", steps=1000, max_minutes=1e-6))
    figures = json.loads((tmp_path / "run" / "model" / "metrics.json").read_text())
    assert figures["steps"] == 1


def test_a_run_is_not_overwritten_nor_resumed_with_other_settings(films, tmp_path):
    train(config_for(films, tmp_path / "run"))
    with pytest.raises(ValueError, match="a run is there"):
        train(config_for(films, tmp_path / "run"))
    with pytest.raises(ValueError, match="other lr than before"):
        train(config_for(films, tmp_path / "run", lr=0.1), resume=True)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        train(config_for(films, tmp_path / "nothing"), resume=True)


def test_clips_may_come_from_a_dataset(films, tmp_path, monkeypatch):
    (tmp_path / "clips_of_mine.py").write_text(
        "import torch\n"
        "class Clip:\n"
        "    def __len__(self): return 9\n"
        "    def read(self, start, stop): return torch.full((stop - start, 3, 32, 32), 7).byte()\n"
        "def open_clips(argument): return [Clip()] * int(argument)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    source = Source(clips="clips_of_mine:open_clips=3", max_frames=5)
    cache = ClipCache.read([source])
    assert [len(clip) for clip in cache.clips[0]] == [5, 5, 5]
    batch = cache.batch(BatchShape(frames=5, size=16, batch=2), random.Random(0))
    assert torch.equal(batch, torch.full((2, 3, 5, 16, 16), 7 / 127.5 - 1))


def test_clips_that_are_missing_or_too_small_are_named(films, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ClipCache.read([Source(clips=str(tmp_path / "nowhere"))])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no clip there"):
        ClipCache.read([Source(clips=str(tmp_path / "empty"))])
    cache = ClipCache.read([Source(clips=str(films))])
    with pytest.raises(ValueError, match="no clip has 99 frames of 16x16"):
        cache.batch(BatchShape(frames=99, size=16, batch=1), random.Random(0))


def test_an_unknown_preset_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ValidationError, match="pico-cv4x8x8"):
        TrainConfig(out=tmp_path, model="pico", sources=[Source(clips="x")])


def test_batches_that_do_not_fit_the_compression_are_refused(films, tmp_path):
    with pytest.raises(ValidationError, match="6 frames of 16x16 pixels do not fit 4x8x8"):
        config_for(films, tmp_path, shapes=[{"frames": 6, "size": 16, "batch": 1}])


def test_the_rate_rises_then_falls(films, tmp_path):
    config = config_for(films, tmp_path, steps=100, warmup=10, lr=1.0, final_lr=0.1)
    rates = [learning_rate(config, step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[10] == 1
    assert rates[100] == pytest.approx(0.1)


def test_the_statistics_are_those_of_all_batches():
    tokenizer = make(FAMILIES["CV4x8x8"])
    batches = [noise(2, 3, 9, 16, 16, seed=0), noise(2, 3, 9, 16, 16, seed=1)]
    mean, std = (torch.tensor(rows) for rows in latent_statistics(tokenizer, batches))
    latent = torch.cat([tokenizer.encode(batch, raw=True) for batch in batches])
    torch.testing.assert_close(mean, latent.mean((0, 3, 4)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(std, latent.std((0, 3, 4), correction=0), rtol=1e-3, atol=1e-4)


def test_psnr_is_that_of_8_bit_files():
    target = torch.zeros(1, 3, 2, 4, 4) + 1 / 255
    assert psnr(target + 10 / 127.5, target) == pytest.approx(28.13, abs=0.01)
    assert psnr(target, target) > 100


def test_the_baseline_has_one_colour_per_cell():
    video = noise(1, 3, 9, 16, 16)
    painted = block_mean(video, (4, 8, 8))
    assert painted.shape == video.shape
    cell = painted[0, :, 1:5, :8, :8].flatten(1)
    torch.testing.assert_close(
        cell, video[0, :, 1:5, :8, :8].flatten(1).mean(1, True).expand_as(cell)
    )
    torch.testing.assert_close(
        painted[0, :, 0, 8:, 8:].flatten(1)[:, :1], video[0, :, 0, 8:, 8:].flatten(1).mean(1, True)
    )


def test_perplexity_counts_tokens_in_equal_use():
    assert perplexity(torch.tensor([3, 3, 7, 7, 9, 9]), 10) == pytest.approx(3)


def test_frames_are_shrunk_never_grown():
    frames = torch.zeros(2, 3, 60, 80, dtype=torch.uint8)
    assert shrink(frames, 30).shape == (2, 3, 30, 40)
    assert shrink(frames, 100).shape == frames.shape
