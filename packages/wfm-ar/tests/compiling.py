"""Compile the steps of a small model, where nothing checks shapes; fails where tokens differ."""

import sys

import torch

import wfm_ar as wa
from wfm_ar import compiled
from wfm_ar.config import PICO


def main(backend: str) -> None:
    """Compare compiled decoding with plain decoding, over two stretches of the cache."""
    compiled.STRETCH = 16
    config = PICO.model_copy(update={"num_layers": 2, "dim": 48, "ffn_dim": 64, "vocab_size": 100})
    lm = wa.ArTransformer(config)
    lm.initialize(torch.Generator().manual_seed(0))
    fast = wa.for_decoding(lm, compiled=True)
    fast.compile_steps(backend=backend)
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(100, (2, 12), generator=generator)
    context = torch.randn(2, config.text_slots, config.context_dim, generator=generator)
    found = wa.generate(fast, prompt, 24, context=context)
    assert torch.equal(found, wa.generate(lm, prompt, 24, context=context))
    counters = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert counters <= 3, f"{counters} graphs for 3 stretches"


if __name__ == "__main__":
    main(sys.argv[1])
