"""Ask a vision-language model about pictures, over the protocol that ``vllm serve`` speaks.

Requests that are throttled (429), fail in the server (5xx) or take too long are tried again,
later and later; what the server refuses for a reason is not.
"""

import base64
import http.client
import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .config import CaptionConfig

LONGEST_WAIT = 60.0  # seconds between two tries


@dataclass(frozen=True)
class Answer:
    """``status`` is ``ok``, ``truncated``, ``blocked``, ``error`` or ``skipped`` (no budget)."""

    status: str
    text: str = ""
    error: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class EndpointError(ValueError):
    """There is no such server, or not the model that was asked for."""


class _Refused(Exception):
    """The server will not answer this request, however often it is asked."""


class _Busy(Exception):
    """The server may answer later; ``wait`` is how many seconds it asked for, if it did."""

    def __init__(self, text: str, wait: float | None = None) -> None:
        super().__init__(text)
        self.wait = wait


class Endpoint:
    """An OpenAI-compatible server; may be asked by several threads at once.

    Spends no more than ``config.budget_tokens``: when that much has been used, it asks no more.
    """

    def __init__(
        self, config: CaptionConfig, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.config, self.sleep = config, sleep
        self.model = "" if config.model == "auto" else config.model
        self.spent = 0
        self.lock = threading.Lock()

    def probe(self) -> str:
        """Return the model's name, having asked the server for it.

        Raises:
            EndpointError: nobody answers there, or not as such a server does.
        """
        where = f"{self.config.endpoint}/models"
        try:
            names = [model["id"] for model in self._retried("models", None)["data"]]
        except (_Refused, _Busy, KeyError, TypeError) as e:
            raise EndpointError(f"{where}: no model answers ({e}); see caption.endpoint") from e
        if not names or (self.model and self.model not in names):
            have = ", ".join(names) or "none"
            raise EndpointError(f"{where}: no model {self.config.model!r}, it serves: {have}")
        self.model = self.model or names[0]
        return self.model

    def describe(self, pictures: Sequence[bytes], text: str) -> Answer:
        """Return what the model says of JPEGs."""
        with self.lock:
            budget = self.config.budget_tokens
            if budget is not None and self.spent >= budget:
                return Answer("skipped", error="caption.budget_tokens are spent")
        try:
            answer = _read(self._retried("chat/completions", self._request(pictures, text)))
        except (_Refused, _Busy) as e:
            return Answer("error", error=str(e))
        with self.lock:
            self.spent += answer.tokens
        return answer

    def _request(self, pictures: Sequence[bytes], text: str) -> dict[str, Any]:
        parts: list[dict[str, Any]] = [
            {
                "type": "image_url",
                "image_url": {"url": "data:image/jpeg;base64," + base64.b64encode(p).decode()},
            }
            for p in pictures
        ]
        content = [*parts, {"type": "text", "text": text}]
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.config.max_tokens,
            "temperature": self.config.temperature,
        }

    def _retried(self, path: str, body: dict[str, Any] | None) -> Any:
        for attempt in range(self.config.retries + 1):
            try:
                return self._once(path, body)
            except _Busy as e:
                if attempt == self.config.retries:
                    raise _Busy(f"{e}, {attempt + 1} times") from e
                wait = 2.0**attempt * random.uniform(0.5, 1.5) if e.wait is None else e.wait
                self.sleep(min(wait, LONGEST_WAIT))
        raise AssertionError

    def _once(self, path: str, body: dict[str, Any] | None) -> Any:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.config.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.config.endpoint.rstrip('/')}/{path}", data, headers
        )
        try:
            with urllib.request.urlopen(request, timeout=self.config.timeout) as reply:
                content = reply.read()
        except urllib.error.HTTPError as e:
            raise _explained(e) from e
        except (OSError, http.client.HTTPException) as e:  # time-outs, lost connections
            reason = getattr(e, "reason", None) or e
            raise _Busy(f"{reason}" or type(e).__name__) from e
        try:
            return json.loads(content)
        except ValueError as e:
            raise _Refused(f"the answer is not JSON: {content[:60]!r}") from e


def _explained(error: urllib.error.HTTPError) -> _Busy | _Refused:
    with error:
        said = " ".join(error.read(2000).decode(errors="replace").split())[:200]
        text = f"HTTP {error.code}: {said or error.reason}"
        if error.code != 429 and error.code < 500:
            return _Refused(text)
        asked = error.headers.get("Retry-After", "")
        return _Busy(text, float(asked) if asked.isdecimal() else None)


def _read(reply: Any) -> Answer:
    """Take text, status and token counts from a chat completion."""
    try:
        choice = reply["choices"][0]
        text = choice["message"]["content"] or ""
        reason = choice.get("finish_reason") or "stop"
        usage = reply.get("usage") or {}
        counts = (int(usage.get(k) or 0) for k in ("prompt_tokens", "completion_tokens"))
        text = " ".join(text.split())
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as e:
        raise _Refused(f"the answer is no chat completion ({type(e).__name__}: {e})") from e
    status = {"length": "truncated", "content_filter": "blocked"}.get(reason, "ok")
    if status == "ok" and not text:
        raise _Refused("the answer is empty")
    return Answer(status, text, "", *counts)
