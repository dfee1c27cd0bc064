"""Tells vLLM about our models: entry point ``wfm_ar`` of ``vllm.general_plugins``."""

MODEL_TYPE = "wfm_ar"
WITHOUT_TEXT, WITH_TEXT = "WfmArForCausalLM", "WfmArForConditionalGeneration"


def register() -> None:
    """Register config and models; vLLM calls this in each of its processes, maybe repeatedly."""
    from transformers import AutoConfig, PretrainedConfig  # ty: ignore[import-not-found]
    from vllm import ModelRegistry  # ty: ignore[import-not-found]

    config = type("WfmArConfig", (PretrainedConfig,), {"model_type": MODEL_TYPE})
    AutoConfig.register(MODEL_TYPE, config, exist_ok=True)
    for name in (WITHOUT_TEXT, WITH_TEXT):
        if name not in ModelRegistry.get_supported_archs():
            # By name, so that worker processes import it themselves.
            ModelRegistry.register_model(name, f"{__package__}.vllm_model:{name}")
