"""The same run on Ray: the same bytes, and nothing lost."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from conftest import moving, write
from test_robust import contents, deadly

import wfm_curator as wc
from wfm_curator import pipeline

INSTALLED = find_spec("ray") is not None


def settings(**run):
    run = {"workers": 2, "timeout": 120.0} | run
    return wc.CurateConfig.model_validate({"split": {"method": "content"}, "run": run})


@pytest.mark.skipif(INSTALLED, reason="Ray is installed")
def test_without_ray_it_says_what_to_install(folder, tmp_path):
    with pytest.raises(ImportError, match=r"pip install .wfm-curator\[ray\]"):
        wc.curate(folder, tmp_path / "out", settings(), executor="ray")


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray")
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": path}},
    )
    yield ray
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_ray_writes_the_bytes_that_local_processes_write(cluster, folder, tmp_path):
    write(folder / "cut.mp4", np.concatenate([moving(7, 30), moving(8, 30)]))
    (folder / "empty.mp4").touch()
    here = wc.curate(folder, tmp_path / "local", settings())
    there = wc.curate(folder, tmp_path / "ray", settings(), executor="ray")
    assert here.as_dict() == there.as_dict()
    assert contents(tmp_path / "local") == contents(tmp_path / "ray")
    before = contents(tmp_path / "ray")
    wc.curate(folder, tmp_path / "ray", settings(), executor="ray")
    assert contents(tmp_path / "ray") == before


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_a_deadly_video_ends_in_quarantine_on_ray_too(cluster, folder, tmp_path, monkeypatch):
    write(folder / "deadly.mp4", moving(0, 17))
    monkeypatch.setattr(pipeline, "analyse_unit", deadly)
    report = wc.curate(folder, tmp_path / "out", settings(attempts=1), executor="ray")
    assert report.kept == 6
    assert report.quarantined == {"deadly.mp4": "the worker died (exit status -11), 1 times"}
