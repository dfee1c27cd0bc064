import json
from pathlib import Path

import pytest
import torch
from fakes import TINY, Codec, Text, network, randn, squares
from safetensors.torch import load_file
from torch.nn import functional as F

import wfm_diffusion as wd
from wfm_diffusion.decoder import DiffusionDecoder, windows
from wfm_diffusion.guidance import Guided
from wfm_diffusion.layers import token_planes

GOLDEN = Path(__file__).parent / "golden"
DECODER = TINY.model_copy(
    update={
        "token_vocab": 50,
        "token_channels": 4,
        "condition_mask": False,
        "position": "none",
        "max_size": (16, 8, 8),
    }
)
WIDER = DECODER.model_copy(update={"token_vocab": 60})


class Sharp(Codec):
    """What the network says is what is seen."""

    compression = (8, 8, 8)

    def decode(self, latent, /):
        return latent


@pytest.fixture(scope="module")
def golden():
    info = json.loads((GOLDEN / "diffusion_decoder_fp32.json").read_text())
    data = load_file(GOLDEN / "diffusion_decoder_fp32.safetensors")
    weights = {k.removeprefix("weights."): x for k, x in data.items() if k.startswith("weights.")}
    net = wd.DiffusionTransformer(wd.convert.config_from_nvidia(info["config"]))
    net.load_state_dict(wd.convert.from_nvidia(weights))
    return net.eval(), data, weights


def near(actual, expected, atol):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("branch", ["cond", "uncond"])
@torch.no_grad()
def test_the_network_answers_as_the_original(golden, branch):
    net, data, _ = golden
    kept = branch == "cond"
    text, tokens = data["crossattn_emb"] * kept, data["tokens"][:, 0].long() * kept
    out = net(data["x"], data["timesteps"], text, fps=24.0, tokens=tokens)
    near(out, data[f"net_{branch}"], 1e-5)


@torch.no_grad()
def test_the_sampler_follows_the_original_to_the_last_step(golden):
    net, data, _ = golden
    tokens, text = data["tokens"][:, 0].long(), data["crossattn_emb"]
    cond = {"tokens": tokens, "text": text, "fps": torch.tensor([24.0])}
    uncond = {"tokens": torch.zeros_like(tokens), "text": torch.zeros_like(text)}
    denoise = Guided(net, cond, uncond, guidance=1.8)
    out = wd.SAMPLERS["nvidia"](denoise, data["sampler_noise"], 15, sigma_min=0.02)
    near(out, data["sampler_result_g1.8_15steps"], 1e-4)


def test_sizes_are_read_off_the_weights(golden):
    net, _, weights = golden
    config = wd.convert.config_from_weights(wd.convert.from_nvidia(weights))
    assert config == net.config


def test_the_public_decoder_has_the_published_number_of_weights():
    with torch.device("meta"):
        net = wd.DiffusionTransformer(wd.PRESETS["super-decoder"])
    assert sum(p.numel() for p in net.parameters()) == 7_237_257_216


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (5, [(0, 5)]),
        (8, [(0, 8)]),
        (9, [(0, 8), (1, 9)]),
        (14, [(0, 8), (6, 14)]),
        (21, [(0, 8), (6, 14), (12, 20), (13, 21)]),
    ],
)
def test_windows_cover_a_clip(frames, expected):
    assert [(part.start, part.stop) for part in windows(frames, 8, 2)] == expected


def decoder(**options):
    return DiffusionDecoder(network(DECODER), Sharp(), Text(), steps=3, **options)


def tokens(frames, seed=0):
    return torch.randint(50, (1, frames, 2, 2), generator=torch.Generator().manual_seed(seed))


def test_tokens_become_a_video_by_seed():
    first, again, other = (decoder(seed=s).decode(tokens(3)) for s in (1, 1, 2))
    assert first.shape == (1, 3, 3, 4, 4)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, decoder(seed=1).decode(tokens(3, seed=5)))


def test_a_long_clip_has_no_seam_and_one_window_is_as_none():
    long = decoder(window=4, overlap=2).latents(tokens(7))
    assert long.shape[2] == 7
    assert long.isfinite().all()
    whole = decoder(window=8).latents(tokens(7))
    assert torch.equal(whole, decoder(window=7, overlap=3).latents(tokens(7)))
    assert not torch.equal(long, whole)


def test_a_constant_network_is_not_disturbed_by_windows():
    class Constant:
        def __call__(self, x, sigma):
            return torch.full_like(x, 0.7)

    from wfm_diffusion.decoder import Windowed

    parts = windows(9, 4, 2)
    out = Windowed([Constant()] * len(parts), parts)(randn(1, 3, 9, 2, 2), torch.ones(1))
    near(out, torch.full_like(out, 0.7), 1e-6)


class Blocks:
    """Tokens that say how bright a block of 4 frames of 16x16 is."""

    vocab_size, compression, fingerprint = 50, (4, 16, 16), "blocks"

    def encode(self, video, /):
        grey = video[:, :, ::4].mean(1)
        return ((F.avg_pool2d(grey, 16) + 1) * 24.9).long()

    def decode(self, tokens, /):
        grey = tokens[:, None].expand(-1, 3, -1, -1, -1) / 24.9 - 1
        big = grey.repeat_interleave(16, 3).repeat_interleave(16, 4)
        return torch.cat([big[:, :, :1], big[:, :, 1:].repeat_interleave(4, 2)], 2)


class Finer(Codec):
    """Every second frame, eight times smaller."""

    compression = (2, 8, 8)

    def encode(self, video, /):
        return F.avg_pool3d(video[:, :, ::2], (1, 8, 8))

    def decode(self, latent, /):
        big = latent.repeat_interleave(8, 3).repeat_interleave(8, 4)
        return torch.cat([big[:, :, :1], big[:, :, 1:].repeat_interleave(2, 2)], 2)


def test_a_decoder_is_trained_from_clips_and_decodes(tmp_path):
    config = wd.TrainConfig(
        out=str(tmp_path / "run"),
        clips=str(squares(tmp_path / "clips", count=3)),
        token_codec="blocks",
        model=DECODER,
        height=32,
        width=32,
        steps=3,
        batch=4,
        image_fraction=0.4,
        held_out=0.3,
        sampling_steps=5,
    )
    folder = wd.train(config, codec=Finer(), text_encoder=Text(), token_codec=Blocks())
    net = wd.load(folder)
    assert (net.world.token_codec, net.world.token_compression) == ("blocks", (4, 16, 16))
    assert (net.world.guidance, net.world.steps) == (0, 5)
    assert "load_decoder" in (folder / "README.md").read_text()
    tokens = Blocks().encode(torch.zeros(1, 3, 17, 32, 32))
    video = DiffusionDecoder(net, Finer(), Text(), steps=2, window=3).decode(tokens)
    assert tokens.shape == (1, 5, 2, 2)
    assert video.shape == (1, 3, 17, 32, 32)
    other = config.model_copy(update={"out": str(tmp_path / "b"), "model": WIDER})
    with pytest.raises(ValueError, match="50 kinds of tokens"):
        wd.train(other, codec=Finer(), text_encoder=Text(), token_codec=Blocks())


def test_a_model_may_be_named_and_tokens_need_their_codec():
    config = wd.TrainConfig(out="o", clips="c", model="pico-decoder", token_codec="t")
    assert config.model == wd.PRESETS["pico-decoder"]
    with pytest.raises(ValueError, match="no preset 'piko'"):
        wd.TrainConfig(out="o", clips="c", model="piko")
    with pytest.raises(ValueError, match="go together"):
        wd.TrainConfig(out="o", clips="c", model="pico-decoder")


def test_a_token_frame_may_stand_for_several_latent_frames():
    embedding, x = network(DECODER).token_embedding, torch.zeros(1, 3, 5, 4, 4)
    planes = token_planes(embedding, tokens(3), x)
    assert torch.equal(planes[:, :, 1], planes[:, :, 2])
    assert torch.equal(planes[:, :, 3], planes[:, :, 4])
    assert torch.equal(planes[:, :, ::2], token_planes(embedding, tokens(3), x[:, :, :3]))
    with pytest.raises(ValueError, match="3 frames of tokens for 4"):
        token_planes(embedding, tokens(3), x[:, :, :4])


SHIPPED = Path(wd.__file__).parent / "weights" / "pico-decoder"


@pytest.mark.skipif(not SHIPPED.is_dir(), reason="this build ships no token decoder")
def test_the_shipped_decoder_turns_tokens_into_a_video():
    pytest.importorskip("wfm_tokenizer")
    decoder = wd.pico_token_decoder()
    assert (decoder.text, decoder.guidance) == (None, 0)
    video = decoder.decode(torch.zeros(1, 2, 4, 4, dtype=torch.long))
    assert video.shape == (1, 3, 9, 64, 64)
    assert video.abs().max() <= 1


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="takes no tokens"):
        DiffusionDecoder(network(), Sharp())
    with pytest.raises(ValueError, match="overlap"):
        decoder(window=4, overlap=4)
    with pytest.raises(ValueError, match="knows 0 to 49"):
        decoder().decode(tokens(3) + 20)
    with pytest.raises(ValueError, match="give it the condition"):
        network(DECODER).denoise(randn(1, 3, 2, 4, 4), torch.ones(1), {})
    with pytest.raises(ValueError, match="takes no tokens"):
        network().denoise(randn(1, 3, 2, 4, 4), torch.ones(1), {"tokens": tokens(2)})
