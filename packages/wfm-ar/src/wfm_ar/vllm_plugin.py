"""Tells vLLM about our models: entry point ``wfm_ar`` of ``vllm.general_plugins``."""

ARCHITECTURE, MODEL_TYPE = "WfmArForCausalLM", "wfm_ar"


def register() -> None:
    """Register config and model; vLLM calls this in each of its processes, maybe repeatedly."""
    from transformers import AutoConfig, PretrainedConfig  # ty: ignore[import-not-found]
    from vllm import ModelRegistry  # ty: ignore[import-not-found]

    config = type("WfmArConfig", (PretrainedConfig,), {"model_type": MODEL_TYPE})
    AutoConfig.register(MODEL_TYPE, config, exist_ok=True)
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        # By name, so that worker processes import it themselves.
        ModelRegistry.register_model(ARCHITECTURE, f"{__package__}.vllm_model:{ARCHITECTURE}")
