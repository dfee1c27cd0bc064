import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import log
from threading import Thread

import pytest

from wfm_guardrail import CoverageError, Guardrail, Policy
from wfm_guardrail.dialects import DIALECTS, Answer, dialect
from wfm_guardrail.llm import HttpModel, http_check


class Server:
    """A real server on the loopback that answers what it is told, in order; then the last."""

    def __init__(self, *replies):
        self.replies, self.seen = list(replies), []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.seen.append((self.path, body, dict(self.headers)))
                reply = outer.replies.pop(0) if len(outer.replies) > 1 else outer.replies[0]
                reply(self)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


@pytest.fixture
def serve():
    servers = []

    def start(*replies):
        servers.append(Server(*replies))
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


def says(text, **logprobs):
    """Reply with a completion of both kinds at once."""
    top = [{"token": k, "logprob": log(v)} for k, v in logprobs.items()]
    choice = {"message": {"content": text}, "text": text, "finish_reason": "stop"}
    choice["logprobs"] = {"content": [{"top_logprobs": top}]} if top else None
    return lambda handler: send(handler, 200, json.dumps({"choices": [choice]}))


def fails(code, text="{}"):
    return lambda handler: send(handler, code, text)


def send(handler, code, text, **headers):
    handler.send_response(code)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(text)))
    handler.end_headers()
    handler.wfile.write(text.encode())


def hangs(handler):
    time.sleep(1.5)


def guard(server, speaks="qwen3guard", timeout_s=5.0):
    llm = {"dialect": speaks, "model": "guard", "url": server.url}
    return Guardrail(Policy.model_validate({"llm": llm, "timeout_s": timeout_s}), detector=None)


ANSWERS = [
    ("llama-guard-1", "safe", None),
    ("llama-guard-1", "unsafe\nO3", "illegal"),
    ("llama-guard-3", "\n\nsafe", None),
    ("llama-guard-3", "unsafe\nS1,S10", "violence"),
    ("llama-guard-3", "unsafe\nS4", "sexual_minors"),
    ("llama-guard-3", "unsafe\nS77", "unsafe"),
    ("llama-guard-4", "unsafe\nS14", "jailbreak"),
    ("aegis", "unsafe\nO10", "harassment"),
    ("aegis", "unsafe\nO1,O3", "violence"),
    ("aegis", "safe\n", None),
    ("qwen3guard", "Safety: Safe\nCategories: None", None),
    ("qwen3guard", "Safety: Unsafe\nCategories: Violent, PII", "violence"),
    ("qwen3guard", "Safety: Controversial\nCategories: Politically Sensitive Topics", "politics"),
    ("qwen3guard-loose", "Safety: Controversial\nCategories: Unethical Acts", None),
]


@pytest.mark.parametrize(("speaks", "text", "category"), ANSWERS)
def test_each_dialect_is_read_from_a_real_server(serve, speaks, text, category):
    server = serve(says(text))
    verdict = guard(server, speaks).check_text("a robot arm")
    assert verdict.category == category, verdict.reason
    assert verdict.safe is (category is None)
    path, body, _ = server.seen[0]
    assert path == ("/v1/completions" if speaks == "aegis" else "/v1/chat/completions")
    assert body["temperature"] == 0
    assert "a robot arm" in json.dumps(body)


GARBAGE = [
    "",
    "Safe",
    "I cannot answer",
    "safe unsafe",
    "unsafe\nS1\nS2",
    "unsafe\nviolence",
    "safe\nS1",
    "Safety: Unsafe\nCategories: None",
    "Safety: Safe\nCategories: Violent",
    "Safety: Unsafe\nCategories: Something",
    "Safety: Maybe\nCategories: None",
    "Safety: Safe\nCategories: None\nSafety: Unsafe\nCategories: Violent",
    "x" * 5000,
]


@pytest.mark.parametrize("speaks", DIALECTS)
@pytest.mark.parametrize("text", GARBAGE)
def test_what_is_no_answer_is_never_safe(speaks, text):
    with pytest.raises(ValueError, match=r"answer|begin|lists|categor"):
        assert dialect(speaks).parse(0, Answer(text)) == "an error was wanted"


def test_shieldgemma_weighs_yes_against_no(serve):
    server = serve(*[says("No", No=0.9, Yes=0.05)] * 3, says("No", No=0.3, Yes=0.6))
    verdict = guard(server, "shieldgemma").check_text("a robot arm")
    assert verdict.category == "sexual"
    assert verdict.score == pytest.approx(2 / 3)
    assert "guideline" in server.seen[0][1]["chat_template_kwargs"]
    silent = guard(serve(says("No")), "shieldgemma").check_text("a robot arm")
    assert silent.category == "undecided"


REPLIES = {
    "an error of the server": fails(500),
    "no right to ask": fails(401),
    "no JSON": fails(200, "<html>"),
    "JSON of another kind": fails(200, "[1]"),
    "no choices": fails(200, '{"choices": []}'),
    "no text": fails(200, '{"choices": [{"message": {"content": null}}]}'),
    "a redirect": lambda h: send(h, 307, "", Location="http://127.0.0.1:9/"),
    "a connection that is cut": lambda h: h.connection.close(),
    "no answer in time": hangs,
}


@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
def test_whatever_goes_wrong_on_the_wire_refuses(serve, reply):
    verdict = guard(serve(reply), timeout_s=0.8).check_text("a robot arm")
    assert not verdict.safe
    assert verdict.category == "undecided"
    assert "llm" not in verdict.checked


def test_a_busy_server_is_asked_again(serve):
    server = serve(fails(503), fails(429), says("Safety: Safe\nCategories: None"))
    assert guard(server).check_text("a robot arm").safe
    assert len(server.seen) == 3


def test_a_dead_server_is_left_alone_for_a_while(serve):
    server = serve(fails(400))
    model = HttpModel(server.url, "guard", patience=2, rest_s=60)
    question = dialect("qwen3guard").ask("a robot")[0]
    for _ in range(4):
        with pytest.raises(ConnectionError):
            model.answer(question)
    assert len(server.seen) == 2


def test_the_key_is_sent_and_never_in_the_policy(serve, monkeypatch):
    monkeypatch.setenv("WFM_GUARDRAIL_LLM_KEY", "secret")
    server = serve(says("Safety: Safe\nCategories: None"))
    assert guard(server).check_text("a robot arm").safe
    assert server.seen[0][2]["Authorization"] == "Bearer secret"


@pytest.mark.parametrize("url", ["file:///etc/passwd", "localhost:8000", ""])
def test_an_address_that_is_none_is_named(url):
    with pytest.raises(ValueError, match="not an address"):
        http_check(url, "m", "qwen3guard")


def test_a_guard_model_that_is_required_and_not_configured_is_an_error():
    policy = Policy.model_validate({"checks": {"llm": {"required": True}}})
    with pytest.raises(CoverageError, match="llm"):
        Guardrail(policy, detector=None)


def test_a_dialect_that_is_none_is_named():
    with pytest.raises(ValueError, match="qwen3guard"):
        dialect("gpt")
