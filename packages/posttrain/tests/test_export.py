import io
import json
import tarfile

import numpy as np
import pytest
import torch

from wfm_posttrain.cli import main
from wfm_posttrain.clips import ClipFolder
from wfm_posttrain.export import export

pa = pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    folder = tmp_path_factory.mktemp("street")
    command = ["simulate", "--scene", "street", "--clips", "2", "--frames", "4", "--size", "32"]
    assert main([*command, "--views", "front,left", "--workers", "1", "-o", str(folder), "-q"]) == 0
    return folder


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_a_lerobot_data_set_reads_back_as_it_was(recordings, tmp_path, version):
    from wfm_posttrain.import_lerobot import lerobot

    clips = ClipFolder(recordings)
    assert export(clips, tmp_path / "out", f"lerobot-{version}") == 12
    back = lerobot(str(tmp_path / "out"))
    assert len(back) == 12
    for i in (0, 5, 11):
        one, two = clips[i], back[i]
        assert (len(two), two.caption, two.fps) == (len(one), one.caption, one.fps)
        torch.testing.assert_close(two.labels()["action"], one.labels()["action"])
        error = (two.read(2, 6).float() - one.read(2, 6)).abs().mean()
        assert error < 6  # half-resolution colours


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_rows_and_tables_are_numbered_through(recordings, tmp_path, version):
    import pyarrow.parquet as pq

    out = tmp_path / "out"
    export(ClipFolder(recordings), out, f"lerobot-{version}")
    info = json.loads((out / "meta" / "info.json").read_text())
    assert info["codebase_version"] == version
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (12, 96, 1)
    assert info["splits"] == {"train": "0:12"}
    assert info["features"]["observation.images.front"]["info"]["video.pix_fmt"] == "yuv420p"
    files = sorted((out / "data").rglob("*.parquet"))
    assert len(files) == (1 if version == "v3.0" else 12)
    rows = pa.concat_tables([pq.read_table(file) for file in files])
    assert rows["index"].to_pylist() == list(range(96))
    assert rows["frame_index"].to_pylist()[:9] == [0, 1, 2, 3, 4, 5, 6, 7, 0]
    assert rows["timestamp"].to_pylist()[3] == pytest.approx(0.6)
    assert sum(rows["next.done"].to_pylist()) == 12
    assert set(rows.column_names) <= set(info["features"])


def test_statistics_of_episodes_add_up(recordings, tmp_path):
    import pyarrow.parquet as pq

    out = tmp_path / "out"
    clips = ClipFolder(recordings)
    export(clips, out, "lerobot-v3.0")
    stats = json.loads((out / "meta" / "stats.json").read_text())
    rows = []
    for i in range(12):
        action = clips[i].labels()["action"]
        rows.append(torch.cat([action, action[-1:]]))
    action = torch.cat(rows)
    assert stats["action"]["mean"] == pytest.approx(action.mean(0).tolist(), abs=1e-4)
    assert stats["action"]["std"] == pytest.approx(action.std(0, correction=0).tolist(), abs=1e-4)
    assert stats["action"]["count"] == [96]
    assert np.shape(stats["observation.images.front"]["mean"]) == (3, 1, 1)
    episodes = pq.read_table(out / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
    assert episodes["dataset_to_index"].to_pylist()[-1] == 96
    assert episodes["videos/observation.images.front/from_timestamp"].to_pylist()[2] == 3.2
    tasks = pq.read_table(out / "meta" / "tasks.parquet")
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]


def test_cameras_of_a_rig_become_videos_of_one_episode(street, tmp_path):
    out = tmp_path / "out"
    assert export(ClipFolder(street), out, "lerobot-v2.1") == 2
    info = json.loads((out / "meta" / "info.json").read_text())
    assert info["total_videos"] == 4
    assert {"observation.images.front", "observation.images.left"} <= set(info["features"])
    assert len(list((out / "videos").rglob("*.mp4"))) == 4


def test_a_webdataset_holds_every_file_and_label(recordings, tmp_path):
    clips = ClipFolder(recordings)
    from wfm_posttrain.export import webdataset

    assert webdataset(clips, tmp_path / "out", shard=5) == 12
    shards = sorted((tmp_path / "out").glob("*.tar"))
    assert [shard.name for shard in shards][-1] == "shard-000002.tar"
    with tarfile.open(shards[1]) as tar:
        names = tar.getnames()
        assert names[0].startswith("clip-05.")
        action = np.load(io.BytesIO(tar.extractfile("clip-05.action.npy").read()))
        about = json.loads(tar.extractfile("clip-05.json").read())
        film = tar.extractfile("clip-05.mp4").read()
    assert np.array_equal(action, clips[5].labels()["action"].numpy())
    assert about["caption"] == "a red square"
    assert film == (recordings / "clip-05.mp4").read_bytes()
    assert "clip-05.segmentation.npy" in names


def test_a_card_says_what_is_in_it(recordings, tmp_path):
    export(ClipFolder(recordings), tmp_path / "out", "lerobot-v3.0")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| episodes | 12 |" in card
    assert "observation.images.front" in card
    assert card.startswith("---\nlicense: apache-2.0")


def test_recordings_that_do_not_go_together_are_named(recordings, street, tmp_path):
    class Both:
        def __init__(self):
            self.parts = [ClipFolder(recordings), ClipFolder(street)]

        def __len__(self):
            return 2

        def __getitem__(self, index, /):
            return self.parts[index][0]

    with pytest.raises(ValueError, match="export them apart"):
        export(Both(), tmp_path / "out", "lerobot-v3.0")
    assert not (tmp_path / "out").exists()


def test_the_command_refuses_a_full_folder(recordings, tmp_path, capsys):
    command = ["export", "--clips", str(recordings), "--format", "webdataset", "-q"]
    assert main([*command, "-o", str(tmp_path / "out")]) == 0
    assert "12 episodes" in capsys.readouterr().out
    assert main([*command, "-o", str(tmp_path / "out")]) == 2
    assert "holds something already" in capsys.readouterr().err
