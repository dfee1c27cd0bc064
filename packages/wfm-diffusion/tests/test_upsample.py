import base64
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from fakes import Answer, Guard
from PIL import Image

import wfm_diffusion as wd
from wfm_diffusion.upsample import clean, shorten


@pytest.fixture
def server():
    """A chat endpoint on this machine that remembers what it was asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked.append((self.path, json.loads(body)))
            answer = {"choices": [{"message": {"content": 'Caption: "A long\ndescription."'}}]}
            text = json.dumps(answer if "v1" in self.path else {"oops": 1}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format, *args):
            pass

    http = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}", asked
    http.shutdown()
    thread.join()
    http.server_close()


def test_rules_keep_the_prompt_and_say_that_they_are_rules():
    longer = wd.PromptUpsampler().upsample("a red  cube falls")
    assert longer.text.startswith("A red cube falls. ")
    assert longer.source == "rules"


def test_long_prompts_are_left_alone():
    prompt = "word " * 300
    assert wd.PromptUpsampler().upsample(prompt).source == "unchanged"


def test_an_endpoint_is_asked_and_its_answer_cleaned(server):
    address, asked = server
    longer = wd.PromptUpsampler(f"{address}/v1", model="m").upsample("a cube")
    assert (longer.text, longer.source) == ("A long description.", "model")
    path, body = asked[0]
    assert path == "/v1/chat/completions"
    assert body["model"] == "m"
    assert body["messages"][0]["content"].endswith("a cube")


def test_a_picture_goes_along_with_the_users_own_words(server):
    address, asked = server
    frames = torch.zeros(2, 3, 20, 2000, dtype=torch.uint8)
    frames[1, 0] = 255
    longer = wd.PromptUpsampler(f"{address}/v1", model="m").upsample("it falls", frames)
    assert longer.source == "model"
    picture, text = asked[0][1]["messages"][0]["content"]
    assert text["text"].endswith("it falls")
    data = base64.b64decode(picture["image_url"]["url"].partition(",")[2])
    image = Image.open(io.BytesIO(data))
    assert image.size == (1024, 10)
    assert image.getpixel((5, 5)) == (255, 0, 0)


def test_guards_see_the_prompt_and_the_answer(server):
    address, asked = server
    guard = Guard()
    upsampler = wd.PromptUpsampler(f"{address}/v1", model="m", guards=[guard])
    upsampler.upsample("a cube")
    assert guard.seen == ["a cube", "A long description."]
    with pytest.raises(wd.Refused, match="a bad word"):
        upsampler.upsample("a bad cube")
    assert len(asked) == 1

    class Wary(Guard):
        def check_text(self, text, /):
            return Answer("long" not in text, "a long word")

    with pytest.raises(wd.Refused, match="a long word"):
        wd.PromptUpsampler(f"{address}/v1", model="m", guards=[Wary()]).upsample("a cube")


def test_answers_are_cut_at_a_sentence_and_prompts_have_a_limit():
    text = "One two three. " * 100
    assert shorten(text, 7) == "One two three. One two three."
    assert shorten("word " * 300, 4) == "word word word word"
    with pytest.raises(ValueError, match="8000"):
        wd.PromptUpsampler().upsample("x" * 9000)


def test_an_endpoint_that_answers_something_else_is_an_error(server):
    address, _ = server
    with pytest.raises(OSError, match="not the answer"):
        wd.PromptUpsampler(f"{address}/other", model="m").upsample("a cube")


def test_an_endpoint_that_is_not_there_is_an_error():
    with pytest.raises(OSError, match="no answer"):
        wd.PromptUpsampler("http://127.0.0.1:9/v1", model="m", timeout=2.0).upsample("a cube")


@pytest.mark.parametrize(
    "options", [{"endpoint": "ftp://x", "model": "m"}, {"endpoint": "http://x"}]
)
def test_bad_settings_are_refused(options):
    with pytest.raises(ValueError, match=r"http|model"):
        wd.PromptUpsampler(**options)


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="empty"):
        wd.PromptUpsampler().upsample("  ")


def test_marks_of_a_chat_answer_are_taken_off():
    assert clean("#### - **Scene** A *cube*\n falls") == "A *cube* falls"


@pytest.fixture
def tiny_llm(tmp_path):
    """A Llama of two layers with random weights, in a folder."""
    transformers = pytest.importorskip("transformers", reason="needs the group parity")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [
        "<pad>",
        "</s>",
        "<unk>",
        *["a", "red", "cube", "falls", "on", "the", "table", "and", "rolls", "."],
    ]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    fast.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        eos_token_id=1,
        pad_token_id=0,
    )
    model = transformers.LlamaForCausalLM(config)
    model.generation_config.min_new_tokens = 6
    model.save_pretrained(tmp_path / "llm")
    fast.save_pretrained(tmp_path / "llm")
    return tmp_path / "llm"


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_a_model_in_this_process_answers(tiny_llm):
    longer = wd.PromptUpsampler(model=str(tiny_llm), max_tokens=8).upsample("a red cube falls")
    assert longer.source == "model"
    assert longer.text
    with pytest.raises(ValueError, match="reads no pictures"):
        wd.PromptUpsampler(model=str(tiny_llm)).upsample("a", torch.zeros(1, 3, 4, 4).byte())


@pytest.mark.parity
@pytest.mark.slow
def test_a_real_server_process_answers(tiny_llm, tmp_path):
    pytest.importorskip("uvicorn", reason="needs transformers[serving]")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = str(Path(sys.executable).parent / "transformers")
    (tmp_path / "hub").mkdir()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    command = [program, "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    log = tmp_path / "log.txt"
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, log)
        upsampler = wd.PromptUpsampler(
            f"http://127.0.0.1:{port}/v1", model=str(tiny_llm), max_tokens=12, timeout=200
        )
        longer = upsampler.upsample("a red cube falls")
        assert longer.source == "model"
        assert len(longer.text.split()) <= 12
    finally:
        process.terminate()
        process.wait(30)


def wait_for(address, process, log):
    """Wait until the server answers; fail with what it wrote when it ends instead."""
    for _ in range(300):
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(1)
    raise AssertionError(log.read_text())
