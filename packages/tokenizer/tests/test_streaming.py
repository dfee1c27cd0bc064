from itertools import pairwise

import pytest
import torch
from conftest import FAMILIES, make, noise
from hypothesis import given, settings
from hypothesis import strategies as st

from wfm_tokenizer import DiscreteTokenizer
from wfm_tokenizer.config import TokenizerConfig
from wfm_tokenizer.model import pad_to_fit


def pieces(video, cuts):
    """Split along time at the given places."""
    cuts = sorted({0, video.shape[2], *(c for c in cuts if c < video.shape[2])})
    return [video[:, :, a:b] for a, b in pairwise(cuts)]


def stream(tokenizer, chunks):
    encoder, decoder = tokenizer.streaming_encoder(), tokenizer.streaming_decoder()
    latents = [*(encoder.push(chunk) for chunk in chunks), encoder.flush()]
    videos = [decoder.push(latent) for latent in latents]
    return torch.cat(latents, -3), torch.cat(videos, 2)


def assert_streams_exactly(tokenizer, video, cuts):
    whole = tokenizer.encode(pad_to_fit(video, tokenizer.compression))
    latent, output = stream(tokenizer, pieces(video, cuts))
    if isinstance(tokenizer, DiscreteTokenizer):
        assert torch.equal(latent, whole)
    else:
        torch.testing.assert_close(latent, whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output, tokenizer.decode(whole), rtol=1e-3, atol=1e-4)


def test_a_video_in_pieces_gives_what_the_whole_gives(family):
    _, high, wide = family.compression
    assert_streams_exactly(family, noise(1, 3, 20, high, 2 * wide), [1, 2, 7, 15, 16])


@settings(max_examples=12)
@given(
    name=st.sampled_from(["CV4x8x8", "CV8x16x16", "DV8x16x16", "CI8x8"]),
    t=st.integers(1, 26),
    cuts=st.lists(st.integers(1, 25), max_size=5),
)
def test_it_does_not_matter_where_the_pieces_are_cut(name, t, cuts):
    tokenizer = make(FAMILIES[name])
    _, high, wide = tokenizer.compression
    assert_streams_exactly(tokenizer, noise(1, 3, t, high, wide, seed=t), cuts)


def test_statistics_follow_the_place_in_the_stream():
    config = FAMILIES["CV4x8x8"]
    rows = config.latent_channels
    update = {"latent_mean": ((0.5, -1.0, 2.0),) * rows, "latent_std": ((2.0, 4.0, 0.5),) * rows}
    tokenizer = make(TokenizerConfig.model_validate(config.model_dump() | update))
    assert_streams_exactly(tokenizer, noise(1, 3, 21, 16, 16), [5, 9])


def test_the_first_frame_gives_a_latent_at_once():
    tokenizer = make(FAMILIES["CV8x8x8"])
    encoder = tokenizer.streaming_encoder()
    assert encoder.push(noise(1, 3, 1, 16, 16)).shape == (1, 16, 1, 2, 2)
    assert encoder.push(noise(1, 3, 7, 16, 16)).shape == (1, 16, 0, 2, 2)
    assert encoder.push(noise(1, 3, 1, 16, 16)).shape == (1, 16, 1, 2, 2)


def test_memory_grows_by_the_attention_cache_only():
    tokenizer = make(FAMILIES["CV8x8x8"])
    encoder = tokenizer.streaming_encoder()
    sizes = []
    for _ in range(4):
        encoder.push(noise(1, 3, 8, 16, 16))
        sizes.append(encoder.memory_bytes)
    cells, width = 2 * 2, 4 * 2
    assert {b - a for a, b in pairwise(sizes[1:])} == {cells * width * 4}


def latents_of(tokenizer, video, chunk, **options):
    encoder = tokenizer.streaming_encoder(**options)
    return torch.cat([encoder.push(piece) for piece in video.split(chunk, 2)], 2), encoder


@pytest.mark.parametrize("way", ["reference", "fused"])
def test_a_bounded_context_bounds_the_memory_whatever_the_chunks(way):
    tokenizer = make(FAMILIES["CV8x8x8"])
    tokenizer = tokenizer.fused() if way == "fused" else tokenizer
    video = noise(1, 3, 49, 16, 16)
    exact, unbounded = latents_of(tokenizer, video, 8)
    for context in (1, 2):
        one, encoder = latents_of(tokenizer, video, 8, max_context=context)
        other, _ = latents_of(tokenizer, video, 49, max_context=context)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one[:, :, :context], exact[:, :, :context], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(one[:, :, -1], exact[:, :, -1], atol=1e-3)
        dropped = 7 - (context - 1)
        assert unbounded.memory_bytes - encoder.memory_bytes == dropped * 4 * 8 * 4
    enough, _ = latents_of(tokenizer, video, 8, max_context=7)
    torch.testing.assert_close(enough, exact, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="at least 1 latent frame"):
        tokenizer.streaming_decoder(max_context=0)


@pytest.mark.parametrize("way", ["reference", "fused"])
def test_a_stream_can_be_put_aside_and_taken_up(way):
    tokenizer = make(FAMILIES["DV8x16x16"])
    tokenizer = tokenizer.fused() if way == "fused" else tokenizer
    video = noise(1, 3, 30, 16, 16)
    encoder, decoder = tokenizer.streaming_encoder(), tokenizer.streaming_decoder()
    decoder.push(encoder.push(video[:, :, :13]))
    other, other_decoder = tokenizer.streaming_encoder(), tokenizer.streaming_decoder()
    other.load_state_dict(encoder.state_dict())
    other_decoder.load_state_dict(decoder.state_dict())
    tokens, again = encoder.push(video[:, :, 13:]), other.push(video[:, :, 13:])
    assert torch.equal(tokens, again)
    assert torch.equal(decoder.push(tokens), other_decoder.push(again))


def test_an_ended_stream_takes_no_more():
    encoder = make(FAMILIES["CV4x8x8"]).streaming_encoder()
    with pytest.raises(ValueError, match="nothing to flush"):
        encoder.flush()
    encoder.push(noise(1, 3, 1, 8, 8))
    encoder.flush()
    with pytest.raises(ValueError, match="was flushed"):
        encoder.push(noise(1, 3, 1, 8, 8))


def test_a_chunk_whose_sides_do_not_fit_is_refused():
    encoder = make(FAMILIES["CV4x8x8"]).streaming_encoder()
    with pytest.raises(ValueError, match="chunk is 9x8"):
        encoder.push(noise(1, 3, 1, 9, 8))
