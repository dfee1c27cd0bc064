import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import moving, write

from wfm_curator.cli import main
from wfm_curator.dataset import ShardedDataset


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_help_loads_nothing_heavy():
    script = (
        "import sys; from wfm_curator.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'cv2', 'av', 'numpy', 'pyarrow', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_run_report_and_view(folder, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main(["run", str(folder), "-o", out, "--workers", "0", "--json"]) == 0
    (summary,) = lines(capsys)
    assert summary["kept"] == 6
    page = (tmp_path / "out" / "report.html").read_bytes()
    (tmp_path / "out" / "report.html").unlink()
    assert main(["report", out, "--json"]) == 0
    assert lines(capsys) == [summary]
    assert (tmp_path / "out" / "report.html").read_bytes() == page
    assert main(["view", out, "--json"]) == 0
    clips = lines(capsys)
    assert [c["frames"] for c in clips] == [17] * 6
    place = tmp_path / "unpacked"
    assert main(["view", out, clips[0]["key"], "-o", str(place)]) == 0
    assert sorted(p.suffix for p in place.iterdir()) == [".json", ".mp4"]


def test_a_report_of_another_version_is_not_written_anew(folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["run", str(folder), "-o", str(out), "--workers", "0", "--json"]) == 0
    told = json.loads((out / "report.json").read_text())
    (out / "report.json").write_text(json.dumps(told | {"schema": 1}))
    assert main(["report", str(out)]) == 2
    assert "written by another version" in capsys.readouterr().err


def test_the_summary_is_for_people_too(folder, tmp_path, capsys, caplog):
    caplog.set_level("INFO")
    (folder / "empty.mp4").touch()
    arguments = ["run", str(folder), "-o", str(tmp_path / "out"), "--workers", "0"]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "7 recordings, 6 clips" in told
    assert "empty.mp4: the file is empty" in told
    (where,) = (m for m in caplog.messages if m.startswith("time by the clock: "))
    stages = re.findall(r"(\w+) [\d.]+ s \((\d+)%\)", where)
    assert {name for name, _ in stages} == {"measure", "compare", "write"}
    shares = [int(share) for _, share in stages]
    assert shares == sorted(shares, reverse=True)
    assert 97 <= sum(shares) <= 103
    assert main([*arguments, "--strict"]) == 1


def test_each_step_alone(folder, capsys):
    write(folder / "twin.mp4", moving(0, 17), crf="20")
    write(folder / "film.mp4", np.concatenate([moving(7, 30), moving(8, 30)]))
    (folder / "sim-1.txt").write_text("a yellow block moves")
    assert main(["split", str(folder / "film.mp4"), "--json"]) == 0
    assert [(r["start"], r["stop"]) for r in lines(capsys)] == [(0, 30), (30, 60)]
    assert main(["filter", str(folder / "film.mp4"), "--json", "--set", "filter.min_side=50"]) == 0
    assert {r["reason"] for r in lines(capsys)} == {"small"}
    assert main(["caption", str(folder / "sim-1.mp4"), "--json"]) == 0
    (row,) = lines(capsys)
    assert (row["caption"], row["caption_source"]) == ("a yellow block moves", "text")
    assert main(["dedup", str(folder), "--json"]) == 0
    (pair,) = lines(capsys)
    assert {pair["clip"], pair["duplicate_of"]} == {"sim-0.mp4 [0:17]", "twin.mp4 [0:17]"}
    twins = [str(folder / "twin.mp4"), str(folder / "sim-0.mp4")]
    for command in ("split", "filter", "caption", "dedup"):
        assert main([command, *twins]) == 0
        assert "twin.mp4" in capsys.readouterr().out


def test_a_sweep_says_what_other_limits_would_do(folder, tmp_path, capsys):
    write(folder / "twin.mp4", moving(0, 17), crf="20")
    out = str(tmp_path / "out")
    assert main(["run", str(folder), "-o", out, "--workers", "0", "--json"]) == 0
    capsys.readouterr()
    tables = []
    for place in (out, str(folder)):
        assert main(["dedup", place, "--sweep", "--json"]) == 0
        tables.append(lines(capsys))
    assert tables[0] == tables[1]
    left_out = [row["left_out"] for row in tables[0]]
    assert left_out == sorted(left_out, reverse=True)
    assert left_out[-1] >= 1
    assert main(["dedup", out, "--sweep"]) == 0
    assert "of 7" in capsys.readouterr().out
    assert main(["dedup", out, "--json"]) == 0
    found = lines(capsys)
    assert "twin.mp4 [0:17]" in {row[k] for row in found for k in ("clip", "duplicate_of")}


def test_clips_are_found_by_likeness_and_by_words(folder, tmp_path, capsys):
    write(folder / "mirror.mp4", moving(2, 17)[:, :, ::-1])
    (folder / "sim-4.txt").write_text("a robot arm lifts the yellow block")
    (folder / "sim-5.txt").write_text("blocks fall")
    out, fixed = str(tmp_path / "out"), ["--workers", "0", "--set", "dedup.enabled=false"]
    assert main(["run", str(folder), "-o", out, *fixed, "--json"]) == 0
    capsys.readouterr()
    for query in (str(folder / "sim-2.mp4"), "sim-2"):
        if query == "sim-2":
            query = next(c.key for c in ShardedDataset(out) if c.key.startswith("sim-2"))
        assert main(["search", out, query, "-n", "2", "--json"]) == 0
        found = [row["recording"] for row in lines(capsys)]
        assert "mirror.mp4" in found
    assert main(["search", out, "--text", "robot", "block", "--json"]) == 0
    assert [row["recording"] for row in lines(capsys)] == ["sim-4.mp4", "sim-5.mp4"]
    assert main(["search", out, "--text", "robot"]) == 0
    assert "lifts the yellow block" in capsys.readouterr().out
    assert main(["search", out, "nothing"]) == 2
    assert main(["search", out, "--text", "..."]) == 2
    assert main(["search", str(folder), "x"]) == 2


def test_shard_alone_keeps_every_recording_whole(tmp_path, capsys):
    film = np.concatenate([moving(7, 12, 40, 64), moving(8, 12, 40, 64)])
    for name in ("a", "b"):
        write(tmp_path / "in" / f"{name}.mp4", film)
    write(tmp_path / "in" / "still.mp4", np.stack([moving(1, 1)[0]] * 30))
    assert main(["shard", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--workers", "0"]) == 0
    assert sorted(len(c) for c in ShardedDataset(tmp_path / "out")) == [24, 24, 30]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nowhere", "-o", "out"], "nowhere: no such file or folder"),
        (["run", "empty", "-o", "out"], "no video files in here"),
        (["run", "in", "-o", "out", "--set", "split.stride"], "--set takes KEY=VALUE"),
        (["run", "in", "-o", "out", "--set", "split.methods=x"], "split.methods"),
        (["run", "in", "-o", "out", "--config", "no.yaml"], "no.yaml: no such file"),
        (["run", "in", "-o", "file"], "file"),
        (["run", "in", "-o", "file/out"], "file"),
        (["split", "bad.mp4"], "bad.mp4: cannot be opened as a video"),
        (["view", "empty"], "no clips in here"),
        (["report", "empty"], "no finished run in here"),
    ],
)
def test_mistakes_are_explained_in_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    Path("file").touch()
    Path("bad.mp4").write_text("no video " * 99)
    write(Path("in/a.mp4"), moving(0, 17))
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"wfm-curator {arguments[0]}: error: ")
    assert message in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_named(folder, tmp_path, capsys):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert main(["run", str(folder), "-o", str(locked / "out")]) == 2
    assert "locked" in capsys.readouterr().err


def test_a_full_disk_is_one_line_and_a_later_run_goes_on(folder, tmp_path, monkeypatch, capsys):
    from wfm_curator import shard

    def full(path, members):
        raise OSError(28, "No space left on device", str(path))

    arguments = ["run", str(folder), "-o", str(tmp_path / "out"), "--workers", "0"]
    with monkeypatch.context() as patch:
        patch.setattr(shard, "write_tar", full)
        assert main(arguments) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert not (tmp_path / "out" / "index.json").exists()
    assert main(arguments) == 0
    assert len(ShardedDataset(tmp_path / "out")) == 6


def test_ctrl_c_is_130_and_the_run_goes_on_later(folder, tmp_path, monkeypatch):
    from wfm_curator import tasks

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    arguments = ["run", str(folder), "-o", str(tmp_path / "out"), "--workers", "0"]
    with monkeypatch.context() as patch:
        patch.setattr(tasks, "analyse", interrupted)
        assert main(arguments) == 130
    assert main(arguments) == 0
