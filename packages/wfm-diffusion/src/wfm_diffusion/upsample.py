"""Short prompts -> long ones: by a language model, behind HTTP or in this process, or by rules."""

import base64
import json
import logging
import os
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal, Protocol

from jaxtyping import UInt8
from torch import Tensor

from .guards import Guards

logger = logging.getLogger(__name__)

LONG_ENOUGH = 250
"""Words from which on a prompt is left as it is, as in Cosmos 1.0; an answer is cut there."""
MOST_CHARACTERS = 8000
"""A longer prompt is refused: it is no prompt."""
IMAGE_SIDE = 1024
"""Longest side of a picture that is sent, as in Cosmos 1.0."""

INSTRUCTION = (
    "Expand this short description of a video into one paragraph of about 120 words. Say what"
    " is seen: the subject, its surroundings, how things move and touch, the light, and where"
    " the camera is. Keep every fact of the description and contradict none. Answer with the"
    " paragraph alone.\n\n"
)
WITH_IMAGE = (
    "The picture is the last frame of a video so far. Describe in one paragraph of at most 150"
    " words the video that goes on from it: what is in the picture, and how it moves from here."
    " Speak of the contents alone, not of style. What is to happen: "
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


class LanguageModel(Protocol):
    """Answers one message; ``image`` is a PNG file's bytes."""

    def answer(self, message: str, image: bytes | None = None, /) -> str: ...


class Endpoint:
    """An OpenAI-compatible server, such as ``vllm serve`` or ``transformers serve``.

    ``address`` is the base up to ``/v1``. The key is read from the environment variable
    ``WFM_UPSAMPLER_KEY``, if the server wants one. Temperature as in Cosmos 1.0.

    Raises:
        ValueError: an address that is none, or no model's name.
    """

    def __init__(
        self, address: str, model: str | None, *, timeout: float | int = 60.0, max_tokens: int = 512
    ) -> None:
        if not address.startswith(("http://", "https://")):
            raise ValueError(f"{address}: an endpoint starts with http:// or https://")
        if not model:
            raise ValueError(f"{address}: say which model the endpoint serves")
        self.address, self.model = f"{address.rstrip('/')}/chat/completions", model
        self.timeout, self.max_tokens = timeout, max_tokens

    def answer(self, message: str, image: bytes | None = None, /) -> str:
        """Ask the server.

        Raises:
            OSError: no answer, or one of another form.
        """
        content: object = message
        if image is not None:
            url = f"data:image/png;base64,{base64.b64encode(image).decode()}"
            picture = {"type": "image_url", "image_url": {"url": url}}
            content = [picture, {"type": "text", "text": message}]
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0.01,
            "max_tokens": self.max_tokens,
        }
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("WFM_UPSAMPLER_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.address, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                text = json.load(answer)["choices"][0]["message"]["content"]
        except urllib.error.URLError as e:
            raise OSError(f"{self.address}: no answer ({e.reason})") from e
        except (KeyError, IndexError, TypeError, ValueError) as e:
            raise OSError(f"{self.address}: not the answer of a chat endpoint ({e!r})") from e
        if not isinstance(text, str):
            raise OSError(f"{self.address}: the answer holds no text")
        return text


class InProcess:
    """A chat model of transformers in this process (extra ``[upsample]``); text only.

    Raises:
        ImportError: without transformers.
    """

    def __init__(self, model: str, *, device: str = "cpu", max_tokens: int = 512) -> None:
        try:
            from transformers import pipeline  # ty: ignore[import-not-found]
        except ImportError as e:
            raise ImportError(
                'a language model in this process needs: pip install "wfm-diffusion[upsample]"'
            ) from e
        self.pipeline: Any = pipeline("text-generation", model=model, device=device)
        self.max_tokens = max_tokens

    def answer(self, message: str, image: bytes | None = None, /) -> str:
        """Ask the model, greedily.

        Raises:
            ValueError: a picture.
        """
        if image is not None:
            raise ValueError("the model in this process reads no pictures; give an endpoint")
        asked: Any = [{"role": "user", "content": message}]
        if self.pipeline.tokenizer.chat_template is None:
            asked = message
        out = self.pipeline(
            asked, max_new_tokens=self.max_tokens, do_sample=False, return_full_text=False
        )
        return out[0]["generated_text"]


class PromptUpsampler:
    """Make a short prompt long, by a language model or, without one, by rules that say so.

    ``endpoint`` with ``model`` asks a server, ``model`` alone runs in this process. The rules
    add three sentences of general description: they are no language model, and
    ``Upsampled.source`` says so. Guards see the prompt before it is sent and the answer before
    it is used.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        model: str | None = None,
        timeout: float | int = 60.0,
        max_tokens: int = 512,
        guards: Sequence[object] = (),
    ) -> None:
        self.model: LanguageModel | None = None
        if endpoint is not None:
            self.model = Endpoint(endpoint, model, timeout=timeout, max_tokens=max_tokens)
        elif model is not None:
            self.model = InProcess(model, max_tokens=max_tokens)
        self.guards = Guards(guards)

    def upsample(self, prompt: str, frames: UInt8[Tensor, "t 3 h w"] | None = None) -> Upsampled:
        """Return the longer prompt; ``frames`` let the model see the last one of them.

        Raises:
            ValueError: an empty prompt, or one of more than 8,000 characters.
            OSError: the endpoint does not answer, or not in the expected form.
            Refused: a guard refuses the prompt or the answer.
        """
        prompt = " ".join(prompt.split())
        if not prompt:
            raise ValueError("the prompt is empty")
        if len(prompt) > MOST_CHARACTERS:
            raise ValueError(f"the prompt has {len(prompt)} characters, over {MOST_CHARACTERS}")
        self.guards.check_prompt(prompt)
        if len(prompt.split()) > LONG_ENOUGH:
            return Upsampled(prompt, "unchanged")
        if self.model is None:
            longer = Upsampled(expand_by_rules(prompt), "rules")
        else:
            image = None if frames is None else as_png(frames[-1])
            asked = INSTRUCTION if image is None else WITH_IMAGE
            answer = shorten(clean(self.model.answer(asked + prompt, image)))
            if not answer:
                logger.warning("the language model gave an empty answer: the prompt is kept")
                return Upsampled(prompt, "unchanged")
            longer = Upsampled(answer, "model")
        self.guards.check_prompt(longer.text)
        return longer


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


def shorten(text: str, words: int = LONG_ENOUGH) -> str:
    """Cut after ``words`` words, at the end of a sentence if there is one."""
    found = text.split()
    if len(found) <= words:
        return text
    cut = " ".join(found[:words])
    end = max(cut.rfind(sign) for sign in ".!?")
    return cut[: end + 1] if end > 0 else cut


def as_png(frame: UInt8[Tensor, "3 h w"]) -> bytes:
    """Return a picture's file, its longest side 1024 pixels at most."""
    from PIL import Image

    image = Image.fromarray(frame.permute(1, 2, 0).cpu().numpy())
    image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
