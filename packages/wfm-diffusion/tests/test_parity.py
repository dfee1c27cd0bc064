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


def test_text2world_is_the_pipelines(monkeypatch):
    from diffusers import AutoencoderKLCosmos, EDMEulerScheduler
    from diffusers.pipelines.cosmos import pipeline_cosmos_text2world as pipeline

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
    theirs = their_network()
    scheduler = EDMEulerScheduler(
        sigma_min=0.002,
        sigma_max=80,
        sigma_data=0.5,
        sigma_schedule="karras",
        prediction_type="epsilon",
        final_sigmas_type="sigma_min",
    )
    pipe = pipeline.CosmosTextToWorldPipeline(None, None, theirs, vae, scheduler, Checker())
    pipe.set_progress_bar_config(disable=True)
    prompt, negative = randn(1, 12, 16, seed=1), randn(1, 12, 16, seed=2)
    prompt[:, 5:], negative[:, 8:] = 0, 0
    sizes = {"height": 64, "width": 32}
    video = pipe(
        prompt_embeds=prompt,
        negative_prompt_embeds=negative,
        num_frames=9,
        num_inference_steps=6,
        guidance_scale=3.0,
        fps=24,
        generator=torch.Generator().manual_seed(5),
        output_type="latent",
        **sizes,
    ).frames
    world = wd.WorldModel(our_network(theirs), Pictures(vae), Words(a=prompt, b=negative))
    seen = []
    monkeypatch.setattr(Pictures, "decode", lambda self, z: seen.append(z) or z[:, :3])
    world.text2world(
        ["a"],
        negative_prompt="b",
        frames=9,
        steps=6,
        guidance=3.0,
        sampler="euler",
        fps=24,
        seed=5,
        **sizes,
    )
    torch.testing.assert_close(seen[0] * 0.5, video, rtol=0, atol=1e-4)
