"""Ask a vision-language model about pictures: a server as ``vllm serve`` is, or vLLM itself.

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
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
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
    """There is no such server or model, or it will not answer, however often it is asked."""


class _Busy(Exception):
    """The server may answer later; ``wait`` is how many seconds it asked for, if it did."""

    def __init__(self, text: str, wait: float | None = None) -> None:
        super().__init__(text)
        self.wait = wait


class Server:
    """An OpenAI-compatible server; may be asked by several threads at once."""

    def __init__(
        self,
        address: str,
        *,
        key_variable: str = "OPENAI_API_KEY",
        retries: int = 4,
        timeout: float = 120.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.address, self.key_variable = address.rstrip("/"), key_variable
        self.retries, self.timeout, self.sleep = retries, timeout, sleep

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Return the JSON answer to a request, asked again where that may help.

        Raises:
            EndpointError: there is none.
        """
        for attempt in range(self.retries + 1):
            try:
                return self._once(path, body)
            except _Busy as e:
                if attempt == self.retries:
                    raise EndpointError(f"{e}, {attempt + 1} times") from e
                wait = 2.0**attempt * random.uniform(0.5, 1.5) if e.wait is None else e.wait
                self.sleep(min(wait, LONGEST_WAIT))
        raise AssertionError

    def _once(self, path: str, body: dict[str, Any] | None) -> Any:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_variable):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.address}/{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                content = reply.read()
        except urllib.error.HTTPError as e:
            raise _explained(e) from e
        except (OSError, http.client.HTTPException) as e:  # time-outs, lost connections
            reason = getattr(e, "reason", None) or e
            raise _Busy(f"{reason}" or type(e).__name__) from e
        try:
            return json.loads(content)
        except ValueError as e:
            raise EndpointError(f"the answer is not JSON: {content[:60]!r}") from e


def first_model(server: Server, wanted: str, setting: str) -> str:
    """Return the name of the model to ask for; ``auto`` is the first that is served.

    Raises:
        EndpointError: nobody answers there, or not as such a server does, or without the model.
    """
    where = f"{server.address}/models"
    try:
        names = [model["id"] for model in server.ask("models")["data"]]
    except (EndpointError, KeyError, TypeError) as e:
        raise EndpointError(f"{where}: no model answers ({e}); see {setting}") from e
    if not names or wanted not in ("auto", *names):
        have = ", ".join(names) or "none"
        raise EndpointError(f"{where}: no model {wanted!r}, it serves: {have}")
    return names[0] if wanted == "auto" else wanted


class Endpoint:
    """A caption model behind a server; may be asked by several threads at once.

    Spends no more than ``config.budget_tokens``: when that much has been used, it asks no more.
    """

    def __init__(
        self, config: CaptionConfig, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.config = config
        self.server = Server(
            config.endpoint,
            key_variable=config.key_variable,
            retries=config.retries,
            timeout=config.timeout,
            sleep=sleep,
        )
        self.model = "" if config.model == "auto" else config.model
        self.spent = 0
        self.lock = threading.Lock()

    def probe(self) -> str:
        """Return the model's name, having asked the server for it.

        Raises:
            EndpointError: nobody answers there, or not as such a server does.
        """
        self.model = first_model(self.server, self.model or "auto", "caption.endpoint")
        return self.model

    def describe(self, pictures: Sequence[bytes], text: str) -> Answer:
        """Return what the model says of JPEGs."""
        with self.lock:
            budget = self.config.budget_tokens
            if budget is not None and self.spent >= budget:
                return Answer("skipped", error="caption.budget_tokens are spent")
        try:
            answer = self._answer(conversation(pictures, text))
        except EndpointError as e:
            return Answer("error", error=str(e))
        with self.lock:
            self.spent += answer.tokens
        return answer

    def _answer(self, messages: list[dict[str, Any]]) -> Answer:
        """Ask the server."""
        sampling = {"max_tokens": self.config.max_tokens, "temperature": self.config.temperature}
        body = {"model": self.model, "messages": messages, **sampling}
        return read(self.server.ask("chat/completions", body))


class InProcess(Endpoint):
    """A caption model that vLLM runs in this process (extra ``[vllm]``).

    Threads that ask at the same time are answered together, as one batch.
    """

    def __init__(self, config: CaptionConfig) -> None:
        super().__init__(config)
        self.model = Path(config.vllm).name
        self.engine: Any = None
        self.waiting: list[tuple[list[dict[str, Any]], Future[Answer]]] = []
        self.turn = threading.Lock()

    def probe(self) -> str:
        """Load the model, once, and return its name.

        Raises:
            ImportError: vLLM is not installed.
            EndpointError: it cannot run this model.
        """
        if self.engine is None:
            try:
                from vllm import LLM  # ty: ignore[import-not-found]
            except ImportError:
                raise ImportError('caption.vllm needs: pip install "wfm-curator[vllm]"') from None
            given = {"limit_mm_per_prompt": {"image": self.config.frames}, "seed": 0}
            try:
                self.engine = LLM(self.config.vllm, **given | self.config.vllm_options)
            except (ValueError, OSError, RuntimeError) as e:
                raise EndpointError(f"caption.vllm={self.config.vllm}: {e}") from e
        return self.model

    def _answer(self, messages: list[dict[str, Any]]) -> Answer:
        """Wait for the turn, then ask for all who wait; who comes later may find it done."""
        mine: Future[Answer] = Future()
        with self.lock:
            self.waiting.append((messages, mine))
        with self.turn:
            with self.lock:
                batch, self.waiting = self.waiting, []
            if batch:
                self._ask([asked for asked, _ in batch], [future for _, future in batch])
        return mine.result()

    def _ask(self, asked: list[list[dict[str, Any]]], futures: list[Future[Answer]]) -> None:
        from vllm import SamplingParams  # ty: ignore[import-not-found]

        sampling = SamplingParams(
            max_tokens=self.config.max_tokens, temperature=self.config.temperature
        )
        try:
            replies = self.engine.chat(asked, sampling, use_tqdm=False)
        except Exception as e:  # of any library below; one bad request must not cost the others
            if len(asked) == 1:
                futures[0].set_exception(EndpointError(f"{type(e).__name__}: {e}"))
                return
            for one, future in zip(asked, futures, strict=True):
                self._ask([one], [future])
            return
        for reply, future in zip(replies, futures, strict=True):
            said = reply.outputs[0]
            counts = len(reply.prompt_token_ids or ()), len(said.token_ids)
            try:
                future.set_result(_answered(said.text, said.finish_reason, *counts))
            except EndpointError as e:
                future.set_exception(e)


def model_of(config: CaptionConfig) -> Endpoint | None:
    """Return the caption model that the settings name, if any."""
    if config.vllm:
        return InProcess(config)
    return Endpoint(config) if config.endpoint else None


def conversation(pictures: Sequence[bytes], text: str) -> list[dict[str, Any]]:
    """Return the messages that show a model JPEGs and ask it something."""
    urls = ("data:image/jpeg;base64," + base64.b64encode(p).decode() for p in pictures)
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def _explained(error: urllib.error.HTTPError) -> _Busy | EndpointError:
    with error:
        said = " ".join(error.read(2000).decode(errors="replace").split())[:200]
        text = f"HTTP {error.code}: {said or error.reason}"
        if error.code != 429 and error.code < 500:
            return EndpointError(text)
        asked = error.headers.get("Retry-After", "")
        return _Busy(text, float(asked) if asked.isdecimal() else None)


def read(reply: Any) -> Answer:
    """Take text, status and token counts from a chat completion.

    Raises:
        EndpointError: it is none, or empty.
    """
    try:
        choice = reply["choices"][0]
        text, reason = choice["message"]["content"] or "", choice.get("finish_reason")
        usage = reply.get("usage") or {}
        counts = [int(usage.get(k) or 0) for k in ("prompt_tokens", "completion_tokens")]
        return _answered(text, reason, *counts)
    except (KeyError, IndexError, TypeError, AttributeError) as e:
        raise EndpointError(f"the answer is no chat completion ({type(e).__name__}: {e})") from e


def _answered(text: str, reason: str | None, prompt: int, completion: int) -> Answer:
    status = {"length": "truncated", "content_filter": "blocked"}.get(reason or "stop", "ok")
    text = " ".join(text.split())
    if status == "ok" and not text:
        raise EndpointError("the answer is empty")
    return Answer(status, text, "", prompt, completion)
