import resource
import subprocess
import sys

import pytest
import torch
from conftest import FAMILIES, make, write_film

from wfm_tokenizer import files, work
from wfm_tokenizer.files import decode_file, encode_file, read_latents, reconstruct_file
from wfm_tokenizer.video import read_video
from wfm_tokenizer.writing import join_videos, video_writer


class Killed(Exception):
    pass


def killer(frames):
    """Report to someone who stops the work after so many frames."""
    done = 0

    def report(more, total):
        nonlocal done
        done += more
        if done >= frames:
            raise Killed

    return report


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(work, "EVERY", 0.0)
    monkeypatch.setattr(files, "CELLS", 24)


@pytest.fixture
def long_film(tmp_path):
    path = tmp_path / "long.mp4"
    write_film(path, frames=45, height=32, width=48)
    return path


@pytest.mark.parametrize("name", ["CV4x8x8", "DV8x16x16"])
def test_killed_encoding_goes_on_where_it_was(name, long_film, tmp_path):
    tokenizer = make(FAMILIES[name]).fused()
    whole, again = tmp_path / "whole.safetensors", tmp_path / "again.safetensors"
    encode_file(long_film, whole, tokenizer)
    with pytest.raises(Killed):
        encode_file(long_film, again, tokenizer, report=killer(40))
    assert not again.exists()
    reports = []
    encode_file(long_film, again, tokenizer, report=lambda more, total: reports.append(more))
    assert 0 < reports[0] < 40
    assert sum(reports) == 45
    assert torch.equal(read_latents(again, tokenizer).latent, read_latents(whole, tokenizer).latent)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "again.safetensors",
        "long.mp4",
        "whole.safetensors",
    ]


@pytest.mark.parametrize("after", [10, 44])
def test_killed_decoding_and_comparing_go_on_where_they_were(after, long_film, tmp_path):
    tokenizer = make(FAMILIES["CV8x8x8"]).fused()
    latents = tmp_path / "latents.safetensors"
    encode_file(long_film, latents, tokenizer)
    for run, source in ((decode_file, latents), (reconstruct_file, long_film)):
        whole, again = (tmp_path / f"{run.__name__}-{name}.mp4" for name in ("whole", "again"))
        expected = run(source, whole, tokenizer)
        with pytest.raises(Killed):
            run(source, again, tokenizer, report=killer(after))
        assert not again.exists()
        actual = run(source, again, tokenizer)
        assert torch.equal(read_video(again)[0], read_video(whole)[0])
        assert len(read_video(again)[0]) == 45
        if run is reconstruct_file:
            assert actual == expected
            assert actual["frames"] == 45


def test_work_of_another_input_is_not_taken_up(long_film, tmp_path):
    tokenizer = make(FAMILIES["CV4x8x8"])
    out = tmp_path / "out.safetensors"
    with pytest.raises(Killed):
        encode_file(long_film, out, tokenizer, report=killer(30))
    write_film(long_film, frames=12, seed=1)
    reports = []
    encode_file(long_film, out, tokenizer, report=lambda more, total: reports.append(more))
    assert reports[0] == 0
    assert read_latents(out, tokenizer).frames == 12


def test_joined_pieces_show_all_frames_in_order(tmp_path):
    ramp = torch.arange(30).view(30, 1, 1, 1).expand(30, 3, 16, 16).byte() * 8
    for i in range(3):
        with video_writer(tmp_path / f"{i}.mp4", 10.0) as write:
            write(ramp[10 * i : 10 * i + 4])
            write(ramp[10 * i + 4 : 10 * i + 10])
    join_videos([tmp_path / f"{i}.mp4" for i in range(3)], tmp_path / "all.mp4")
    frames, fps = read_video(tmp_path / "all.mp4")
    assert fps == 10
    assert (frames.float() - ramp.float()).abs().mean() < 3
    assert len(frames) == 30


def test_nothing_to_write_is_said(tmp_path):
    with (
        pytest.raises(ValueError, match="nothing to write"),
        video_writer(tmp_path / "a.mp4", 10.0),
    ):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_ten_minutes_take_no_more_memory_than_one(tmp_path):
    """Encode and decode on the command line; the peak grows by the latents and the attention."""
    peaks = []
    for minutes in (1, 10):
        path = tmp_path / f"{minutes}.mp4"
        write_film(path, frames=600 * minutes, height=64, width=64)
        for command, source in (("encode", path), ("decode", path.with_suffix(".safetensors"))):
            argv = ["wfm-tokenizer", command, str(source), "-o", str(tmp_path / "out"), "-q"]
            code = "import sys; from wfm_tokenizer.cli import main; sys.exit(main(sys.argv[1:]))"
            subprocess.run([sys.executable, "-c", code, *argv[1:]], check=True)
            (tmp_path / "out").rename(tmp_path / f"out-{minutes}-{command}")
            if command == "encode":
                made = tmp_path / f"out-{minutes}-encode" / f"{minutes}.safetensors"
                made.rename(source.with_suffix(".safetensors"))
        peaks.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
    cells, width, latents = 8 * 8, 128, 600 * 10 // 4
    attention = latents * cells * width * 4 / 2**20
    assert peaks[1] - peaks[0] < 3 * attention + 50
