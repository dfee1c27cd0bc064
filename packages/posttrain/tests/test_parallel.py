"""Two processes train what one would, and their checkpoint loads on one."""

import os
import socket

import pytest
import torch
from clip_fakes import TinyTransformer
from safetensors.torch import load_file
from test_engine import config_for, parts_for
from torch import multiprocessing as mp
from torch import nn

import wfm_posttrain
from wfm_posttrain.engine import estimate, train
from wfm_posttrain.fit import _optimizer, step_generator
from wfm_posttrain.memory import saved_for_backward
from wfm_posttrain.parallel import Ranks, load_state, shard

NAMES = ("camera", "control")
SHARED = "camera, its clips shared"
FIT = {"steps": 4, "batch": 4, "warmup": 2, "checkpoint_every": 2, "check_every": 4, "ema": 0.5}


def work(rank, ports, folder):
    """What each of two processes does: train, as torchrun would have it.

    Each training meets at a port of its own: at the same one a quick process could still find
    what the training before has left.
    """
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    torch.set_num_threads(1)
    for name, port in zip((*NAMES, SHARED), ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        fit = {**FIT, "context": 2} if name == SHARED else FIT
        train(config_for(name.partition(",")[0], fit=fit), folder / name)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    mp.spawn(work, ([free_port() for _ in (*NAMES, SHARED)], folder), nprocs=2)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_train_what_one_does_in_twice_the_batches(name, together, tmp_path):
    alone = train(config_for(name, fit={**FIT, "accumulate": 2}), tmp_path / "alone")
    file = "net/model.safetensors" if name == "camera" else "branch.safetensors"
    ours, theirs = load_file(together / name / "model" / file), load_file(alone / file)
    assert ours.keys() == theirs.keys()
    for key, weight in ours.items():
        torch.testing.assert_close(weight, theirs[key], rtol=2e-3, atol=2e-4)
    assert wfm_posttrain.load(together / name / "model").past_frames == 1


def test_two_processes_that_share_every_clip_train_what_one_does(together, tmp_path):
    alone = train(config_for("camera", fit=FIT), tmp_path / "alone")
    file = "net/model.safetensors"
    ours, theirs = load_file(together / SHARED / "model" / file), load_file(alone / file)
    untouched = load_file(together / "camera" / "model" / file)
    for key, weight in ours.items():
        torch.testing.assert_close(weight, theirs[key], rtol=2e-3, atol=2e-4)
    assert any(not torch.allclose(ours[key], untouched[key], atol=2e-4) for key in ours)


def test_what_cannot_be_shared_is_said_before_training(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="context 2 does not divide 1 processes"):
        train(config_for("camera", fit={**FIT, "context": 2}), tmp_path / "run")
    network = TinyTransformer()
    monkeypatch.delattr("clip_fakes.TinyTransformer.over_processes")
    with pytest.raises(ValueError, match="TinyTransformer: cannot share a clip"):
        shard(network, "cpu", Ranks(0, 2, 2))


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_of_two_processes_loads_on_one(name, together):
    config = config_for(name, fit=FIT)
    _, model, _, _ = parts_for(config)
    optimizer = _optimizer(model, config.fit)
    average = {key: torch.zeros_like(value) for key, value in model.state_dict().items()}
    assert load_state(together / name / "state", model, optimizer, average) == 4
    gathered = load_file(together / name / "average.safetensors")
    assert average.keys() == gathered.keys()
    assert all(torch.equal(average[key], gathered[key]) for key in gathered)
    assert not all(torch.equal(model.state_dict()[key], gathered[key]) for key in gathered)
    names = {id(weight): key for key, weight in model.named_parameters()}
    steps = {names[id(weight)]: float(x["step"]) for weight, x in optimizer.state.items()}
    # A camera asks nothing of the layer for actions, which so was never trained.
    assert {key for key, step in steps.items() if step != 4} <= {"network.shared.weight"}


def test_one_process_goes_on_where_two_stopped(together, tmp_path):
    import shutil

    shutil.copytree(together / "control", tmp_path / "run")
    seen = []
    config = config_for("control", fit=FIT)
    train(config, tmp_path / "run", resume=True, progress=lambda a, b: seen.append(a))
    assert seen == []  # all four steps were done


def test_every_part_of_a_step_draws_for_itself():
    draws = {
        torch.rand(1, generator=step_generator(seed, step, part)).item()
        for seed in range(3)
        for step in range(5)
        for part in range(4)
    }
    assert len(draws) == 60


def test_several_batches_count_as_one(tmp_path):
    lines = [{}, {"accumulate": 2}]
    folders = [
        train(config_for("camera", fit={**FIT, **more}), tmp_path / str(i))
        for i, more in enumerate(lines)
    ]
    a, b = (load_file(folder / "net" / "model.safetensors") for folder in folders)
    assert any(not torch.equal(a[key], b[key]) for key in a)


def test_forgetting_activations_changes_nothing_but_the_memory(tmp_path):
    plain, short = (config_for("control", fit={**FIT, "recompute": x}) for x in (False, True))
    a, b = (train(c, tmp_path / str(i)) for i, c in enumerate((plain, short)))
    a, b = load_file(a / "branch.safetensors"), load_file(b / "branch.safetensors")
    for key in a:
        torch.testing.assert_close(a[key], b[key])
    more, less = (estimate(c, tmp_path / str(i)) for i, c in enumerate((plain, short)))
    assert less.activations < 0.7 * more.activations
    assert less.weights == more.weights


def test_memory_is_counted_by_the_byte():
    net = nn.Linear(10, 20, bias=False)
    x = torch.randn(5, 10, requires_grad=True)
    assert saved_for_backward(net, lambda: net(x).sum()) == 4 * 50
    assert saved_for_backward(net, lambda: net(x).exp().sum()) == 4 * (50 + 100)
