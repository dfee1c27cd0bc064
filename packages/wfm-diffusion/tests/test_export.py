import pytest
import torch
from fakes import TINY, network

import wfm_diffusion as wd
from wfm_diffusion.export import config_to_diffusers, save_diffusers, to_diffusers


@pytest.mark.parametrize("position", ["learnable", "none"])
def test_what_is_exported_loads_again(tmp_path, position):
    net = network(TINY.model_copy(update={"position": position}))
    save_diffusers(net, tmp_path / "m", card="card")
    again = wd.load(tmp_path / "m")
    assert again.config == net.config.model_copy(update={"uncertainty": 0})
    assert all(torch.equal(x, net.state_dict()[k]) for k, x in again.state_dict().items())


def test_every_weight_of_the_public_sizes_has_a_name():
    with torch.device("meta"):
        net = wd.DiffusionTransformer(wd.PRESETS["super-video2world"])
    theirs = to_diffusers(net.state_dict())
    assert len(theirs) == 570
    assert wd.convert.from_diffusers(theirs).keys() == net.state_dict().keys()


@pytest.mark.parametrize("change", [{"extra_channels": 2}, {"token_vocab": 9}, {"base_fps": 30.0}])
def test_what_diffusers_does_not_have_is_named(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        config_to_diffusers(TINY.model_copy(update=change))
    with pytest.raises(ValueError, match=r"extra_embed\.weight"):
        to_diffusers({"extra_embed.weight": torch.zeros(1)})
