"""Files: complete or absent, resumable, and the same whatever the number of workers."""

import argparse
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from safetensors.numpy import load_file

from wfm_posttrain import sim
from wfm_posttrain.cli_simulate import add_simulate
from wfm_posttrain.console import run
from wfm_posttrain.sim import episode as episode_module
from wfm_posttrain.sim import graphics, recordings

FAST = ["--size", "32", "--frames", "3", "--workers", "1"]


def simulate(*arguments: str) -> int:
    parser = argparse.ArgumentParser(prog="wfm-posttrain")
    add_simulate(parser.add_subparsers(dest="command"))
    return run(parser, ["simulate", *arguments])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_recording_on_disk_is_the_episode(tmp_path):
    episode = sim.generate("arm-push", 3, size=(64, 64), frames=5)
    path = sim.write_episode(episode, tmp_path, "clip")
    assert names(tmp_path) == {"clip.mp4", "clip.json", "clip.safetensors"}
    arrays = load_file(tmp_path / "clip.safetensors")
    assert arrays.keys() == episode.arrays().keys()
    for name, value in episode.arrays().items():
        assert np.array_equal(arrays[name], value), name
    description = json.loads(path.read_text())
    assert {"caption", "fps", "scene", "seed"} <= description.keys()
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert container.streams.video[0].average_rate == 5
        frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    error = np.stack(frames).transpose(0, 3, 1, 2).astype(float) - episode.frames
    assert len(frames) == 5
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 35


def test_simulate_writes_recordings_and_a_manifest(tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    assert simulate("--scene", "arm-push", "--clips", "2", "-o", str(out), "--json", *FAST) == 0
    assert json.loads(capsys.readouterr().out)["made"] == 2
    assert len(names(out)) == 8
    assert "| arm-push | 2 | 0 to 1 | 0 | 3 | 32x32 |" in (out / "README.md").read_text()
    manifest = json.loads((out / "dataset.json").read_text())
    assert manifest["scenes"]["arm-push"]["size"] == [32, 32]
    assert manifest["held_out_seeds_from"] == sim.HELD_OUT_SEED


def test_only_what_is_missing_is_recorded_again(tmp_path, capsys):
    command = ["--scene", "stable-stack", "-o", str(tmp_path), "--json", *FAST]
    simulate(*command, "--clips", "3")
    (tmp_path / "stable-stack-0000001.mp4").unlink()
    (tmp_path / "stable-stack-0000002.json").write_text("{")
    capsys.readouterr()
    assert simulate(*command, "--clips", "4") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["made"], facts["kept"]) == (3, 1)


def test_every_view_of_a_street_is_needed(tmp_path, capsys):
    command = ["--scene", "street", "--clips", "1", "-o", str(tmp_path), "--json", *FAST]
    command += ["--views", "front,left"]
    simulate(*command)
    assert "street-0000000-left.mp4" in names(tmp_path)
    (tmp_path / "street-0000000-left.json").unlink()
    capsys.readouterr()
    simulate(*command)
    assert json.loads(capsys.readouterr().out)["made"] == 1


def test_two_workers_write_what_one_writes(tmp_path):
    for workers in ("1", "2"):
        arguments = ["--scene", "u-slope", "--clips", "2", "--size", "16", "--frames", "2"]
        assert simulate(*arguments, "-o", str(tmp_path / workers), "--workers", workers) == 0
    for path in (tmp_path / "1").iterdir():
        assert path.read_bytes() == (tmp_path / "2" / path.name).read_bytes()


def test_other_settings_need_another_folder(tmp_path, capsys):
    command = ["--scene", "u-slope", "--clips", "1", "-o", str(tmp_path), "--workers", "1"]
    assert simulate(*command, "--size", "16", "--frames", "2") == 0
    assert simulate(*command, "--size", "24", "--frames", "2") == 2
    assert "another size" in capsys.readouterr().err


def test_training_and_held_out_seeds_do_not_mix(tmp_path, capsys):
    command = ["--scene", "room", "--clips", "2", "-o", str(tmp_path / "x"), *FAST]
    assert simulate(*command, "--seed", "999999") == 2
    assert "held out" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_full_disk_leaves_nothing_half_written(tmp_path, capsys, monkeypatch):
    write = Path.write_bytes

    def fail_on_arrays(path: Path, content: bytes) -> int:
        if "safetensors" in path.name:
            write(path, content[:10])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", fail_on_arrays)
    assert simulate("--scene", "u-slope", "--clips", "1", "-o", str(tmp_path), *FAST) == 1
    assert "No space left" in capsys.readouterr().err
    assert names(tmp_path) == {"dataset.json"}


def test_a_killed_run_is_continued(tmp_path, capsys, monkeypatch):
    command = ["--scene", "u-slope", "--clips", "3", "-o", str(tmp_path), "--json", *FAST]
    write = episode_module.write_atomically

    def die_at_the_second(path: Path, content: bytes) -> None:
        if path.name == "u-slope-0000001.json":
            raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(episode_module, "write_atomically", die_at_the_second)
        assert simulate(*command) == 130
    assert len(names(tmp_path)) == 4
    capsys.readouterr()
    assert simulate(*command) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["made"], facts["kept"]) == (2, 1)


def test_workers_end_with_a_parent_that_was_killed():
    module = recordings.__name__
    code = (
        f"import os, time; from {module} import _pool\n"
        "with _pool(2) as pool:\n"
        "    print(pool.submit(os.getpid).result(), flush=True)\n"
        "    time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert int(parent.stdout.readline()) > 0
    parent.kill()
    parent.communicate(timeout=60)  # the pipe closes when the last worker is gone


def test_a_file_in_the_way_is_one_line_and_exit_2(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for out in ("file", "file/below"):
        arguments = ["--scene", "room", "--clips", "1", "-o", str(tmp_path / out), *FAST]
        assert simulate(*arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("wfm-posttrain simulate: error:")
        assert "file" in error


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission_to_write_is_one_line_and_exit_2(tmp_path, capsys):
    tmp_path.chmod(0o500)
    assert simulate("--scene", "room", "-o", str(tmp_path / "out"), *FAST) == 2
    assert "Permission denied" in capsys.readouterr().err


def test_a_spoilt_manifest_is_named(tmp_path, capsys):
    (tmp_path / "dataset.json").write_text("[]")
    assert simulate("--scene", "room", "-o", str(tmp_path), *FAST) == 2
    assert "dataset.json: not a manifest" in capsys.readouterr().err


RUN = """
import argparse, ctypes.util, sys
{patch}
from wfm_posttrain.cli_simulate import add_simulate
from wfm_posttrain.console import run
parser = argparse.ArgumentParser(prog="wfm-posttrain")
add_simulate(parser.add_subparsers(dest="command"))
sys.exit(run(parser, sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("patch", "backend"), [("ctypes.util.find_library = lambda name: None", ""), ("", "bogus")]
)
def test_without_opengl_the_error_names_the_library_to_install(tmp_path, patch, backend):
    arguments = ["simulate", "--scene", "room", "--clips", "1", "-o", str(tmp_path), *FAST]
    environment = {k: v for k, v in os.environ.items() if k not in ("PYOPENGL_PLATFORM",)}
    environment["MUJOCO_GL"] = backend
    result = subprocess.run(
        [sys.executable, "-c", RUN.format(patch=patch), *arguments],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 2
    assert "apt-get install libosmesa6" in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_the_backend_is_egl_on_a_gpu_then_osmesa_then_egl_on_the_cpu(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(graphics.platform, "system", lambda: "Linux")
    found = {"EGL": "libEGL.so.1", "OSMesa": "libOSMesa.so.8"}
    for gpu, libraries, expected in (
        (True, found, "egl"),
        (False, found, "osmesa"),
        (False, {"EGL": "libEGL.so.1"}, "egl"),
        (False, {}, None),
    ):
        monkeypatch.setattr(graphics, "gpu_can_render", lambda gpu=gpu: gpu)
        assert graphics.choose_backend(libraries.get) == expected
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    assert graphics.choose_backend({}.get) == "glfw"


def test_triton_is_there_before_osmesa(tmp_path):
    # Each brings an LLVM; the other way round the process ends by a segmentation fault.
    (tmp_path / "triton.py").write_text(
        "from pathlib import Path\nseen = 'OSMesa' in Path('/proc/self/maps').read_text()\n"
    )
    program = (
        "import sys; from wfm_posttrain.sim.graphics import gl_context; gl_context();"
        "raise SystemExit(sys.modules['triton'].seen)"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    environment = os.environ | {"PYTHONPATH": path, "MUJOCO_GL": "osmesa"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_job_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match="no scene"):
        recordings.Job("kitchen", 1)
    with pytest.raises(ValueError, match="at least 1"):
        recordings.Job("room", 0)
