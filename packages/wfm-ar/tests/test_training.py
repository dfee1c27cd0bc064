import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from fakes import SMALL, GreyCodec, LengthEncoder, clip_folder, run_settings
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

import wfm_ar as wa
from wfm_ar.checkpoint import read_weights
from wfm_ar.cli import main
from wfm_ar.clips import every, find_clips, fit
from wfm_ar.tokens import Windows, tokenize
from wfm_ar.train_parts import learning_rate

PROCESSES = str(Path(__file__).parent / "processes.py")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return clip_folder(tmp_path_factory.mktemp("clips"))


def run(out, clips, **changes):
    stop_after = changes.pop("stop_after", None)
    config = wa.TrainConfig.model_validate(run_settings(out, clips, **changes))
    encoder = LengthEncoder() if config.text_encoder else None
    return wa.train(config, text_encoder=encoder, stop_after=stop_after)


def test_loss_and_gradients_are_those_of_the_original(golden):
    about, tensors = golden("training_loss_fp32")
    config = wa.convert.config_from_nvidia(about["config"])
    lm = wa.ArTransformer(config)
    weights = {k[8:]: v for k, v in tensors.items() if k.startswith("weights.")}
    lm.load_state_dict(wa.convert.from_nvidia(weights))
    tokens = tensors["input_ids"]
    scores = lm(tokens[:, :-1])
    torch.testing.assert_close(scores, tensors["logits"], rtol=0, atol=1e-5)
    ignore = about["config"]["ignore_first_num_tokens"]
    loss = wa.next_token_loss(scores, tokens[:, 1:], ignore=ignore, z_loss=1e-4)
    torch.testing.assert_close(loss.cross_entropy, tensors["ce"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(loss.z, tensors["mean_log_z_sq"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(loss.total, tensors["loss"], rtol=1e-6, atol=1e-6)
    loss.total.backward()
    grads = {k: w.grad for k, w in lm.named_parameters() if w.grad is not None}
    found = wa.convert.to_nvidia(grads, config)
    for key, expected in tensors.items():
        if key.startswith("grad."):
            torch.testing.assert_close(found[key[5:]], expected, rtol=1e-4, atol=1e-6)


def test_a_run_leaves_a_model_and_its_figures(tmp_path, clips):
    folder = run(tmp_path / "run", clips, text_encoder="fakes:text_encoder")
    lm = wa.load(folder)
    assert (lm.vocab_size, lm.config.grid, lm.config.context_dim) == (40, (3, 2, 2), 8)
    assert read_weights(folder / "model.safetensors")["head.weight"].dtype == torch.float16
    world = json.loads((folder / "world.json").read_text())
    assert world["codec_fingerprint"] == GreyCodec.fingerprint
    assert (world["past_frames"], world["frames"], world["conditions"]) == (3, 2, ["text"])
    assert "Autoregressive world model" in (folder / "README.md").read_text()
    lines = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines if "loss" in x] == [3, 6, 9, 12]
    assert [x["step"] for x in lines if "held_out_loss" in x] == [6, 12]


def test_heads_are_trained_on_the_tokens_of_the_run(tmp_path, clips, caplog):
    caplog.set_level("INFO")
    folder = run(tmp_path / "run", clips, text_encoder="fakes:text_encoder")
    stride = json.loads((tmp_path / "run/config.json").read_text())["stride"]
    caplog.clear()
    heads = ["train-heads", str(clips), "-m", str(folder), "-o", str(tmp_path / "heads")]
    heads += ["--tokens", str(tmp_path / "run/tokens.safetensors"), "--stride", str(stride)]
    assert main([*heads, "--steps", "2", "--device", "cpu", "--precision", "bfloat16"]) == 0
    assert any("windows from" in said for said in caplog.messages)


def test_a_run_may_start_from_a_model(tmp_path, clips):
    first = run(tmp_path / "first", clips)
    then = run(tmp_path / "then", clips, init=str(first), lr=1e-12, weight_decay=0)
    a, b = (read_weights(x / "model.safetensors") for x in (first, then))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_stages_go_on_with_a_longer_grid_and_with_text(tmp_path, clips):
    plain = {**SMALL, "cross_every": 0}
    short = run(tmp_path / "short", clips, steps=2, model=plain)
    yarn = {"scale": 2.0, "beta_fast": 4.0, "beta_slow": 1.0, "original_grid": [3, 2, 2]}
    quiet = {"lr": 1e-12, "weight_decay": 0, "steps": 1, "frames": 9}
    long = run(tmp_path / "long", clips, init=str(short), model=plain | {"yarn": yarn}, **quiet)
    lm = wa.load(long)
    assert (lm.config.grid, lm.config.yarn.scale) == ((5, 2, 2), 2.0)
    said = run(
        tmp_path / "text", clips, init=str(long), text_encoder="fakes:text_encoder",
        model=SMALL | {"yarn": yarn, "cross_every": 1}, **quiet,
    )  # fmt: skip
    told = wa.load(said)
    tokens, text = torch.arange(20)[None], torch.ones(1, 4, 8)
    with torch.no_grad():  # what is new adds nothing at first
        torch.testing.assert_close(told.logits(tokens, {"text": text}), lm.logits(tokens))
    with pytest.raises(ValueError, match=r"blocks.0.cross.k.weight is unknown here"):
        run(tmp_path / "back", clips, init=str(said), model=plain)
    with pytest.raises(ValueError, match=r"is \(40, 32\), not \(40, 64\)"):
        run(tmp_path / "wide", clips, init=str(short), model=plain | {"dim": 64})


def together(arguments):
    """Run two processes."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, *arguments], env=os.environ | {"PYTHONPATH": path},
        capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("tensor", [1, 2])
def test_a_parted_network_gives_the_same_scores_and_gradients(tensor):
    together([PROCESSES, str(tensor)])


@pytest.mark.slow
@pytest.mark.parametrize("sharding", [False, True])
def test_two_processes_train_as_one(tmp_path, clips, sharding):
    """The second half of the run is one process's, from what the two wrote."""
    changes = {"steps": 6, "eval_every": 2, "log_every": 1, "save_every": 4, "sharding": sharding}
    settings = run_settings(tmp_path / "two", clips, **changes)
    (tmp_path / "run.yaml").write_text(json.dumps(settings, default=str))
    together([PROCESSES, "train", str(tmp_path / "run.yaml"), "4"])
    two = run(tmp_path / "two", clips, **changes)
    one = run(tmp_path / "one", clips, **changes)
    a, b = (read_weights(x / "model.safetensors") for x in (two, one))
    for key, weight in a.items():
        torch.testing.assert_close(weight, b[key], rtol=0, atol=2e-3)
    figures = [
        [json.loads(line) for line in (x.parent / "metrics.jsonl").read_text().splitlines()]
        for x in (two, one)
    ]
    for both, alone in zip(*figures, strict=True):
        assert both["step"] == alone["step"]
        for name in ("loss", "held_out_loss", "grad_norm"):
            assert both.get(name, 0) == pytest.approx(alone.get(name, 0), rel=1e-3)


@pytest.mark.parametrize(
    "how",
    [
        {"latents": "video"},
        {"latents": "image"},
        {"optimizer": "muon", "precision": "bfloat16", "token_noise": 0.2},
    ],
)
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path, clips, how):
    whole = run(tmp_path / "a", clips, **how)
    run(tmp_path / "b", clips, **how, stop_after=7)
    resumed = run(tmp_path / "b", clips, **how)
    a, b = (stored(x.parent / "state") for x in (whole, resumed))
    assert a.keys() == b.keys()
    assert {name.split(".")[0] for name in a} == {"model", "average", "optimizer", "step"}
    assert all(torch.equal(a[k], b[k]) for k in a if isinstance(a[k], torch.Tensor))
    figures = [(x.parent / "metrics.jsonl").read_text().splitlines() for x in (whole, resumed)]
    for one, other in zip(*figures, strict=True):
        one, other = json.loads(one), json.loads(other)
        one.pop("tokens_per_s", None), other.pop("tokens_per_s", None)
        assert one == other


def stored(folder):
    """Return all of a run's state, flat."""
    reader = FileSystemReader(folder)
    entries = reader.read_metadata().state_dict_metadata
    state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(state, storage_reader=reader, no_dist=True)
    return state


def test_a_cool_down_falls_in_a_straight_line():
    settings = {"out": "x", "clips": "y", "lr": 1.0, "warmup": 0, "steps": 10, "min_lr": 0}
    config = wa.TrainConfig.model_validate(settings | {"decay": "linear"})
    rates = [learning_rate(step, config) for step in range(11)]
    assert rates == pytest.approx([1 - step / 10 for step in range(11)])


def test_it_learns(tmp_path, clips):
    run(tmp_path, clips, steps=80, lr=3e-3, log_every=80, eval_every=40)
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    held = [x["held_out_loss"] for x in lines if "held_out_loss" in x]
    assert held[-1] < held[0] < 3.7  # log 40


def test_tokens_are_made_once(tmp_path, clips, monkeypatch):
    tokens = tmp_path / "tokens.safetensors"
    run(tmp_path / "a", clips, steps=1, tokens=tokens)

    def encode(self, video, /):
        raise RuntimeError("encoded again")

    monkeypatch.setattr(GreyCodec, "encode", encode)
    run(tmp_path / "b", clips, steps=1, tokens=tokens, batch=2)
    with pytest.raises(RuntimeError, match="encoded again"):
        run(tmp_path / "c", clips, steps=1, tokens=tokens, stride=1)


def test_windows_of_a_clip_are_encoded_apart(clips):
    windows = Windows("video", 5, 2, 10.0, 8, 8)
    found = tokenize(find_clips(str(clips)), GreyCodec(), windows)
    assert found.tokens.shape == (12, 3, 2, 2)  # 4 clips of 9 frames: starts 0, 2, 4
    assert found.clip.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    train, held = found.split(0.25)
    assert (train.clip.unique().tolist(), held.clip.unique().tolist()) == ([0, 1, 2], [3])
    alone = tokenize(find_clips(str(clips)), GreyCodec(), windows._replace(latents="image"))
    assert alone.tokens.shape == (12, 5, 2, 2)
    assert torch.equal(alone.tokens[:, 0], found.tokens[:, 0])


def test_frames_are_picked_and_cut_to_size():
    assert every(9, 30.0, 10.0).tolist() == [0, 3, 6]
    assert every(4, 10.0, 30.0).tolist() == [0, 1, 2, 3]
    video = fit(torch.full((2, 3, 20, 41), 255, dtype=torch.uint8), 8, 8)
    assert video.shape == (2, 3, 8, 8)
    assert torch.allclose(video, torch.ones(()))


def test_mistakes_are_named(tmp_path, clips):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        run(tmp_path / "a", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="frames is 6; this codec takes 1 \\+ 2 k"):
        run(tmp_path / "b", clips, frames=6)
    with pytest.raises(ValueError, match="none of 4 clips has 99 frames"):
        run(tmp_path / "c", clips, frames=99)
    with pytest.raises(ValueError, match="preset 'huge'"):
        run(tmp_path / "d", clips, preset="huge")
    with pytest.raises(ValueError, match="model: depth: Extra inputs"):
        run(tmp_path / "e", clips, model={"depth": 3})
    run(tmp_path / "f", clips, steps=1)
    with pytest.raises(ValueError, match="another run"):
        run(tmp_path / "f", clips, steps=2)
    (tmp_path / "f/state.pt").touch()
    with pytest.raises(ValueError, match="a run of an earlier version"):
        run(tmp_path / "f", clips, steps=1)
    with pytest.raises(ValueError, match="tensor_parallel needs sharding"):
        run(tmp_path / "g", clips, tensor_parallel=2)
    with pytest.raises(ValueError, match="tensor_parallel 2 does not divide 1 processes"):
        run(tmp_path / "g", clips, tensor_parallel=2, sharding=True)
