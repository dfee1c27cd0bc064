import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

import wfm_diffusion as wd
from wfm_diffusion.upsample import clean


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
