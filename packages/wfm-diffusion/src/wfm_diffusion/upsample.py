"""Short prompts -> long ones: by a language model behind an HTTP endpoint, or by plain rules."""

import json
import logging
import os
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Literal

logger = logging.getLogger(__name__)

LONG_ENOUGH = 250
"""Words from which on a prompt is left as it is, as in Cosmos 1.0."""

INSTRUCTION = (
    "Expand this short description of a video into one paragraph of about 120 words. Say what"
    " is seen: the subject, its surroundings, how things move and touch, the light, and where"
    " the camera is. Keep every fact of the description and contradict none. Answer with the"
    " paragraph alone.\n\n"
)
_DETAILS = (
    "The shot is steady and shows the whole scene in focus.",
    "Everything moves smoothly and keeps its shape, weight and colour from frame to frame.",
    "The light is even, and shadows follow the objects that cast them.",
)


@dataclass(frozen=True)
class Upsampled:
    """A longer prompt, and what made it: a model, plain rules, or nobody (it was long)."""

    text: str
    source: Literal["model", "rules", "unchanged"]


class PromptUpsampler:
    """Ask an OpenAI-compatible ``endpoint`` (such as ``vllm serve``), or go by rules without one.

    ``endpoint`` is the base address up to ``/v1``. The key is read from the environment
    variable ``WFM_UPSAMPLER_KEY``, if the server wants one. The rules add three sentences of
    general description: they are no language model, and ``Upsampled.source`` says so.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        model: str | None = None,
        timeout: float = 60.0,
        max_tokens: int = 512,
    ) -> None:
        if endpoint is not None and not endpoint.startswith(("http://", "https://")):
            raise ValueError(f"{endpoint}: an endpoint starts with http:// or https://")
        if endpoint is not None and not model:
            raise ValueError(f"{endpoint}: say which model the endpoint serves")
        self.endpoint, self.model = endpoint, model
        self.timeout, self.max_tokens = timeout, max_tokens

    def upsample(self, prompt: str) -> Upsampled:
        """Return the longer prompt.

        Raises:
            ValueError: an empty prompt.
            OSError: the endpoint does not answer, or not in the expected form.
        """
        prompt = " ".join(prompt.split())
        if not prompt:
            raise ValueError("the prompt is empty")
        if len(prompt.split()) > LONG_ENOUGH:
            return Upsampled(prompt, "unchanged")
        if self.endpoint is None:
            return Upsampled(expand_by_rules(prompt), "rules")
        return Upsampled(clean(self._ask(prompt)) or prompt, "model")

    def _ask(self, prompt: str) -> str:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": INSTRUCTION + prompt}],
            "temperature": 0.01,
            "max_tokens": self.max_tokens,
        }
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("WFM_UPSAMPLER_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        address = f"{str(self.endpoint).rstrip('/')}/chat/completions"
        request = urllib.request.Request(address, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                return json.load(answer)["choices"][0]["message"]["content"]
        except urllib.error.URLError as e:
            raise OSError(f"{address}: no answer ({e.reason})") from e
        except (KeyError, IndexError, TypeError, ValueError) as e:
            raise OSError(f"{address}: not the answer of a chat endpoint ({e!r})") from e


def expand_by_rules(prompt: str) -> str:
    """Return the prompt as a sentence, and general sentences about how a good clip looks."""
    sentence = prompt[0].upper() + prompt[1:]
    if sentence[-1] not in ".!?":
        sentence += "."
    return " ".join([sentence, *_DETAILS])


def clean(text: str) -> str:
    """Take the marks of a chat answer off: headings, bullets, quotes, "Caption:"."""
    text = re.sub(r"-\s*\*\*[^*\n]+\*\*:?", " ", text)
    text = " ".join(text.split())
    text = re.sub(r"^(caption:|[#\-*,]+|\s)+", "", text, flags=re.IGNORECASE)
    return text.strip(" \"'`*")
