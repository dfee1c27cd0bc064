import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import moving, write

import wfm_curator as wc
from wfm_curator.cli import main
from wfm_curator.inputs import find_recordings

HERE = wc.CurateConfig.model_validate({"run": {"workers": 0}, "split": {"method": "content"}})


def names(*inputs, **options):
    return [r.name for r in find_recordings(inputs, **options)]


def test_patterns_and_lists_name_the_same_files(folder, tmp_path, monkeypatch):
    files = sorted(p.name for p in folder.iterdir())
    (folder / "list.txt").write_text("# those of today\n" + "\n".join(files[:2]) + "\n")
    rows = "\n".join(json.dumps({"path": name}) for name in files[:2])
    (folder / "list.jsonl").write_text(rows)
    pq.write_table(pa.table({"path": files[:2]}), folder / "list.parquet")
    for kind in ("txt", "jsonl", "parquet"):
        assert names(folder / f"list.{kind}") == files[:2]
    assert len(names(folder / "sim-[0-2].mp4")) == 3
    monkeypatch.chdir(tmp_path)
    assert names("in/*.mp4") == [f"in/{name}" for name in files]
    assert names(folder, folder / "sim-1.mp4") == files


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "gone.mp4", "lists gone.mp4, which is not there"),
        ("a.jsonl", "{}", "not a list of paths"),
        ("a.jsonl", "[", "not a list of paths"),
        ("a.parquet", "no table", "not a list of paths"),
    ],
)
def test_bad_lists_are_explained(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        names(tmp_path / name)


def test_a_pattern_that_fits_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing has such a name"):
        names(tmp_path / "*.mp4")


@pytest.fixture
def bucket(folder):
    """The recordings in a place that only fsspec reaches."""
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    (folder / "sim-1.txt").write_text("a caption from afar")
    for path in folder.iterdir():
        system.pipe(f"/raw/day/{path.name}", path.read_bytes())
    yield system
    system.rm("/raw", recursive=True)


def test_what_is_elsewhere_is_fetched_and_curated_alike(bucket, folder, tmp_path):
    wc.curate("memory://raw", tmp_path / "out", HERE)
    clips = {c.key.rpartition("-")[0]: c for c in wc.ShardedDataset(tmp_path / "out")}
    assert {n: c.member("mp4") for n, c in clips.items()} == {
        p.stem: p.read_bytes() for p in folder.glob("*.mp4")
    }
    assert clips["sim-1"].caption == "a caption from afar"
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    wc.curate("memory://raw", tmp_path / "out", HERE)
    assert {p: p.read_bytes() for p in before} == before
    bucket.pipe("/raw/day/sim-0.mp4", (folder / "sim-5.mp4").read_bytes())
    assert wc.curate("memory://raw", tmp_path / "out", HERE).duplicates == 1
    shutil.rmtree(tmp_path / "out" / ".inputs")
    assert wc.curate("memory://raw/day/*-3.mp4", tmp_path / "three", HERE).kept == 1


@pytest.fixture
def s3(monkeypatch):
    """An S3 server of our own, and a client of it."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0)
    s3fs = pytest.importorskip("s3fs")
    server.start()
    host, port = server.get_host_and_port()
    settings = {"ENDPOINT_URL": f"http://{host}:{port}", "ACCESS_KEY_ID": "me"}
    settings |= {"SECRET_ACCESS_KEY": "secret", "DEFAULT_REGION": "us-east-1"}
    for name, value in settings.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    yield s3fs.S3FileSystem(skip_instance_cache=True)
    server.stop()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_bucket_of_s3_is_curated_as_a_folder_is(s3, folder, tmp_path):
    s3.mkdir("raw")
    for path in folder.iterdir():
        s3.pipe(f"raw/day/{path.name}", path.read_bytes())
    assert wc.curate("s3://raw", tmp_path / "out", HERE).kept == 6
    clips = {c.key.rpartition("-")[0]: c for c in wc.ShardedDataset(tmp_path / "out")}
    assert {n: c.member("mp4") for n, c in clips.items()} == {
        p.stem: p.read_bytes() for p in folder.glob("*.mp4")
    }
    assert wc.curate("s3://raw/day/*-3.mp4", tmp_path / "three", HERE).kept == 1
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        names("s3://raw/night", cache=tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        names("s3://nobodys", cache=tmp_path)


def test_an_address_needs_a_folder_to_fetch_to(bucket):
    with pytest.raises(ValueError, match="needs an output folder"):
        names("memory://raw")
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        names("memory://nowhere", cache=Path())


@pytest.mark.parametrize("model", ["caption.endpoint=http://nowhere", "caption.vllm=nowhere"])
def test_a_dry_run_says_what_it_will_cost_and_writes_nothing(model, folder, tmp_path, capsys):
    write(folder / "long.mp4", moving(0, 120, 96, 128))
    (folder / "bad.mp4").write_text("no video " * 20)
    out = tmp_path / "out"
    arguments = ["run", str(folder), "-o", str(out), "--dry-run"]
    assert main([*arguments, "--json", "--set", model]) == 0
    cost = json.loads(capsys.readouterr().out)
    assert not out.exists()
    assert cost["recordings"] == 8
    assert cost["hours"] == pytest.approx((6 * 1.7 + 12) / 3600, rel=0.05)
    assert len(cost["unreadable"]) == 1
    assert cost["measure_hours"] > 0
    assert cost["encode_hours"] > 0
    assert cost["megabytes"] > 0
    assert cost["caption_requests"] == 8
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "8 recordings" in told
    assert "unreadable: " in told
    assert "captions" not in told
    assert "embed" not in told


def test_a_dry_run_tries_the_network_that_embeds_clips(folder, tmp_path, capsys):
    arguments = ["run", str(folder), "-o", str(tmp_path / "out"), "--dry-run"]
    assert main([*arguments, "--set", "embed.model=networks:colours"]) == 0
    assert "embed     0 s at most" in capsys.readouterr().out
    assert main([*arguments, "--json", "--set", "embed.model=networks:colours"]) == 0
    assert 0 < json.loads(capsys.readouterr().out)["embed_hours"] < 0.01
    assert main([*arguments, "--set", "embed.model=networks:nothing"]) == 2
    assert "nothing" in capsys.readouterr().err
