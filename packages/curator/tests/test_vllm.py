"""Captions by a real vLLM, over HTTP and in process: a tiny random model, the whole way.

Needs vLLM and starts it: ``pytest -m vllm``, with ``tests/vllm_path`` on ``PYTHONPATH``.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.util import find_spec

import pyarrow.parquet as pq
import pytest
from conftest import moving, write
from tiny_vlm import make

import wfm_curator as wc

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}
OPTIONS = {"dtype": "float32", "enforce_eager": True, "max_model_len": 4096, "max_num_seqs": 4}
START_SECONDS = 1800


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_it_says_what_to_install(folder, tmp_path):
    with pytest.raises(ImportError, match=r"pip install .wfm-curator\[vllm\]"):
        curated(folder, tmp_path / "out", vllm="somewhere")


def curated(folder, out, **caption):
    caption = {"frames": 4, "side": 64, "max_tokens": 12, "temperature": 0.0} | caption
    given = {"split": {"method": "content"}, "run": {"workers": 0}, "caption": caption}
    report = wc.curate(folder, out, wc.CurateConfig.model_validate(given))
    return report, pq.read_table(out / "manifest.parquet").to_pylist()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    pytest.importorskip("vllm")
    return make(tmp_path_factory.mktemp("models") / "tiny-vlm")


@pytest.fixture(scope="module")
def url(model):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "4096"]
    flags += ["--limit-mm-per-prompt", '{"image": 4}', "--served-model-name", "tiny-vlm"]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--port", str(port), "--host", "127.0.0.1", *flags]
    process = subprocess.Popen(command, env=os.environ | SETTINGS)
    try:
        until = time.monotonic() + START_SECONDS
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, "the server ended"
            assert time.monotonic() < until, "the server took too long"
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(60)


def answers(address):
    try:
        return urllib.request.urlopen(address, timeout=5).status == 200
    except (urllib.error.URLError, OSError):
        return False


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore")
def test_a_served_model_and_one_in_process_caption_alike(url, model, tmp_path, monkeypatch):
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "in"
    for n in range(3):
        write(folder / f"sim-{n}.mp4", moving(n, 17))
    write(folder / "long.mp4", moving(4, 40), fps=2)
    (folder / "sim-0.txt").write_text("a block goes its way")
    report, rows = curated(folder, tmp_path / "served", endpoint=url)
    assert report.captions == {"model tiny-vlm": 3, "text": 1}
    said = {r["recording"]: r["caption"] for r in rows}
    assert all(said.values())
    windows = {r["recording"]: r["caption_windows"] for r in rows}
    assert windows["long.mp4"].count('"prompt_tokens"') == 2  # twenty seconds, ten a window
    assert windows["sim-0.mp4"] == ""
    nowhere = "http://127.0.0.1:9/v1"
    again, _ = curated(folder, tmp_path / "served", endpoint=nowhere, model="tiny-vlm")
    assert again.captions == report.captions
    here, rows = curated(folder, tmp_path / "here", vllm=str(model), vllm_options=OPTIONS)
    assert here.captions == report.captions
    assert {r["recording"]: r["caption"] for r in rows} == said
