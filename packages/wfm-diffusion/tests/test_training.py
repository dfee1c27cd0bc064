import json

import pytest
import torch
import torch.distributed.checkpoint as dcp
from fakes import TINY, Codec, Text, randn, squares
from PIL import Image
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader

import wfm_diffusion as wd
from wfm_diffusion.batches import Batches, draw_batch
from wfm_diffusion.ema import power_gamma
from wfm_diffusion.latents import Latents, fit, open_clips
from wfm_diffusion.runstate import newest, quietly_alone
from wfm_diffusion.training import Run, learning_rate, with_given_frames
from wfm_diffusion.video import write_video


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


def state(out):
    """All tensors of a run's newest checkpoint, by name."""
    reader = FileSystemReader(newest(out))
    plan = reader.read_metadata().state_dict_metadata.items()
    kept = {k: x for k, x in plan if hasattr(x, "size")}
    found = {k: torch.empty(x.size, dtype=x.properties.dtype) for k, x in kept.items()}
    with quietly_alone():
        dcp.load(found, storage_reader=reader)
    return found


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
    a, b = (state(folder.parent) for folder in (whole, resumed))
    assert a.keys() == b.keys()
    assert len(a) > 100
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
    after = run(again)
    fine = weights(after)
    assert f"from `{folder}` on" in (after / "README.md").read_text()
    assert all(torch.allclose(x, fine[k], atol=1e-3) for k, x in weights(folder).items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clips": "nowhere"}, "neither a folder"),
        ({"frames": 40}, "no clip has 40 frames"),
        ({"model": TINY.model_copy(update={"max_size": (2, 8, 8)})}, "takes up to"),
        ({"shapes": [{"frames": 9, "height": 32, "width": 96}]}, "takes up to"),
        ({"model": TINY.model_copy(update={"text_dim": 16})}, "text_dim"),
        ({"given_weights": (0.5, 0.5)}, "2 numbers with sum 1; wanted 4"),
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
    batch = draw_batch(data, torch.arange(3), settings, generator, count=64)
    counts = batch.condition["given"][:, 0, :, 0, 0].sum(1)
    assert set(counts.tolist()) == {0.0, 1.0, 2.0}
    dropped = batch.condition["text"].abs().sum((1, 2)) == 0
    assert 16 < dropped.sum() < 48
    assert torch.equal(batch.clean, torch.full_like(batch.clean, 0.5))
    # Three of ten samples without, the rest with as many as there are before a new one.
    settings = settings.model_copy(update={"given_weights": (0.3, 0.0, 0.0, 0.7)})
    batch = draw_batch(data, torch.arange(3), settings, generator, count=64)
    counts = batch.condition["given"][:, 0, :, 0, 0].sum(1)
    assert set(counts.tolist()) == {0.0, 2.0}
    assert 8 < (counts == 0).sum() < 32


def test_held_out_clips_are_not_trained_on(tmp_path, clips):
    settings = config(tmp_path, clips)
    data = Latents(
        latents=torch.ones(12, 3, 3, 4, 4).half(),
        fps=torch.full((12,), 10.0),
        clip=torch.arange(12) // 2,
        text=torch.zeros(12, dtype=torch.long),
        embeddings=torch.ones(1, 4, 8).half(),
    )
    trained, held = data.split(settings.held_out, 6)
    assert len(held) == 4
    assert not set(data.clip[trained].tolist()) & set(data.clip[held].tolist())
    assert len(Run(settings, [data]).batches.held_out[0]) == 4


@pytest.mark.parametrize(("length", "gamma"), [(0.1, 6.937), (0.05, 16.972), (0.025, 36.987)])
def test_power_averages_have_the_published_exponents(length, gamma):
    assert power_gamma(length) == pytest.approx(gamma, abs=1e-3)


def test_recomputed_activations_change_nothing(tmp_path, clips):
    plain = weights(run(config(tmp_path / "a", clips, steps=3)))
    again = weights(run(config(tmp_path / "b", clips, steps=3, recompute=True)))
    assert all(torch.equal(x, again[name]) for name, x in plain.items())


def test_shares_of_a_batch_make_up_the_batch(tmp_path, clips):
    settings = config(tmp_path, clips, image_fraction=0.5)
    parts = Batches(settings, [samples()])
    for step in range(6):
        whole, halves = parts.at(step), [parts.at(step, slice(i, None, 2)) for i in (0, 1)]
        for i, half in enumerate(halves):
            assert torch.equal(whole.clean[i::2], half.clean)
            assert torch.equal(whole.noise[i::2], half.noise)
            assert torch.equal(whole.sigma[i::2], half.sigma)
            for key, x in whole.condition.items():
                assert torch.equal(x[i::2], half.condition[key])
    assert not torch.equal(whole.noise[0], whole.noise[1])
    assert not torch.equal(whole.noise, whole.given_noise)


def samples(height=4, width=4, clips=(0, 1, 2)):
    count = len(clips)
    return Latents(
        latents=torch.ones(count, 3, 3, height, width).half(),
        fps=torch.full((count,), 10.0),
        clip=torch.tensor(clips),
        text=torch.arange(count),
        embeddings=torch.ones(count, 4, 8).half(),
    )


def test_stages_follow_each_other_and_a_batch_is_of_one_size(tmp_path, clips):
    stages = [
        {"height": 32, "width": 32, "batch": 8},
        {"height": 64, "width": 32, "start": 4},
        {"height": 32, "width": 64, "start": 4, "batch": 2},
    ]
    settings = config(tmp_path, clips, shapes=stages, held_out=0.0)
    data = [samples(), samples(8, 4, (0,)), samples(4, 8, (1, 2))]
    drawn = [Batches(settings, data).at(step).clean.shape for step in range(40)]
    assert {(s[0], *s[3:]) for s in drawn[:4]} == {(8, 4, 4)}
    later = [(s[0], *s[3:]) for s in drawn[4:]]
    assert set(later) == {(4, 8, 4), (2, 4, 8)}
    assert later.count((2, 4, 8)) > later.count((4, 8, 4))
    with pytest.raises(ValueError, match="wanted 0 first"):
        config(tmp_path, clips, shapes=stages[1:])


def test_clips_are_trained_on_at_the_nearest_aspect_stage_after_stage(tmp_path):
    tall, wide = squares(tmp_path / "c", count=2), torch.zeros(17, 3, 32, 64, dtype=torch.uint8)
    for i in range(2):
        write_video(tall / f"wide{i}.mp4", wide, 10.0)
    shapes = [
        {"frames": 9, "height": 16, "width": 16},
        {"height": 32, "width": 32, "start": 2},
        {"height": 32, "width": 64, "start": 2, "batch": 2},
    ]
    folder = run(config(tmp_path / "run", tall, shapes=shapes, steps=5, held_out=0.0))
    sizes = {x.name: load_file(x)["latents"].shape for x in (tmp_path / "run").glob("latents*")}
    assert sizes == {
        "latents-9x16x16.safetensors": (4, 3, 2, 2, 2),
        "latents-17x32x32.safetensors": (2, 3, 3, 4, 4),
        "latents-17x32x64.safetensors": (2, 3, 3, 4, 8),
    }
    world = wd.load(folder).world
    assert (world.height, world.width) == (32, 64)


def test_held_out_clips_are_the_same_in_every_stage(tmp_path, clips):
    settings = config(tmp_path, clips, shapes=[{}, {"start": 1}], held_out=0.5)
    data = [samples(clips=(0, 1, 2, 3)), samples(clips=(0, 2))]
    held = Batches(settings, data).held_out
    assert [set(x.clip[i].tolist()) for x, i in zip(data, held, strict=True)] == [{0, 2}, {0, 2}]


def test_pictures_of_samples_are_drawn(tmp_path, clips):
    run(config(tmp_path, clips, sample_every=4, sampling_steps=2))
    pictures = sorted((tmp_path / "samples").glob("*.png"))
    assert [path.stem for path in pictures] == ["000000004", "000000006"]
    with Image.open(pictures[0]) as picture:
        assert picture.size == (8 * 128, 2 * 3 * 128)


def test_a_text2world_network_learns_to_take_given_frames(tmp_path, clips):
    only_text = TINY.model_copy(update={"condition_mask": False})
    first = run(config(tmp_path / "a", clips, model=only_text, steps=2))
    narrow = wd.load(first)
    wider = with_given_frames(narrow).eval()
    x, condition = randn(2, 3, 3, 4, 4), {"text": randn(2, 4, 8, seed=1)}
    answers = [net.denoise(x, torch.ones(2), condition) for net in (narrow, wider)]
    torch.testing.assert_close(*answers, rtol=0, atol=1e-6)
    second = run(config(tmp_path / "b", clips, init=str(first), steps=3))
    net = wd.load(second)
    assert net.config == TINY
    assert net.embed.weight[:, 12:16].abs().max() > 0
