"""Text checks by guard models: served over HTTP (vLLM and its like), or run by transformers."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from .dialects import CHECK, Answer, Dialect, Question, dialect
from .verdict import Finding, Stage

KEY_VARIABLE = "WFM_GUARDRAIL_LLM_KEY"
_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504}
_LARGEST = 1 << 20  # bytes of an answer


class LlmCheck:
    """Ask a guard model; whatever is not an answer in its grammar refuses."""

    name = CHECK

    def __init__(self, model: "HttpModel | LocalModel", speaks: Dialect) -> None:
        self.model, self.speaks = model, speaks

    def check(self, text: str, _stage: Stage, /) -> Sequence[Finding]:
        """Ask every question of the dialect, and parse what comes back."""
        return [
            finding
            for number, question in enumerate(self.speaks.ask(text))
            for finding in self.speaks.parse(number, self.model.answer(question))
        ]


def http_check(url: str, model: str, speaks: str, *, timeout_s: float = 20.0) -> LlmCheck:
    """Return the check of a guard model behind an OpenAI-compatible ``url`` such as ``.../v1``.

    The bearer token is read from ``WFM_GUARDRAIL_LLM_KEY``.

    Raises:
        ValueError: the url is not http(s), or the dialect is not known.
    """
    return LlmCheck(HttpModel(url, model, timeout_s=timeout_s), dialect(speaks))


class HttpModel:
    """A model behind ``/chat/completions`` and ``/completions``.

    A call is tried three times within ``timeout_s``. After ``patience`` calls in a row that
    failed, the next ones fail at once for ``rest_s`` seconds, so that a dead server does not
    hold up every prompt for the whole time. Redirects are not followed: they would carry
    prompts and the key elsewhere.
    """

    tries = 3

    def __init__(
        self,
        url: str,
        model: str,
        *,
        timeout_s: float = 20.0,
        patience: int = 5,
        rest_s: float = 30.0,
    ) -> None:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise ValueError(f"{url}: not an address; write http://host:port/v1")
        self.url, self.model, self.timeout_s = url.rstrip("/"), model, timeout_s
        self.patience, self.rest_s = patience, rest_s
        self._failures, self._rests_until = 0, 0.0
        self._lock = Lock()
        self._open = build_opener(_Stay).open

    def answer(self, question: Question) -> Answer:
        """Ask.

        Raises:
            ConnectionError: no answer, or too many failures before.
            ValueError: the answer is not one.
        """
        if time.monotonic() < self._rests_until:
            raise ConnectionError("the guard model failed several times; waiting before new calls")
        try:
            answer = _read(self._post(*self._body(question)))
        except Exception:
            with self._lock:
                self._failures += 1
                if self._failures >= self.patience:
                    self._rests_until, self._failures = time.monotonic() + self.rest_s, 0
            raise
        self._failures = 0
        return answer

    def _body(self, question: Question) -> tuple[str, dict[str, Any]]:
        body: dict[str, Any] = {
            "model": self.model,
            "temperature": 0,
            "max_tokens": question.tokens,
        }
        if question.prompt is not None:
            return "/completions", {**body, "prompt": question.prompt, "logprobs": 5}
        body |= {"messages": list(question.messages), "logprobs": True, "top_logprobs": 5}
        if question.template:
            body["chat_template_kwargs"] = dict(question.template)
        return "/chat/completions", body

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        request = Request(self.url + path, json.dumps(body).encode(), headers)
        deadline = time.monotonic() + self.timeout_s
        for attempt in range(1, self.tries + 1):
            left = deadline - time.monotonic()
            last = attempt == self.tries or left <= 0.1
            try:
                with self._open(request, timeout=max(0.1, left)) as response:
                    return json.loads(response.read(_LARGEST))
            except HTTPError as e:
                e.close()
                if last or e.code not in _AGAIN:
                    raise ConnectionError(f"the guard model answered {e.code}") from e
            except (URLError, OSError) as e:
                if last:
                    raise ConnectionError("the guard model cannot be reached") from e
            time.sleep(min(0.1 * 2**attempt, max(0.0, deadline - time.monotonic())))
        raise AssertionError("the last try returns or raises")


class _Stay(HTTPRedirectHandler):
    def redirect_request(
        self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any
    ) -> None:
        """Follow nothing."""


def _read(data: Any) -> Answer:
    """Read a completion of either kind."""
    try:
        (choice,) = data["choices"]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        if choice.get("finish_reason") == "content_filter" or not isinstance(text, str):
            raise ValueError("the guard model gave no text")
        return Answer(text, _first(choice.get("logprobs")))
    except (KeyError, TypeError, AttributeError) as e:
        raise ValueError("the server's reply is not a completion") from e


def _first(logprobs: Any) -> dict[str, float] | None:
    if not logprobs:
        return None
    if content := logprobs.get("content"):
        pairs = {t["token"]: float(t["logprob"]) for t in content[0]["top_logprobs"]}
    elif top := logprobs.get("top_logprobs"):
        pairs = {token: float(value) for token, value in top[0].items()}
    else:
        return None
    return {token: value for token, value in pairs.items() if isfinite(value)}


def local_check(folder: str, speaks: str, *, device: str = "cpu") -> LlmCheck:
    """Return the check of a guard model in a folder of transformers' layout (extra ``[llm]``).

    Raises:
        ImportError: transformers or torch is missing.
        FileNotFoundError: there is no such folder; nothing is downloaded.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder}: no such model folder; nothing is downloaded here")
    try:
        from transformers import (  # ty: ignore[import-not-found]
            AutoModelForCausalLM,
            AutoTokenizer,
        )
    except ImportError as e:
        raise ImportError('guard models need: pip install "wfm-guardrail[llm]"') from e
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype="auto")
    return LlmCheck(LocalModel(model.to(device).eval(), tokenizer), dialect(speaks))


class LocalModel:
    """A causal language model of transformers with its tokenizer; greedy, one call at a time."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.network, self.tokenizer = model, tokenizer
        self._lock = Lock()

    def answer(self, question: Question) -> Answer:
        """Generate at most as many tokens as the question allows.

        Raises:
            ValueError: the answer does not end within them, or is not finite.
        """
        import torch

        ids = self._ids(question).to(self.network.device)
        with self._lock, torch.inference_mode():
            out = self.network.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=question.tokens,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
                pad_token_id=self.tokenizer.pad_token_id or 0,
            )
        first = torch.log_softmax(out.logits[0][0].float(), -1)
        if not torch.isfinite(first).any() or torch.isnan(first).any():
            raise ValueError("the guard model's numbers are not finite")
        top = first.topk(min(5, len(first)))
        text = self.tokenizer.decode(out.sequences[0, ids.shape[1] :], skip_special_tokens=True)
        names = self.tokenizer.convert_ids_to_tokens(top.indices.tolist())
        plain = [name.lstrip("\u2581\u0120") for name in names]
        return Answer(text, dict(zip(plain, top.values.tolist(), strict=True)))

    def _ids(self, question: Question) -> Any:
        if question.prompt is not None:
            tokens = self.tokenizer(question.prompt, return_tensors="pt", add_special_tokens=False)
            return tokens.input_ids
        chat = self.tokenizer.apply_chat_template(
            list(question.messages),
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
            **(question.template or {}),
        )
        return chat["input_ids"]
