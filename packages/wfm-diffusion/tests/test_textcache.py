import json

import pytest
import torch
from fakes import Text, network, randn

import wfm_diffusion as wd
from wfm_diffusion.budget import bytes_of
from wfm_diffusion.quantised import QuantisedLinear, quantise
from wfm_diffusion.textcache import CachedTextEncoder


class Counting(Text):
    fingerprint = "counting"

    def __init__(self):
        self.asked = []

    def encode(self, prompts, /):
        self.asked.append(list(prompts))
        return super().encode(prompts)


def test_a_prompt_is_encoded_once_and_comes_back_the_same(tmp_path):
    encoder = Counting()
    cached = CachedTextEncoder(encoder, tmp_path)
    first, mask = cached.encode(["a red cube", "", "a red cube"])
    again, kept = CachedTextEncoder(encoder, tmp_path).encode(["a red cube", "a ball"])
    plain, real = Text().encode(["a red cube", "", "a red cube"])
    assert torch.equal(first, plain)
    assert torch.equal(mask, real)
    assert torch.equal(again[0], plain[0])
    assert torch.equal(kept[0], real[0])
    assert encoder.asked == [["a red cube", ""], ["a ball"]]


def test_a_damaged_file_is_made_anew_and_encoders_do_not_mix(tmp_path):
    encoder = Counting()
    cached = CachedTextEncoder(encoder, tmp_path)
    cached.encode(["a cube"])
    cached.path("a cube").write_bytes(b"cut off")
    assert torch.equal(cached.encode(["a cube"])[0], Text().encode(["a cube"])[0])
    assert len(encoder.asked) == 2
    CachedTextEncoder(encoder, tmp_path, name="another").encode(["a cube"])
    assert len(encoder.asked) == 3
    with pytest.raises(ValueError, match="give it a name"):
        CachedTextEncoder(Text(), tmp_path)


@torch.no_grad()
def test_int8_weights_take_a_quarter_and_stay_near():
    linear = torch.nn.Linear(96, 40)
    x = randn(5, 96)
    small = QuantisedLinear(linear, "int8")
    assert bytes_of(small) < 0.3 * bytes_of(linear)
    error = (small(x) - linear(x)).abs().max() / linear(x).abs().max()
    assert 0 < error < 0.02
    net = network(wd.PRESETS["pico"].model_copy(update={"depth": 1}))
    quantise(net.blocks)
    assert isinstance(net.blocks[0].mlp.up, QuantisedLinear)
    noisy, sigma = randn(1, 16, 2, 4, 4), torch.ones(1)
    exact = network(wd.PRESETS["pico"].model_copy(update={"depth": 1}))
    a, b = (n.denoise(noisy, sigma, {"text": randn(1, 4, 128)}) for n in (net, exact))
    assert 0 < (a - b).square().mean().sqrt() < 0.05 * b.std()


@pytest.fixture
def tiny_t5(tmp_path):
    """A T5 of two layers with random weights, in a folder."""
    transformers = pytest.importorskip("transformers", reason="needs the extra t5")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", "a", "red", "cube", "falls"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=7, d_model=64, d_kv=16, d_ff=64, num_layers=2, num_heads=4
    )
    transformers.T5EncoderModel(config).save_pretrained(tmp_path / "t5")
    fast.save_pretrained(tmp_path / "t5")
    return tmp_path / "t5"


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_t5_in_all_its_precisions(tiny_t5, tmp_path):
    exact = wd.T5TextEncoder(str(tiny_t5), slots=8, precision="float32")
    text, mask = exact.encode(["a red cube", "falls"])
    assert text.shape == (2, 8, 64)
    assert mask.sum(1).tolist() == [3, 1]
    assert text[~mask].abs().max() == 0
    offloaded = wd.T5TextEncoder(str(tiny_t5), slots=8, precision="float32", offload=True)
    assert torch.equal(offloaded.encode(["a red cube", "falls"])[0], text)
    for precision, most in (("bfloat16", 0.05), ("int8", 0.1)):
        other = wd.T5TextEncoder(str(tiny_t5), slots=8, precision=precision)
        off = (other.encode(["a red cube", "falls"])[0].float() - text).abs().max()
        assert 0 < off < most * text.abs().max()
    with pytest.raises(ValueError, match="int4"):
        wd.T5TextEncoder(str(tiny_t5), precision="int4")
    cached = CachedTextEncoder(exact, tmp_path / "cache")
    cached.encode(["a red cube"])
    fresh = wd.T5TextEncoder(str(tiny_t5), slots=8, precision="float32")
    again = CachedTextEncoder(fresh, tmp_path / "cache").encode(["a red cube"])[0]
    assert torch.equal(again[0], text[0])
    assert "model" not in vars(fresh)
    assert json.loads((tiny_t5 / "config.json").read_text())["d_model"] == fresh.dim
