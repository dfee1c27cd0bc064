"""Every importer on a small data set in the public layout, written here by hand."""

import json
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from wfm_posttrain.clips import actions_of, open_clips
from wfm_posttrain.import_lerobot import lerobot
from wfm_posttrain.import_replicator import check_alignment, check_units, replicator
from wfm_posttrain.imported import Resized
from wfm_posttrain.importers import bridge, driving, recognise
from wfm_posttrain.moments import samples
from wfm_posttrain.sim.actions import apply_action
from wfm_posttrain.video import write_video

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

SIZE = 32


def film(count, base=0):
    """Frames whose grey level tells their number."""
    levels = torch.arange(count) * 12 + base
    return levels.byte()[:, None, None, None].expand(count, 3, SIZE, SIZE).contiguous()


def level(frames):
    return frames.float().mean(dim=(1, 2, 3))


def picture(path, array, *, codec="png", pixels="rgb24"):
    """Write one picture file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    form = {3: "rgb24", 4: "rgba"}[array.shape[2]]
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format=form)
    context = av.CodecContext.create(codec, "w")
    context.width, context.height, context.pix_fmt = array.shape[1], array.shape[0], pixels
    context.time_base = Fraction(1, 25)
    frame = frame.reformat(format=pixels)
    packets = [*context.encode(frame), *context.encode(None)]
    path.write_bytes(b"".join(bytes(p) for p in packets))


FEATURES = {
    "observation.images.front": {"dtype": "video", "shape": [SIZE, SIZE, 3], "names": None},
    "observation.images.wrist": {"dtype": "video", "shape": [SIZE, SIZE, 3], "names": None},
    "observation.state": {"dtype": "float32", "shape": [4], "names": ["a", "b", "c", "d"]},
    "action": {"dtype": "float32", "shape": [12], "names": None},
    "next.done": {"dtype": "bool", "shape": [1], "names": None},
    "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    "episode_index": {"dtype": "int64", "shape": [1], "names": None},
    "task_index": {"dtype": "int64", "shape": [1], "names": None},
}
LENGTHS = (6, 9)
CAMERAS = [name for name, about in FEATURES.items() if about["dtype"] == "video"]


def rows(episode):
    n = LENGTHS[episode]
    return {
        "observation.state": [[float(t)] * 4 for t in range(n)],
        "action": [[float(100 * episode + t)] * 12 for t in range(n)],
        "next.done": [t == n - 1 for t in range(n)],
        "timestamp": [t / 10 for t in range(n)],
        "episode_index": [episode] * n,
        "task_index": [episode] * n,
    }


def info(folder, version, data, video):
    (folder / "meta").mkdir(parents=True)
    about = {
        "codebase_version": version, "robot_type": "so100", "fps": 10, "chunks_size": 1000,
        "total_episodes": 2, "features": FEATURES, "data_path": data, "video_path": video,
        "splits": {"train": "0:2"},
    }  # fmt: skip
    (folder / "meta" / "info.json").write_text(json.dumps(about))


@pytest.fixture
def v21(tmp_path):
    folder = tmp_path / "old"
    info(
        folder, "v2.1", "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    )  # fmt: skip
    lines = []
    for i, n in enumerate(LENGTHS):
        path = folder / f"data/chunk-000/episode_{i:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(rows(i)), path)
        for k, camera in enumerate(CAMERAS):
            video = folder / f"videos/chunk-000/{camera}/episode_{i:06d}.mp4"
            write_video(video, film(n, base=10 * k), 10.0)
        lines.append({"episode_index": i, "tasks": [f"task {i}"], "length": n})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "meta" / "episodes.jsonl").write_text(text)
    return folder


@pytest.fixture
def v30(tmp_path):
    """Both episodes in one table and in one video for each camera."""
    folder = tmp_path / "new"
    info(
        folder, "v3.0", "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    )  # fmt: skip
    both = {name: rows(0)[name] + rows(1)[name] for name in rows(0)}
    (folder / "data/chunk-000").mkdir(parents=True)
    pq.write_table(pa.table(both), folder / "data/chunk-000/file-000.parquet")
    episodes, start = [], 0
    for i, n in enumerate(LENGTHS):
        row = {
            "episode_index": i, "tasks": [f"task {i}"], "length": n, "data/chunk_index": 0,
            "data/file_index": 0, "dataset_from_index": start, "dataset_to_index": start + n,
        }  # fmt: skip
        for camera in CAMERAS:
            row |= {
                f"videos/{camera}/chunk_index": 0, f"videos/{camera}/file_index": 0,
                f"videos/{camera}/from_timestamp": start / 10,
                f"videos/{camera}/to_timestamp": (start + n) / 10,
            }  # fmt: skip
        episodes.append(row)
        start += n
    (folder / "meta/episodes/chunk-000").mkdir(parents=True)
    pq.write_table(
        pa.Table.from_pylist(episodes), folder / "meta/episodes/chunk-000/file-000.parquet"
    )
    for k, camera in enumerate(CAMERAS):
        frames = torch.cat([film(n, base=10 * k) for n in LENGTHS])
        write_video(folder / f"videos/{camera}/chunk-000/file-000.mp4", frames, 10.0)
    return folder


@pytest.mark.parametrize("version", ["v21", "v30"])
def test_lerobot_episodes_come_with_their_own_frames_and_actions(version, request):
    folder = request.getfixturevalue(version)
    clips = open_clips(str(folder))
    assert len(clips) == 4
    last = clips[3]
    assert (last.caption, last.fps, len(last)) == ("task 1", 10.0, 9)
    assert last.attributes["camera"] == "observation.images.wrist"
    shown = level(last.read(0, 9))
    torch.testing.assert_close(shown, torch.arange(9) * 12.0 + 10, atol=2.5, rtol=0)
    action = actions_of(last, "last")
    assert action.shape == (8, 12)
    assert action[:, 0].tolist() == [100.0 + t for t in range(8)]
    assert last.labels()["state"][8, 0] == 8
    assert last.labels()["next.done"].tolist()[-1]


def test_lerobot_cameras_of_an_episode_are_one_moment(v30):
    views = tuple(CAMERAS)
    found = list(samples(lerobot(str(v30)), 5, views=views))
    assert [len(sample.clips) for sample in found] == [2, 2]
    assert [clip.attributes["camera"] for clip in found[0].clips] == list(views)
    only = lerobot(f"{v30}?camera=observation.images.front")
    assert len(only) == 2


def test_lerobot_pictures_may_be_in_the_table(tmp_path):
    folder = tmp_path / "pictures"
    info(folder, "v2.1", "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet", None)
    about = json.loads((folder / "meta/info.json").read_text())
    about["features"] = {
        "observation.image": {"dtype": "image", "shape": [SIZE, SIZE, 3], "names": None},
        "action": {"dtype": "float32", "shape": [1], "names": None},
    }
    (folder / "meta/info.json").write_text(json.dumps(about))
    (folder / "meta/episodes.jsonl").write_text(
        json.dumps({"episode_index": 0, "tasks": ["look"], "length": 3}) + "\n"
    )
    images = []
    for t, frame in enumerate(film(3)):
        picture(tmp_path / f"{t}.png", frame.permute(1, 2, 0).numpy())
        images.append({"bytes": (tmp_path / f"{t}.png").read_bytes(), "path": f"{t}.png"})
    (folder / "data/chunk-000").mkdir(parents=True)
    table = pa.table({"observation.image": images, "action": [0.0, 1.0, 2.0]})
    pq.write_table(table, folder / "data/chunk-000/episode_000000.parquet")
    (clip,) = [lerobot(str(folder))[0]]
    assert level(clip.read(0, 3)).tolist() == [0, 12, 24]
    assert clip.labels()["action"].tolist() == [[0.0], [1.0]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("version", "version v1.6"),
        ("table", "no such file"),
    ],
)
def test_lerobot_says_what_is_wrong(v21, change, words):
    if change == "version":
        (v21 / "meta/info.json").write_text('{"codebase_version": "v1.6"}')
    else:
        (v21 / "data/chunk-000/episode_000001.parquet").unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        lerobot(str(v21))[2].labels()


def test_lerobot_knows_its_cameras(v21):
    with pytest.raises(ValueError, match=r"no camera 'top'; there are observation.images.front"):
        lerobot(f"{v21}?camera=top")
    with pytest.raises(ValueError, match="no option 'kamera'"):
        lerobot(f"{v21}?kamera=top")


@pytest.fixture
def irasim(tmp_path):
    rng = np.random.default_rng(0)
    for split, name in (("train", "3"), ("train", "12"), ("test", "1")):
        n = 7
        state = np.cumsum(rng.normal(0, 0.02, (n, 7)), axis=0)
        about = {
            "episode_id": name, "texts": ["put the spoon in the pot"], "state": state.tolist(),
            "continuous_gripper_state": [t % 2 for t in range(n)],
            "action": rng.normal(size=(n - 1, 7)).tolist(),
            "videos": [{"video_path": f"videos/{split}/{name}/rgb.mp4"}],
        }  # fmt: skip
        if name == "12":
            about["state"][-1] = [float("nan")] * 7
        file = tmp_path / f"annotation/{split}/{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(about))
        write_video(tmp_path / f"videos/{split}/{name}/rgb.mp4", film(n), 5.0)
    return tmp_path


def test_bridge_actions_lead_from_state_to_state(irasim):
    clips = open_clips(f"{irasim}?split=train")
    assert len(clips) == 2
    clip = clips[0]
    assert clip.caption == "put the spoon in the pot"
    state, action = (clip.labels()[name].double().numpy() for name in ("state", "action"))
    assert action.shape == (6, 7)
    for t in range(6):
        np.testing.assert_allclose(apply_action(state[t], action[t]), state[t + 1], atol=1e-5)


def test_bridge_actions_may_be_counted_from_the_start(irasim):
    steps = bridge(f"{irasim}?split=train")[0].labels()["action"].double().numpy()
    summed = bridge(f"{irasim}?split=train&since=start")[0].labels()["action"].double().numpy()
    at, zero = np.zeros(7), np.zeros(7)
    for step, whole in zip(steps, summed, strict=True):
        at = apply_action(at, step)
        np.testing.assert_allclose(apply_action(zero, whole), at, atol=1e-5)
    with pytest.raises(ValueError, match="since=noon does not fit"):
        bridge(f"{irasim}?since=noon")


def test_bridge_drops_a_tail_that_is_no_number(irasim):
    clip = bridge(f"{irasim}?split=train")[1]
    assert len(clip) == len(clip.read(0, 9)) == 6
    assert clip.labels()["action"].isfinite().all()
    assert len(bridge(str(irasim))) == 3


@pytest.fixture
def nuscenes(tmp_path):
    """A car that drives 2 m/s along world y, its front camera at 12 Hz, its back one at 10 Hz."""
    half = 0.5**0.5
    tables = {
        "sensor": [
            {"token": "sf", "channel": "CAM_FRONT", "modality": "camera"},
            {"token": "sb", "channel": "CAM_BACK", "modality": "camera"},
            {"token": "sl", "channel": "LIDAR_TOP", "modality": "lidar"},
        ],
        # A front camera looks along x: its z is the car's x, its x the car's -y, its y -z.
        "calibrated_sensor": [
            {"token": "cf", "sensor_token": "sf", "translation": [1.5, 0, 1.6],
             "rotation": [0.5, -0.5, 0.5, -0.5], "camera_intrinsic": np.diag([40, 40, 1]).tolist()},
            {"token": "cb", "sensor_token": "sb", "translation": [-1.0, 0, 1.6],
             "rotation": [0.5, -0.5, -0.5, 0.5], "camera_intrinsic": np.diag([30, 30, 1]).tolist()},
            {"token": "cl", "sensor_token": "sl", "translation": [0, 0, 2],
             "rotation": [1, 0, 0, 0], "camera_intrinsic": []},
        ],
        "scene": [{"token": "s", "name": "scene-0001", "description": "Wait, then turn",
                   "first_sample_token": "a", "last_sample_token": "a", "nbr_samples": 1}],
        "sample": [{"token": "a", "scene_token": "s", "timestamp": 0}],
        "sample_data": [], "ego_pose": [],
    }  # fmt: skip
    for calibrated, rate, count in (("cf", 12, 25), ("cb", 10, 21)):
        for i in range(count):
            time, name = 1_000_000 + round(i * 1e6 / rate), f"{calibrated}{i}"
            file = f"sweeps/{calibrated}/{i:03d}.jpg"
            tables["sample_data"].append(
                {"token": name, "sample_token": "a", "ego_pose_token": name, "timestamp": time,
                 "calibrated_sensor_token": calibrated, "filename": file, "fileformat": "jpg"}
            )  # fmt: skip
            seconds = (time - 1_000_000) / 1e6
            tables["ego_pose"].append(
                {"token": name, "timestamp": time, "rotation": [half, 0, 0, half],
                 "translation": [5.0, 2 * seconds, 0.0]}
            )  # fmt: skip
            grey = np.full((SIZE, SIZE, 3), min(round(100 * seconds) + 20, 255), np.uint8)
            picture(tmp_path / file, grey, codec="mjpeg", pixels="yuvj444p")
    home = tmp_path / "v1.0-mini"
    home.mkdir()
    for name, table in tables.items():
        (home / f"{name}.json").write_text(json.dumps(table))
    return tmp_path


def test_driving_cameras_show_the_same_moments_with_exact_poses(nuscenes):
    clips = open_clips(str(nuscenes))
    assert [clip.attributes["camera"] for clip in (clips[0], clips[1])] == ["CAM_FRONT", "CAM_BACK"]
    front, back = clips[0], clips[1]
    assert len(front) == len(back) == 21
    a, b = (level(clip.read(0, 21)) for clip in (front, back))
    torch.testing.assert_close(b, torch.arange(21) * 10.0 + 20, atol=2.5, rtol=0)
    assert (a - b).abs().max() < 6  # a twelfth of a second at the most
    pose = front.labels()["camera_pose"]
    torch.testing.assert_close(pose[0, :3, 2], torch.tensor([0.0, 1, 0]))  # looks along world y
    torch.testing.assert_close(pose[0, :3, 1], torch.tensor([0.0, 0, -1]))  # its y is down
    torch.testing.assert_close(pose[0, :3, 3], torch.tensor([5.0, 1.5, 1.6]))
    torch.testing.assert_close(back.labels()["camera_pose"][0, :3, 2], torch.tensor([0.0, -1, 0]))
    way = back.labels()["trajectory"]
    torch.testing.assert_close(way[:21], torch.arange(21)[:, None] * torch.tensor([0.2, 0, 0]))
    assert way.shape == (64, 3)
    torch.testing.assert_close(way[40], way[20])
    (sample,) = samples(clips, 17, views=("CAM_BACK", "CAM_FRONT"))
    assert sample.video().shape == (2, 3, 17, SIZE, SIZE)


def test_driving_says_what_is_wrong(nuscenes):
    with pytest.raises(ValueError, match="no camera CAM_TOP; there are CAM_BACK, CAM_FRONT"):
        driving(f"{nuscenes}?cameras=CAM_TOP")
    table = nuscenes / "v1.0-mini" / "sample_data.json"
    lost = {f"cf{i}" for i in range(8, 16)}
    found = [row for row in json.loads(table.read_text()) if row["token"] not in lost]
    table.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=r"cf/007.jpg: no picture within 0.15 s"):
        driving(str(nuscenes))
    (nuscenes / "v1.0-mini" / "ego_pose.json").unlink()
    with pytest.raises(FileNotFoundError, match="no such table"):
        driving(str(nuscenes))


def render(t, count=6, size=48):
    """A box one metre before a wall three metres off, while the camera moves to the right."""
    focal, x0 = 40.0, 0.15 * t
    v, u = np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5, indexing="ij")
    rays = np.stack([(u - size / 2) / focal, (v - size / 2) / focal], -1)
    near = 1.0
    hit = (np.abs(rays[..., 0] * near + x0 - 0.3) < 0.15) & (np.abs(rays[..., 1] * near) < 0.2)
    depth = np.where(hit, near, 3.0).astype(np.float32)
    rgb = np.where(hit[..., None], [200, 40, 40], [90, 110, 130]).astype(np.uint8)
    paint = np.where(hit[..., None], [255, 0, 0, 255], [0, 0, 0, 0]).astype(np.uint8)
    pose = np.diag([1.0, -1, -1, 1])  # world is OpenCV's first camera; Replicator's y is up
    pose[0, 3] = x0
    return rgb, depth, paint, np.linalg.inv(pose).T


@pytest.fixture(params=["flat", "folders"])
def rendered(tmp_path, request):
    def place(kind):
        return tmp_path / "Camera" / (kind if request.param == "folders" else "")

    for t in range(6):
        rgb, depth, paint, view = render(t)
        picture(place("rgb") / f"rgb_{t:04d}.png", rgb)
        picture(place("semantic_segmentation") / f"semantic_segmentation_{t:04d}.png", paint,
                pixels="rgba")  # fmt: skip
        legend = {"(255, 0, 0, 255)": {"class": "box"}, "(0, 0, 0, 0)": {"class": "BACKGROUND"}}
        file = place("semantic_segmentation") / f"semantic_segmentation_labels_{t:04d}.json"
        file.write_text(json.dumps(legend))
        folder = place("distance_to_image_plane")
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"distance_to_image_plane_{t:04d}.npy", depth)
        folder = place("camera_params")
        folder.mkdir(parents=True, exist_ok=True)
        about = {
            "cameraViewTransform": view.reshape(-1).tolist(), "renderProductResolution": [48, 48],
            "cameraFocalLength": 20.0, "cameraAperture": [24.0, 24.0], "metersPerSceneUnit": 1.0,
        }  # fmt: skip
        (folder / f"camera_params_{t:04d}.json").write_text(json.dumps(about))
    return tmp_path


def files(folder, kind):
    return sorted(folder.rglob(f"{kind}_0*"))


def test_rendered_folders_are_read_with_all_their_labels(rendered):
    (clip,) = [open_clips(f"{rendered}?fps=12")[0]]
    assert (clip.fps, len(clip), clip.attributes["segments"]) == (12.0, 6, {"1": "box"})
    labels = clip.labels()
    rgb, depth, paint, _ = render(2)
    assert np.array_equal(clip.read(2, 3)[0].permute(1, 2, 0).numpy(), rgb)
    assert np.array_equal(labels["depth"][2].float().numpy(), depth)
    assert np.array_equal(labels["segmentation"][2].numpy(), (paint[..., 0] > 0).astype(np.uint8))
    torch.testing.assert_close(labels["camera_pose"][2, :3, :3], torch.eye(3))
    torch.testing.assert_close(labels["camera_pose"][2, :3, 3], torch.tensor([0.3, 0, 0]))
    assert labels["intrinsics"][0, 0, 0] == 40


def test_depth_in_other_units_is_refused_and_can_be_named(rendered):
    for file in files(rendered, "distance_to_image_plane"):
        np.save(file, np.load(file) * 100)
    with pytest.raises(ValueError, match=r"looks like 0.01 of"):
        replicator(str(rendered))[0].labels()
    labels = replicator(f"{rendered}?unit=0.01")[0].labels()
    assert labels["depth"].max() == 3


def test_a_shifted_hint_is_refused(rendered):
    depths = files(rendered, "distance_to_image_plane")
    loaded = [np.load(file) for file in depths]
    for file, later in zip(depths, [*loaded[1:], loaded[-1]], strict=True):
        np.save(file, later)
    for file in files(rendered, "camera_params"):
        file.unlink()
    with pytest.raises(ValueError, match=r"those of the pictures [+-]1 frames away"):
        replicator(str(rendered))[0].labels()


def test_a_missing_or_larger_hint_is_refused(rendered):
    depths = files(rendered, "distance_to_image_plane")
    np.save(depths[0], np.ones((24, 24), np.float32))
    with pytest.raises(ValueError, match="same size"):
        replicator(str(rendered))[0].labels()
    depths[3].unlink()
    with pytest.raises(ValueError, match="frame 3 has rgb but no distance_to_image_plane"):
        replicator(str(rendered))[0]


def test_a_colour_without_a_name_is_refused(rendered):
    for file in files(rendered, "semantic_segmentation_labels"):
        file.write_text('{"(0, 0, 0, 0)": {"class": "BACKGROUND"}}')
    with pytest.raises(ValueError, match=r"the colour \[255, 0, 0, 255\] is not in its legend"):
        replicator(str(rendered))[0].labels()


def test_still_scenes_pass_both_checks():
    depth = torch.full((5, 8, 8), 2.0)
    check_units("still", {"depth": depth})
    check_alignment("still", torch.zeros(5, 3, 8, 8, dtype=torch.uint8), depth)
    with pytest.raises(ValueError, match="median depth is 20000 m"):
        check_units("far", {"depth": depth * 1e4})


def test_resizing_moves_what_depends_on_pixels(rendered):
    clip = Resized(open_clips(str(rendered)), (24, 16))[0]
    labels = clip.labels()
    assert clip.read(0, 6).shape == (6, 3, 24, 16)
    assert labels["depth"].shape == labels["segmentation"].shape == (6, 24, 16)
    pinhole = labels["intrinsics"][0]
    assert pinhole[0].tolist() == [20, 0, 8]  # 48 -> 24 wide, of which 4 columns go on each side
    assert pinhole[1].tolist() == [0, 20, 12]


def test_any_other_folder_is_left_to_others(tmp_path):
    assert recognise(str(tmp_path)) is None
