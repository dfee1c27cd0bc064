"""Settings problems put in words."""

from pydantic import ValidationError


# same as: packages/tokenizer/src/wfm_tokenizer/settings.py
def explain(error: ValidationError) -> str:
    """Put each mistake in words: ``sampler.steps: Input should be greater than 0, got 0``."""
    return "; ".join(
        f"{'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']!r}" for e in error.errors()
    )
