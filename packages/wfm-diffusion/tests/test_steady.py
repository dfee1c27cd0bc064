import pytest
import torch
from fakes import TINY, network, randn
from hypothesis import given, settings
from hypothesis import strategies as st

from wfm_diffusion.guidance import Guided
from wfm_diffusion.steady import Steady, collapsed, logits_of

NET = network()
SIGMA = torch.tensor([1.5])


def padded(lengths, slots=24, seed=0):
    """Texts of these lengths, zero after them."""
    text = randn(len(lengths), slots, 8, seed=seed)
    return text * (torch.arange(slots) < torch.tensor(lengths)[:, None])[..., None]


def near(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@settings(max_examples=8)
@given(st.lists(st.integers(0, 24), min_size=1, max_size=4), st.integers(1, 2))
@torch.no_grad()
def test_collapsed_padding_and_memory_change_no_answer(lengths, branches):
    noisy = randn(len(lengths), 3, 2, 4, 4, seed=1)
    texts = [padded(lengths, seed=i) for i in range(branches)]
    steady = Steady()
    condition = {"text": torch.cat(texts), "fps": torch.full((len(lengths),), 10.0)}
    for _ in range(2):
        out = NET.denoise_branches(noisy, SIGMA, condition, steady)
        for text, answer in zip(texts, out.chunk(branches), strict=True):
            plain = {"text": text, "fps": torch.tensor(10.0).expand(len(text))}
            near(answer, NET.denoise(noisy, SIGMA.expand(len(text)), plain))
        noisy = noisy + 0.5


@torch.no_grad()
def test_ports_given_frames_and_unequal_frame_rates_go_with_their_sample():
    noisy, text = randn(2, 3, 2, 4, 4, seed=1), padded([3, 7, 0, 0])
    mask = torch.zeros(2, 1, 2, 4, 4)
    mask[:, :, 0] = 1
    same = {"fps": torch.tensor([5.0, 20.0]), "given": mask, "adaln": randn(2, 2, 24, seed=3)}
    same |= {"adaln_shared": randn(2, 72, seed=4)}
    out = NET.denoise_branches(noisy, SIGMA, {"text": text, **same}, Steady())
    for half, words in zip(out.chunk(2), text.chunk(2), strict=True):
        near(half, NET.denoise(noisy, SIGMA.expand(2), {"text": words, **same}))


@torch.no_grad()
def test_each_camera_keeps_its_own_text():
    net = network(TINY.model_copy(update={"views": 3, "position": "sincos"}))
    noisy, text = randn(2, 3, 4, 4, 4, seed=1), torch.cat([padded([5, 0]), padded([2, 9])], dim=1)
    condition = {"text": text, "view": torch.tensor([[0, 2], [1, 2]])}
    out = net.denoise_branches(noisy, SIGMA, condition, Steady())
    near(out, net.denoise(noisy, SIGMA.expand(2), condition))


@torch.no_grad()
def test_text_is_projected_once_for_all_steps():
    net, calls = network(), []
    for block in net.blocks:
        block.text_attention.k.register_forward_hook(lambda *call: calls.append(call[2].shape[1]))
    guided = Guided(net, {"text": padded([5])}, {"text": padded([3], seed=2)}, guidance=2.0)
    for sigma in (3.0, 2.0, 1.0):
        guided(randn(1, 3, 2, 4, 4), torch.tensor([sigma]))
    assert calls == [6, 6]


@torch.no_grad()
def test_another_text_is_not_mistaken_for_the_remembered_one():
    noisy, steady = randn(1, 3, 2, 4, 4, seed=1), Steady()
    first, second = ({"text": padded([5], seed=i)} for i in (0, 1))
    NET.denoise_branches(noisy, SIGMA, first, steady)
    near(NET.denoise_branches(noisy, SIGMA, second, steady), NET.denoise(noisy, SIGMA, second))
    near(NET.denoise_branches(noisy, SIGMA, {}, steady), NET.denoise(noisy, SIGMA, {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 2, 3, 392, 511])
def test_logits_stand_for_their_number_of_slots(dtype, count):
    logits = torch.tensor(logits_of(count, dtype), dtype=torch.float64)
    assert torch.equal(logits.to(dtype).double(), logits)
    assert logits.exp().sum().item() == pytest.approx(count, rel=1e-5)
    assert len(logits) <= 4


def test_words_without_padding_are_left_alone():
    words = collapsed(padded([24, 20]), 1)
    assert words.bias is None
    assert words.slots.shape == (2, 24, 8)
