import pytest
import torch
from conftest import FAMILIES, make, noise
from hypothesis import given, settings
from hypothesis import strategies as st

from wfm_tokenizer import PRESETS, ContinuousTokenizer, DiscreteTokenizer, TokenizerConfig
from wfm_tokenizer.fsq import FSQ
from wfm_tokenizer.model import pad_to_fit


def video_for(tokenizer, groups=2, cells=(2, 3), batch=1, seed=0):
    time, high, wide = tokenizer.compression
    return noise(batch, 3, 1 + groups * time, cells[0] * high, cells[1] * wide, seed=seed)


def test_sizes_follow_the_compression(family):
    video = video_for(family, batch=2)
    latent = family.encode(video)
    cells = (3, 2, 3)
    discrete = isinstance(family, DiscreteTokenizer)
    assert latent.shape == ((2, *cells) if discrete else (2, family.latent_channels, *cells))
    assert family.decode(latent).shape == video.shape


def test_a_latent_frame_ignores_all_later_video_frames(family):
    time, _, _ = family.compression
    video = video_for(family)
    changed = video.clone()
    changed[:, :, 1 + time :] = noise(*changed[:, :, 1 + time :].shape, seed=1)
    a, b = family.encode_codes(video), family.encode_codes(changed)
    torch.testing.assert_close(a[:, :, :2], b[:, :, :2], rtol=0, atol=1e-6)


@settings(max_examples=40)
@given(name=st.sampled_from(sorted(PRESETS)), cut=st.integers(1, 3), seed=st.integers(0, 9))
def test_no_variant_sees_the_future(name, cut, seed):
    """Every preset, made narrow: what comes later never changes an earlier latent, or frame."""
    full = PRESETS[name]
    narrow = {"channels": 32 if full.norm_groups > 1 else 4, "z_channels": 8, "resolution": 1024}
    tokenizer = make(full.model_copy(update=narrow))
    time, _, _ = tokenizer.compression
    video = video_for(tokenizer, groups=3, cells=(1, 2), seed=seed)
    known = 1 + (cut - 1) * time
    changed = torch.cat((video[:, :, :known], video[:, :, known:].flip(1, 2) * 0.5), 2)
    codes, other = tokenizer.encode_codes(video), tokenizer.encode_codes(changed)
    torch.testing.assert_close(codes[:, :, :cut], other[:, :, :cut], rtol=0, atol=1e-6)
    changed = torch.cat((codes[:, :, :cut], codes[:, :, cut:] * 0.5 - 1), 2)
    output, other = tokenizer.decode_codes(codes), tokenizer.decode_codes(changed)
    torch.testing.assert_close(output[:, :, :known], other[:, :, :known], rtol=0, atol=1e-6)
    assert not torch.allclose(output[:, :, known:], other[:, :, known:], atol=1e-3)


def test_a_video_frame_ignores_all_later_latent_frames(family):
    time, _, _ = family.compression
    codes = family.encode_codes(video_for(family))
    changed = codes.clone()
    changed[:, :, 2:] += 1
    a, b = family.decode_codes(codes), family.decode_codes(changed)
    known = 1 + time
    torch.testing.assert_close(a[:, :, :known], b[:, :, :known], rtol=0, atol=1e-6)
    assert not torch.allclose(a[:, :, known:], b[:, :, known:], atol=1e-3)


def test_one_frame_is_an_image_and_the_start_of_any_video(family):
    video = video_for(family)
    image, whole = family.encode_codes(video[:, :, :1]), family.encode_codes(video)
    torch.testing.assert_close(image, whole[:, :, :1], rtol=1e-4, atol=1e-5)


def test_the_input_is_not_changed_and_the_answer_is_repeatable(family):
    video = video_for(family)
    before = video.clone()
    first, second = family.encode(video), family.encode(video)
    assert torch.equal(first, second)
    assert torch.equal(video, before)


@settings(max_examples=12)
@given(
    t=st.integers(1, 12),
    h=st.integers(1, 40),
    w=st.integers(1, 40),
    name=st.sampled_from(["CV4x8x8", "DV8x16x16", "CI8x8"]),
)
def test_any_size_can_be_reconstructed(t, h, w, name):
    video = noise(1, 3, t, h, w)
    output = make(FAMILIES[name]).reconstruct(video)
    assert output.shape == video.shape


@given(t=st.integers(1, 40), h=st.integers(1, 70), w=st.integers(1, 70))
def test_padding_is_the_least_that_fits(t, h, w):
    padded = pad_to_fit(torch.zeros(1, 3, t, h, w), (8, 16, 16))
    extra = [big - small for big, small in zip(padded.shape[2:], (t, h, w), strict=True)]
    assert padded.shape[2] % 8 == 1
    assert padded.shape[3] % 16 == padded.shape[4] % 16 == 0
    assert all(0 <= more < factor for more, factor in zip(extra, (8, 16, 16), strict=True))


def test_a_size_that_does_not_fit_is_refused_with_the_nearest_that_does():
    tokenizer = make(FAMILIES["CV8x8x8"])
    with pytest.raises(ValueError, match="the nearest is 9 frames of 32x32"):
        tokenizer.encode(noise(1, 3, 10, 30, 33))


@pytest.mark.parametrize(
    "video",
    [
        noise(3, 9, 32, 32),
        noise(1, 1, 9, 32, 32),
        torch.zeros(1, 3, 9, 32, 32, dtype=torch.uint8),
        noise(1, 3, 0, 32, 32),
    ],
    ids=["no batch", "grey", "bytes", "no frames"],
)
def test_what_is_not_a_video_is_refused(family, video):
    for method in (family.encode, family.reconstruct):
        with pytest.raises(ValueError, match=r"video is"):
            method(video)


def test_latents_and_tokens_are_not_confused(family):
    discrete = isinstance(family, DiscreteTokenizer)
    other = noise(1, 16, 1, 2, 2) if discrete else torch.zeros(1, 1, 2, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="decode takes"):
        family.decode(other)


def test_a_token_outside_the_vocabulary_is_refused():
    tokenizer = make(FAMILIES["DV8x16x16"])
    with pytest.raises(ValueError, match="has 0 to 139"):
        tokenizer.decode(torch.full((1, 1, 2, 2), 140))


def test_statistics_make_latents_normal_and_repeat_past_their_end():
    config = FAMILIES["CV4x8x8"]
    rows = config.latent_channels
    with_statistics = config.model_copy(
        update={"latent_mean": ((0.5, -1.0),) * rows, "latent_std": ((2.0, 4.0),) * rows}
    )
    tokenizer = make(TokenizerConfig.model_validate(with_statistics.model_dump()))
    video = video_for(tokenizer, groups=3)
    raw, latent = tokenizer.encode(video, raw=True), tokenizer.encode(video)
    torch.testing.assert_close(latent[:, :, 0], (raw[:, :, 0] - 0.5) / 2)
    torch.testing.assert_close(latent[:, :, 1:], (raw[:, :, 1:] + 1) / 4)
    decoded = tokenizer.decode(latent)
    torch.testing.assert_close(decoded, tokenizer.decode(raw, raw=True), rtol=1e-3, atol=1e-3)


def test_gradients_reach_the_video_through_frozen_weights():
    tokenizer = make(FAMILIES["DV8x16x16"])
    video = video_for(tokenizer).requires_grad_()
    tokenizer(video).square().mean().backward()
    assert video.grad is not None
    assert video.grad.abs().sum() > 0


def test_works_in_bfloat16_on_a_cpu():
    tokenizer = make(FAMILIES["CV8x8x8"])
    video = video_for(tokenizer)
    full = tokenizer.encode(video)
    half = tokenizer.to(torch.bfloat16).encode(video)
    assert half.dtype == video.dtype
    assert float((half - full).norm() / full.norm()) < 0.1


def test_each_kind_of_config_has_its_class():
    with pytest.raises(ValueError, match="use DiscreteTokenizer"):
        ContinuousTokenizer(FAMILIES["DV4x8x8"])
    with pytest.raises(ValueError, match="use ContinuousTokenizer"):
        DiscreteTokenizer(FAMILIES["CV4x8x8"])


LEVELS = st.lists(st.integers(2, 9), min_size=1, max_size=6).map(tuple)


@given(levels=LEVELS, seed=st.integers(0, 2**31))
def test_tokens_survive_the_way_to_codes_and_back(levels, seed):
    fsq = FSQ(levels)
    vocab = int(torch.tensor(levels).prod())
    tokens = torch.randint(vocab, (2, 3, 4, 5), generator=torch.Generator().manual_seed(seed))
    codes = fsq.to_codes(tokens)
    assert codes.abs().max() <= 1
    assert torch.equal(fsq.to_tokens(codes), tokens)


@given(levels=LEVELS, seed=st.integers(0, 2**31))
def test_quantised_codes_are_codes_of_tokens(levels, seed):
    fsq = FSQ(levels)
    z = torch.randn(1, len(levels), 2, 3, 4, generator=torch.Generator().manual_seed(seed)) * 3
    codes = fsq.quantize(z)
    torch.testing.assert_close(fsq.to_codes(fsq.to_tokens(codes)), codes)


def test_the_first_channel_counts_fastest():
    fsq = FSQ((8, 8, 8, 5, 5, 5))
    codes = torch.full((1, 6, 1, 1, 1), -1.0)
    assert fsq.to_tokens(codes).item() == 0
    codes[:, 0] += 0.25
    assert fsq.to_tokens(codes).item() == 1
    assert fsq.to_tokens(fsq.quantize(torch.full((1, 6, 1, 1, 1), 9.0))).item() == 63_999


@pytest.mark.parametrize("levels", [(), (8, 1)])
def test_quantisation_needs_two_levels_or_more(levels):
    with pytest.raises(ValueError, match="two levels or more"):
        FSQ(levels)
