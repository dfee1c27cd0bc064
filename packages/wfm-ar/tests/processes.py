"""Work for two processes: run as a program, by torchrun; fails where something differs."""

import json
import sys
from pathlib import Path

import torch

import wfm_ar as wa
from wfm_ar.config import PICO
from wfm_ar.parallel import launched
from wfm_ar.sharding import clip, part, whole

SMALL = PICO.model_copy(update={"num_layers": 2, "dim": 48, "ffn_dim": 64, "vocab_size": 100})


def small() -> wa.ArTransformer:
    lm = wa.ArTransformer(SMALL)
    lm.initialize(torch.Generator().manual_seed(0))
    return lm


def train(settings: str, steps: str) -> None:
    """Train, and stop at a step."""
    config = wa.TrainConfig.model_validate(json.loads(Path(settings).read_text()))
    wa.train(config, stop_after=int(steps))


def compare(tensor: int) -> None:
    """Compare logits, gradients and their length with those of one process alone."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(100, (2, 40), generator=generator)
    context = torch.randn(2, SMALL.text_slots, SMALL.context_dim, generator=generator)
    alone = small()
    logits = alone(tokens, context)
    logits.logsumexp(-1).mean().backward()
    expected = {name: p.grad for name, p in alone.named_parameters()}
    length = torch.nn.utils.clip_grad_norm_(alone.parameters(), 0.01)
    with launched(tensor) as ranks:
        lm = small()
        part(lm, tensor)
        for name, weight in whole(lm.state_dict()).items():
            assert torch.equal(weight, alone.state_dict()[name]), name
        found = lm(tokens[ranks.part], context[ranks.part])
        torch.testing.assert_close(found, logits[ranks.part], atol=1e-5, rtol=1e-4)
        found.logsumexp(-1).mean().backward()
        torch.testing.assert_close(clip(lm, 0.01), length, atol=1e-6, rtol=1e-4)
        grads = whole({name: p.grad for name, p in lm.named_parameters()})
        assert grads.keys() == expected.keys()
        for name, grad in grads.items():
            torch.testing.assert_close(grad, expected[name], atol=1e-6, rtol=1e-3, msg=name)


if __name__ == "__main__":
    if sys.argv[1] == "train":
        train(*sys.argv[2:])
    else:
        compare(int(sys.argv[1]))
