import pytest
import torch
from conftest import FAMILIES, make, noise, small
from hypothesis import given, settings
from hypothesis import strategies as st
from test_golden import CONTINUOUS, DISCRETE, assert_near, open_golden
from test_streaming import assert_streams_exactly

from wfm_tokenizer import DiscreteTokenizer, fused, fused_layers, kernels
from wfm_tokenizer.layers import SpaceConv


@pytest.fixture(autouse=True, params=["winograd", "direct"])
def _either_way(request, monkeypatch):
    """Narrow networks take the way of wide ones too, and small videos go through in pieces."""
    if request.param == "winograd":
        monkeypatch.setattr(fused_layers, "WINOGRAD_WIDTH", 1)
        monkeypatch.setattr(kernels, "SCRATCH", 40)
        monkeypatch.setattr(fused, "CELLS", 5)
        monkeypatch.setattr(fused_layers, "PIXELS", 100)
        monkeypatch.setattr(kernels, "QUERIES", 3)
    else:
        monkeypatch.setattr(kernels, "ONEDNN", False)


@pytest.mark.parametrize("name", [*CONTINUOUS, *DISCRETE])
def test_the_fused_networks_are_the_published_ones(name):
    tokenizer, io = open_golden(name)
    fast = tokenizer.fused()
    assert type(fast) is type(tokenizer)
    assert fast.fingerprint == tokenizer.fingerprint
    latent = fast.encode(io["input"].float(), raw=True)
    if isinstance(tokenizer, DiscreteTokenizer):
        assert torch.equal(latent, io["indices"].long())
        assert_near(fast.decode(latent), io["reconstruction"], relative=1e-5)
    else:
        assert_near(latent, io["latent"], relative=1e-5)
        assert_near(fast.decode(io["latent"], raw=True), io["reconstruction"], relative=1e-5)


@pytest.mark.parametrize("batch", [1, 2])
def test_the_fused_networks_are_the_reference_ones(family, batch):
    time, high, wide = family.compression
    video = noise(batch, 3, 1 + 3 * time, 3 * high, 2 * wide)
    features, fast = family.features(video), family.fused()
    torch.testing.assert_close(fast.features(video), features, rtol=1e-4, atol=2e-5)
    codes = family.quantize(features)
    torch.testing.assert_close(
        fast.decode_codes(codes), family.decode_codes(codes), rtol=1e-3, atol=2e-4
    )


@settings(max_examples=8)
@given(
    name=st.sampled_from(["CV4x8x8", "CV8x16x16", "DV8x16x16", "CI8x8"]),
    t=st.integers(1, 26),
    cuts=st.lists(st.integers(1, 25), max_size=5),
)
def test_a_fused_stream_may_be_cut_anywhere(name, t, cuts):
    tokenizer = make(FAMILIES[name]).fused()
    _, high, wide = tokenizer.compression
    assert_streams_exactly(tokenizer, noise(1, 3, t, high, wide, seed=t), cuts)


@settings(max_examples=15)
@given(n=st.integers(1, 3), h=st.integers(1, 9), w=st.integers(1, 9), c=st.integers(1, 5))
def test_winograds_convolution_is_the_convolution(n, h, w, c):
    torch.manual_seed(h)
    conv = SpaceConv(c, c + 1, 3, padding=1).requires_grad_(False)
    x = noise(n, h, w, c)
    out = torch.empty(n, h, w, c + 1)
    kernels.winograd(x, kernels.winograd_weight(conv.weight), conv.bias, out)
    torch.testing.assert_close(out, conv(x[None])[0], rtol=1e-4, atol=1e-5)


def test_the_fused_copy_leaves_the_original_alone():
    tokenizer = make(FAMILIES["CV8x8x8"])
    video = noise(1, 3, 9, 16, 16)
    before, state = tokenizer.encode(video), tokenizer.fingerprint
    fast = tokenizer.fused(torch.bfloat16)
    assert (fast.dtype, tokenizer.dtype) == (torch.bfloat16, torch.float32)
    half = fast.encode(video)
    assert half.dtype == torch.float32
    assert 1e-4 < float((half - before).norm() / before.norm()) < 0.1
    assert torch.equal(tokenizer.encode(video), before)
    assert tokenizer.fingerprint == state


def test_the_fused_copy_is_for_inference(tmp_path):
    fast = make(small()).fused()
    assert not fast(noise(1, 3, 9, 16, 16).requires_grad_()).requires_grad
    with pytest.raises(ValueError, match="cannot be saved"):
        fast.save(tmp_path / "model")
    with pytest.raises(ValueError, match="on the original"):
        fast.fused()
