import json
import os
import subprocess
import sys
import time

import pytest
import torch
from conftest import FAMILIES, make, write_film
from safetensors import safe_open

from wfm_tokenizer.cli import main
from wfm_tokenizer.config import TokenizerConfig
from wfm_tokenizer.loading import builtins
from wfm_tokenizer.video import read_video, write_video


@pytest.fixture(params=["CV4x8x8", "DV8x16x16"])
def model(request, tmp_path):
    """A saved tokenizer, to be given with -m."""
    return save(request.param, tmp_path)


def save(family, tmp_path):
    config = FAMILIES[family].model_copy(update={"name": family})
    make(TokenizerConfig.model_validate(config.model_dump())).save(tmp_path / family)
    return str(tmp_path / family)


def fails(capsys, *argv):
    """Run a command that the user can mend; return its one line."""
    assert main([str(a) for a in argv]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"wfm-tokenizer {argv[0]}: error: ")
    return error


def test_a_video_survives_the_way_to_latents_and_back(film, model, tmp_path, capsys):
    assert main(["encode", str(film), "-m", model, "-o", str(tmp_path / "latents"), "--json"]) == 0
    encoded = json.loads(capsys.readouterr().out)
    assert encoded["frames"] == 20
    path = encoded["output"]
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert {metadata[key] for key in ("fps", "frames", "height", "width")} == {
        "10.0",
        "20",
        "30",
        "44",
    }
    assert main(["decode", path, "-m", model, "-o", str(tmp_path / "videos"), "--json"]) == 0
    frames, fps = read_video(json.loads(capsys.readouterr().out)["output"])
    assert frames.shape == (20, 3, 30, 44)
    assert fps == 10


def test_reconstruct_shows_both_side_by_side(film, model, tmp_path, capsys):
    assert main(["reconstruct", str(film), "-m", model, "-o", str(tmp_path / "out"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    frames, _ = read_video(result["output"])
    assert frames.shape == (20, 3, 30, 88)
    assert result["psnr"] > 0
    original, _ = read_video(film)
    assert (frames[..., :44].float() - original.float()).abs().mean() < 6


@pytest.mark.parametrize("frames", [1, 2])
def test_very_short_and_odd_videos_are_taken(model, tmp_path, frames, capsys):
    path = tmp_path / "short.mp4"
    write_video(path, torch.zeros(frames, 3, 31, 45, dtype=torch.uint8), 24.0, pixels="yuv444p")
    assert main(["reconstruct", str(path), "-m", model, "-o", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["frames"] == frames


def test_latents_of_another_model_are_refused(film, tmp_path, capsys):
    one, other = (save(name, tmp_path) for name in ("CV4x8x8", "CV8x8x8"))
    main(["encode", str(film), "-m", one, "-o", str(tmp_path / "latents")])
    capsys.readouterr()
    latents = tmp_path / "latents" / "film.safetensors"
    error = fails(capsys, "decode", latents, "-m", other, "-o", tmp_path / "out")
    assert "made by CV4x8x8" in error
    assert "CV8x8x8" in error
    assert not (tmp_path / "out").exists()


def test_the_built_in_model_that_encoded_is_found_without_flags(film, tmp_path, capsys):
    for name in builtins():
        out = tmp_path / name.removeprefix("builtin:")
        assert main(["encode", str(film), "-m", name, "-o", str(out)]) == 0
        assert main(["decode", str(out / "film.safetensors"), "-o", str(out / "films")]) == 0
        frames, _ = read_video(out / "films" / "film.mp4")
        assert frames.shape == (20, 3, 30, 44)
    main(["encode", str(film), "-m", save("CV4x8x8", tmp_path), "-o", str(tmp_path / "latents")])
    capsys.readouterr()
    out = tmp_path / "films"
    error = fails(capsys, "decode", tmp_path / "latents" / "film.safetensors", "-o", out)
    assert "made by CV4x8x8" in error
    assert "-m" in error


def test_what_is_not_a_latent_file_is_refused(film, tmp_path, capsys):
    model = save("CV4x8x8", tmp_path)
    weights = tmp_path / "CV4x8x8" / "model.safetensors"
    assert "not a latent file" in fails(
        capsys, "decode", weights, "-m", model, "-o", tmp_path / "out"
    )
    assert "no such file" in fails(
        capsys, "decode", tmp_path / "no", "-m", model, "-o", tmp_path / "out"
    )


def test_bad_videos_are_named_in_one_line(film, tmp_path, capsys):
    model = save("CV4x8x8", tmp_path)
    out = tmp_path / "out"
    whole = film.read_bytes()
    text, cut, empty = (tmp_path / name for name in ("text.mp4", "cut.mp4", "empty.mp4"))
    text.write_text("not a video")
    cut.write_bytes(whole[: len(whole) // 2])
    empty.touch()
    for path in (tmp_path / "missing.mp4", text, cut, empty, tmp_path):
        error = fails(capsys, "encode", path, "-m", model, "-o", out)
        assert path.name in error
    assert not out.exists() or not list(out.iterdir())


def test_of_several_inputs_the_bad_ones_are_listed_and_the_others_done(film, tmp_path, capsys):
    model = save("CV4x8x8", tmp_path)
    bad = tmp_path / "bad.mp4"
    bad.write_text("no")
    out = tmp_path / "out"
    assert main(["encode", str(bad), str(film), "-m", model, "-o", str(out), "--json"]) == 1
    assert [p.name for p in out.iterdir()] == ["film.safetensors"]
    assert json.loads(capsys.readouterr().out)["input"] == str(film)


def test_inputs_whose_results_would_clash_are_refused(film, tmp_path, capsys):
    model = save("CV4x8x8", tmp_path)
    assert "called film" in fails(capsys, "encode", film, film, "-m", model, "-o", tmp_path / "out")


def test_wrong_models_devices_and_places_are_refused(film, tmp_path, capsys):
    model = save("CV4x8x8", tmp_path)
    assert "no such folder" in fails(
        capsys, "encode", film, "-m", "no/such/model", "-o", tmp_path / "out"
    )
    wrong = fails(capsys, "encode", film, "-m", tmp_path / "films", "-o", tmp_path / "out")
    assert "films" in wrong
    assert "is a file" in fails(capsys, "encode", film, "-m", model, "-o", film)
    assert "holds an input" in fails(capsys, "reconstruct", film, "-m", model, "-o", tmp_path)
    if not torch.cuda.is_available():
        argv = ("encode", film, "-m", model, "-o", tmp_path, "--device", "cuda")
        assert "no CUDA device" in fails(capsys, *argv)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(film, tmp_path, capsys):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    fails(capsys, "encode", film, "-m", save("CV4x8x8", tmp_path), "-o", closed)


def test_evaluate_prints_psnr_beside_a_baseline(model, film, tmp_path, capsys):
    write_film(tmp_path / "film2.mp4", frames=9, height=32, width=32)
    argv = ["evaluate", str(film), str(tmp_path / "film2.mp4"), "-m", model, "--json"]
    assert main(argv) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len({row["resolution"] for row in rows}) == len(rows) == 2
    assert all(row["psnr_mean_colour"] > 5 for row in rows)


def test_evaluate_shrinks_and_names_folders_without_clips(model, film, tmp_path, capsys):
    argv = ["evaluate", str(film), "-m", model, "--short-side", "20", "--json"]  # of 30x44
    assert main(argv) == 0
    assert json.loads(capsys.readouterr().out)["resolution"] in ("16x24", "16x16")
    (tmp_path / "empty").mkdir()
    assert "no clip there" in fails(capsys, "evaluate", tmp_path / "empty", "-m", model)
    assert "--short-side" in fails(capsys, "evaluate", film, "-m", model, "--short-side", "0")


def test_a_way_of_computing_excludes_the_other(film, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["encode", str(film), "-o", str(tmp_path), "--reference", "--compile"])
    assert end.value.code == 2
    assert "not allowed with" in capsys.readouterr().err


def test_train_takes_a_file_and_changes_to_it(tmp_path, capsys):
    films = tmp_path / "films"
    films.mkdir()
    for i in range(2):
        write_film(films / f"{i}.mp4", frames=5, height=32, width=32, seed=i)
    (tmp_path / "run.yaml").write_text(
        f"sources: [{{clips: {films}}}]\n"
        "model: {temporal_compression: 4, channels: 4, channels_mult: [1, 1], num_res_blocks: 1}\n"
        "shapes: [{frames: 5, size: 16, batch: 1}]\nsteps: 99\nstatistics_batches: 1\n"
    )
    argv = ["train", "--config", str(tmp_path / "run.yaml"), "-o", str(tmp_path / "run"), "--json"]
    assert main([*argv, "--set", "steps=2"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 2
    assert main(["convert", str(tmp_path / "run" / "model"), "-o", str(tmp_path / "copy")]) == 0
    assert (tmp_path / "copy" / "model.safetensors").is_file()
    capsys.readouterr()
    assert "a run is there" in fails(capsys, *argv)


def test_mistakes_in_settings_are_explained(tmp_path, capsys):
    error = fails(capsys, "train", "--set", "steps=-3", "--set", "colour=1", "-o", tmp_path / "run")
    for part in ("steps: Input should be greater than 0", "colour: Extra inputs", "model: Field"):
        assert part in error
    assert not (tmp_path / "run").exists()


def test_models_lists_every_variant(capsys):
    assert main(["models", "--json"]) == 0
    names = [json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()]
    assert any("pico-cv4x8x8" in name for name in names)
    assert "Cosmos-1.0-Tokenizer-CV8x8x8" in names


def test_help_does_not_wait_for_torch():
    code = "import sys, wfm_tokenizer.cli as c; c.build_parser(); sys.exit('torch' in sys.modules)"
    began = time.perf_counter()
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert time.perf_counter() - began < 5
