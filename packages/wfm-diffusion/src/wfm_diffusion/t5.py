"""T5's encoder as the public Cosmos 1.0 checkpoints were trained with it (extra ``[t5]``)."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

INSTALL = 'the T5 text encoder needs: pip install "wfm-diffusion[t5]"'


class T5TextEncoder:
    """Prompts -> 512 embeddings of T5-11B's encoder, zero after the end of the text.

    ``model`` is a folder or a hub name. float32 equals NVIDIA's code, bfloat16 diffusers'.
    """

    def __init__(
        self,
        model: str = "google-t5/t5-11b",
        *,
        slots: int = 512,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        try:
            from transformers import (  # ty: ignore[import-not-found]
                AutoTokenizer,
                T5EncoderModel,
            )
        except ImportError as e:
            raise ImportError(INSTALL) from e
        self.slots, self.device = slots, device
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.model = T5EncoderModel.from_pretrained(model, torch_dtype=dtype).to(device).eval()

    @property
    def dim(self) -> int:
        return self.model.config.d_model

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
        hidden = self.model(tokens.input_ids, attention_mask=mask).last_hidden_state
        return hidden * mask[..., None].to(hidden.dtype), mask.bool()
