"""Matrices laid out for decoding: the same answers, in less time."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fakes import tiny

import wfm_ar as wa
from wfm_ar.bench import medians, product_seconds, token_seconds, weight_bytes
from wfm_ar.fast import quantize

FLOAT32 = ["base_hd32_fp32", "v2w_5b_like_fp32", "rope1d_v1_fp32"]


@pytest.mark.parametrize("name", FLOAT32)
def test_packed_matrices_keep_the_scores_of_the_original(golden, name):
    about, tensors = golden(name)
    lm = wa.ArTransformer(wa.convert.config_from_nvidia(about["config"]))
    weights = {k[8:]: v for k, v in tensors.items() if k.startswith("weights.")}
    lm.load_state_dict(wa.convert.from_nvidia(weights))
    fast, context = wa.for_decoding(lm), tensors.get("context")
    condition = {} if context is None else {"text": context}
    with torch.no_grad():
        scores = fast.logits(tensors["input_ids"], condition)
    torch.testing.assert_close(scores, tensors["logits_full"], rtol=0, atol=1e-5)
    prompt = tensors["input_ids"][:, : about["prompt_len"]]
    tokens = wa.generate(fast, prompt, tensors["greedy"].shape[1], context=context)
    assert torch.equal(tokens, tensors["greedy"])


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
@pytest.mark.parametrize("rows", [1, 40])
def test_smaller_weights_stay_near(weights, rows):
    lm = tiny()
    tokens = torch.randint(40, (rows, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact, near = lm.logits(tokens), wa.for_decoding(lm, weights=weights).logits(tokens)
    assert near.dtype == torch.float32
    error = (near - exact).std() / exact.std()
    assert 0 < error < 0.04


def test_int8_is_off_by_half_a_step_at_most():
    weight = torch.randn(7, 50, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    numbers, scale = quantize(weight)
    assert (numbers * scale[:, None] - weight).abs().le(scale[:, None] / 2 + 1e-7).all()
    assert numbers.abs().amax(1).tolist() == [127, 127, 127, 0, 127, 127, 127]


def test_the_model_itself_stays_as_it_is():
    lm = tiny()
    before = {k: v.clone() for k, v in lm.state_dict().items()}
    fast = wa.for_decoding(lm, weights="int8")
    assert fast.embed.weight is not None
    assert fast.embed.weight.data_ptr() == lm.embed.weight.data_ptr()
    assert all(torch.equal(before[k], v) for k, v in lm.state_dict().items())
    assert lm.head.weight.requires_grad
    with pytest.raises(ValueError, match="weights 'int3': there are float32, bfloat16, int8"):
        wa.for_decoding(lm, weights="int3")


def test_what_a_token_reads_is_counted():
    lm = tiny(cross_every=1)
    matrices = sum(
        x.numel()
        for k, x in lm.named_parameters()
        if x.ndim == 2 and k != "embed.weight" and ".cross.k." not in k and ".cross.v." not in k
    )
    assert weight_bytes(lm) == 4 * matrices
    assert weight_bytes(wa.for_decoding(lm, weights="bfloat16")) == 2 * matrices
    scales = (
        sum(len(x) for k, x in lm.named_parameters() if x.ndim == 2 and not k.startswith("embed"))
        - 2 * 2 * 2 * 12
    )  # those of the context's keys and values
    assert weight_bytes(wa.for_decoding(lm, weights="int8")) == matrices + 2 * scales


def test_every_token_is_timed_and_takes_longer_than_its_products():
    fast, prompt = wa.for_decoding(tiny()), torch.zeros(1, 2, dtype=torch.long)
    assert len(token_seconds(fast, prompt, 5)) == 5
    calls = {
        "token": lambda: sorted(token_seconds(fast, prompt, 5))[2],
        "products": lambda: product_seconds(fast),
    }
    found = medians(calls, 5)
    assert found["token"] > found["products"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_steps_give_the_same_tokens(backend):
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    script = Path(__file__).parent / "compiling.py"  # apart: nothing may check shapes in a graph
    done = subprocess.run(
        [sys.executable, script, backend], capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
