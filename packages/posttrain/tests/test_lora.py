import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from wfm_posttrain.lora import (
    adapters,
    inject,
    load_adapter,
    load_adapters,
    merge,
    save_adapter,
)


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


def test_a_saved_adapter_is_what_was_trained(tmp_path):
    trained, fresh = network(), network()
    inject(trained, "q|mlp", rank=2, alpha=4)
    train(trained)
    save_adapter(tmp_path, trained, "some:base=here")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 2, 4.0)
    assert config["target_modules"] == ["mlp.0", "mlp.1", "q"]
    weights = load_file(tmp_path / "adapter_model.safetensors")
    assert "base_model.model.mlp.0.lora_A.weight" in weights
    assert load_adapter(fresh, tmp_path) == ["mlp.0", "mlp.1", "q"]
    assert torch.equal(run(fresh, X), run(trained, X))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_dora": True}, "only plain LoRA can be loaded .found use_dora"),
        ({"peft_type": "IA3"}, "only plain LoRA can be loaded .found IA3"),
        ({"r": 3}, r"lora_A.default.weight is \(2, 6\), not \(3, 6\)"),
    ],
)
def test_an_adapter_of_another_kind_is_refused(change, words, tmp_path):
    net = network()
    inject(net, "q", rank=2)
    save_adapter(tmp_path, net, "")
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=words):
        load_adapter(network(), tmp_path)


def test_an_adapter_of_another_network_is_refused(tmp_path):
    net = network()
    inject(net, "q", rank=2)
    save_adapter(tmp_path, net, "")
    with pytest.raises(ValueError, match="the network has no layer q"):
        load_adapter(nn.ModuleDict({"mlp": nn.Linear(6, 6)}), tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no adapter_config"):
        load_adapter(net, tmp_path / "nowhere")


@pytest.mark.filterwarnings("ignore")
def test_peft_reads_our_adapters_and_we_read_its(tmp_path):
    peft = pytest.importorskip("peft")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.q, self.mlp = nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 12), nn.Linear(12, 6))

        def forward(self, x):
            return self.mlp(self.q(x))

    ours = Net()
    inject(ours, "q|mlp", rank=2, alpha=4)
    for layer in (ours.q, ours.mlp[1]):
        nn.init.normal_(layer.lora_B["default"].weight)
    save_adapter(tmp_path / "ours", ours, "")
    theirs = peft.PeftModel.from_pretrained(Net(), str(tmp_path / "ours"))
    torch.testing.assert_close(theirs(X), ours(X))
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["q", "0"], init_lora_weights=False)
    made = peft.get_peft_model(Net(), config)
    made.save_pretrained(str(tmp_path / "theirs"))
    back = Net()
    assert load_adapter(back, tmp_path / "theirs") == ["mlp.0", "q"]
    torch.testing.assert_close(back(X), made(X))
    merge(back)
    torch.testing.assert_close(back(X), made(X))
