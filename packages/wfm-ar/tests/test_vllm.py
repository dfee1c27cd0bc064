"""vLLM serves the model: the same greedy tokens, in process and over HTTP."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
import torch

import wfm_ar as wa
from wfm_ar.checkpoint import read_weights
from wfm_ar.cli import main
from wfm_ar.serving import serve_command, write_served

NAMES = ["base_hd32_fp32", "v2w_hd32_fp32"]
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


def rebuilt(golden, name):
    about, tensors = golden(name)
    lm = wa.ArTransformer(wa.convert.config_from_nvidia(about["config"]))
    weights = {k[8:]: v for k, v in tensors.items() if k.startswith("weights.")}
    lm.load_state_dict(wa.convert.from_nvidia(weights))
    prompt = tensors["input_ids"][0, : about["prompt_len"]]
    return lm, prompt.tolist(), tensors["greedy"][0].tolist(), tensors.get("context")


def test_the_folder_says_what_vllm_asks(golden, tmp_path):
    lm, _, _, context = rebuilt(golden, "v2w_hd32_fp32")
    write_served(lm, tmp_path / "served", context=context[0])
    config = json.loads((tmp_path / "served/config.json").read_text())
    assert config["architectures"] == ["WfmArForCausalLM"]
    assert wa.ArConfig.model_validate(config["wfm"]) == lm.config
    stored = read_weights(tmp_path / "served/model.safetensors")
    assert set(stored) == {*lm.state_dict(), "context"}
    command = serve_command(lm, tmp_path / "served", port=1)
    assert command[command.index("--max-model-len") + 1] == str(lm.config.max_tokens)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    base, _, _, _ = rebuilt(golden, "base_hd32_fp32")
    with pytest.raises(ValueError, match="no cross-attention"):
        write_served(base, tmp_path / "refused", context=context[0])
    assert not (tmp_path / "refused").exists()


def test_the_command_is_spelled_out(tmp_path, capsys, monkeypatch):
    arguments = ["serve", "-o", str(tmp_path / "served"), "--port", "81"]
    words = ["-p", "a red cube", "--text-encoder", f"{wa.__name__}:pico_text_encoder"]
    assert main([*arguments, *words]) == 0
    said = capsys.readouterr().out
    assert said.startswith("vllm serve ")
    assert "--port 81" in said
    assert read_weights(tmp_path / "served/model.safetensors")["context"].shape == (32, 128)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert main([*arguments, "--launch"]) == 2
    assert "pip install wfm-ar[vllm]" in capsys.readouterr().err


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_the_engine_gives_the_tokens_of_the_original(golden, name, tmp_path, monkeypatch):
    pytest.importorskip("vllm")
    for key, value in SETTINGS.items():
        monkeypatch.setenv(key, value)
    from vllm import LLM, SamplingParams

    lm, prompt, greedy, context = rebuilt(golden, name)
    write_served(lm, tmp_path / "served", context=None if context is None else context[0])
    engine = LLM(
        str(tmp_path / "served"), skip_tokenizer_init=True, dtype="float32", enforce_eager=True,
        max_model_len=lm.config.max_tokens, max_num_seqs=4, block_size=32,
        enable_prefix_caching=False, kv_cache_memory_bytes=64 << 20,
    )  # fmt: skip
    settings = SamplingParams(
        temperature=0.0, max_tokens=len(greedy), ignore_eos=True, detokenize=False
    )
    asked = [{"prompt_token_ids": prompt}] * 3
    answers = engine.generate(asked, settings, use_tqdm=False)
    assert [list(answer.outputs[0].token_ids) for answer in answers] == [greedy] * 3
    ours = wa.generate(lm, torch.tensor([prompt]), len(greedy), context=context)
    assert ours[0].tolist() == greedy


@pytest.mark.vllm
def test_a_server_answers_over_http(golden, tmp_path):
    pytest.importorskip("vllm")
    lm, prompt, greedy, _ = rebuilt(golden, NAMES[0])
    write_served(lm, tmp_path / "served")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The program `vllm` of vllm-cpu asks for a distribution of the name vllm, and fails.
    _, _, folder, *rest = serve_command(lm, tmp_path / "served", port=port)
    module = "vllm.entrypoints.openai.api_server"
    command = [sys.executable, "-m", module, "--model", folder, *rest]
    command += ["--dtype", "float32", "--enforce-eager", "--block-size", "32"]
    command += ["--kv-cache-memory-bytes", str(64 << 20)]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | SETTINGS)
    try:
        said = {
            "model": str(tmp_path / "served"), "prompt": prompt, "max_tokens": len(greedy),
            "temperature": 0, "ignore_eos": True, "return_token_ids": True,
        }  # fmt: skip
        url = f"http://127.0.0.1:{port}"
        wait_for(f"{url}/health", server, tmp_path / "log")
        request = urllib.request.Request(
            f"{url}/v1/completions", json.dumps(said).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            assert json.load(answer)["choices"][0]["token_ids"] == greedy
    finally:
        server.terminate()
        server.wait(60)


def wait_for(url, server, log, seconds=900):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(log.read_text()[-3000:])
