import pytest
import torch

import wfm_diffusion as wd
from wfm_diffusion.text import flat_attributes, label_classes, split_words

COLOURS = ("red", "green", "blue", "white")
WAYS = ("left", "right")


def pairs():
    forms = ("a {} cube slides {}", "the {} box is pushed to the {}", "{} block, moving {}")
    return [
        (form.format(colour, way), {"colour": colour, "way": way, "seed": 3, "fps": 10.0})
        for form in forms
        for colour in COLOURS
        for way in WAYS
    ]


def test_rows_of_padding_are_zero_and_the_number_of_slots_is_fixed():
    encoder = wd.PicoTextEncoder().eval()
    embedding, mask = encoder.encode(["a red cube", "", "word " * 40])
    assert embedding.shape == (3, 32, encoder.dim)
    assert mask.sum(1).tolist() == [3, 0, 32]
    assert torch.equal(embedding[~mask], torch.zeros_like(embedding[~mask]))
    assert embedding.isfinite().all()


def test_a_prompt_does_not_depend_on_its_neighbours():
    encoder = wd.PicoTextEncoder().eval()
    together, _ = encoder.encode(["a red cube", "something else, much longer than the first"])
    alone, _ = encoder.encode(["a red cube"])
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=1e-5)


def test_words_are_lower_case_and_signs_count():
    assert split_words("A Red-hot cube, 12cm!") == [
        "a",
        "red",
        "-",
        "hot",
        "cube",
        ",",
        "12",
        "cm",
        "!",
    ]


def test_attributes_are_flattened_and_constants_left_out():
    nested = {"objects": [{"colour": "red"}], "seed": 4, "caption": "x", "speed": 0.5}
    assert flat_attributes(nested) == {"objects.0.colour": "red"}
    assert label_classes([{"a": "x", "b": "y"}, {"a": "z", "b": "y"}]) == {"a": {"x": 0, "z": 1}}


SMALL = wd.text.TextConfig(dim=32, words=256, depth=1)


def test_training_draws_paraphrases_together():
    encoder = wd.train_text_encoder(pairs(), config=SMALL, steps=120, batch=24, seed=1)
    captions = ["a red cube slides left", "red block, moving left", "a blue cube slides right"]
    embedding, mask = encoder.encode(captions)
    mean = torch.nn.functional.normalize(embedding.sum(1) / mask.sum(1, keepdim=True), dim=-1)
    assert mean[0] @ mean[1] > mean[0] @ mean[2] + 0.2


def test_training_repeats_bit_for_bit():
    first, second = (
        wd.train_text_encoder(pairs(), config=SMALL, steps=3, batch=8, seed=1) for _ in range(2)
    )
    state = second.state_dict()
    assert all(torch.equal(x, state[name]) for name, x in first.state_dict().items())


def test_one_caption_is_nothing_to_train_on():
    with pytest.raises(ValueError, match="two or more"):
        wd.train_text_encoder([("same", {}), ("same", {})])


def test_the_saved_encoder_is_small_and_comes_back(tmp_path):
    encoder = wd.PicoTextEncoder().eval()
    encoder.save(tmp_path, "card")
    assert sum(f.stat().st_size for f in tmp_path.iterdir()) <= 2e6
    again, _ = wd.PicoTextEncoder.load(tmp_path).encode(["a red cube"])
    torch.testing.assert_close(again, encoder.encode(["a red cube"])[0], rtol=0, atol=0.02)


def test_a_folder_without_an_encoder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        wd.PicoTextEncoder.load(tmp_path)
