import json
from http.client import HTTPConnection
from threading import Thread

import pytest

from wfm_guardrail import Guardrail
from wfm_guardrail.cli import main
from wfm_guardrail.serve import LARGEST, MOST, Server


class Breaks:
    name = "breaks"

    def check(self, text, _stage, /):
        raise RuntimeError(text)


@pytest.fixture
def start():
    servers = []

    def run(guard, token=None):
        server = Server(guard, "127.0.0.1", 0, token=token)
        Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server

    yield run
    for server in servers:
        server.shutdown()
        server.server_close()


def ask(server, body=None, method="POST", path="/v1/moderations", **headers):
    connection = HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    try:
        data = body if isinstance(body, str | bytes | None) else json.dumps(body)
        connection.request(method, path, data, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def test_texts_are_judged_in_order(start, guard):
    texts = ["a robot arm", "a d3c@p1tated statue", "a blue cup"]
    code, answer = ask(start(guard), {"input": texts, "model": "any"})
    assert code == 200
    assert [r["flagged"] for r in answer["results"]] == [False, True, False]
    flagged = answer["results"][1]
    assert flagged["categories"]["gore"] or flagged["categories"]["violence"]
    assert all(0 <= score <= 1 for score in flagged["category_scores"].values())
    assert "statue" not in flagged["reason"]


def test_a_check_that_fails_flags(start):
    server = start(Guardrail(text_checks=[Breaks()], detector=None))
    code, answer = ask(server, {"input": "a robot arm"})
    assert code == 200
    assert answer["results"][0]["flagged"]


def test_a_guard_that_fails_is_an_error_and_never_safe(start, guard):
    server = start(guard)
    server.guard = None
    code, answer = ask(server, {"input": "a robot arm"})
    assert code == 500
    assert "results" not in answer


@pytest.mark.parametrize(
    "body",
    [
        *("", "{", "[]", {}),
        *({"input": value} for value in ([], [1], ["x"] * (MOST + 1), [{"type": "image_url"}])),
        {"input": "x", "stage": "other"},
    ],
    ids=range(9),
)
def test_a_request_that_is_none_is_an_error(start, guard, body):
    code, answer = ask(start(guard), body)
    assert code == 400
    assert answer["error"]["message"]


def test_size_path_and_token_are_checked(start, guard):
    server = start(guard, token="secret")
    good = {"Authorization": "Bearer secret"}
    assert ask(server, {"input": "x"})[0] == 401
    assert ask(server, {"input": "x"}, Authorization="Bearer secreT")[0] == 401
    assert ask(server, {"input": "a cup"}, **good)[0] == 200
    assert ask(server, {"input": "x"}, path="/v1/other", **good)[0] == 404
    long = {**good, "Content-Length": str(LARGEST + 1)}
    assert ask(server, None, **long)[0] == 413


def test_health_says_what_is_checked(start, guard):
    code, answer = ask(start(guard), method="GET", path="/health")
    assert (code, answer["status"], answer["complete"]) == (200, "ok", False)


def test_it_is_not_opened_to_others_without_a_token(monkeypatch, capsys):
    monkeypatch.delenv("WFM_GUARDRAIL_TOKEN", raising=False)
    assert main(["serve", "--host", "0.0.0.0"]) == 2
    assert "WFM_GUARDRAIL_TOKEN" in capsys.readouterr().err
