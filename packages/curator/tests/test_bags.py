"""MCAP beside cameras: topics are cut at the moments of the frames, with drift and gaps."""

import io
import json
from importlib.util import find_spec

import numpy as np
import pytest
from mcap.writer import Writer
from test_rigs import TICK, camera, config

import wfm_curator as wc
from wfm_curator import bags
from wfm_curator.sidecar import SidecarError


def bag(path, topics):
    """Write JSON messages; ``topics`` are name to pairs of seconds and message."""
    with path.open("wb") as file:
        writer = Writer(file)
        writer.start()
        schema = writer.register_schema("any", "jsonschema", b"{}")
        for topic, rows in topics.items():
            channel = writer.register_channel(topic, "json", schema)
            for seconds, message in rows:
                time = round(seconds * 1e9)
                data = json.dumps(message).encode()
                writer.add_message(channel, log_time=time, data=data, publish_time=time)
        writer.finish()
    return path


def state(t):
    return {
        "header": {"frame_id": "base"},
        "pose": {"x": t, "y": 2 * t, "q": [0.0, 0.0, 0.0, 1.0]},
        "ok": True,
    }


@pytest.fixture
def rig(tmp_path):
    """A camera, and a robot whose clock drifts and whose messages are lost for half a second."""
    folder = tmp_path / "in" / "robot.rig"
    camera(folder, "front", np.arange(0, 6, 0.1), 10, 0)
    times = 0.013 + np.arange(0, 6, 0.02) * 1.002
    kept = times[(times < 2.0) | (times > 2.5)]
    sparse = [(t, {"value": t}) for t in np.arange(0.05, 6, 0.25)]
    bag(folder / "robot.mcap", {"/arm/state": [(t, state(t)) for t in kept], "/slow": sparse})
    return folder


def test_topics_are_cut_at_the_moments_of_the_frames(rig, tmp_path):
    report = wc.curate(rig.parent, tmp_path / "out", config(split={"method": "stride"}))
    assert report.quarantined == {}
    for clip in wc.ShardedDataset(tmp_path / "out"):
        labels = {k: v.numpy() for k, v in clip.labels().items()}
        now, valid = labels["timestamp"], labels["sync.arm.state.valid"]
        assert (np.abs(labels["arm.state.pose.x"] - now)[valid] <= 0.0101).all()
        np.testing.assert_allclose(labels["arm.state.pose.y"], 2 * labels["arm.state.pose.x"])
        assert labels["arm.state.pose.q"].shape == (len(now), 4)
        assert labels["arm.state.ok"].all()
        gap = (now > 2.02) & (now < 2.48)
        assert not valid[gap].any()
        assert valid[~((now > 1.98) & (now < 2.52))].all()
        assert np.abs(labels["slow"] - now).max() <= 0.125 + TICK
        assert "arm.state.header.frame_id" not in labels


def test_some_topics_may_be_named(rig, tmp_path):
    (rig / "rig.json").write_text('{"topics": ["/slow"]}')
    wc.curate(rig.parent, tmp_path / "out", config(split={"method": "whole"}))
    (clip,) = wc.ShardedDataset(tmp_path / "out")
    assert {"slow", "timestamp"} <= set(clip.labels())
    assert "arm.state.pose.x" not in clip.labels()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "robot.mcap").write_bytes(b"no mcap at all"), "not an MCAP file"),
        (lambda f: (f / "rig.json").write_text('{"topics": ["/none"]}'), "no messages of /none"),
        (lambda f: (f / "rig.json").write_text('{"topics": 3}'), "topics are a list of names"),
        (
            lambda f: bag(f / "robot.mcap", {"/a": [(1, {"v": [1, 2]}), (2, {"v": [1]})]}),
            "messages of /a are not alike",
        ),
        (
            lambda f: bag(f / "more.mcap", {"/slow": [(1, {"v": 1}), (2, {"v": 1})]}),
            "another source 'slow'",
        ),
    ],
)
def test_a_bag_that_does_not_fit_is_quarantined(rig, tmp_path, damage, words):
    damage(rig)
    report = wc.curate(rig.parent, tmp_path / "out", config())
    assert words in report.quarantined["robot.rig"]


def test_a_cut_off_bag_is_named(rig, tmp_path):
    data = (rig / "robot.mcap").read_bytes()
    for share in (0.2, 0.5, 0.9):
        cut = tmp_path / "cut.mcap"
        cut.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(SidecarError, match="not an MCAP file, or damaged"):
            bags.read(cut)


def test_an_encoding_that_nobody_knows_is_named(tmp_path):
    path = tmp_path / "odd.mcap"
    with path.open("wb") as file:
        writer = Writer(file)
        writer.start()
        channel = writer.register_channel("/odd", "flatbuffer", 0)
        writer.add_message(channel, log_time=1, data=b"x", publish_time=1)
        writer.finish()
    with pytest.raises(SidecarError, match="/odd is flatbuffer; name the other topics"):
        bags.read(path)


@pytest.mark.skipif(find_spec("mcap_ros2") is None, reason="mcap-ros2-support is not installed")
def test_messages_of_ros_are_read(tmp_path):
    from mcap_ros2.writer import Writer as RosWriter

    stream = io.BytesIO()
    writer = RosWriter(stream)
    schema = writer.register_msgdef("pkg/State", "float64[3] position\nstring name\nint32 n")
    for t in range(4):
        message = {"position": [t, 2.0 * t, 0.0], "name": "arm", "n": t}
        writer.write_message("/arm", schema, message, log_time=t * 10**9)
    writer.finish()
    (tmp_path / "arm.mcap").write_bytes(stream.getvalue())
    times, columns = bags.read(tmp_path / "arm.mcap")["arm"]
    assert times.tolist() == [0, 1, 2, 3]
    assert columns["position"][3].tolist() == [3, 6, 0]
    assert set(columns) == {"position", "n"}
