import signal
import subprocess
import sys
from pathlib import Path

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
    monkeypatch.setattr(files, "PIECE", 1)


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


KILLED = """
import os, signal, sys
from wfm_tokenizer import cli, files, work

work.EVERY, files.CELLS, files.PIECE = 0.0, 24, 1
saved = work.Work.save

def save_and_die(self, state):
    saved(self, state)
    if self.count == 3:
        os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[1] == "die":
    work.Work.save = save_and_die
sys.exit(cli.main(sys.argv[2:]))
"""


def test_a_killed_process_leaves_what_the_next_one_needs(long_film, tmp_path):
    """With SIGKILL, on the command line: the bytes are those of a run that nothing disturbed."""
    source = long_film
    for command in ("encode", "decode"):
        folders = [tmp_path / f"{command}-{name}" for name in ("whole", "again")]
        for folder, way in zip((*folders, folders[1]), ("live", "die", "live"), strict=True):
            argv = [command, str(source), "-q", "-o", str(folder)]
            child = subprocess.run([sys.executable, "-c", KILLED, way, *argv], check=False)
            assert child.returncode == (0 if way == "live" else -signal.SIGKILL)
            names = {path.name for path in folder.iterdir()}
            results = {path.name for path in folders[0].iterdir()}
            assert (names == results) == (way == "live")
        (whole,) = folders[0].iterdir()
        assert (folders[1] / whole.name).read_bytes() == whole.read_bytes()
        source = whole


@pytest.mark.slow
def test_ten_minutes_take_the_memory_that_was_predicted():
    bench = Path(__file__).parents[1] / "benchmarks" / "long.py"
    done = subprocess.run([sys.executable, bench], check=True, capture_output=True, text=True)
    rows = [line.split(" | ") for line in done.stdout.splitlines() if "code" in line]
    assert [row[0] for row in rows] == [
        "| encode",
        "| encode, killed once",
        "| decode",
        "| decode, killed once",
    ]
    for *_, predicted, measured, _ in rows:
        assert 0.6 * int(predicted) < int(measured) <= int(predicted)
