import pytest
import torch
from torch import nn

from wfm_posttrain.lora import adapters, inject, load_adapters, merge


def network():
    torch.manual_seed(0)
    return nn.ModuleDict(
        {"q": nn.Linear(6, 6), "mlp": nn.Sequential(nn.Linear(6, 12), nn.Linear(12, 6))}
    )


def run(net, x):
    return net["mlp"](net["q"](x))


X = torch.linspace(-1, 1, 30).view(5, 6)


def train(net, steps=3):
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        run(net, X).square().sum().backward()
        optimizer.step()


def test_an_untrained_adapter_changes_nothing():
    net = network()
    before = run(net, X)
    assert inject(net, "q|mlp", rank=2) == ["q", "mlp.0", "mlp.1"]
    assert torch.equal(run(net, X), before)


def test_only_adapters_are_trained():
    net = network()
    inject(net, "mlp", rank=2)
    base = net["q"].weight.clone(), net["mlp"][0].base.weight.clone()
    train(net)
    assert torch.equal(base[0], net["q"].weight)
    assert torch.equal(base[1], net["mlp"][0].base.weight)
    assert net["mlp"][0].lora_B["default"].weight.abs().max() > 0


def test_merging_keeps_the_answers_and_the_shape_of_the_network():
    net = network()
    names = set(net.state_dict())
    inject(net, "q|mlp", rank=2, alpha=4)
    train(net)
    before = run(net, X)
    merge(net)
    torch.testing.assert_close(run(net, X), before)
    assert set(net.state_dict()) == names
    assert all(p.requires_grad for p in net["mlp"].parameters())


def test_adapters_travel_under_the_names_of_peft():
    trained, fresh = network(), network()
    for net in (trained, fresh):
        inject(net, "q", rank=2)
    train(trained)
    weights = adapters(trained)
    assert set(weights) == {"q.lora_A.default.weight", "q.lora_B.default.weight"}
    load_adapters(fresh, weights)
    torch.testing.assert_close(run(fresh, X), run(trained, X))


def test_an_adapter_that_does_not_fit_is_refused():
    net = network()
    inject(net, "q", rank=2)
    with pytest.raises(ValueError, match="lora_A"):
        load_adapters(net, {"q.lora_B.default.weight": torch.zeros(6, 2)})
    with pytest.raises(ValueError, match="no linear layer's name matches 'nothing'"):
        inject(network(), "nothing")
