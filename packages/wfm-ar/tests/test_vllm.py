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
from wfm_ar.serving import engine_prompt, request_body, serve_command, write_served

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


@pytest.mark.parametrize("name", NAMES)
def test_the_folder_says_what_vllm_asks(golden, name, tmp_path):
    lm, _, _, context = rebuilt(golden, name)
    write_served(lm, tmp_path / "served")
    config = json.loads((tmp_path / "served/config.json").read_text())
    assert config["is_encoder_decoder"] == (context is not None)
    assert wa.ArConfig.model_validate(config["wfm"]) == lm.config
    stored = read_weights(tmp_path / "served/model.safetensors")
    assert set(stored) == set(lm.state_dict())
    command = serve_command(lm, tmp_path / "served", port=1)
    assert command[command.index("--max-model-len") + 1] == str(lm.config.max_tokens)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert ("--enable-mm-embeds" in command) == (context is not None)


def test_the_command_is_spelled_out(tmp_path, capsys, monkeypatch):
    arguments = ["serve", "-o", str(tmp_path / "served"), "--port", "81"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert said.startswith("vllm serve ")
    assert "--port 81" in said
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
    write_served(lm, tmp_path / "served")
    engine = LLM(
        str(tmp_path / "served"), skip_tokenizer_init=True, dtype="float32", enforce_eager=True,
        max_model_len=lm.config.max_tokens, max_num_batched_tokens=2048, max_num_seqs=4,
        block_size=32,
        enable_prefix_caching=False, kv_cache_memory_bytes=64 << 20,
        enable_mm_embeds=context is not None,
    )  # fmt: skip
    settings = SamplingParams(
        temperature=0.0, max_tokens=len(greedy), ignore_eos=True, detokenize=False
    )
    answers = {}
    for key, text in texts(context).items():
        ours = wa.generate(lm, torch.tensor([prompt]), len(greedy), context=text)
        answers[key] = ours[0].tolist()
    assert answers["original"] == greedy
    assert len(set(map(tuple, answers.values()))) == len(answers), "each text has its own answer"
    # All at once, twice each and mixed: no request sees another's text.
    asked = [*answers, *reversed(answers)]
    prompts = [
        engine_prompt(prompt, None if context is None else texts(context)[key][0]) for key in asked
    ]
    found = engine.generate(prompts, settings, use_tqdm=False)
    assert [list(each.outputs[0].token_ids) for each in found] == [answers[key] for key in asked]


def texts(context):
    """Return contexts to answer under: the original's, another one, and none at all."""
    if context is None:
        return {"original": None}
    return {"original": context, "other": context.flip(2), "empty": torch.zeros_like(context)}


@pytest.mark.vllm
@pytest.mark.parametrize("name", NAMES)
def test_a_server_answers_over_http(golden, name, tmp_path):
    pytest.importorskip("vllm")
    lm, prompt, greedy, context = rebuilt(golden, name)
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
        wait_for(f"http://127.0.0.1:{port}/health", server, tmp_path / "log")
        if context is None:
            said = {
                "model": folder, "prompt": prompt, "max_tokens": len(greedy),
                "temperature": 0, "ignore_eos": True, "return_token_ids": True,
            }  # fmt: skip
            assert post(port, "/v1/completions", said) == greedy
        else:
            for text in texts(context).values():
                said = request_body(prompt, text[0], temperature=0, max_tokens=len(greedy))
                ours = wa.generate(lm, torch.tensor([prompt]), len(greedy), context=text)
                assert post(port, "/inference/v1/generate", said) == ours[0].tolist()
    finally:
        server.terminate()
        server.wait(60)


def post(port, path, said):
    """Return the tokens of the answer."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}",
        json.dumps(said).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)["choices"][0]["token_ids"]


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
