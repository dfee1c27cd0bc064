import json

import pytest
import torch
from pydantic import ValidationError

from wfm_tokenizer import PRESETS, TokenizerConfig
from wfm_tokenizer.model import build

# Counted on the published networks without the layers they never run.
PARAMETERS = {
    "Cosmos-0.1-Tokenizer-CI8x8": 76_789_472,
    "Cosmos-0.1-Tokenizer-CI16x16": 81_509_088,
    "Cosmos-0.1-Tokenizer-DI8x8": 79_004_342,
    "Cosmos-0.1-Tokenizer-DI16x16": 83_723_958,
    "Cosmos-0.1-Tokenizer-CV4x8x8": 85_783_232,
    "Cosmos-0.1-Tokenizer-CV8x8x8": 105_653_696,
    "Cosmos-0.1-Tokenizer-CV8x16x16": 110_898_624,
    "Cosmos-0.1-Tokenizer-DV4x8x8": 104_669_558,
    "Cosmos-0.1-Tokenizer-DV8x8x8": 105_653_366,
    "Cosmos-0.1-Tokenizer-DV8x16x16": 110_898_294,
    "Cosmos-1.0-Tokenizer-CV8x8x8": 105_653_696,
    "Cosmos-1.0-Tokenizer-DV8x16x16": 110_898_294,
    "Cosmos-Tokenize1-CV8x8x8-720p": 105_653_696,
    "Cosmos-Tokenize1-DV8x16x16-720p": 110_898_294,
    "Cosmos-Tokenize1-CI8x8-360p": 81_384_636,
    "Cosmos-Tokenize1-CI16x16-360p": 84_334_524,
    "Cosmos-Tokenize1-DI8x8-360p": 83_599_506,
    "Cosmos-Tokenize1-DI16x16-360p": 86_549_394,
    "Cosmos-Tokenize1-CV4x8x8-360p": 110_208_816,
    "Cosmos-Tokenize1-DV4x8x8-360p": 112_619_766,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_published_variant_has_the_published_number_of_parameters(name):
    with torch.device("meta"):
        tokenizer = build(PRESETS[name])
    assert sum(p.numel() for p in tokenizer.parameters()) == PARAMETERS[name]


def test_every_preset_is_counted_or_small_enough_to_ship():
    for name in PRESETS.keys() - PARAMETERS.keys():
        with torch.device("meta"):
            tokenizer = build(PRESETS[name])
        assert 2 * sum(p.numel() for p in tokenizer.parameters()) < 16e6, name


def test_the_published_decoder_at_8x8x8_doubles_one_level_later_than_the_encoder_halves():
    config = PRESETS["Cosmos-1.0-Tokenizer-CV8x8x8"]
    assert config.downsampling == ((True, True), (False, False), (False, False))
    assert config.upsampling == ((False, False), (True, True), (False, False))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spatial_compression": 12}, "spatial compression 12 is not patch_size 4 times 2"),
        ({"temporal_compression": 2}, "temporal compression 2 is not patch_size"),
        ({"kind": "discrete"}, "a discrete tokenizer has some"),
        ({"levels": (8, 8)}, "a discrete tokenizer has some"),
        ({"kind": "discrete", "levels": (8, 8)}, "one for each of 16 channels"),
        ({"channels_mult": (2, 4)}, "needs another number of levels"),
        ({"network": "image"}, "an image network has temporal_compression 1"),
        ({"latent_mean": ((0.0,),) * 16}, "or neither"),
        ({"latent_mean": ((0.0,),), "latent_std": ((1.0,),)}, "statistics of 1 channels"),
        ({"chanels": 3}, "Extra inputs are not permitted"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        TokenizerConfig.model_validate(changes)


def test_a_setting_added_later_leaves_fingerprints_alone():
    class Later(TokenizerConfig):
        a_first: int = 3
        zoom: str | None = None

    for config in PRESETS.values():
        assert Later.model_validate(config.model_dump()).identity() == config.identity()
    assert Later(zoom="in").identity() != TokenizerConfig().identity()


def test_a_setting_counts_in_the_fingerprint_when_it_is_not_at_its_default():
    rows = ((0.25, 1.0),) * 16
    config = TokenizerConfig(name="a", channels_mult=[2, 4, 4], latent_mean=rows, latent_std=rows)
    shown = [[0.25, 1.0]] * 16
    expected = {"latent_mean": shown, "latent_std": shown, "name": "a"}
    assert json.loads(config.identity()) == expected
    identities = {preset.identity() for preset in PRESETS.values()}
    assert len(identities) == len(PRESETS)
