import json
from pathlib import Path

import pytest
import torch
from fakes import TINY, network, randn
from safetensors.torch import load_file, save_file

import wfm_diffusion as wd

GOLDEN = Path(__file__).parent / "golden"
INFO = json.loads((GOLDEN / "weights_v2w_learnable.json").read_text())


def diffusers_folder(folder, shards):
    """Write the golden network as diffusers does."""
    folder.mkdir(parents=True)
    config = {"_class_name": "CosmosTransformer3DModel", **INFO["diffusers_config"]}
    (folder / "config.json").write_text(json.dumps(config))
    state = load_file(GOLDEN / "weights_v2w_learnable.diffusers.safetensors")
    stem = "diffusion_pytorch_model"
    if shards == 1:
        save_file(state, folder / f"{stem}.safetensors")
        return
    weight_map = {name: f"{stem}-{i % 2}.safetensors" for i, name in enumerate(sorted(state))}
    for file in set(weight_map.values()):
        save_file({k: x for k, x in state.items() if weight_map[k] == file}, folder / file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def answer(net):
    with torch.no_grad():
        return net(randn(1, 16, 2, 4, 4), torch.tensor([0.1]), randn(1, 3, 32, seed=1))


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("place", [".", "transformer"])
def test_diffusers_folders_load(tmp_path, shards, place):
    diffusers_folder(tmp_path / "m" / place, shards)
    net = wd.load(tmp_path / "m")
    assert net.config.condition_mask
    assert net.config.qk_norm_eps == 1e-5
    assert answer(net).isfinite().all()


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_nvidias_model_pt_loads_and_its_sizes_are_read_off(tmp_path, wrapper):
    state = load_file(GOLDEN / "weights_v2w_learnable.nvidia.safetensors")
    torch.save({wrapper: state} if wrapper else state, tmp_path / "model.pt")
    net = wd.load(tmp_path)
    expected = wd.convert.config_from_nvidia(INFO["nvidia_config"])
    changed = {"uncertainty": 128, "rope_scale": (2.0, 1.0, 1.0)}
    assert net.config == expected.model_copy(update=changed)
    assert net.log_variance(torch.tensor([1.0])).abs() > 0


def test_cameras_are_read_off_too():
    state = load_file(GOLDEN / "weights_t2w_multiview.nvidia.safetensors")
    config = wd.convert.config_from_weights(wd.convert.from_nvidia(state))
    assert (config.views, config.frame_repeat, config.position) == (3, True, "sincos")
    assert not config.condition_mask


def test_ours_comes_back_in_half_precision(tmp_path):
    net = network()
    wd.save_network(net, tmp_path / "m", card="card")
    again = wd.load(tmp_path / "m")
    assert again.config == net.config
    assert again.embed.weight.dtype == torch.float32
    assert torch.equal(again.embed.weight, net.embed.weight.half().float())
    assert wd.load(tmp_path / "m", dtype=torch.bfloat16).embed.weight.dtype == torch.bfloat16


def test_unknown_names_are_named():
    with pytest.raises(ValueError, match="what"):
        wd.convert.from_nvidia({"net.what": torch.zeros(1)})
    with pytest.raises(ValueError, match="attn3"):
        wd.convert.from_diffusers({"transformer_blocks.0.attn3.to_q.weight": torch.zeros(1)})


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        wd.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="holds no diffusion network"):
        wd.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        wd.load(tmp_path)
    (tmp_path / "config.json").write_text(TINY.model_dump_json())
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        wd.load(tmp_path)
    save_file({"embed.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="do not fit"):
        wd.load(tmp_path)
    torch.save({"a": torch.zeros(1)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="no weight of a Cosmos"):
        wd.load(tmp_path / "x.pt")


def test_a_mistyped_builtin_is_named():
    with pytest.raises(FileNotFoundError, match="builtin:piko"):
        wd.load("builtin:piko")
