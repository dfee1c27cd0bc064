"""How a request brings its own text into vLLM: as the encoder's side of an encoder-decoder model.

The text encoder stays outside: what comes in is its output, slots x features, handed over as vLLM
takes embeddings of an image. Nothing is encoded here, so every request costs one projection.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.inputs.engine import mm_enc_dec_input  # ty: ignore[import-not-found]
from vllm.multimodal.inputs import MultiModalFieldConfig  # ty: ignore[import-not-found]
from vllm.multimodal.parse import MultiModalDataParser  # ty: ignore[import-not-found]
from vllm.multimodal.processing import (  # ty: ignore[import-not-found]
    BaseDummyInputsBuilder,
    BaseProcessingInfo,
    EncDecMultiModalProcessor,
    PromptReplacement,
)

from .config import ArConfig
from .serving import CONTEXT, MODALITY


class ContextInfo(BaseProcessingInfo):
    """One context a request, of at most as many slots as the model was trained with."""

    skip_prompt_length_check = True  # the encoder's prompt is made of slots, not of tokens

    @property
    def ours(self) -> ArConfig:
        return ArConfig.model_validate(self.get_hf_config().wfm)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {MODALITY: 1}

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int]:
        return {MODALITY: self.ours.text_slots}

    def get_data_parser(self) -> Any:
        return MultiModalDataParser(expected_hidden_size=self.ours.context_dim)


class EmptyContext(BaseDummyInputsBuilder):
    """What vLLM measures its memory with."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return ""

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: object
    ) -> dict[str, Tensor]:
        ours = self.info.ours
        return {MODALITY: torch.zeros(1, ours.text_slots, ours.context_dim)}


class ContextProcessor(EncDecMultiModalProcessor):
    """Gives the encoder a place for every slot, and the decoder its tokens as they are."""

    requires_tokenizer = False
    skip_decoder_start_token = True

    def create_encoder_prompt(self, prompt: list[int], mm_items: object) -> list[int]:
        return [0]

    def _get_enc_dec_inputs(self, prompt: list[int], mm_items: object, encoder_inputs: Any) -> Any:
        return mm_enc_dec_input(encoder_inputs, list(prompt))  # without asking for a tokenizer

    def _get_mm_fields_config(
        self, hf_inputs: object, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, Any]:
        return {CONTEXT: MultiModalFieldConfig.batched(MODALITY)}

    def _get_prompt_updates(
        self,
        mm_items: object,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: Any,
    ) -> Sequence[Any]:
        (context,) = out_mm_kwargs[MODALITY]
        slots = len(context[CONTEXT].data)
        return [PromptReplacement(modality=MODALITY, target=[0], replacement=[0] * slots)]
