"""What stays the same over the steps of a sampling, computed once; all of it exact.

A prompt's keys and values do not change from step to step, nor do the tables of positions. And
padded text costs next to nothing: a slot of zeros has key and value zero, so that any number of
them is one such slot whose logit is raised by the logarithm of their number.
"""

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

KeysValues = tuple[Float[Tensor, "b m k d"], Float[Tensor, "b m k d"]]


@dataclass
class Words:
    """A text as the blocks attend to it; the cameras' texts are rows of their own.

    ``bias`` is added to the logits of the slots. Of the samples only the first ``heard`` have
    any text: attention to nothing but zeros is zero. ``known`` remembers each attention's keys
    and values, unless it is None.
    """

    slots: Float[Tensor, "b m c"]
    heard: int
    bias: Float[Tensor, " m"] | None = None
    known: dict[Hashable, KeysValues] | None = None

    def keys_values(
        self, attention: Hashable, make: Callable[[Tensor], KeysValues], rows: int
    ) -> KeysValues:
        """Return what ``attention`` makes of the first ``rows`` texts, from memory if it can."""
        if self.known is None or torch.compiler.is_compiling():
            return make(self.slots[:rows])
        if attention not in self.known:
            self.known[attention] = make(self.slots[:rows])
        return self.known[attention]


def plain(text: Float[Tensor, "b n c"], views: int) -> Words:
    """Attend to every slot, as the original does."""
    return Words(rearrange(text, "b (v n) c -> (b v) n c", v=views), heard=len(text))


def collapsed(text: Float[Tensor, "b n c"], views: int) -> Words:
    """Attend to the slots that some sample fills, and to one for all that none does."""
    slots = rearrange(text, "b (v n) c -> (b v) n c", v=views)
    total = slots.shape[1]
    filled = slots.ne(0).any(dim=-1)
    of_samples = rearrange(filled, "(b v) n -> b (v n)", v=views).any(dim=1)
    heard = int(of_samples.nonzero().max()) + 1 if of_samples.any() else 0
    used = int(filled.any(dim=0).nonzero().max()) + 1 if heard else 0
    sinks = logits_of(total - used, slots.dtype)
    if not sinks or len(sinks) >= total - used:
        return Words(slots, heard, known={})
    bias = torch.tensor([0.0] * used + sinks, dtype=slots.dtype, device=slots.device)
    return Words(slots[:, : len(bias)], heard, bias, known={})


def logits_of(count: int, dtype: torch.dtype) -> list[float]:
    """Return logits, each exact in ``dtype``, whose exponentials sum to ``count``.

    In float32 one will do. In bfloat16 a logit near 6 is off by one part in a hundred, so that
    a second and a third one make up for what the first leaves.
    """
    found, left = [], float(count)
    while left > 1e-6 * count and count:
        wanted = torch.tensor(math.log(left), dtype=torch.float64)
        logit = wanted.to(dtype)
        if logit.double() > wanted:
            logit = torch.nextafter(logit, torch.tensor(-math.inf, dtype=dtype))
        found.append(logit.item())
        left -= math.exp(found[-1])
    return found


@dataclass
class Steady:
    """Remembers, under a name, the last answer and the question that it answered.

    Tensors in a question count as equal when they are the same object, unchanged.
    """

    _answers: dict[str, tuple[tuple, Any]] = field(default_factory=dict)

    def once(self, name: str, question: tuple, answer: Callable[[], Any]) -> Any:
        """Return ``answer()``, or what it was when last asked the same."""
        known = self._answers.get(name)
        if known is None or not _same(known[0], question):
            known = question, answer()
            self._answers[name] = known
        return known[1]


def _same(one: tuple, other: tuple) -> bool:
    return all(
        a is b if isinstance(a, Tensor) or isinstance(b, Tensor) else a == b
        for a, b in zip(one, other, strict=True)
    )


def uniform(fps: Float[Tensor, " b"]) -> Float[Tensor, " _"]:
    """Return one frame rate for samples that share it."""
    return fps[:1] if bool((fps == fps[0]).all()) else fps
