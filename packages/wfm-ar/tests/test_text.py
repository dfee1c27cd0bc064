import torch

import wfm_ar as wa
from wfm_ar.interfaces import TextEncoder


def test_a_saved_encoder_says_the_same(tmp_path):
    torch.manual_seed(0)
    encoder = wa.PicoTextEncoder().eval()
    encoder.save(tmp_path)
    again = wa.PicoTextEncoder.load(tmp_path)
    prompts = ["the arm pushes the red cube", ""]
    text, mask = again.encode(prompts)
    assert isinstance(again, TextEncoder)
    assert text.shape == (2, 32, again.dim)
    assert mask.sum(1).tolist() == [6, 0]
    assert torch.equal(text[~mask], torch.zeros_like(text[~mask]))
    torch.testing.assert_close(text, encoder.encode(prompts)[0], rtol=0, atol=0.02)


def test_the_small_preset_fits_it():
    config, encoder = wa.PRESETS["pico"], wa.PicoTextEncoder()
    assert (config.context_dim, config.text_slots) == (encoder.dim, encoder.config.slots)
