"""Ours beside the installed diffusers, live, at tiny size (dependency group ``parity``)."""

from types import SimpleNamespace

import pytest
import torch
from fakes import randn
from torch.nn import functional as F

import wfm_diffusion as wd
from wfm_diffusion.export import save_diffusers

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore"),
]
cosmos = pytest.importorskip(
    "diffusers.models.transformers.transformer_cosmos", reason="needs the group parity"
)
SIZES = {
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "text_embed_dim": 16,
    "adaln_lora_dim": 8,
    "max_size": (8, 16, 16),
}


@pytest.fixture(autouse=True)
def resizing(monkeypatch):
    """Without torchvision diffusers cannot resize the padding mask; nearest is nearest."""

    def resize(mask, size, interpolation):
        return F.interpolate(mask, size=size, mode="nearest")

    mode = SimpleNamespace(NEAREST="nearest")
    functional = SimpleNamespace(resize=resize)
    fake = SimpleNamespace(functional=functional, InterpolationMode=mode)
    monkeypatch.setattr(cosmos, "transforms", fake, raising=False)


def their_network(seed=0, **changes):
    torch.manual_seed(seed)
    net = cosmos.CosmosTransformer3DModel(**(SIZES | changes))
    for name, weight in net.named_parameters():
        if "pos_emb" in name:
            torch.nn.init.normal_(weight, std=0.5)
        elif weight.dim() == 2:
            torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    return net.eval().requires_grad_(False)


def our_network(theirs):
    net = wd.DiffusionTransformer(wd.convert.config_from_diffusers(theirs.config))
    net.load_state_dict(wd.convert.from_diffusers(theirs.state_dict()))
    return net.eval()


def answers(theirs, ours, given, fps=24):
    """Both networks' answers to one input, with padding and, if it is to be, given frames."""
    x, text, timestep = randn(1, 16, 3, 8, 4), randn(1, 7, 16, seed=1), torch.tensor([0.3])
    padding = (randn(1, 1, 64, 32, seed=2) > 0).float()
    mask = None
    if given:
        mask = torch.zeros(1, 1, 3, 8, 4)
        mask[:, :, 0] = 1
    with torch.no_grad():
        a = theirs(
            hidden_states=x,
            timestep=timestep,
            encoder_hidden_states=text,
            fps=fps,
            condition_mask=mask,
            padding_mask=padding,
            return_dict=False,
        )[0]
        rate = None if fps is None else float(fps)
        b = ours(x, timestep, text, fps=rate, condition_mask=mask, padding_mask=padding)
    return a, b


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("changes", [{}, {"extra_pos_embed_type": None, "rope_scale": (2, 2, 2)}])
@pytest.mark.parametrize("fps", [24, 10, None])
def test_the_networks_agree(given, changes, fps):
    theirs = their_network(in_channels=16 + given, **changes)
    a, b = answers(theirs, our_network(theirs), given, fps)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shard", ["5GB", "50KB"])
def test_weights_go_to_diffusers_and_back(tmp_path, shard):
    ours = our_network(their_network(in_channels=17))
    save_diffusers(ours, tmp_path / "out", card="card")
    theirs = cosmos.CosmosTransformer3DModel.from_pretrained(tmp_path / "out" / "transformer")
    a, b = answers(theirs.eval(), ours, True)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    theirs.save_pretrained(tmp_path / "back", max_shard_size=shard)
    back = wd.load(tmp_path / "back")
    assert back.config == ours.config
    assert all(torch.equal(x, ours.state_dict()[k]) for k, x in back.state_dict().items())


class Pictures:
    """diffusers' AutoencoderKLCosmos as a LatentCodec."""

    latent_channels, compression = 16, (8, 8, 8)

    def __init__(self, vae):
        self.vae = vae

    def encode(self, video, /):
        return self.vae.encode(video).latent_dist.mode()

    def decode(self, latent, /):
        return self.vae.decode(latent, return_dict=False)[0]


class Words:
    dim = 16

    def __init__(self, **known):
        self.known = known

    def encode(self, prompts, /):
        text = torch.cat([self.known[prompt] for prompt in prompts])
        return text, text.ne(0).any(-1)


def their_parts(**changes):
    """A tiny autoencoder, network, scheduler and a checker that lets all pass."""
    from diffusers import AutoencoderKLCosmos, EDMEulerScheduler

    class Checker(torch.nn.Module):
        device, dtype = torch.device("cpu"), torch.float32

        def check_text_safety(self, prompt):
            return True

        def check_video_safety(self, video):
            return video

    torch.manual_seed(0)
    vae = AutoencoderKLCosmos(
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,),
        resolution=64,
        num_layers=1,
        latent_channels=16,
    ).eval()
    vae.register_to_config(latents_mean=None, latents_std=None)
    scheduler = EDMEulerScheduler(
        sigma_min=0.002,
        sigma_max=80,
        sigma_data=0.5,
        sigma_schedule="karras",
        prediction_type="epsilon",
        final_sigmas_type="sigma_min",
    )
    return None, None, their_network(**changes), vae, scheduler, Checker()


CALL = {
    "num_frames": 9,
    "num_inference_steps": 6,
    "guidance_scale": 3.0,
    "fps": 24,
    "output_type": "latent",
    "height": 64,
    "width": 32,
}


def texts():
    prompt, negative = randn(1, 12, 16, seed=1), randn(1, 12, 16, seed=2)
    prompt[:, 5:], negative[:, 8:] = 0, 0
    return prompt, negative


def sampled(pipe):
    """The latents of a pipeline's call, with generator seed 5."""

    def call(**inputs):
        pipe.set_progress_bar_config(disable=True)
        prompt, negative = texts()
        generator = torch.Generator().manual_seed(5)
        words = {"prompt_embeds": prompt, "negative_prompt_embeds": negative}
        return pipe(**words, **CALL, **inputs, generator=generator).frames

    return call


def test_text2world_is_the_pipelines(monkeypatch):
    from diffusers.pipelines.cosmos import pipeline_cosmos_text2world as pipeline

    parts = their_parts()
    video = sampled(pipeline.CosmosTextToWorldPipeline(*parts))()
    prompt, negative = texts()
    codec, words = Pictures(parts[3]), Words(a=prompt, b=negative)
    world = wd.WorldModel(our_network(parts[2]), codec, words)
    seen = []
    monkeypatch.setattr(Pictures, "decode", lambda self, z: seen.append(z) or z[:, :3])
    world.text2world(
        ["a"],
        negative_prompt="b",
        frames=9,
        height=64,
        width=32,
        steps=6,
        guidance=3.0,
        sampler="euler",
        fps=24,
        seed=5,
    )
    torch.testing.assert_close(seen[0] * 0.5, video, rtol=0, atol=1e-4)


@torch.no_grad()
def test_video2world_is_the_pipelines_given_its_noise():
    """Theirs draws noise for the given frame anew at every step and branch; so do we, here."""
    from diffusers.pipelines.cosmos import pipeline_cosmos_video2world as pipeline

    parts = their_parts(in_channels=17)
    picture = randn(3, 64, 32, seed=7).clamp(-1, 1) * 0.5 + 0.5
    pipe = pipeline.CosmosVideoToWorldPipeline(*parts)
    theirs = sampled(pipe)(video=[(picture * 255).byte().permute(1, 2, 0).numpy()])

    clip = pipe.video_processor.preprocess_video(
        [(picture * 255).byte().permute(1, 2, 0).numpy()], 64, 32
    )
    clip = F.pad(clip, (0, 0, 0, 0, 0, 8))
    kept = Pictures(parts[3]).encode(clip) * 0.5
    given = torch.zeros_like(kept[:, :1])
    given[:, :, 0] = 1
    generator = torch.Generator().manual_seed(5)

    def draw():
        return torch.randn(kept.shape, generator=generator)

    net, rate, sigma_given = our_network(parts[2]), torch.tensor([24.0]), torch.tensor([0.001])
    start = draw()

    def denoise(x, sigma):
        clean = []
        for text in texts():
            shown = torch.where(given > 0, kept + 0.001 * draw(), x)
            condition = {"text": text, "fps": rate, "given": given, "given_sigma": sigma_given}
            clean.append(torch.where(given > 0, kept, net.denoise(shown, sigma, condition)))
        return clean[0] + 3.0 * (clean[0] - clean[1])

    ours = wd.SAMPLERS["euler"](denoise, start, 6)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
