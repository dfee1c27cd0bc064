"""Training by torchrun: two processes of gloo beside one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fakes import TINY, squares
from safetensors.torch import load_file

from wfm_diffusion.cli import main

SETTINGS = {
    "codec": "fakes:codec",
    "text_encoder": "fakes:text",
    "model": TINY.model_dump(),
    "height": 32,
    "width": 32,
    "steps": 4,
    "batch": 4,
    "warmup": 1,
    "held_out": 0.5,
    "image_fraction": 0.3,
    "log_every": 1,
    "save_every": 2,
    "validate_every": 2,
    "sample_every": 2,
    "sampling_steps": 2,
    "sampler": "euler",
}
CUT_OFF = """
import sys
from wfm_diffusion import training
from wfm_diffusion.config import TrainConfig
from wfm_diffusion.settings import load_settings

def log(step, numbers):
    if step == 3:
        sys.exit("cut off after step 3")

training.train(load_settings(TrainConfig, sys.argv[1], sys.argv[2:]), log=log)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    clips = squares(folder / "clips", count=4)
    (folder / "train.yaml").write_text(json.dumps(SETTINGS | {"clips": str(clips)}))
    (folder / "cut_off.py").write_text(CUT_OFF)
    return folder


def alone(folder, out, changes, *more):
    words = ["train", "--config", str(folder / "train.yaml"), "-o", str(out), "--device", "cpu"]
    return main([*words, *(x for change in changes for x in ("--set", change)), *more])


def two_processes(folder, out, changes):
    """Run the first three steps of a training under torchrun, and be cut off."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    program = [str(folder / "cut_off.py"), str(folder / "train.yaml"), f"out={out}", *changes]
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    here = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, "--nproc-per-node=2", *program],
        env=os.environ | here | {"GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
    )
    assert "cut off after step 3" in done.stderr, done.stderr[-3000:]


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "changes",
    [("optimizer=adamw", "context_parallel=1"), ("optimizer=muon", "context_parallel=2")],
)
def test_two_processes_learn_as_one_which_then_goes_on(folder, changes):
    whole, cut = (folder / f"{name}-{changes[0]}" for name in ("whole", "cut"))
    two_processes(folder, cut, (*changes, "recompute=true"))
    assert (cut / "samples" / "000000002.png").is_file()
    assert [path.name for path in cut.glob("checkpoint-*")] == ["checkpoint-000000002"]
    assert len(list((cut / "checkpoint-000000002").glob("*.distcp"))) == 2
    assert alone(folder, whole, changes[:1]) == 0
    assert alone(folder, cut, changes[:1], "--resume") == 0
    for a, b in zip(lines(whole), lines(cut), strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"seconds_per_step"}:
            assert a[key] == pytest.approx(b[key], rel=1e-4, abs=1e-6), key
    a, b = (load_file(out / "model" / "model.safetensors") for out in (whole, cut))
    for name, x in a.items():
        torch.testing.assert_close(x.float(), b[name].float(), rtol=0, atol=1e-3, msg=name)


def test_processes_that_do_not_divide_are_refused(folder, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert alone(folder, folder / "none", ["context_parallel=2"]) == 2
    assert "does not divide 3 processes" in capsys.readouterr().err
