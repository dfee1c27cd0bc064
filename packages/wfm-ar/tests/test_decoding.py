import pytest
import torch
from fakes import tiny

import wfm_ar as wa
from wfm_ar.decoding import nucleus, truncated

TOP_P = [(1.0, 0.8), (1.0, 0.9), (0.7, 0.7), (1.0, 1.0)]
TOP_K = [(1.0, None), (1.0, 5), (0.5, 40)]


@pytest.mark.parametrize(("temperature", "top_p"), TOP_P)
def test_nucleus_draws_as_the_original(golden, temperature, top_p):
    _, tensors = golden("sampling")
    scores, name = tensors["logits"][:, -1], f"top_p_t{temperature}_p{top_p}"
    p, order = nucleus(scores, temperature, top_p)
    unsorted = torch.zeros_like(p).scatter(-1, order, p)
    stored = tensors[f"{name}.probs"]
    assert any(torch.allclose(x, stored, rtol=0, atol=1e-7) for x in (p, unsorted))
    generator = torch.Generator().manual_seed(0)
    token = wa.Sampler(temperature, top_p=top_p, generator=generator)(scores)
    assert torch.equal(token, tensors[f"{name}.token_seed0"])


@pytest.mark.parametrize(("temperature", "top_k"), TOP_K)
def test_truncated_draws_as_the_original(golden, temperature, top_k):
    _, tensors = golden("sampling")
    scores, name = tensors["logits"][:, -1], f"top_k_t{temperature}_k{top_k}"
    p = truncated(scores, temperature, top_k)
    torch.testing.assert_close(p, tensors[f"{name}.probs"], rtol=0, atol=1e-7)
    generator = torch.Generator().manual_seed(0)
    token = wa.Sampler(temperature, top_k=top_k, generator=generator)(scores)
    assert torch.equal(token, tensors[f"{name}.token_seed0"])


def test_bfloat16_scores_stay_bfloat16(golden):
    _, tensors = golden("sampling")
    p, order = nucleus(tensors["logits"][:, -1].bfloat16(), 1.0, 0.8)
    unsorted = torch.zeros_like(p).scatter(-1, order, p)
    stored = tensors["bf16_top_p_t1.0_p0.8.probs"]
    assert torch.equal(p, stored) or torch.equal(unsorted, stored)


def test_noise_is_that_of_the_original(golden):
    _, tensors = golden("sampling")
    noise = torch.empty(3, 257).exponential_(1, generator=torch.Generator().manual_seed(0))
    assert torch.equal(noise, tensors["exponential_seed0"])


def test_with_and_without_cache_the_same_tokens():
    lm = tiny()
    prompt = torch.randint(40, (3, 4), generator=torch.Generator().manual_seed(0))
    context = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(1))
    plain = wa.decode_plainly(lm, prompt, 8, wa.Sampler(), context=context)
    assert torch.equal(wa.generate(lm, prompt, 8, context=context), plain)


def test_rows_of_a_batch_do_not_mix():
    lm = tiny()
    prompt = torch.randint(40, (3, 4), generator=torch.Generator().manual_seed(0))
    together = wa.generate(lm, prompt, 8)
    alone = torch.cat([wa.generate(lm, row[None], 8) for row in prompt])
    assert torch.equal(together, alone)


def test_a_seed_fixes_the_draw():
    lm, prompt = tiny(), torch.zeros(2, 4, dtype=torch.long)
    a, b, c = (wa.generate(lm, prompt, 8, temperature=1.0, top_p=0.9, seed=s) for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_one_context_serves_all_prompts():
    lm, prompt = tiny(), torch.arange(8).reshape(2, 4)
    context = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(1))
    both = wa.generate(lm, prompt, 4, context=context)
    assert torch.equal(both, wa.generate(lm, prompt, 4, context=context.repeat(2, 1, 1)))


def test_progress_is_told():
    told = []
    prompt = torch.zeros(1, 4, dtype=torch.long)
    wa.generate(tiny(), prompt, 3, progress=lambda i, n: told.append((i, n)))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_mistakes_are_named():
    lm, prompt = tiny(), torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="prompt is empty"):
        wa.generate(lm, prompt[:, :0], 3)
    with pytest.raises(ValueError, match="has room for 12"):
        wa.generate(lm, prompt, 20)
    with pytest.raises(ValueError, match="must not be negative"):
        wa.generate(lm, prompt, 3, temperature=-1.0)
    with pytest.raises(ValueError, match="exclude each other"):
        wa.Sampler(1.0, top_p=0.5, top_k=3)
    with pytest.raises(ValueError, match=r"top_p must lie in \(0, 1\]"):
        wa.Sampler(1.0, top_p=1.5)
