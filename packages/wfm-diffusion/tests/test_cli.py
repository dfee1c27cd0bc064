import json
import subprocess
import sys

import pytest
import torch
from fakes import TINY, Codec, network, squares
from safetensors.torch import load_file

import wfm_diffusion as wd
from wfm_diffusion.cli import main
from wfm_diffusion.video import read_video


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "m"
    settings = wd.WorldSettings(
        codec="fakes:codec",
        codec_fingerprint=Codec().fingerprint,
        text_encoder="fakes:text",
        past_frames=9,
        frames=8,
        height=32,
        width=32,
        fps=10,
        steps=3,
    )
    wd.save_network(network(), folder, card="card", world=settings)
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return squares(tmp_path_factory.mktemp("clips"), count=3)


def wfm(*words):
    return main([str(word) for word in words])


def test_help_does_not_wait_for_torch():
    code = "import sys, wfm_diffusion.cli as c; c.make_parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_text2world_writes_video_facts_and_sheet(tmp_path, model, capsys):
    out = tmp_path / "new" / "a.mp4"
    assert wfm("text2world", "a cube", "-m", model, "-o", out, "--guard", "none", "--json") == 0
    frames, fps = read_video(out)
    assert frames.shape == (17, 3, 32, 32)
    assert fps == 10
    facts = json.loads(out.with_suffix(".json").read_text())
    assert facts == json.loads(capsys.readouterr().out)
    assert (facts["prompt"], facts["seed"], facts["guards"]) == ("a cube", 0, [])
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert len(list(out.parent.iterdir())) == 3


def test_video2world_goes_on_from_a_file(tmp_path, model, clips):
    out = tmp_path / "a.mp4"
    words = ("video2world", clips / "0.mp4", "-m", model, "-o", out, "--guard", "fakes:guard")
    assert wfm(*words, "--frames", 5, "--upsample", "--prompt", "a cube") == 0
    facts = json.loads(out.with_suffix(".json").read_text())
    assert (facts["frames"], facts["past_frames"]) == (14, 9)
    assert facts["prompt_by"] == "rules"
    assert facts["guards"] == ["Guard"]


def test_a_guards_refusal_is_exit_code_3(tmp_path, model, capsys):
    words = ("text2world", "a bad cube", "-m", model, "-o", tmp_path / "a.mp4")
    assert wfm(*words, "--guard", "fakes:guard") == 3
    assert "text2world: prompt refused: a bad word" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["text2world", "x", "-m", "MODEL", "-o", "OUT/a.avi"], "ends in .mp4"),
        (["text2world", "x", "-m", "OUT/none", "-o", "OUT/a.mp4"], "no such folder"),
        (["text2world", "x", "-m", "OUT", "-o", "OUT/a.mp4"], "holds no diffusion network"),
        (["text2world", "x", "-m", "MODEL", "--codec", "fakes:other_codec"], "latents differ"),
        (["text2world", "x", "-m", "MODEL", "--codec", "no-such-name"], "no such name"),
        (["text2world", "x", "-m", "MODEL", "--height", "40"], "multiple of 16"),
        (["text2world", "x", "-m", "MODEL", "--frames", "-3"], "one frame"),
        (["text2world", "x", "-m", "MODEL", "--steps", "1"], "two steps"),
        (["text2world", "x", "-m", "MODEL", "--guard", "fakes:codec"], "not a guard"),
        (["video2world", "OUT/none.mp4", "-m", "MODEL"], "no such file"),
        (["video2world", "OUT/text.mp4", "-m", "MODEL"], "not a readable video"),
        (["video2world", "OUT/cut.mp4", "-m", "MODEL"], "cut.mp4"),
        (["train", "-o", "OUT/run"], "clips: Field required"),
        (["train", "-o", "OUT/run", "--set", "clips=OUT/none"], "neither a folder"),
        (["train", "--config", "OUT/none.yaml"], "no such file"),
        (["train", "-o", "OUT/run", "--set", "clips=CLIPS", "--set", "stepz=3"], "stepz"),
        (["train-text", "OUT/none", "-o", "OUT/t"], "no such folder"),
        (["convert", "OUT/none", "-o", "OUT/c"], "no such folder"),
        (["convert", "OUT/text.mp4", "-o", "OUT/c"], "text.mp4: "),
        (["upsample", " "], "empty"),
        (["text2world", "x", "-m", "MODEL", "--shortcut", "int4"], "step-cache"),
        (["batch", "OUT/none.jsonl", "-o", "OUT/b"], "no such file"),
        (["batch", "OUT/text.mp4", "-o", "OUT/b"], "line 1"),
        (["memory", "-m", "no-such"], "nor a preset"),
        (["memory", "-m", "pico", "--height", "40"], "multiple of 16"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(tmp_path, model, clips, capsys, words, message):
    (tmp_path / "text.mp4").write_text("no video")
    whole = (clips / "0.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    places = {"OUT": str(tmp_path), "MODEL": str(model), "CLIPS": str(clips)}
    for name, place in places.items():
        words = [word.replace(name, place) for word in words]
    if words[0].endswith("2world") and "-o" not in words:
        words += ["-o", str(tmp_path / "a.mp4")]
    if words[0].endswith("2world") and "--guard" not in words:
        words += ["--guard", "none"]
    before = sorted(p.name for p in tmp_path.iterdir())
    assert main(words) == 2
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("wfm-diffusion")]
    assert len(lines) == 1
    assert message in lines[0]
    after = sorted(p.name for p in tmp_path.iterdir() if p.name != "run")
    assert after == before


def test_a_run_is_trained_and_resumed_from_the_command_line(tmp_path, clips, capsys):
    settings = {"clips": clips, "codec": "fakes:codec", "text_encoder": "fakes:text"}
    settings |= {"height": 32, "width": 32, "steps": 2, "batch": 2, "model": TINY.model_dump_json()}
    words = [x for key, value in settings.items() for x in ("--set", f"{key}={value}")]
    words += ["--device", "cpu", "-o", tmp_path / "run"]
    assert wfm("train", *words, "--json") == 0
    folder = json.loads(capsys.readouterr().out)["model"]
    assert load_file(f"{folder}/model.safetensors")
    assert wfm("train", *words) == 2
    assert wfm("train", *words, "--resume") == 0


def test_a_text_encoder_is_trained_from_captions(tmp_path, clips):
    assert wfm("train-text", clips, "-o", tmp_path / "text", "--steps", 2) == 0
    assert wd.PicoTextEncoder.load(tmp_path / "text").dim == 128


def test_convert_writes_what_load_reads(tmp_path, model):
    assert wfm("convert", model, "-o", tmp_path / "c", "--dtype", "float32") == 0
    a, b = wd.load(model), wd.load(tmp_path / "c")
    assert all(torch.equal(x, b.state_dict()[k]) for k, x in a.state_dict().items())
    assert a.world == b.world


def test_upsample_prints_the_longer_prompt(capsys):
    assert wfm("upsample", "a cube", "--json") == 0
    assert json.loads(capsys.readouterr().out)["source"] == "rules"


def test_memory_is_told_for_presets_and_folders(model, capsys):
    size = ("--frames", 17, "--height", 32, "--width", 32)
    assert wfm("memory", "-m", model, *size, "--dtype", "float32", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    whole, streamed = facts["bytes"]["whole on the device"], facts["bytes"]["blocks streamed"]
    assert facts["latents"] == [3, 4, 4]
    assert whole["total"] == whole["weights"] + whole["text"] + whole["activations"]
    assert whole["weights"] == 4 * sum(x.numel() for x in wd.load(model).state_dict().values())
    assert streamed["weights"] <= whole["weights"]
    assert wfm("memory", "-m", "pico", *size) == 0
    assert "12 tokens" in capsys.readouterr().out


def test_convert_writes_diffusers_layout(tmp_path, model):
    assert wfm("convert", model, "-o", tmp_path / "c", "--to", "diffusers") == 0
    config = json.loads((tmp_path / "c" / "transformer" / "config.json").read_text())
    assert config["_class_name"] == "CosmosTransformer3DModel"
    assert wd.load(tmp_path / "c").config.width == TINY.width


def test_extend_keeps_the_video_and_goes_on_prompt_by_prompt(tmp_path, model, clips):
    out = tmp_path / "long.mp4"
    words = ("extend", clips / "0.mp4", "-m", model, "-o", out, "--guard", "fakes:guard")
    prompts = ("--prompt", "a cube", "--prompt", "a ball")
    assert wfm(*words, *prompts, "--frames", 12, "--handover", "latents") == 0
    facts = json.loads(out.with_suffix(".json").read_text())
    assert (facts["past_frames"], facts["frames"]) == (17, 29)
    assert facts["prompts"] == ["a cube", "a ball"]
    assert len(read_video(out)[0]) == 29


def test_a_batch_makes_every_line_and_goes_on_after_a_refusal(tmp_path, model, clips, capsys):
    lines = [
        {"name": "first", "prompt": "a cube", "seed": 3, "frames": 5},
        {"prompt": "a bad cube"},
        {"video": str(clips / "0.mp4"), "frames": 4},
    ]
    file, out = tmp_path / "jobs.jsonl", tmp_path / "out"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ("batch", file, "-m", model, "-o", out, "--guard", "fakes:guard", "--json")
    assert wfm(*words) == 3
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["status"] for row in rows] == ["done", "refused", "done"]
    assert json.loads((out / "first.json").read_text())["seed"] == 3
    assert sorted(p.name for p in out.glob("*.mp4")) == ["00002.mp4", "first.mp4"]
    assert wfm(*words) == 3
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["status"] for row in rows] == ["kept", "refused", "kept"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a", "seeed": 1}', "seeed"),
        ('{"seed": 1}', "a prompt or a video"),
        ('{"prompt": "a", "name": "../x"}', "name"),
        ('{"video": "none.mp4"}', "no such file"),
        ('{"prompt": "a", "name": "x"}\n{"prompt": "a", "name": "x"}', "twice: x"),
    ],
)
def test_a_bad_line_is_named_before_anything_is_made(tmp_path, model, capsys, line, message):
    (tmp_path / "jobs.jsonl").write_text(line)
    assert wfm("batch", tmp_path / "jobs.jsonl", "-m", model, "-o", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
