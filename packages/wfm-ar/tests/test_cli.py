import json
import os
import subprocess
import sys
import time

import pytest
import torch
from fakes import clip_folder, run_settings, tiny

import wfm_ar as wa
from wfm_ar.cli import main
from wfm_ar.video import read_video, write_video


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return clip_folder(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def model(tmp_path_factory, clips):
    out = tmp_path_factory.mktemp("run")
    settings = run_settings(out, clips, steps=2, text_encoder="fakes:text_encoder")
    return wa.train(wa.TrainConfig.model_validate(settings))


def generate(model, video, out, *more):
    guard = () if "--guard" in more else ("--guard", "none")
    return main(["generate", str(video), "-o", str(out), "-m", str(model), *guard, *more])


def error(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_video_goes_on(model, clips, tmp_path, capsys):
    out = tmp_path / "new.mp4"
    assert generate(model, clips / "clip0.mp4", out, "-p", "right", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["past_frames"], facts["frames"]) == (3, 2)
    frames, fps = read_video(out)
    assert frames.shape == (5, 3, 8, 8)
    assert fps == 10.0


def test_a_one_frame_video_goes_on(model, tmp_path, capsys):
    one = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    write_video(tmp_path / "one.mp4", one, 10.0)
    out = tmp_path / "new.mp4"
    assert generate(model, tmp_path / "one.mp4", out, "-f", "5", "--json") == 0
    assert json.loads(capsys.readouterr().out)["frames"] == 5
    assert len(read_video(out)[0]) == 6


def test_odd_sizes_are_cut_to_fit(model, tmp_path):
    odd = torch.zeros(6, 3, 22, 34, dtype=torch.uint8)
    write_video(tmp_path / "odd.mp4", odd, 25.0)
    assert generate(model, tmp_path / "odd.mp4", tmp_path / "new.mp4") == 0


def test_guards_refuse_and_redact(model, clips, tmp_path, capsys):
    out, guard = tmp_path / "new.mp4", ("--guard", "fakes:guard")
    assert generate(model, clips / "clip0.mp4", out, "-p", "bad", *guard) == 3
    assert error(capsys) == "wfm-ar generate: prompt refused: says bad"
    white = torch.full((5, 3, 8, 8), 255, dtype=torch.uint8)
    write_video(tmp_path / "white.mp4", white, 10.0)
    assert generate(model, tmp_path / "white.mp4", out, *guard) == 3
    assert error(capsys) == "wfm-ar generate: input video refused: all white"
    assert not out.exists()
    assert generate(model, clips / "clip0.mp4", out, *guard) == 0
    frames, _ = read_video(out)
    assert frames[:, :, 0].float().mean() < frames[:, :, 4:].float().mean()


def test_a_missing_guard_is_said_aloud(model, clips, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("wfm_ar.guards.entry_points", lambda group: [])
    assert generate(model, clips / "clip0.mp4", tmp_path / "a.mp4", "--guard", "auto") == 0
    assert "NO GUARD is installed" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing.mp4", None, "missing.mp4: no such file"),
        ("text.mp4", b"not a video", "text.mp4: not a readable video"),
        ("empty.mp4", b"", "empty.mp4: not a readable video"),
    ],
)
def test_bad_videos_are_one_line(model, tmp_path, capsys, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert generate(model, tmp_path / name, tmp_path / "out.mp4") == 2
    line = error(capsys)
    assert line.startswith("wfm-ar generate: error: ")
    assert said in line
    assert not (tmp_path / "out.mp4").exists()


def test_a_cut_off_video_is_one_line(model, clips, tmp_path, capsys):
    whole = (clips / "clip0.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    assert generate(model, tmp_path / "cut.mp4", tmp_path / "out.mp4") == 2
    assert "cut.mp4" in error(capsys)
    assert not (tmp_path / "out.mp4").exists()


def test_bad_models_and_parts_are_one_line(model, clips, tmp_path, capsys):
    video, out = clips / "clip0.mp4", tmp_path / "out.mp4"
    assert generate(tmp_path / "nowhere", video, out) == 2
    assert "no such folder" in error(capsys)
    assert generate(tmp_path, video, out) == 2
    assert "holds neither model.safetensors" in error(capsys)
    wa.save(tiny(), tmp_path / "bare")
    assert generate(tmp_path / "bare", video, out) == 2
    assert "holds no world.json" in error(capsys)
    assert generate(model, video, out, "--codec", "fakes:text_encoder") == 2
    assert "not a DiscreteCodec" in error(capsys)
    assert generate(model, video, out, "--guard", "fakes:codec") == 2
    assert "not a guard" in error(capsys)
    assert generate(model, video, out, "-f", "0") == 2
    assert "frames must be 1 or more" in error(capsys)
    assert generate(model, video, out, "--device", "cuda") == 2 or torch.cuda.is_available()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_locked_folder_is_one_line(model, clips, tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert generate(model, clips / "clip0.mp4", tmp_path / "out.mp4") == 2
    assert "Permission denied" in error(capsys)


def test_training_from_the_command_line(clips, tmp_path, capsys):
    settings = {k: str(v) if k == "out" else v for k, v in run_settings(tmp_path, clips).items()}
    (tmp_path / "run.yaml").write_text(json.dumps(settings))
    args = ["train", "--config", str(tmp_path / "run.yaml"), "-o", str(tmp_path / "run")]
    assert main([*args, "--set", "steps=2", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[-1] == {"model": str(tmp_path / "run/model")}
    assert main([*args, "--set", "steps=-2"]) == 2
    assert "steps: Input should be greater than or equal to 1" in error(capsys)
    assert main(["train", "--config", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: no such file" in error(capsys)


def test_converting_from_the_command_line(tmp_path, capsys):
    lm = tiny()
    theirs = wa.convert.to_nvidia(lm.state_dict(), lm.config)
    torch.save(theirs, tmp_path / "model.pt")
    assert main(["convert", str(tmp_path), "-o", str(tmp_path / "ours")]) == 2
    assert "put its config.json beside the weights" in error(capsys)
    assert main(["convert", str(tmp_path / "gone.pt"), "-o", str(tmp_path / "ours")]) == 2


def test_bench_compares_both_loops(capsys):
    args = ["bench", "--tokens", "4", "--prompt-tokens", "2", "--json", "--device", "cpu"]
    assert main(args) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["same_tokens"]
    assert facts["cached_tokens_per_s"] > 0
    assert main(["bench", "--preset", "huge"]) == 2


def test_help_does_not_import_torch():
    code = (
        "import sys, wfm_ar.cli as c\n"
        "try: c.main(['generate', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0
    assert time.perf_counter() - start < 5
