import json
import subprocess
import sys

import pytest
import yaml

from wfm_posttrain.cli import main

SMALL = {
    "held_out": 4,
    "fit": {"steps": 3, "batch": 2},
    "evaluation": {"frames": 2, "clips": 3},
    "backend": {
        "kind": "diffusion",
        "base": "fakes:load_denoiser=new",
        "world": "fakes:NextFrameWorld",
        "codec": "fakes:PatchCodec",
    },
}


def settings(tmp_path, **changes):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({**SMALL, **changes}))
    return str(file)


@pytest.fixture(scope="module")
def model(recordings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    config = settings(folder, clips=str(recordings))
    assert main(["train", "--config", config, "-o", str(folder / "run"), "-q"]) == 0
    return folder / "run" / "model"


def test_train_prints_what_it_made(recordings, tmp_path, capsys):
    config = settings(tmp_path)
    run = tmp_path / "run"
    command = ["train", "--config", config, "--set", f"clips={recordings}", "-o", str(run)]
    assert main([*command, "--json", "--seed", "3"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["model"] == str(run / "model")
    assert json.loads((run / "config.json").read_text())["fit"]["seed"] == 3
    assert main(command) == 2
    assert "holds a run already" in capsys.readouterr().err


def test_evaluate_draws_the_horizon(model, recordings, tmp_path, capsys):
    out = tmp_path / "scores.json"
    command = ["evaluate", "-m", str(model), "--clips", str(recordings), "--frames", "2"]
    assert main([*command, "--limit", "3", "-o", str(out)]) == 0
    assert "| 2 |" in capsys.readouterr().out
    assert len(json.loads(out.read_text())["psnr"]) == 2


def broken(tmp_path, kind, recordings):
    """Make one of the ways in which a folder of recordings can be wrong."""
    import shutil

    folder = tmp_path / "broken"
    shutil.copytree(recordings, folder)
    stem = folder / "clip-00"
    if kind == "truncated":
        content = stem.with_suffix(".mp4").read_bytes()
        stem.with_suffix(".mp4").write_bytes(content[: len(content) // 2])
    elif kind == "not a video":
        stem.with_suffix(".mp4").write_text("hello")
    elif kind == "damaged labels":
        stem.with_suffix(".safetensors").write_bytes(b"hello")
    elif kind == "no actions":
        from safetensors.torch import save_file
        from torch import zeros

        save_file({"state": zeros(8, 2)}, stem.with_suffix(".safetensors"))
    elif kind == "too few actions":
        from safetensors.torch import save_file
        from torch import zeros

        save_file({"action": zeros(5, 2)}, stem.with_suffix(".safetensors"))
    elif kind == "bad json":
        stem.with_suffix(".json").write_text("{")
    elif kind == "empty":
        shutil.rmtree(folder)
        folder.mkdir()
    elif kind == "missing":
        shutil.rmtree(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("truncated", "clip-00.mp4"),
        ("not a video", "clip-00.mp4: not a readable video"),
        ("damaged labels", "clip-00.safetensors: not a readable weights file"),
        ("no actions", "has no 'action' array"),
        ("too few actions", "(5, 2) actions for 8 frames; need 7 rows"),
        ("bad json", "clip-00.json: not JSON"),
        ("empty", "no recording here"),
        ("missing", "no such folder of recordings"),
    ],
)
def test_bad_recordings_are_one_line_that_names_them(kind, words, recordings, tmp_path, capsys):
    folder = broken(tmp_path, kind, recordings)
    config = settings(tmp_path, clips=str(folder))
    assert main(["train", "--config", config, "-o", str(tmp_path / "run"), "-q"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("wfm-posttrain train: error: ")
    assert words in error
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fit": {"steps": 0}}, "fit.steps: Input should be greater than 0, got 0"),
        ({"speed": 1}, "speed: Extra inputs are not permitted"),
        ({"held_out": 12}, "12 clips, of which 12 are to be held out"),
        ({"backend": {**SMALL["backend"], "base": "fakes:nothing=x"}}, "cannot import nothing"),
        ({"backend": {**SMALL["backend"], "base": "builtins:list=x"}}, "not a denoiser"),
        (
            {"backend": {**SMALL["backend"], "codec": "nobody"}},
            "nobody: no such name in wfm.codecs",
        ),
        ({"backend": {**SMALL["backend"], "codec": "fakes:SquareWorld"}}, "not a codec"),
    ],
)
def test_bad_settings_are_one_line(changes, words, recordings, tmp_path, capsys):
    config = settings(tmp_path, clips=str(recordings), **changes)
    assert main(["train", "--config", config, "-o", str(tmp_path / "run"), "-q"]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert "\n" not in error


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("builtin:nothing", "builtin:nothing: not shipped"),
        ("./nowhere/at/all", "no such folder"),
        ("nobody", "nobody: no such name in wfm.world_models"),
        ("fakes:PatchCodec", "not a world model"),
    ],
)
def test_a_wrong_model_is_one_line(model, words, recordings, capsys):
    assert main(["evaluate", "-m", model, "--clips", str(recordings), "-q"]) == 2
    assert words in capsys.readouterr().err


def test_a_folder_that_holds_something_else_is_refused(recordings, capsys):
    assert main(["evaluate", "-m", str(recordings), "--clips", str(recordings), "-q"]) == 2
    assert "not a post-trained model, it holds no recipe.json" in capsys.readouterr().err


def test_too_short_recordings_are_refused(model, recordings, capsys):
    command = ["evaluate", "-m", str(model), "--clips", str(recordings), "--frames", "30"]
    assert main(command) == 2
    assert "0 clips have 32 frames (2 past and 30 new)" in capsys.readouterr().err


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; from wfm_posttrain.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules or 'mujoco' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0
    assert b"evaluate-policy" in done.stdout
