"""What a pipeline meets: damaged files, deadly files, workers and drivers that are killed."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import moving, write
from mutants import mutate, originals

import wfm_curator as wc
from wfm_curator import pipeline, pool, tasks
from wfm_curator.manifest import STATES
from wfm_curator.video import VideoError, open_video

QUICK = {"workers": 2, "timeout": 60.0, "memory": 4.0}


def settings(**run):
    gates = {"min_side": 1, "min_motion": 0, "min_change": 0, "max_frozen": 1}
    return wc.CurateConfig.model_validate(
        {"split": {"method": "content"}, "run": QUICK | run, "filter": gates}
    )


def contents(out):
    files = {p.relative_to(out).as_posix(): p for p in sorted(out.rglob("*")) if p.is_file()}
    return {n: p.read_bytes() for n, p in files.items() if not n.startswith("ledger")}


def curate_mutants(tmp_path, count):
    good = originals(tmp_path / "good")
    place, rng = tmp_path / "in", np.random.default_rng(count)
    place.mkdir()
    ways = {}
    for n in range(count):
        suffix, content = good[n % len(good)]
        way, data = mutate(content, rng)
        ways[f"{n:04d}{suffix}"] = way
        (place / f"{n:04d}{suffix}").write_bytes(data)
    report = wc.curate(place, tmp_path / "out", settings())
    rows = pq.read_table(tmp_path / "out" / "manifest.parquet").to_pylist()
    assert {r["recording"] for r in rows} == set(ways), "a recording was lost"
    assert report.recordings == count
    assert {r["state"] for r in rows} <= set(STATES)
    for row in rows:
        assert (row["state"] == "kept") == (row["reason"] == "")
        assert row["state"] == "quarantined" or row["frames"] > 0
    kinds = Counter(r["error_kind"] for r in rows if r["state"] == "quarantined")
    assert not {"", "fault", "time-out"} & set(kinds), kinds
    for name in report.quarantined:
        assert "\n" not in report.quarantined[name]
    for clip in wc.ShardedDataset(tmp_path / "out") if report.kept else ():
        assert clip.read(0, len(clip)).shape[0] == len(clip)
    return ways, rows


def test_sixty_damaged_videos_are_each_accounted_for(tmp_path):
    ways, rows = curate_mutants(tmp_path, 60)
    assert len(set(ways.values())) == 8
    bad = {r["recording"] for r in rows if r["state"] == "quarantined"}
    assert all(name in bad for name, way in ways.items() if way == "empty")


@pytest.mark.slow
def test_a_thousand_damaged_videos_are_each_accounted_for(tmp_path):
    curate_mutants(tmp_path, 1000)


def test_pictures_too_large_to_be_true_are_refused_before_decoding(tmp_path, monkeypatch):
    path = write(tmp_path / "a.mp4", moving(0, 5))
    monkeypatch.setattr("wfm_curator.video.LARGEST", 3000)
    with pytest.raises(VideoError, match="pictures of 64x48; 3000 pixels"), open_video(path):
        pass


def deadly(unit):
    """What a decoder does that a video kills."""
    if "deadly" in unit.recording.name:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "endless" in unit.recording.name:
        time.sleep(600)
    return tasks.analyse_unit(unit)


def test_a_video_that_kills_its_decoder_ends_in_quarantine(folder, tmp_path, monkeypatch):
    for name in ("deadly", "endless"):
        write(folder / f"{name}.mp4", moving(0, 17))
    monkeypatch.setattr(pipeline, "analyse_unit", deadly)
    run = settings(timeout=5.0, attempts=1, give_up=2)
    report = wc.curate(folder, tmp_path / "out", run)
    assert report.kept == 6
    assert report.quarantined == {
        "deadly.mp4": "the worker died (exit status -11), 1 times",
        "endless.mp4": "took longer than 5 s, 1 times",
    }
    before = contents(tmp_path / "out")
    for _ in range(2):  # tried once more, then given up
        wc.curate(folder, tmp_path / "out", run)
        assert contents(tmp_path / "out") == before
    monkeypatch.setattr(pool, "run", idle)
    wc.curate(folder, tmp_path / "out", run)
    assert contents(tmp_path / "out") == before


def idle(function, units, **limits):
    """Stand in for the pool where nothing may be left to do."""
    assert not list(units)
    return iter(())


def children(pid):
    """Return the children that any thread of a process has started."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found += [int(n) for n in (task / "children").read_text().split()]
    return found


SCRIPT = (
    "import wfm_curator as wc, sys;"
    "wc.curate(sys.argv[1], sys.argv[2], wc.CurateConfig(split={'method': 'content'},"
    "filter={'min_side': 1}, run={'workers': 2, 'attempts': 1}))"
)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_killed_workers_change_nothing_in_the_end(tmp_path):
    place = tmp_path / "in"
    for n in range(16):
        write(place / f"{n:02d}.mp4", np.concatenate([moving(2 * n, 12), moving(2 * n + 1, 12)]), 5)
    driver = subprocess.Popen([sys.executable, "-c", SCRIPT, str(place), str(tmp_path / "out")])
    killed = 0
    while driver.poll() is None and killed < 3:
        time.sleep(0.05)
        busy = children(driver.pid) if (tmp_path / "out" / "ledger.sqlite").exists() else []
        for child in busy[:1]:
            if b"serve" in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(child, signal.SIGKILL)
                killed += 1
                time.sleep(0.3)
    assert driver.wait(300) == 0
    assert killed
    config = settings(attempts=2)
    config = config.model_copy(update={"filter": wc.CurateConfig(filter={"min_side": 1}).filter})
    wc.curate(place, tmp_path / "out", config)
    wc.curate(place, tmp_path / "whole", config)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
