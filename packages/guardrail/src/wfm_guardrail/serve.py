"""Texts judged over HTTP in the manner of OpenAI's ``/v1/moderations``; loopback by default."""

import json
import logging
from hmac import compare_digest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

from . import __version__
from .guard import Guardrail
from .verdict import TEXT_STAGES, Verdict

logger = logging.getLogger(__name__)

TOKEN_VARIABLE = "WFM_GUARDRAIL_TOKEN"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
LARGEST = 4 << 20  # bytes of a request
MOST = 256  # texts in a request


class Refusal(Exception):
    """A request that is answered with an error: its HTTP code, and why."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Server(ThreadingHTTPServer):
    """Answers ``POST /v1/moderations`` and ``GET /health`` with one guard.

    ``token`` is asked for as a bearer token when given. Prompts are not logged.
    """

    daemon_threads = True

    def __init__(self, guard: Guardrail, host: str, port: int, *, token: str | None = None) -> None:
        super().__init__((host, port), _Handler)
        self.guard, self.token = guard, token


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = f"wfm-guardrail/{__version__}"
    sys_version = ""
    timeout = 30

    @property
    def _ours(self) -> Server:
        assert isinstance(self.server, Server)
        return self.server

    def do_GET(self) -> None:
        """Say what is checked."""
        if self.path != "/health":
            return self._send(404, _error("there is /health and /v1/moderations"))
        return self._send(200, {"status": "ok", **self._ours.guard.posture().to_dict()})

    def do_POST(self) -> None:
        """Judge."""
        try:
            answer = self._moderate()
        except Refusal as e:
            self.close_connection = True  # what was not read would be taken for the next request
            return self._send(e.code, _error(str(e)))
        except Exception:
            logger.exception("a request failed; it is answered with an error, never with safe")
            self.close_connection = True
            return self._send(500, _error("the guard failed; treat the input as refused"))
        return self._send(200, answer)

    def _moderate(self) -> dict[str, Any]:
        if self.path != "/v1/moderations":
            raise Refusal(404, "there is /v1/moderations")
        given = self.headers.get("Authorization", "")
        wanted = f"Bearer {self._ours.token}"
        if self._ours.token and not compare_digest(given.encode(), wanted.encode()):
            raise Refusal(401, "the bearer token is missing or wrong")
        length = self.headers.get("Content-Length", "")
        if not length.isdigit():
            raise Refusal(411, "send a Content-Length")
        if int(length) > LARGEST:
            raise Refusal(413, f"a request has at most {LARGEST} bytes")
        texts, stage = _wanted(self.rfile.read(int(length)))
        verdicts = self._ours.guard.check_texts(texts, stage=stage)
        model = f"wfm-guardrail-{__version__}-{self._ours.guard.policy.fingerprint}"
        return {
            "id": f"modr-{uuid4().hex}",
            "model": model,
            "results": [_result(verdict) for verdict in verdicts],
        }

    def _send(self, code: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Log the request line, which holds no prompt."""
        logger.debug(format, *args)


def _wanted(body: bytes) -> tuple[list[str], Any]:
    try:
        data = json.loads(body)
    except ValueError as e:
        raise Refusal(400, "the body is not JSON") from e
    if not isinstance(data, dict) or "input" not in data:
        raise Refusal(400, 'send {"input": "text"} or {"input": ["text", ...]}')
    texts = [data["input"]] if isinstance(data["input"], str) else data["input"]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Refusal(400, "input is a text or a list of texts; pictures are not judged here")
    if not 0 < len(texts) <= MOST:
        raise Refusal(400, f"input holds {len(texts)} texts; send 1 to {MOST}")
    stage = data.get("stage", "prompt")
    if stage not in TEXT_STAGES:
        raise Refusal(400, f"stage is one of {', '.join(TEXT_STAGES)}")
    return texts, stage


def _result(verdict: Verdict) -> dict[str, Any]:
    scores: dict[str, float] = {}
    for finding in verdict.findings:
        scores[finding.category] = max(finding.score, scores.get(finding.category, 0.0))
    return {
        "flagged": not verdict.safe,
        "categories": {name: name == verdict.category for name in scores},
        "category_scores": scores,
        "reason": verdict.reason,
    }


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error"}}
