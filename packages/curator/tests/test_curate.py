import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import moving, number_of, numbered, write
from safetensors.torch import save

import wfm_curator as wc
from wfm_curator import pool, tasks
from wfm_curator.ledger import Ledger

HERE = wc.CurateConfig.model_validate({"run": {"workers": 0}})


def settings(**groups):
    return wc.CurateConfig.model_validate({"run": {"workers": 0}} | groups)


def origin(clip):
    """Where a clip is from, as its JSON says."""
    return json.loads(clip.member("json"))["curation"]


def contents(out, *, ledger=True):
    files = {p.relative_to(out).as_posix(): p for p in sorted(out.rglob("*")) if p.is_file()}
    return {n: p.read_bytes() for n, p in files.items() if ledger or not n.startswith("ledger")}


def rows(out):
    return pq.read_table(out / "manifest.parquet").to_pylist()


def test_short_recordings_stay_untouched(folder, tmp_path):
    report = wc.curate(folder, tmp_path / "out", HERE)
    assert (report.recordings, report.kept, report.shards) == (6, 6, 1)
    clips = wc.ShardedDataset(tmp_path / "out")
    assert [c.member("mp4") for c in clips] == [p.read_bytes() for p in sorted(folder.iterdir())]
    assert [len(c) for c in clips] == [17] * 6
    assert {origin(c)["caption_source"] for c in clips} == {"described"}


def test_side_cars_are_carried_and_cut(tmp_path):
    place = tmp_path / "in"
    film = np.concatenate([numbered(30, seed=0), 255 - numbered(30, seed=1)])
    write(place / "long.mp4", film)
    labels = {
        "action": torch.arange(59 * 7.0).reshape(59, 7),
        "camera_pose": torch.arange(60 * 16.0).reshape(60, 4, 4),
        "depth": torch.arange(60 * 4).reshape(60, 2, 2).half(),
        "gravity": torch.tensor([0.0, 0.0, -9.8]),
    }
    (place / "long.safetensors").write_bytes(save(labels))
    text = {"caption": "two scenes", "fps": 10, "scene": "test", "seed": 3}
    (place / "long.json").write_text(json.dumps(text))
    report = wc.curate(place, tmp_path / "out", settings(filter={"min_side": 1}))
    first, second = wc.ShardedDataset(tmp_path / "out")
    assert report.frames == {"kept": 60, "rejected": 0, "duplicate": 0}
    assert first.caption == second.caption == "two scenes"
    assert second.attributes["scene"] == "test"
    assert origin(second)["start"] == 30
    assert second.fps == 10
    found = second.labels()
    for name, cut in (("action", slice(30, 59)), ("camera_pose", slice(30, 60))):
        torch.testing.assert_close(found[name], labels[name][cut], rtol=0, atol=0)
    torch.testing.assert_close(found["gravity"], labels["gravity"])
    assert first.labels()["action"].shape == (29, 7)
    assert found["depth"].dtype == torch.float16
    numbers = [number_of(p) for p in first.read(0, 30).permute(0, 2, 3, 1).numpy()]
    assert numbers == list(range(30))


def test_a_dataset_reads_any_frames_of_any_clip(folder, tmp_path):
    wc.curate(folder, tmp_path / "out", HERE)
    clips = wc.ShardedDataset(str(tmp_path / "out"))
    clip = clips[-1]
    frames = clip.read(0, len(clip))
    assert frames.shape == (17, 3, 48, 64)
    assert frames.dtype == torch.uint8
    assert torch.equal(clip.read(5, 9), frames[5:9])
    assert clip.labels() == {}
    for start, stop in ((0, 18), (-1, 3), (4, 4)):
        with pytest.raises(ValueError, match="has 17 frames; asked for"):
            clip.read(start, stop)
    with pytest.raises(IndexError):
        clips[6]
    orders = [[c.key for c in clips.shuffled(seed)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(c.key for c in clips)


def test_tars_alone_are_enough(folder, tmp_path):
    wc.curate(folder, tmp_path / "out", HERE)
    with_index = wc.ShardedDataset(tmp_path / "out")
    without = wc.ShardedDataset(tmp_path / "out" / "shards")
    assert [(c.key, c.fps, len(c), c.caption) for c in without] == [
        (c.key, c.fps, len(c), c.caption) for c in with_index
    ]


def test_a_folder_without_clips_is_no_dataset(tmp_path):
    with pytest.raises(ValueError, match="no clips in here"):
        wc.ShardedDataset(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        wc.ShardedDataset(tmp_path / "nowhere")


def test_running_again_changes_no_byte_and_measures_nothing(folder, tmp_path, monkeypatch):
    wc.curate(folder, tmp_path / "out", HERE)
    before = contents(tmp_path / "out")
    monkeypatch.setattr(tasks, "analyse", None)  # would be an error if called
    wc.curate(folder, tmp_path / "out", HERE)
    assert contents(tmp_path / "out") == before


def test_processes_write_the_same_bytes(folder, tmp_path):
    write(folder / "cut.mp4", np.concatenate([moving(7, 30), moving(8, 30)]))
    wc.curate(folder, tmp_path / "one", HERE)
    wc.curate(folder, tmp_path / "two", settings(run={"workers": 2}))
    one, two = (contents(tmp_path / name, ledger=False) for name in ("one", "two"))
    assert one == two


def test_thresholds_change_the_verdict_without_measuring(folder, tmp_path, monkeypatch):
    wc.curate(folder, tmp_path / "out", HERE)
    before = contents(tmp_path / "out", ledger=False)
    monkeypatch.setattr(tasks, "analyse", None)
    report = wc.curate(folder, tmp_path / "out", settings(filter={"max_blur": 0.0}))
    assert report.rejected == {"blurred": 6}
    assert not list((tmp_path / "out").rglob("*.tar"))
    wc.curate(folder, tmp_path / "out", HERE)
    assert contents(tmp_path / "out", ledger=False) == before


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path):
    place = tmp_path / "in"
    for n in range(12):
        film = np.concatenate([moving(2 * n, 12), moving(2 * n + 1, 12)])
        write(place / f"{n:02d}.mp4", film, fps=5)
    script = (
        "import wfm_curator as wc, sys;"
        "wc.curate(sys.argv[1], sys.argv[2], wc.CurateConfig(run={'workers': 1}))"
    )
    command = [sys.executable, "-c", script, str(place), str(tmp_path / "out")]
    for _ in range(2):
        child = subprocess.Popen(command, start_new_session=True)
        deadline = time.monotonic() + 60
        while not (tmp_path / "out" / "ledger.sqlite").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(1.2)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    wc.curate(place, tmp_path / "out", HERE)
    wc.curate(place, tmp_path / "whole", HERE)
    resumed, whole = (contents(tmp_path / name, ledger=False) for name in ("out", "whole"))
    assert resumed == whole


def test_every_frame_is_accounted_for(folder, tmp_path):
    shutil.copy(folder / "sim-0.mp4", folder / "twin.mp4")
    write(folder / "still.mp4", np.stack([moving(1, 1)[0]] * 40))
    write(
        folder / "cuts.mp4", np.concatenate([moving(n, length) for n, length in ((9, 40), (10, 7))])
    )
    report = wc.curate(folder, tmp_path / "out", HERE)
    assert report.rejected == {"short": 1, "static": 1}
    assert report.duplicates == 1
    assert sum(report.frames.values()) == 6 * 17 + 17 + 40 + 47
    found = rows(tmp_path / "out")
    assert sum(r["frames"] for r in found) == sum(report.frames.values())
    twin = next(r for r in found if r["state"] == "duplicate")
    assert (twin["recording"], twin["cosine"], twin["difference"]) == ("twin.mp4", 1.0, 0.0)
    kept = {r["key"] for r in found if r["state"] == "kept"}
    assert twin["duplicate_of"] in kept
    assert kept == {c.key for c in wc.ShardedDataset(tmp_path / "out")}
    assert all((r["shard"] != "") == (r["state"] == "kept") for r in found)


def test_of_duplicates_the_larger_is_kept(tmp_path):
    film = moving(4, 20, 96, 128)
    write(tmp_path / "in" / "a-small.mp4", film[:, ::2, ::2])
    write(tmp_path / "in" / "b-large.mp4", film)
    wc.curate(tmp_path / "in", tmp_path / "out", HERE)
    states = {r["recording"]: r["state"] for r in rows(tmp_path / "out")}
    assert states == {"a-small.mp4": "duplicate", "b-large.mp4": "kept"}


def test_bad_files_are_quarantined_and_the_rest_goes_on(folder, tmp_path):
    good = (folder / "sim-0.mp4").read_bytes()
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("this is no video " * 99)
    (folder / "cut-off.mp4").write_bytes(good[: len(good) // 2])
    shutil.copy(folder / "sim-0.mp4", folder / "labels.mp4")
    (folder / "labels.safetensors").write_bytes(save({"action": torch.zeros(9, 7)}))
    shutil.copy(folder / "sim-0.mp4", folder / "words.mp4")
    (folder / "words.json").write_text("{")
    write(folder / "one-frame.mp4", moving(0, 1))
    write(folder / "odd.mkv", moving(11, 20, 51, 77), pixels="yuv444p")
    report = wc.curate(folder, tmp_path / "out", settings(run={"workers": 2}))
    bad = ["cut-off.mp4", "empty.mp4", "labels.mp4", "text.mp4", "words.mp4"]
    assert sorted(report.quarantined) == bad
    assert all("\n" not in reason for reason in report.quarantined.values())
    assert report.quarantined["empty.mp4"] == "the file is empty"
    assert "action has 9 rows, the video 17 frames" in report.quarantined["labels.mp4"]
    assert report.rejected == {"short": 1}
    assert report.kept == 7
    before = contents(tmp_path / "out")
    wc.curate(folder, tmp_path / "out", settings(run={"workers": 2}))
    assert contents(tmp_path / "out") == before
    (folder / "empty.mp4").write_bytes((folder / "odd.mkv").read_bytes())  # mended
    assert "empty.mp4" not in wc.curate(folder, tmp_path / "out", HERE).quarantined


def test_a_crash_is_tried_again_on_the_next_run(folder, tmp_path, monkeypatch):
    def failing(function, units, **limits):
        for unit in units:
            yield pool.Outcome(unit, error="the worker died, 2 times", kind="crash", attempts=2)

    with monkeypatch.context() as patch:
        patch.setattr("wfm_curator.pool.run", failing)
        report = wc.curate(folder, tmp_path / "out", HERE)
    assert len(report.quarantined) == 6
    assert wc.curate(folder, tmp_path / "out", HERE).kept == 6


def test_a_recording_that_fails_in_the_cut_is_quarantined_then(tmp_path, monkeypatch):
    for n in range(2):
        write(tmp_path / "in" / f"{n}.mp4", np.concatenate([moving(n, 30), moving(n + 4, 30)]))
    real = pool.run

    def spoiled(function, units, **limits):
        for outcome in real(function, units, **limits):
            bad = function is tasks.cut_unit and outcome.unit.recording.name == "0.mp4"
            failed = pool.Outcome(outcome.unit, error="changed meanwhile", kind="damaged")
            yield failed if bad else outcome

    monkeypatch.setattr("wfm_curator.pool.run", spoiled)
    report = wc.curate(tmp_path / "in", tmp_path / "out", HERE)
    assert report.quarantined == {"0.mp4": "changed meanwhile"}
    assert {origin(c)["recording"] for c in wc.ShardedDataset(tmp_path / "out")} == {"1.mp4"}


def test_recordings_that_are_gone_leave_the_shards(folder, tmp_path):
    wc.curate(folder, tmp_path / "out", HERE)
    (folder / "sim-3.mp4").unlink()
    report = wc.curate(folder, tmp_path / "out", HERE)
    wc.curate(folder, tmp_path / "fresh", HERE)
    assert report.recordings == 5
    both = (contents(tmp_path / name, ledger=False) for name in ("out", "fresh"))
    assert next(both) == next(both)


def test_sound_is_left_behind_when_asked_without_encoding_pictures(tmp_path):
    import av

    path = write(tmp_path / "plain.mp4", moving(0, 20))
    (tmp_path / "in").mkdir()
    with av.open(str(path)) as source, av.open(str(tmp_path / "in" / "a.mp4"), "w") as out:
        video = out.add_stream_from_template(source.streams.video[0])
        sound = out.add_stream("aac", rate=8000)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = video
                out.mux(packet)
        for n in range(16):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 8000, 1024 * n
            out.mux(sound.encode(frame))
        out.mux(sound.encode(None))
    wc.curate(tmp_path / "in", tmp_path / "out", settings(shard={"audio": False}))
    clip = wc.ShardedDataset(tmp_path / "out")[0]
    (tmp_path / "copy.mp4").write_bytes(clip.member("mp4"))
    with av.open(str(tmp_path / "copy.mp4")) as found, av.open(str(path)) as source:
        assert [s.type for s in found.streams] == ["video"]
        pictures = [[bytes(p) for p in c.demux(video=0) if p.size] for c in (found, source)]
    assert pictures[0] == pictures[1]


def test_two_runs_into_one_folder_are_refused(folder, tmp_path):
    (tmp_path / "out").mkdir()
    ledger = Ledger(tmp_path / "out" / "ledger.sqlite")
    with pytest.raises(ValueError, match="another run is writing"):
        wc.curate(folder, tmp_path / "out", HERE)
    ledger.close()


def test_what_is_no_ledger_is_not_overwritten(folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "ledger.sqlite").write_text("my own notes, not a database " * 50)
    with pytest.raises(ValueError, match="not a ledger"):
        wc.curate(folder, tmp_path / "out", HERE)


def test_an_unknown_executor_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="executor 'slurm' is not one of local, ray"):
        wc.curate(folder, tmp_path / "out", HERE, executor="slurm")


def test_inputs_of_like_names_are_told_apart(tmp_path):
    for n, name in enumerate(("one", "two")):
        write(tmp_path / name / "a.mp4", moving(n, 17))
    report = wc.curate([tmp_path / "one", tmp_path / "two"], tmp_path / "out", HERE)
    assert report.kept == 2


def test_the_lowest_quality_goes_when_asked(folder, tmp_path):
    report = wc.curate(folder, tmp_path / "out", settings(filter={"drop_lowest": 0.34}))
    assert report.rejected == {"lowest quality": 2}
    quality = {r["state"]: [] for r in rows(tmp_path / "out")}
    for row in rows(tmp_path / "out"):
        quality[row["state"]].append(row["score_quality"])
    assert max(quality["rejected"]) <= min(quality["kept"])


def test_the_page_holds_scores_thresholds_extremes_and_categories(folder, tmp_path):
    import re

    (folder / "sim-0.json").write_text(json.dumps({"category": "driving"}))
    (folder / "sim-1.json").write_text(json.dumps({"category": "Nature"}))
    (folder / "sim-2.json").write_text(json.dumps({"category": "kitchen"}))
    wc.curate(folder, tmp_path / "out", HERE)
    limit = sorted(r["score_blur"] for r in rows(tmp_path / "out"))[3]
    wc.curate(folder, tmp_path / "out", settings(filter={"max_blur": limit}))
    page = (tmp_path / "out" / "report.html").read_text()
    data = json.loads(re.search(r"id=scores>(.*?)</script>", page).group(1))
    assert data["total"] == len(data["rows"]) == 6
    named = {s["name"]: k for k, s in enumerate(data["sliders"])}
    assert data["sliders"][named["max_blur"]]["value"] == limit
    blurred = sum(row[named["max_blur"]] > limit for row in data["rows"])
    assert blurred == sum(r["reason"] == "blurred" for r in rows(tmp_path / "out")) > 0
    assert "lowest quality" in page
    assert "highest motion" in page
    kinds = {r["recording"]: r["category"] for r in rows(tmp_path / "out")}
    assert kinds["sim-0.mp4"] == "driving"
    assert kinds["sim-1.mp4"] == "nature dynamics"
    assert (kinds["sim-2.mp4"], kinds["sim-3.mp4"]) == ("other", "")


def test_the_page_shows_every_fate_and_names_are_escaped(folder, tmp_path):
    shutil.copy(folder / "sim-0.mp4", folder / "<b>twin.mp4")
    (folder / "empty.mp4").touch()
    write(folder / "still.mp4", np.stack([moving(1, 1)[0]] * 40))
    wc.curate(folder, tmp_path / "out", HERE)
    page = (tmp_path / "out" / "report.html").read_text()
    for words in ("rejected: static", "Duplicates (1)", "the file is empty", "&lt;b&gt;twin.mp4"):
        assert words in page
    assert "<b>twin" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_one_recording_of_many_clips_is_cut_by_several_workers_to_the_same_bytes(tmp_path):
    write(tmp_path / "in/film.mp4", np.concatenate([moving(n, 12) for n in (0, 1, 2, 4, 5)]))
    split = {"method": "stride", "stride": 1.2, "min_seconds": 0.5}
    shards = []
    for workers in (0, 3):
        out = tmp_path / f"out-{workers}"
        given = {"split": split, "run": {"workers": workers}, "dedup": {"enabled": False}}
        assert wc.curate(tmp_path / "in", out, wc.CurateConfig.model_validate(given)).kept == 5
        shards.append([p.read_bytes() for p in sorted(out.rglob("*.tar"))])
    assert shards[0] == shards[1]
