from itertools import pairwise

import pytest
import torch
from conftest import FAMILIES, make, noise
from hypothesis import given
from hypothesis import strategies as st
from test_streaming import assert_streams_exactly
from torch import nn

from wfm_tokenizer.cli import main
from wfm_tokenizer.files import read_latents
from wfm_tokenizer.loading import load
from wfm_tokenizer.tiling import Tiled, spread


class Halve(nn.Module):
    """A network that looks at nothing but the cell itself."""

    def forward(self, x: torch.Tensor, memory: object) -> torch.Tensor:
        return x[:, :, :, ::8, ::8].permute(0, 2, 3, 4, 1) / 2


@given(
    length=st.integers(1, 100), tile=st.integers(2, 40), overlap=st.integers(0, 19), data=st.data()
)
def test_tiles_cover_everything_and_share_what_they_must(length, tile, overlap, data):
    overlap = min(overlap, (tile - 1) // 2)
    spans = spread(length, tile, overlap)
    assert spans[0].start == 0
    assert spans[-1].stop == length
    for a, b in pairwise(spans):
        assert a.start < b.start <= a.stop - overlap
        assert b.stop - b.start == tile


@pytest.mark.parametrize("overlap", [0, 1, 2])
def test_where_tiles_agree_blending_changes_nothing(overlap):
    video = noise(2, 3, 2, 7 * 8, 9 * 8)
    options = {"cells": (5, 6), "overlap": overlap, "compression": (1, 8, 8)}
    tiled = Tiled(Halve(), encodes=True, **options)
    torch.testing.assert_close(tiled(video), Halve()(video, None))


@pytest.mark.parametrize("name", ["CV8x8x8", "DV4x8x8", "CI8x8"])
def test_a_frame_of_one_tile_is_not_changed(name):
    tokenizer = make(FAMILIES[name])
    video = noise(1, 3, 9, 32, 40)
    tiled = tokenizer.tiled(64)
    assert torch.equal(tiled.encode(video), tokenizer.encode(video))
    assert torch.equal(tiled.reconstruct(video), tokenizer.reconstruct(video))
    assert tiled.fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("way", ["reference", "fused"])
def test_tiles_are_near_the_whole_and_stream_exactly(way):
    tokenizer = make(FAMILIES["CV4x8x8"])
    tokenizer = tokenizer.fused() if way == "fused" else tokenizer
    tiled = tokenizer.tiled(48, 16)
    video = 0.1 * noise(1, 3, 9, 80, 64)
    whole, parts = tokenizer.reconstruct(video), tiled.reconstruct(video)
    assert parts.shape == whole.shape
    assert not torch.equal(parts, whole)
    assert_streams_exactly(tiled, video, [3, 4])
    encoder, other = tiled.streaming_encoder(), tiled.streaming_encoder()
    encoder.push(video[:, :, :5])
    other.load_state_dict(encoder.state_dict())
    assert encoder.memory_bytes == other.memory_bytes > 0
    assert torch.equal(encoder.push(video[:, :, 5:]), other.push(video[:, :, 5:]))


def test_tiles_that_are_too_small_are_refused():
    tokenizer = make(FAMILIES["CV8x16x16"])
    for size, overlap in ((31, None), (64, 32)):
        with pytest.raises(ValueError, match="an overlap of less than half a tile"):
            tokenizer.tiled(size, overlap)
    with pytest.raises(ValueError, match="tiled already"):
        tokenizer.tiled(64).fused()


def test_the_command_takes_tiles(film, tmp_path):
    argv = ["encode", str(film), "-q", "--tile", "16", "-o", str(tmp_path / "out")]
    assert main(argv) == 0
    tokenizer = load("builtin:pico-cv4x8x8")
    latents = read_latents(tmp_path / "out" / "film.safetensors", tokenizer).latent
    assert latents.shape == (1, 16, 6, 4, 6)
