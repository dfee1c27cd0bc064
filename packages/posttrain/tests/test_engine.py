"""Every clip recipe on one trainer: nothing changes before training, all is saved and resumed."""

import json

import pytest
import torch
from clip_fakes import EightByHeart, GroupCodec, LetterEncoder, Moments, TinyTransformer
from safetensors.torch import load_file

import wfm_posttrain
from wfm_posttrain import recipes
from wfm_posttrain.clip_recipe import load_clip_model, steered
from wfm_posttrain.engine import ClipConfig, assemble, clip_loss, describe, train
from wfm_posttrain.fidelity import FidelityConfig, measure
from wfm_posttrain.imagine import given_frames, spread
from wfm_posttrain.interfaces import TrainableDenoiser, WorldModel
from wfm_posttrain.merging import merge_model
from wfm_posttrain.moments import EncodedClips, encode_samples, samples
from wfm_posttrain.saved import read_recipe

BACKEND = {
    "kind": "diffusion", "base": "clip_fakes:load_transformer=new",
    "codec": "clip_fakes:GroupCodec", "text_encoder": "clip_fakes:LetterEncoder", "steps": 3,
}  # fmt: skip
CONDITIONS = {
    "camera": {"kind": "camera"},
    "instruction": {"kind": "instruction"},
    "multiview": {"kind": "multiview", "view_channels": 3, "trajectory_channels": 4},
    "control": {"kind": "control", "hints": ["segmentation", "edge"], "branch": {"blocks": 2}},
    "spread": {"kind": "control", "branch": {"blocks": 2, "placement": "spread"}},
    "action": {"kind": "action"},
    "action-clip": {"kind": "action", "per": "clip"},
}
STEERED = [name for name in CONDITIONS if name != "instruction"]


def config_for(name, **changes):
    views = "front,left,back" if name == "multiview" else ""
    settings = {
        "clips": f"clip_fakes:Moments={views}", "held_out": f"clip_fakes:Moments={views}",
        "condition": CONDITIONS[name], "backend": BACKEND, "frames": 9, "past_frames": 1,
        "fit": {"steps": 6, "batch": 4, "warmup": 2, "checkpoint_every": 3, "check_every": 3},
        "evaluation": {"samples": 4, "batch": 2},
    }  # fmt: skip
    return ClipConfig.model_validate({**settings, **changes})


def parts_for(config):
    """Return the recipe, its untrained parts, and its samples."""
    clips = Moments(config.clips.partition("=")[2])
    torch.manual_seed(1)
    network = TinyTransformer()
    recipe = describe(config, network, GroupCodec(), clips)
    model, added = assemble(recipe, network, GroupCodec(), config)
    views = recipe.views or None
    data = encode_samples(
        samples(clips, 9, views=views), GroupCodec(), LetterEncoder(), model["encoder"],
        recipe.condition, views=views,
    )  # fmt: skip
    model["encoder"].fit(data.digest)
    return recipe, model, added, data


def ask(denoiser, encoder, data, *, bare=False):
    """Denoise two samples with their conditions, or with only what lays out the cameras."""
    digest = {k: x[:2].float() if x.is_floating_point() else x[:2] for k, x in data.digest.items()}
    condition = encoder.condition(digest)
    v, shape = data.codes.shape[1], (2, 4, data.codes.shape[1] * 3, 4, 4)
    condition = {k: x for k, x in spread(condition, shape, v).items() if not bare or k == "view"}
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(shape, generator=generator)
    given = given_frames(torch.tensor([1, 2]), 3, v)[:, None, :, None, None]
    condition["given"] = given.expand(-1, -1, -1, 4, 4).contiguous()
    condition["text"] = torch.randn(2, v * 4, 6, generator=generator)
    return denoiser.denoise(noisy, torch.tensor([0.5, 3.0]), condition)


def test_the_fake_keeps_the_contract():
    assert isinstance(TinyTransformer(), TrainableDenoiser)


@pytest.mark.parametrize("name", STEERED)
def test_before_training_the_network_answers_as_the_base_does(name):
    config = config_for(name)
    _, model, _, data = parts_for(config)
    torch.manual_seed(1)
    base = TinyTransformer()
    with torch.no_grad():
        own = ask(steered(model), model["encoder"], data)
        assert torch.equal(own, ask(base, model["encoder"], data, bare=True))


@pytest.mark.parametrize("name", CONDITIONS)
def test_gradients_reach_every_new_weight_and_no_frozen_one(name):
    config = config_for(name)
    _, model, added, data = parts_for(config)
    base = {n: w.clone() for n, w in model["network"].named_parameters() if n not in added}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.05)
    denoiser = steered(model)
    for step in range(3):  # each layer of zeros holds back what stands before it for a step
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        picks = torch.arange(8)
        clip_loss(denoiser, model["encoder"], data, picks, config, generator).backward()
        optimizer.step()
    new = {n: p for n, p in model.named_parameters() if "network." not in n}
    new |= {f"network.{n}": dict(model["network"].named_parameters())[n] for n in added}
    assert new or name == "instruction"
    silent = [n for n, p in new.items() if p.grad is None or not p.grad.abs().max() > 0]
    assert silent == []
    same = all(
        torch.equal(w, dict(model["network"].named_parameters())[n]) for n, w in base.items()
    )
    assert same == (config.condition.kind == "control")


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_recipe_trains_saves_loads_and_reports_its_gap(name, tmp_path):
    config = config_for(name)
    folder = train(config, tmp_path / "run")
    world = wfm_posttrain.load(folder)
    assert isinstance(world, WorldModel)
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert found["overall"].keys() == {"mean", "low", "high", "count"}
    assert len(found["psnr"]) == 8
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert last["condition_gap"] == last["held_out_loss_shuffled"] - last["held_out_loss"]
    assert "World model steered by" in (folder / "README.md").read_text()
    assert (folder / "net").is_dir() == (config.condition.kind != "control")


def test_a_run_that_was_stopped_ends_on_the_same_bits(tmp_path):
    class Stop(Exception):
        pass

    def stop(step, _):
        if step == 4:
            raise Stop

    config = config_for("control")
    whole = train(config, tmp_path / "whole")
    with pytest.raises(Stop):
        train(config, tmp_path / "stopped", progress=stop)
    resumed = train(config, tmp_path / "stopped", resume=True)
    a, b = (load_file(folder / "branch.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_adapters_stay_apart_and_load_onto_the_base(tmp_path):
    config = config_for("camera", lora={"targets": "mlp", "rank": 2})
    folder = train(config, tmp_path / "run")
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md", "adapter", "ports.safetensors", "recipe.json",
    ]  # fmt: skip
    recipe = read_recipe(folder)[1]
    merged, _ = load_clip_model(folder, recipe, GroupCodec())
    apart, _ = load_clip_model(folder, recipe, GroupCodec(), merged=False)
    noisy, sigma = torch.randn(1, 4, 3, 4, 4), torch.ones(1)
    rays = {"channels": torch.randn(1, 6, 3, 4, 4)}
    with torch.no_grad():
        torch.testing.assert_close(
            merged["network"].denoise(noisy, sigma, rays),
            apart["network"].denoise(noisy, sigma, rays),
        )
    torch.manual_seed(0)
    base = TinyTransformer()
    assert not torch.equal(merged["network"].blocks[0].mlp[0].weight, base.blocks[0].mlp[0].weight)


def test_folded_in_they_need_the_base_no_more(tmp_path):
    folder = train(config_for("camera", lora={"targets": "mlp", "rank": 2}), tmp_path / "run")
    merge_model(folder, tmp_path / "whole", dtype=torch.float32)
    recipe = read_recipe(folder)[1]
    before, _ = load_clip_model(folder, recipe, GroupCodec())
    after, _ = load_clip_model(tmp_path / "whole", read_recipe(tmp_path / "whole")[1], GroupCodec())
    old, new = before["network"].state_dict(), after["network"].state_dict()
    assert old.keys() == new.keys()
    assert all(torch.equal(old[k], new[k]) for k in old)
    with pytest.raises(ValueError, match="no adapters to fold in"):
        merge_model(tmp_path / "whole", tmp_path / "again")
    with pytest.raises(FileExistsError, match="exists already"):
        merge_model(folder, tmp_path / "whole")


def test_another_base_is_refused(tmp_path, monkeypatch):
    folder = train(config_for("control"), tmp_path / "run")
    monkeypatch.setattr("clip_fakes.load_transformer", lambda _: TinyTransformer())
    with pytest.raises(ValueError, match="holds other weights"):
        wfm_posttrain.load(folder)


def test_a_missing_weight_is_named(tmp_path):
    from safetensors.torch import save_file

    folder = train(config_for("control"), tmp_path / "run")
    weights = load_file(folder / "branch.safetensors")
    weights.pop("embed.weight")
    save_file(weights, folder / "branch.safetensors")
    with pytest.raises(ValueError, match=r"(\d+)/(\d+) keys fit, embed.weight is missing"):
        wfm_posttrain.load(folder)


@pytest.mark.parametrize(("name", "trained"), [("camera", r"attention"), ("control", r"text")])
def test_the_user_says_what_is_trained(name, trained):
    _, model, added, _ = parts_for(config_for(name, trained=trained))
    free = {n for n, p in model["network"].named_parameters() if p.requires_grad}
    assert free == {n for n, _ in model["network"].named_parameters() if trained in n} | set(added)


def test_text_steers_token_models_too(tmp_path):
    backend = {
        "kind": "ar", "base": "clip_fakes:load_text_token_model=new", "codec": "fakes:TokenCodec",
        "text_encoder": "clip_fakes:LetterEncoder",
    }  # fmt: skip
    config = config_for("instruction", backend=backend, frames=3, past_frames=1)
    world = wfm_posttrain.load(train(config, tmp_path / "run"))
    past = torch.zeros(2, 3, 1, 32, 32)
    assert world.rollout(past, frames=4, prompts=["left"]).shape == (2, 3, 4, 32, 32)
    with pytest.raises(ValueError, match="token models take text only"):
        train(config_for("camera", backend=backend, frames=3), tmp_path / "other")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"past_frames": 9}, "past_frames must be fewer"),
        ({"frames": 8}, r"the codec takes 1 \+ 4 k"),
        ({"trained": "nothing"}, "no weight's name matches"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        train(config_for("camera", **changes), tmp_path / "run")


def test_a_clip_without_its_labels_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("clip_fakes.Clip.labels", lambda _: {})
    with pytest.raises(ValueError, match="camera needs the array 'camera_pose'"):
        train(config_for("camera"), tmp_path / "run")


def test_encoded_samples_survive_the_file(tmp_path):
    _, _, _, data = parts_for(config_for("multiview"))
    back = EncodedClips.of(data.tensors())
    assert back.digest.keys() == {"trajectory", "view"}
    assert torch.equal(back.codes, data.codes)


@pytest.mark.parametrize("name", recipes.NAMES)
def test_every_recipe_has_settings_to_start_from(name):
    changes = ["clips=here", "fit.steps=7", "backend.codec=mine"]
    config = recipes.configure(name, None, changes)
    assert (config.clips, config.fit.steps, config.backend.codec) == ("here", 7, "mine")


def test_settings_of_another_kind_replace_the_old_ones(tmp_path):
    file = tmp_path / "more.yaml"
    file.write_text("clips: here\nbackend: {kind: ar}\n")
    assert recipes.configure("instruction", file).backend.kind == "ar"
    with pytest.raises(ValueError, match="no recipe 'dance'"):
        recipes.configure("dance")


def trained_wide(name, tmp_path, *, steps, **changes):
    """Train a wider network, whose captions do not tell what the condition says."""
    text = BACKEND["text_encoder"] if name == "instruction" else None
    base = "clip_fakes:load_transformer=wide"
    backend = {**BACKEND, "base": base, "text_encoder": text, "steps": 8}
    fit = {"steps": steps, "batch": 8, "warmup": 20, "lr": 3e-3, "check_every": steps}
    folder = train(config_for(name, fit=fit, backend=backend, **changes), tmp_path / "run")
    return wfm_posttrain.load(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["camera", "instruction", "control", "action", "multiview"])
def test_a_trained_recipe_follows_its_condition(name, tmp_path):
    world = trained_wide(name, tmp_path, steps=400)
    views = "front,left,back" if name == "multiview" else ""
    result = measure(world, Moments(views), FidelityConfig(samples=8, batch=8))
    assert result.overall.low > 0.5


@pytest.mark.slow
def test_eight_clips_are_learnt_by_heart(tmp_path):
    clips = "clip_fakes:EightByHeart"
    world = trained_wide("action", tmp_path, steps=2500, clips=clips, held_out=clips)
    result = measure(world, EightByHeart(), FidelityConfig(samples=8, batch=8))
    assert min(result.psnr) > 30
    assert result.overall.low > 1
