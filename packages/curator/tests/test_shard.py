import functools
import io
import json
import operator
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wfm_curator.config import ShardConfig
from wfm_curator.dataset import ShardedDataset
from wfm_curator.shard import bucket, plan, read_places, write_tar


@given(
    clips=st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 3e6)), max_size=40),
    most=st.integers(1, 9),
)
def test_a_plan_holds_every_clip_once_and_no_full_tar(clips, most):
    config = ShardConfig(clips=most, megabytes=4)
    names, sizes = [c[0] for c in clips], [c[1] for c in clips]
    planned = plan(names, sizes, config)
    assert sorted(i for tar in planned for i in tar.clips) == list(range(len(clips)))
    assert len({tar.path for tar in planned}) == len(planned)
    for tar in planned:
        assert len({names[i] for i in tar.clips}) == 1
        assert len(tar.clips) <= most
        assert sum(sizes[i] for i in tar.clips) <= 4e6


@pytest.mark.parametrize(
    ("height", "width", "seconds", "name"),
    [
        (64, 64, 1.7, "64p_1x1_0-2s"),
        (720, 1280, 5.0, "720p_16x9_5-10s"),
        (1920, 1080, 45.0, "1080p_9x16_30s-"),
        (48, 64, 2.0, "0p_4x3_2-5s"),
    ],
)
def test_buckets_are_named_for_what_is_in_them(height, width, seconds, name):
    assert bucket(height, width, seconds, ShardConfig()) == name


def test_members_lie_where_it_says(tmp_path):
    members = [("a.mp4", b"x" * 700), ("a.json", b"{}"), ("b.mp4", b"")]
    path = tmp_path / "shards" / "one.tar"
    places = write_tar(path, members)
    content = path.read_bytes()
    assert [(n, content[o : o + s]) for n, (o, s) in places.items()] == members
    assert [(n, (o, s)) for n, o, s in read_places(path)] == list(places.items())
    with tarfile.open(path) as tar:
        assert {(e.mtime, e.uid, e.gid, e.uname) for e in tar} == {(0, 0, 0, "")}
    assert content == (write_tar(path, members) and path.read_bytes())


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "one.tar"
    write_tar(path, [("a.mp4", b"before")])
    before = path.read_bytes()

    def full(self, entry, data):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    with pytest.raises(OSError, match="No space left"):
        write_tar(path, [("a.mp4", b"after")])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_cut_off_tar_is_said_to_be(tmp_path):
    path = tmp_path / "one.tar"
    write_tar(path, [("a.mp4", b"x" * 5000)])
    path.write_bytes(io.BytesIO(path.read_bytes()).read(2000))
    with pytest.raises(ValueError, match="not a tar, or cut off"):
        list(read_places(path))


@given(
    clips=st.integers(1, 30),
    workers=st.integers(1, 5),
    seed=st.integers(0, 99),
    had=st.integers(0, 30),
)
def test_workers_share_a_shuffled_pass_and_go_on_where_they_stopped(
    tmp_path_factory, clips, workers, seed, had
):
    folder = tmp_path_factory.mktemp("clips")
    entries = [{"key": f"{n}", "members": {}} for n in range(clips)]
    (folder / "index.json").write_text(json.dumps({"clips": entries}))
    dataset = ShardedDataset(folder)
    shares = [
        [c.key for c in dataset.shuffled(seed, worker=w, workers=workers)] for w in range(workers)
    ]
    assert sorted(functools.reduce(operator.iadd, shares, [])) == sorted(e["key"] for e in entries)
    rest = [c.key for c in dataset.shuffled(seed, worker=0, workers=workers, start=had)]
    assert rest == shares[0][had:]
    with pytest.raises(ValueError, match="numbered from 0"):
        dataset.shuffled(seed, worker=workers, workers=workers)


@pytest.mark.filterwarnings("ignore")  # webdataset leaves its file to the garbage collector
def test_webdataset_reads_what_is_written(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    members = [("a.mp4", b"film"), ("a.json", b"{}"), ("a.left.mp4", b"left"), ("b.mp4", b"other")]
    write_tar(tmp_path / "one.tar", members)
    samples = list(webdataset.WebDataset(str(tmp_path / "one.tar"), shardshuffle=False))
    assert [s["__key__"] for s in samples] == ["a", "b"]
    assert (samples[0]["mp4"], samples[0]["left.mp4"]) == (b"film", b"left")
