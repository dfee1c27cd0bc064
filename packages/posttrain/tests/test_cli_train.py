import json

import pytest
import yaml
from test_engine import BACKEND

from wfm_posttrain.cli import main
from wfm_posttrain.cli_train import RECIPES
from wfm_posttrain.recipes import NAMES


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli-train")
    config = folder / "camera.yaml"
    settings = {
        "clips": "clip_fakes:Moments", "held_out": "clip_fakes:Moments", "backend": BACKEND,
        "frames": 9, "fit": {"steps": 2, "batch": 2}, "evaluation": {"samples": 2},
        "lora": {"targets": "mlp", "rank": 2},
    }  # fmt: skip
    config.write_text(yaml.safe_dump(settings))
    command = ["train", "--recipe", "camera", "--config", str(config), "-o", str(folder / "run")]
    assert main([*command, "-q"]) == 0
    return folder / "run"


def test_a_recipe_is_trained_from_its_file_and_the_users(run):
    noted = json.loads((run / "config.json").read_text())
    assert noted["condition"]["kind"] == "camera"
    assert noted["fit"]["lr"] == 4e-4
    assert noted["frames"] == 9


def test_evaluate_reports_the_gap_of_the_condition(run, capsys):
    command = ["evaluate", "-m", str(run / "model"), "--clips", "clip_fakes:Moments"]
    assert main([*command, "--limit", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["condition"] == "camera"
    assert found["clips"] == 3


def test_adapters_are_folded_in(run, tmp_path, capsys):
    assert main(["lora", "merge", str(run / "model"), "-o", str(tmp_path / "whole")]) == 0
    assert (tmp_path / "whole" / "net" / "model.safetensors").is_file()
    assert main(["lora", "merge", str(tmp_path / "whole"), "-o", str(tmp_path / "again")]) == 2
    assert "no adapters to fold in" in capsys.readouterr().err


def test_the_command_knows_every_recipe():
    assert RECIPES == NAMES


def test_the_memory_of_a_training_is_told_beforehand(run, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text((run / "config.json").read_text())
    command = ["train", "--recipe", "camera", "--config", str(config), "-o", str(tmp_path / "new")]
    assert main([*command, "--estimate", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["total"] == sum(x for name, x in found.items() if name != "total")
    assert found["optimizer"] == 2 * found["gradients"] < found["weights"]
    assert not (tmp_path / "new" / "state.pt").exists()
    assert main(["train", "--set", "clips=x", "-o", str(tmp_path / "new"), "--estimate"]) == 2
