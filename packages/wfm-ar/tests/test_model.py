"""The transformer against stored runs of NVIDIA's own modules (see the JSON beside them)."""

import math

import pytest
import torch
from fakes import tiny
from hypothesis import given
from hypothesis import strategies as st

import wfm_ar as wa

FLOAT32 = [
    "base_4b_like_fp32",
    "base_hd32_fp32",
    "v2w_5b_like_fp32",
    "v2w_hd32_fp32",
    "rope1d_v1_fp32",
    "rope1d_v2_fp32",
    "rope1d_v2_yarn_fp32",
]
BFLOAT16 = ["base_4b_like_bf16", "v2w_5b_like_bf16"]


def weights_of(tensors):
    return {k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")}


@pytest.fixture
def rebuilt(golden):
    def build(name):
        about, tensors = golden(name)
        config = wa.convert.config_from_nvidia(about["config"])
        lm = wa.ArTransformer(config)
        weights = wa.convert.from_nvidia(weights_of(tensors))
        lm.load_state_dict(weights, assign=True)
        return about, tensors, lm.eval()

    return build


@pytest.mark.parametrize("name", FLOAT32)
def test_scores_are_those_of_the_original(rebuilt, name):
    _, tensors, lm = rebuilt(name)
    condition = {"text": tensors["context"]} if "context" in tensors else {}
    with torch.no_grad():
        scores = lm.logits(tensors["input_ids"], condition)
    torch.testing.assert_close(scores, tensors["logits_full"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FLOAT32)
def test_cached_steps_are_those_of_the_original(rebuilt, name):
    about, tensors, lm = rebuilt(name)
    tokens, prompt = tensors["input_ids"], about["prompt_len"]
    with torch.no_grad():
        cache = lm.new_cache(1, prompt + about["n_decode"], tensors.get("context"))
        first = lm.step(tokens[:, :prompt], cache)
        torch.testing.assert_close(first, tensors["logits_prefill_last"][:, 0], rtol=0, atol=1e-5)
        for i in range(about["n_decode"]):
            scores = lm.step(tokens[:, prompt + i : prompt + i + 1], cache)
            expected = tensors["logits_decode"][:, i]
            torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)
    keys = cache.layers[0].keys[:, :, : cache.used]
    torch.testing.assert_close(keys, tensors["cache_k_layer0"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FLOAT32)
def test_greedy_tokens_are_those_of_the_original(rebuilt, name):
    about, tensors, lm = rebuilt(name)
    prompt = tensors["input_ids"][:, : about["prompt_len"]]
    expected = tensors["greedy"]
    tokens = wa.generate(lm, prompt, expected.shape[1], context=tensors.get("context"))
    assert torch.equal(tokens, expected)


@pytest.mark.parametrize("name", BFLOAT16)
def test_bfloat16_scores_are_near_the_original(rebuilt, name):
    _, tensors, lm = rebuilt(name)
    condition = {"text": tensors["context"]} if "context" in tensors else {}
    with torch.no_grad():
        scores = lm.logits(tensors["input_ids"], condition)
    assert scores.dtype == torch.bfloat16
    # 0.06 is what the original's own two paths (full and cached) differ by.
    torch.testing.assert_close(scores, tensors["logits_full"], rtol=0.02, atol=0.07)


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("4B", 4_014_088_192),
        ("12B", 11_560_975_360),
        ("5B-V2W", 4_584_845_312),
        ("13B-V2W", 13_323_125_760),
    ],
)
def test_published_sizes_have_the_published_parameters(preset, parameters):
    with torch.device("meta"):
        lm = wa.ArTransformer(wa.PRESETS[preset])
    assert sum(p.numel() for p in lm.parameters()) == parameters


def test_the_built_in_size_is_small():
    with torch.device("meta"):
        lm = wa.ArTransformer(wa.PRESETS["pico"])
    assert sum(p.numel() for p in lm.parameters()) <= 7_500_000


@given(
    grid=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 3),
    bov=st.booleans(),
)
def test_the_cache_changes_nothing_on_any_grid(grid, share, seed, rows, bov):
    lm = tiny(bov=bov, max_positions=64)
    noise = torch.Generator().manual_seed(seed)
    n = bov + math.prod(grid)
    tokens = torch.randint(40, (rows, n), generator=noise)
    context = torch.randn(rows, 4, 8, generator=noise)
    prompt = 1 + int(share * (n - 1))
    with torch.no_grad():
        full = lm.logits(tokens, {"text": context}, grid=grid)
        cache = lm.new_cache(rows, n, context)
        steps = [lm.step(tokens[:, :prompt], cache, grid=grid)]
        middle = (prompt + n) // 2  # several tokens at once, then one by one
        ends = [prompt]
        if middle > prompt:
            steps.append(lm.step(tokens[:, prompt:middle], cache, grid=grid))
            ends.append(middle)
        for i in range(middle, n):
            steps.append(lm.step(tokens[:, i : i + 1], cache, grid=grid))
            ends.append(i + 1)
    for end, scores in zip(ends, steps, strict=True):
        torch.testing.assert_close(scores, full[:, end - 1], rtol=1e-4, atol=2e-5)


@given(place=st.integers(1, 11))
def test_no_token_sees_a_later_one(place):
    lm = tiny()
    tokens = torch.arange(12)[None] % 40
    other = tokens.clone()
    other[:, place:] = 39 - other[:, place:]
    with torch.no_grad():
        a, b = lm.logits(tokens), lm.logits(other)
    torch.testing.assert_close(a[:, :place], b[:, :place], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(a[:, place:], b[:, place:], atol=1e-3)


def test_padding_slots_are_attended():
    lm = tiny()
    tokens = torch.arange(12)[None]
    context = torch.randn(1, 2, 8, generator=torch.Generator().manual_seed(1))
    padded = torch.cat([context, torch.zeros(1, 2, 8)], 1)
    with torch.no_grad():
        short, long = lm.logits(tokens, {"text": context}), lm.logits(tokens, {"text": padded})
        nothing, zeros = lm.logits(tokens), lm.logits(tokens, {"text": torch.zeros(1, 4, 8)})
    assert not torch.allclose(short, long, atol=1e-3)
    torch.testing.assert_close(nothing, zeros)


def test_another_grid_has_other_positions():
    lm = tiny()
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(lm.logits(tokens), lm.logits(tokens, grid=(3, 2, 2)))
        assert not torch.allclose(lm.logits(tokens), lm.logits(tokens, grid=(2, 2, 3)))
        lm.logits(torch.zeros(1, 30, dtype=torch.long), grid=(5, 2, 3))


def test_begin_of_video_comes_before_the_grid():
    lm = tiny(bov=True, max_positions=64)
    assert (lm.bov_token, lm.max_tokens, lm.vocab_size) == (40, 13, 40)
    assert lm.embed.num_embeddings == 64
    assert lm.logits(torch.tensor([[40, 1, 2]])).shape == (1, 3, 40)


def test_mistakes_are_named():
    lm = tiny()
    tokens = torch.zeros(1, 13, dtype=torch.long)
    with pytest.raises(ValueError, match=r"13 tokens; grid \(3, 2, 2\) has room for 12"):
        lm.logits(tokens)
    with pytest.raises(KeyError, match="unknown condition camera"):
        lm.logits(tokens[:, :4], {"camera": torch.zeros(1, 2, 8)})
    with pytest.raises(ValueError, match="text has 9 features; the model wants 8"):
        lm.logits(tokens[:, :4], {"text": torch.zeros(1, 2, 9)})
    with pytest.raises(ValueError, match="no cross-attention"):
        tiny(cross_every=0).logits(tokens[:, :4], {"text": torch.zeros(1, 2, 8)})
    with pytest.raises(ValueError, match="not a multiple of num_kv_heads"):
        wa.ArConfig(num_heads=3, num_kv_heads=2)


def test_keeps_the_contracts():
    from wfm_ar.interfaces import NextTokenModel

    lm = tiny()
    assert isinstance(lm, NextTokenModel)
    prompt = torch.zeros(2, 4, dtype=torch.long)
    greedy = lm.generate(prompt, 5, {}, grid=(3, 2, 2), generator=None)
    assert torch.equal(greedy, wa.generate(lm, prompt, 5))
    drawn = lm.generate(prompt, 5, {}, generator=torch.Generator().manual_seed(3))
    assert torch.equal(drawn, wa.generate(lm, prompt, 5, temperature=1.0, top_p=0.8, seed=3))
