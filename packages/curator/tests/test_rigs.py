"""Cameras that were recorded together: frames that name their moment prove the alignment."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import moving, number_of, stamp, write
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

import wfm_curator as wc
from wfm_curator.rigs import align

SECONDS, TICK = 8.0, 0.01  # frames carry their time in hundredths


def config(**groups):
    base = {"run": {"workers": 0}, "split": {"method": "content", "min_seconds": 0.5}}
    return wc.CurateConfig.model_validate(base | {"filter": {"min_side": 1}} | groups)


def camera(folder, name, seconds, fps, seed, *, told=True):
    """A camera that films at the given moments; each frame carries the hundredth it is from."""
    film = moving(seed, len(seconds))
    film = np.stack([stamp(p, round(t / TICK)) for p, t in zip(film, seconds, strict=True)])
    write(folder / f"{name}.mp4", film, fps)
    if told:
        times = torch.tensor(seconds, dtype=torch.float64)
        (folder / f"{name}.safetensors").write_bytes(save({"timestamp": times}))


@pytest.fixture
def rig(tmp_path):
    """Three cameras: one steady, one that drifts and starts late, one that drops frames."""
    folder = tmp_path / "in" / "drive.rig"
    front = np.arange(0, SECONDS, 0.1)
    left = 0.73 + np.arange(0, SECONDS - 1, 0.04) * 1.003
    rng = np.random.default_rng(0)
    right = np.arange(0.02, SECONDS, 0.1)
    right = np.delete(right, rng.choice(np.arange(10, 70), 9, replace=False))
    for seed, (name, seconds, fps) in enumerate(
        (("front", front, 10), ("left", left, 25), ("right", right, 10))
    ):
        camera(folder, name, seconds, fps, seed)
    times = np.arange(0.3, SECONDS, 0.02)
    values = [[t, 2 * t, 0.0] for t in times]
    pq.write_table(pa.table({"timestamp": times, "value": values}), folder / "action.parquet")
    return folder


def moments(frames):
    return [number_of(p) * TICK for p in frames.permute(0, 2, 3, 1).numpy()]


def test_all_views_of_a_clip_show_the_same_moments(rig, tmp_path):
    report = wc.curate(
        rig.parent, tmp_path / "out", config(split={"method": "stride", "stride": 3})
    )
    assert (report.recordings, report.quarantined) == (1, {})
    assert report.rejected["not in all views"] >= 1
    assert sum(report.frames.values()) == 80
    clips = list(wc.ShardedDataset(tmp_path / "out"))
    assert clips
    for clip in clips:
        labels = clip.labels()
        assert clip.views == ("left", "right")
        assert clip.attributes["curation"]["views"] == ["front", "left", "right"]
        now = np.array(moments(clip.read(0, len(clip))))
        np.testing.assert_allclose(now, labels["timestamp"], atol=TICK)
        for view, period in (("left", 0.04), ("right", 0.1)):
            then = np.array(moments(clip.read_view(view, 0, len(clip))))
            valid = labels[f"sync.{view}.valid"].numpy()
            assert (np.abs(then - now)[valid] <= period / 2 * 1.003 + TICK).all()
            offsets = labels[f"sync.{view}.offset"].numpy()
            np.testing.assert_allclose(then - now, offsets, atol=1.5 * TICK)
        action = labels["action"]
        assert action.shape == (len(clip), 3)
        np.testing.assert_allclose(action[:, 0], now, atol=0.01 + TICK)
    dropped = sum((~clip.labels()["sync.right.valid"]).sum().item() for clip in clips)
    assert dropped == sum((~clip.labels()["sync.right.valid"]).sum().item() for clip in clips) > 0
    assert all(clip.labels()["sync.left.valid"].all() for clip in clips)


def test_running_again_changes_nothing_and_a_change_in_any_view_is_seen(rig, tmp_path):
    wc.curate(rig.parent, tmp_path / "out", config())
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    wc.curate(rig.parent, tmp_path / "out", config())
    assert {p: p.read_bytes() for p in before} == before
    camera(rig, "left", 0.5 + np.arange(0, 7, 0.04), 25, 9)
    wc.curate(rig, tmp_path / "out", config())
    assert any(p.read_bytes() != data for p, data in before.items())


def test_start_times_stand_in_for_timestamps(tmp_path):
    folder = tmp_path / "in" / "a.rig"
    camera(folder, "b", np.arange(0, 4, 0.1), 10, 0, told=False)
    camera(folder, "a", np.arange(0.5, 4, 0.1), 10, 1, told=False)
    (folder / "a.json").write_text(json.dumps({"start_time": 0.5}))
    (folder / "rig.json").write_text(json.dumps({"reference": "b"}))
    wc.curate(tmp_path / "in", tmp_path / "out", config())
    (clip,) = wc.ShardedDataset(tmp_path / "out")
    now, then = (moments(f) for f in (clip.read(0, len(clip)), clip.read_view("a", 0, len(clip))))
    np.testing.assert_allclose(now, then, atol=1e-9)
    with pytest.raises(ValueError, match=r"no view 'c'; it has a"):
        clip.read_view("c", 0, 1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "rig.json").write_text('{"reference": "top"}'), "reference 'top' is not"),
        (
            lambda f: (f / "left.safetensors").write_bytes(
                save({"timestamp": torch.zeros(3, dtype=torch.float64)})
            ),
            "timestamp is F64",
        ),
        (lambda f: (f / "action.parquet").write_bytes(b"no table"), "not a table of numbers"),
        (lambda f: (f / "left.mp4").write_bytes(b"no video"), "cannot be opened"),
        (
            lambda f: pq.write_table(pa.table({"timestamp": [900.0, 901.0]}), f / "action.parquet"),
            "action has nothing at the times of front",
        ),
    ],
    ids=["reference", "rows", "table", "video", "times"],
)
def test_a_rig_that_does_not_fit_together_is_quarantined(rig, tmp_path, damage, message):
    damage(rig)
    report = wc.curate(rig.parent, tmp_path / "out", config())
    (reason,) = report.quarantined.values()
    assert message in reason


@given(
    moments=st.lists(st.floats(0, 50), min_size=1, max_size=30, unique=True).map(sorted),
    samples=st.lists(st.floats(0, 50), min_size=1, max_size=30, unique=True).map(sorted),
)
def test_the_nearest_sample_is_taken(moments, samples):
    moments, samples = np.array(moments), np.array(samples)
    found = align(moments, samples)
    apart = np.abs(samples[:, None] - moments).min(0)
    np.testing.assert_allclose(np.abs(found.offsets), apart, atol=1e-9)
    assert (np.diff(found.rows) >= 0).all()
