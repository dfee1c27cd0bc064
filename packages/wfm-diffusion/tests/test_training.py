import json

import pytest
import torch
from fakes import TINY, Codec, Text, squares
from safetensors.torch import load_file

import wfm_diffusion as wd
from wfm_diffusion.ema import power_gamma
from wfm_diffusion.latents import Latents, fit, open_clips
from wfm_diffusion.training import Run, draw_batch, learning_rate


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return squares(tmp_path_factory.mktemp("clips"))


def config(out, folder, **changes):
    settings = {
        "out": str(out),
        "clips": str(folder),
        "model": TINY,
        "height": 32,
        "width": 32,
        "steps": 6,
        "batch": 4,
        "warmup": 2,
        "held_out": 0.3,
        "log_every": 1,
        "save_every": 3,
        "validate_every": 3,
    }
    return wd.TrainConfig(**(settings | changes))


def run(settings, **options):
    return wd.train(settings, codec=Codec(), text_encoder=Text(), **options)


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("how", [{}, {"optimizer": "muon", "precision": "bfloat16"}])
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, clips, how):
    whole = run(config(tmp_path / "whole", clips, **how))

    def cut_off(step, numbers):
        if step == 5:
            raise KeyboardInterrupt

    cut = config(tmp_path / "cut", clips, **how)
    with pytest.raises(KeyboardInterrupt):
        run(cut, log=cut_off)
    resumed = run(cut, resume=True)
    a, b = (load_file(folder.parent / "checkpoint.safetensors") for folder in (whole, resumed))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert all(torch.equal(x, weights(resumed)[name]) for name, x in weights(whole).items())
    lines = (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == sorted(steps)
    assert steps.count(4) == 1


def test_a_run_leaves_a_world_model(tmp_path, clips):
    folder = run(config(tmp_path, clips))
    net = wd.load(folder)
    assert net.world.codec_fingerprint == Codec().fingerprint
    assert (net.world.past_frames, net.world.frames, net.world.fps) == (9, 8, 10.0)
    assert net.fps == 10.0
    assert "validation/mean" in (tmp_path / "metrics.jsonl").read_text()
    assert "license" in (folder / "README.md").read_text()
    world = wd.WorldModel(net, Codec(), Text(), steps=2)
    assert world.text2world(["a red square moves"]).shape == (1, 3, 17, 32, 32)


def test_clips_are_encoded_once(tmp_path, clips):
    run(config(tmp_path / "a", clips, cache=str(tmp_path / "cache.safetensors")))

    class Broken(Codec):
        def encode(self, video, /):
            raise AssertionError("encoded again")

    settings = config(tmp_path / "b", clips, cache=str(tmp_path / "cache.safetensors"))
    wd.train(settings, codec=Broken(), text_encoder=Text())
    other = settings.model_copy(update={"out": str(tmp_path / "c")})
    with pytest.raises(AssertionError, match="again"):
        wd.train(other, codec=Broken("another"), text_encoder=Text())


def test_image_latents_have_one_latent_frame_for_each_frame(tmp_path, clips):
    settings = config(tmp_path, clips, latents="image", frames=4, stride=4, given_max=3)
    folder = run(settings)
    cached = load_file(tmp_path / "latents.safetensors")["latents"]
    assert cached.shape[1:] == (3, 4, 4, 4)
    world = wd.load(folder).world
    assert (world.latents, world.past_frames, world.frames) == ("image", 3, 1)


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path, clips):
    run(config(tmp_path, clips))
    with pytest.raises(ValueError, match="resume"):
        run(config(tmp_path, clips))
    with pytest.raises(ValueError, match="other settings"):
        run(config(tmp_path, clips, rate=1e-5), resume=True)


def test_training_goes_on_from_a_checkpoint_of_before(tmp_path, clips):
    folder = run(config(tmp_path / "base", clips))
    again = config(tmp_path / "more", clips, init=str(folder), steps=1, rate=1e-9)
    fine = weights(run(again))
    assert all(torch.allclose(x, fine[k], atol=1e-3) for k, x in weights(folder).items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clips": "nowhere"}, "neither a folder"),
        ({"frames": 40}, "no clip has 40 frames"),
        ({"model": TINY.model_copy(update={"text_dim": 16})}, "text_dim"),
        ({"model": TINY.model_copy(update={"latent_channels": 4})}, "latent channels"),
    ],
)
def test_settings_that_do_not_fit_are_named(tmp_path, clips, changes, message):
    with pytest.raises(ValueError, match=message):
        run(config(tmp_path, clips, **changes))


def test_an_empty_folder_holds_no_clips(tmp_path):
    with pytest.raises(ValueError, match="holds no video"):
        open_clips(str(tmp_path))


def test_frames_are_scaled_to_cover_and_cut_in_the_middle():
    frames = torch.zeros(1, 3, 20, 40, dtype=torch.uint8)
    frames[..., 15:25] = 200
    cut = fit(frames, 10, 10)
    assert cut.shape == (1, 3, 10, 10)
    assert cut.float().mean() > 50


def test_the_learning_rate_warms_up_and_falls(tmp_path, clips):
    settings = config(tmp_path, clips, steps=100, warmup=10, rate=1.0, final_rate=0.1)
    rates = [learning_rate(settings, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)


def test_batches_drop_texts_and_give_frames(tmp_path, clips):
    data = Latents(
        latents=torch.ones(3, 3, 3, 4, 4).half(),
        fps=torch.full((3,), 10.0),
        clip=torch.arange(3),
        text=torch.arange(3),
        embeddings=torch.ones(3, 4, 8).half(),
    )
    settings = config(tmp_path, clips, batch=64, image_fraction=0.0, text_dropout=0.5)
    generator = torch.Generator().manual_seed(0)
    batch = draw_batch(data, torch.arange(3), settings, generator)
    counts = batch.condition["given"][:, 0, :, 0, 0].sum(1)
    assert set(counts.tolist()) == {0.0, 1.0, 2.0}
    dropped = batch.condition["text"].abs().sum((1, 2)) == 0
    assert 16 < dropped.sum() < 48
    assert torch.equal(batch.clean, torch.full_like(batch.clean, 0.5))


def test_held_out_clips_are_not_trained_on(tmp_path, clips):
    settings = config(tmp_path, clips)
    data = Latents(
        latents=torch.ones(12, 3, 3, 4, 4).half(),
        fps=torch.full((12,), 10.0),
        clip=torch.arange(12) // 2,
        text=torch.zeros(12, dtype=torch.long),
        embeddings=torch.ones(1, 4, 8).half(),
    )
    trained, held = data.split(settings.held_out)
    assert len(held) == 4
    assert not set(data.clip[trained].tolist()) & set(data.clip[held].tolist())
    assert isinstance(Run(settings, data).step, int)


@pytest.mark.parametrize(("length", "gamma"), [(0.1, 6.937), (0.05, 16.972), (0.025, 36.987)])
def test_power_averages_have_the_published_exponents(length, gamma):
    assert power_gamma(length) == pytest.approx(gamma, abs=1e-3)


def test_recomputed_activations_change_nothing(tmp_path, clips):
    plain = weights(run(config(tmp_path / "a", clips, steps=3)))
    again = weights(run(config(tmp_path / "b", clips, steps=3, recompute=True)))
    assert all(torch.equal(x, again[name]) for name, x in plain.items())
