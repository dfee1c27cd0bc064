import pytest
import torch
from fakes import TINY, Guard, network
from test_world import world

import wfm_diffusion as wd

CONFIG = TINY.model_copy(update={"views": 3, "position": "sincos", "frame_repeat": True})
SIZE = {"frames": 9, "height": 32, "width": 32, "steps": 3}


def test_every_camera_has_its_video_and_listens_to_its_prompt():
    w = world(net=network(CONFIG))
    first = wd.imagine_cameras(w, ["a cube", "a ball"], **SIZE)
    assert first.shape == (2, 3, 9, 32, 32)
    assert torch.equal(first, wd.imagine_cameras(w, ["a cube", "a ball"], **SIZE))
    second = wd.imagine_cameras(w, ["a cube", "a red ball"], **SIZE)
    change = (second - first).abs().mean((1, 2, 3, 4))
    assert change[1] > change[0] > 0
    repeated = wd.imagine_cameras(w, ["a cube", "a ball"], frame_repeat=(0.0, 1.0), **SIZE)
    assert not torch.equal(repeated, first)


def test_prompts_without_a_camera_and_bad_ones_are_refused():
    w = world(net=network(CONFIG), guard=Guard())
    with pytest.raises(ValueError, match="4 prompts; the network has 3 cameras"):
        wd.imagine_cameras(w, ["a"] * 4, **SIZE)
    with pytest.raises(ValueError, match="frame_repeat"):
        wd.imagine_cameras(w, ["a"], frame_repeat=(1.0, 1.0), **SIZE)
    with pytest.raises(wd.Refused, match="a bad word"):
        wd.imagine_cameras(w, ["a cube", "bad"], **SIZE)
