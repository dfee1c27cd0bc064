import sys
import types
import warnings

import pytest
import torch
from conftest import noise
from torch import nn

from wfm_tokenizer.adversary import Adversary
from wfm_tokenizer.losses import (
    VGG_WEIGHTS,
    Loss,
    LossConfig,
    differences,
    flow_loss,
    gram_loss,
    open_network,
    perceptual_loss,
    reconstruction_loss,
    saturation_loss,
)


class TwoMaps(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        y = self.conv(x)
        return [y, nn.functional.avg_pool2d(torch.relu(y), 2)]


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "features.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(TwoMaps()).save(path)
    return path


def test_a_blur_costs_more_than_its_plain_error():
    target = noise(1, 3, 5, 16, 16)
    plain = LossConfig(gradient=0)
    flat = torch.full_like(target, 0.1)
    alternating = flat * (torch.arange(16) % 2 * 2 - 1)
    same = [float(reconstruction_loss(target + e, target, plain)) for e in (flat, alternating)]
    edges = [
        float(reconstruction_loss(target + e, target, LossConfig())) for e in (flat, alternating)
    ]
    assert same[0] == pytest.approx(same[1], rel=1e-4)
    assert edges[1] > edges[0] + 0.01


def test_only_saturated_features_are_pulled_back():
    features = torch.tensor([-3.5, -1.0, 0.0, 1.5]).view(1, 4, 1, 1, 1).requires_grad_()
    loss = saturation_loss(features)
    loss.backward()
    assert loss.item() == 1.0
    assert features.grad is not None
    assert features.grad.flatten().tolist() == [-1.0, 0.0, 0.0, 0.0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_network_gives_the_perceptual_loss(script):
    output, target = noise(2, 3, 3, 16, 16), noise(2, 3, 3, 16, 16, seed=1)
    config = LossConfig(network=str(script), perceptual=0.5)
    plain = Loss(LossConfig(), "cpu")(output, target, 0)
    made = (Loss(config, "cpu")(output, target, 0) - plain) / 0.5
    network, expected = TwoMaps(), torch.zeros(())
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    for t in range(3):
        a, b = (
            network(((v[:, :, t] + 1) / 2 - mean.view(3, 1, 1)) / std.view(3, 1, 1))
            for v in (output, target)
        )
        expected = expected + sum((x - y).abs().mean() / 2 for x, y in zip(a, b, strict=True)) / 3
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)


def test_five_maps_are_weighted_as_vgg_ones():
    maps = [torch.full((1, 1, 2, 2), float(i)) for i in range(5)]
    zeros = [torch.zeros(1, 1, 2, 2)] * 5
    expected = sum(i * w for i, w in enumerate(VGG_WEIGHTS))
    assert float(perceptual_loss(maps, zeros)) == pytest.approx(expected)


def test_the_gram_loss_sees_textures_wherever_they_are():
    maps = differences(noise(3, 3, 16, 16), 2)
    shifted = [m.flip(0) for m in maps]  # the same places in another order
    assert float(gram_loss(maps, shifted, 3)) == pytest.approx(0, abs=1e-9)
    smoother = differences(0.5 * noise(3, 3, 16, 16), 2)
    assert float(gram_loss(maps, smoother, 3)) > 1e-3
    one = Loss(LossConfig(gram=2.0, gram_from=5), "cpu")
    output, target = noise(1, 3, 3, 16, 16), noise(1, 3, 3, 16, 16, seed=1)
    assert float(one(output, target, 5)) > float(one(output, target, 4))


def brightness_flow(a, b):
    """What "moves" is the mean brightness: differentiable, and easy to work out by hand."""
    return [None, torch.stack((b - a, a - b), 1).mean(2)]


def test_the_flow_loss_compares_motion_both_ways():
    still = torch.zeros(1, 3, 3, 8, 8)
    ramp = (torch.arange(3.0) * 0.1).view(1, 1, 3, 1, 1).expand_as(still).clone().requires_grad_()
    loss = flow_loss(brightness_flow, ramp, still)
    assert loss.item() == pytest.approx(2 * 0.1)  # twice: flows of half the size
    loss.backward()
    assert ramp.grad is not None
    assert ramp.grad[:, :, 0].sum() < 0 < ramp.grad[:, :, 2].sum()


def test_the_flow_counts_from_its_step_and_not_in_images(monkeypatch):
    module = types.ModuleType("flows_of_mine")
    module.make = lambda: brightness_flow  # ty: ignore[unresolved-attribute]
    monkeypatch.setitem(sys.modules, "flows_of_mine", module)
    config = LossConfig(flow_network="flows_of_mine:make", flow=1.0, flow_from=3)
    with_flow, plain = Loss(config, "cpu"), Loss(LossConfig(), "cpu")
    target = noise(1, 3, 3, 8, 8)
    output = target * torch.arange(3.0).view(3, 1, 1)
    assert torch.equal(with_flow(output, target, 2), plain(output, target, 2))
    assert with_flow(output, target, 3) > plain(output, target, 3)
    image = (output[:, :, :1], target[:, :, :1], 3)
    assert torch.equal(with_flow(*image), plain(*image))


def test_missing_networks_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_network("timm:resnet18=nowhere.safetensors", "cpu")
    with pytest.raises(ValueError, match="and not module:callable either"):
        open_network("vgg19", "cpu")
    with pytest.raises(ValueError, match="a str is no network"):
        open_network("platform:machine", "cpu")


def test_torchvision_and_timm_are_asked_for_by_name(tmp_path, monkeypatch):
    """By stand-ins of the two functions that are called; the libraries are not needed here."""
    stack = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2))
    holder = nn.Module()
    holder.features = stack
    weights = tmp_path / "w.pth"
    torch.save(holder.state_dict(), weights)
    calls = []
    models, timm = types.ModuleType("torchvision.models"), types.ModuleType("timm")
    models.get_model = lambda name: calls.append(name) or holder  # ty: ignore[unresolved-attribute]
    timm.create_model = lambda name, **o: calls.append((name, o)) or TwoMaps()  # ty: ignore[unresolved-attribute]
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    monkeypatch.setitem(sys.modules, "timm", timm)
    (before_pool,) = open_network(f"torchvision:vgg19={weights}", "cpu")(noise(1, 3, 8, 8))
    assert before_pool.shape == (1, 2, 6, 6)
    assert before_pool.min() == 0
    open_network(f"timm:resnet18={weights}", "cpu")
    options = {"features_only": True, "checkpoint_path": str(weights)}
    assert calls == ["vgg19", ("resnet18", options)]


def test_the_discriminator_learns_to_tell_and_the_output_is_pulled_towards_the_real():
    torch.manual_seed(0)
    adversary = Adversary("cpu")
    real = noise(2, 3, 3, 16, 16)
    made = torch.zeros_like(real)
    losses = []
    for _ in range(20):
        loss = adversary.own_loss(made, real)
        adversary.optimizer.zero_grad()
        loss.backward()
        adversary.optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert adversary.loss(real).item() < adversary.loss(made).item()
    assert adversary.model(real[:, :, :1]).shape == (2, 1, 1, 2, 2)
