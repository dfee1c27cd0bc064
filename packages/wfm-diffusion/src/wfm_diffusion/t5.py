"""T5's encoder as the public Cosmos 1.0 checkpoints were trained with it (extra ``[t5]``)."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .quantised import quantise

INSTALL = 'the T5 text encoder needs: pip install "wfm-diffusion[t5]"'
PRECISIONS = ("float32", "bfloat16", "int8")


class T5TextEncoder:
    """Prompts -> 512 embeddings of T5-11B's encoder, zero after the end of the text.

    ``model`` is a folder or a hub name. float32 equals NVIDIA's code (19.5 GB), bfloat16
    diffusers' (9.7 GB); int8 weights take half of that again and are not exact. With
    ``offload`` the model waits in the host's memory and visits ``device`` for each call. It is
    read when it is first needed: behind a :class:`CachedTextEncoder` that knows the prompts, never.

    Raises:
        ImportError: without transformers.
        ValueError: an unknown precision.
    """

    def __init__(
        self,
        model: str = "google-t5/t5-11b",
        *,
        slots: int = 512,
        device: str = "cpu",
        precision: str = "bfloat16",
        offload: bool = False,
    ) -> None:
        try:
            import transformers  # ty: ignore[import-not-found]
        except ImportError as e:
            raise ImportError(INSTALL) from e
        if precision not in PRECISIONS:
            raise ValueError(f"precision {precision!r}; there are {', '.join(PRECISIONS)}")
        self._library: Any = transformers
        self.name, self.slots, self.device = model, slots, device
        self.precision, self.offload = precision, offload
        self.config = transformers.AutoConfig.from_pretrained(model)

    @property
    def dim(self) -> int:
        return self.config.d_model

    @property
    def fingerprint(self) -> str:
        """Says which embeddings these are, for caches on disk."""
        return f"t5 {self.name} {self.slots} {self.precision}"

    @cached_property
    def tokenizer(self) -> Any:
        return self._library.AutoTokenizer.from_pretrained(self.name)

    @cached_property
    def model(self) -> Any:
        """The encoder, read at its first use."""
        dtype = torch.float32 if self.precision == "float32" else torch.bfloat16
        model = self._library.T5EncoderModel.from_pretrained(self.name, torch_dtype=dtype)
        if self.precision == "int8":
            quantise(model)
        return model.to("cpu" if self.offload else self.device).eval()

    @torch.no_grad()
    def encode(
        self, prompts: Sequence[str], /
    ) -> tuple[Float[Tensor, "b n d"], Bool[Tensor, "b n"]]:
        """Return the last hidden states and the mask of tokens, the end sign included."""
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.slots,
            truncation=True,
            return_tensors="pt",
        ).to(self.device)
        mask = tokens.attention_mask
        model = self.model.to(self.device)
        hidden = model(tokens.input_ids, attention_mask=mask).last_hidden_state
        if self.offload:
            model.to("cpu")
        return hidden * mask[..., None].to(hidden.dtype), mask.bool()
