"""Numbers of the original code: diffusers 0.42.1, and NVIDIA's networks, samplers and losses.

The files under ``golden`` hold seeded tiny networks with the answers that those programs gave
in float32. An independent re-implementation agrees with them to 2.4e-5 at worst (a trajectory
of five steps); the tolerances below are the ones that leave room for another BLAS.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import wfm_diffusion as wd
from wfm_diffusion.edm import edm_error, uncertain
from wfm_diffusion.guidance import Guided
from wfm_diffusion.position import rope_angles

GOLDEN = Path(__file__).parent / "golden"
FORWARD = ["t2w_learnable", "t2w_learnable_fps12", "t2w_nopos", "v2w_learnable"]
TRAJECTORY = ["t2w_diffusers", "t2w_res2ab", "t2w_nvidia_release", "v2w_diffusers"]


def read(name):
    info = GOLDEN / f"{name}.json"
    return load_file(GOLDEN / f"{name}.safetensors"), json.loads(info.read_text())


def network(weights, config, eps):
    state = wd.convert.from_diffusers(load_file(GOLDEN / f"{weights}.diffusers.safetensors"))
    config = wd.convert.config_from_diffusers(config).model_copy(update={"qk_norm_eps": eps})
    net = wd.DiffusionTransformer(config)
    net.load_state_dict(state)
    return net.eval()


def call(net, data, info):
    with torch.no_grad():
        return net(
            data["hidden_states"],
            data["timestep"],
            data["encoder_hidden_states"],
            fps=float(info["fps"]),
            condition_mask=data.get("condition_mask"),
            padding_mask=data["padding_mask"],
        )


def equal(actual, expected, atol):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("case", FORWARD)
@pytest.mark.parametrize(("eps", "output"), [(1e-5, "output"), (1e-6, "output_nvidia")])
def test_the_network_answers_as_the_original(case, eps, output):
    data, info = read(f"forward_{case}")
    net = network(info["weights"], info["config"], eps)
    equal(call(net, data, info), data[output], 1e-5)


@pytest.mark.parametrize("case", FORWARD)
def test_bfloat16_stays_near_the_original(case):
    data, info = read(f"forward_{case}")
    net = network(info["weights"], info["config"], 1e-5).bfloat16()
    data = {name: x.bfloat16() if x.is_floating_point() else x for name, x in data.items()}
    equal(call(net, data, info).float(), data["output_bf16"].float(), 0.05)


def test_a_network_of_several_cameras_answers_as_the_original():
    data, info = read("forward_t2w_multiview")
    net = wd.DiffusionTransformer(wd.convert.config_from_nvidia(info["nvidia_config"]))
    state = load_file(GOLDEN / f"{info['weights']}.safetensors")
    net.load_state_dict(wd.convert.from_nvidia(state))
    with torch.no_grad():
        out = net(
            data["x"],
            data["timesteps"],
            data["crossattn_emb"],
            fps=float(info["fps"]),
            padding_mask=data["padding_mask"],
            views=info["n_views"],
            frame_repeat=data["frame_repeat"],
        )
    equal(out, data["output"], 1e-5)


@pytest.mark.parametrize("case", ["7b_fps24", "7b_fps12", "14b_fps30", "7b_image"])
def test_rotary_angles_of_the_public_sizes(case):
    tables, info = read("rope_tables_headdim128")
    setting = info[case]
    angles = rope_angles(
        tuple(setting["t_h_w"]), 128, tuple(setting["t_h_w_ratio"]), setting["fps"]
    )
    equal(angles[0], tables[f"{case}.freqs"], 1e-5)


@pytest.mark.parametrize("case", TRAJECTORY)
def test_samplers_follow_the_original_to_the_last_step(case):
    data, info = read(f"trajectory_{case}")
    eps = 1e-5 if case.endswith("diffusers") else 1e-6
    net = network(info["weights"], info["config"], eps)
    cond, uncond = ({"text": data[k]} for k in ("prompt_embeds", "negative_prompt_embeds"))
    denoise = Guided(net, cond, uncond, guidance=7.0)
    name = {"diffusers": "euler", "res2ab": "res2ab", "release": "nvidia"}[case.split("_")[-1]]
    if case.startswith("v2w"):
        denoise = TwoDraws(net, cond, uncond, data)
    with torch.no_grad():
        out = wd.SAMPLERS[name](denoise, data["noise"], 5)
    equal(out.float(), data["final"], 1e-4)


class TwoDraws:
    """Diffusers draws the given frames' noise anew in each step and for each branch."""

    def __init__(self, net, cond, uncond, data):
        self.branches = [Guided(net, c, guidance=0.0) for c in (cond, uncond)]
        self.data, self.step = data, 0

    def __call__(self, x, sigma):
        answers = []
        for branch, name in zip(self.branches, ("cond_noise", "uncond_noise"), strict=True):
            mask, kept = self.data["condition_mask"], self.data["conditioning_latents"]
            answers.append(branch.give(kept, mask, self.data[name][self.step])(x, sigma))
        self.step += 1
        return answers[0] + 7 * (answers[0] - answers[1])


def test_the_training_loss_is_the_original():
    data, info = read("train_loss_t2w_learnable")
    state = load_file(GOLDEN / f"{info['weights']}.nvidia.safetensors")
    config = wd.convert.config_from_diffusers(info["config"])
    config = config.model_copy(update={"qk_norm_eps": 1e-6, "uncertainty": 128})
    net = wd.DiffusionTransformer(config)
    net.load_state_dict(wd.convert.from_nvidia(state, uncertainty=True))
    condition = {"text": data["encoder_hidden_states"]}
    with torch.no_grad():
        error = edm_error(net, data["x0"], data["sigma"], data["epsilon"], condition)
        u = net.log_variance(data["sigma"])
        loss = uncertain(error, u)
    torch.testing.assert_close(error, data["edm_loss"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss.reshape(1), data["loss_mean"], rtol=1e-6, atol=1e-6)


def test_nvidia_and_diffusers_names_lead_to_the_same_weights():
    for name in ("t2w_learnable", "t2w_nopos", "v2w_learnable"):
        ours = wd.convert.from_nvidia(load_file(GOLDEN / f"weights_{name}.nvidia.safetensors"))
        theirs = load_file(GOLDEN / f"weights_{name}.diffusers.safetensors")
        theirs = wd.convert.from_diffusers(theirs)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("name", ["t2w_learnable", "t2w_nopos", "v2w_learnable"])
def test_both_config_styles_say_the_same(name):
    info = json.loads((GOLDEN / f"weights_{name}.json").read_text())
    nvidia = wd.convert.config_from_nvidia(info["nvidia_config"])
    assert nvidia.qk_norm_eps == 1e-6
    diffusers = wd.convert.config_from_diffusers(info["diffusers_config"])
    assert nvidia.model_copy(update={"qk_norm_eps": 1e-5}) == diffusers


SIZES = {
    "super-text2world": 7_236_192_256,
    "super-video2world": 7_236_208_640,
    "ultra-text2world": 14_267_149_312,
    "ultra-video2world": 14_267_169_792,
}


@pytest.mark.parametrize("preset", SIZES)
def test_presets_have_the_published_number_of_weights(preset):
    with torch.device("meta"):
        net = wd.DiffusionTransformer(wd.PRESETS[preset])
    assert sum(p.numel() for p in net.parameters()) == SIZES[preset]
    assert len(net.state_dict()) == (570 if preset.startswith("super") else 730)


def test_the_small_presets_keep_their_promise():
    sizes = {}
    for preset in ("pico", "nano"):
        with torch.device("meta"):
            net = wd.DiffusionTransformer(wd.PRESETS[preset])
        sizes[preset] = sum(x.numel() for x in net.state_dict().values())
    assert sizes["pico"] * 2 <= 16e6
    assert 4e8 <= sizes["nano"] <= 1e9
