import json

import pytest
import torch
from fakes import tiny
from safetensors.torch import save_file

import wfm_ar as wa

CONVERT = wa.convert


@pytest.fixture
def model():
    return tiny(bov=True, max_positions=64, cross_every=1)


def engine(plain):
    """Rename the plain layout to TransformerEngine's, independently of the code under test."""
    names = {
        "attention_norm.weight": "self_attention.layernorm_qkv.layer_norm_weight",
        "attention.wq.weight": "self_attention.layernorm_qkv.query_weight",
        "attention.wk.weight": "self_attention.layernorm_qkv.key_weight",
        "attention.wv.weight": "self_attention.layernorm_qkv.value_weight",
        "attention.wo.weight": "self_attention.proj.weight",
        "attention.q_norm.weight": "self_attention.q_norm.weight",
        "attention.k_norm.weight": "self_attention.k_norm.weight",
        "ffn_norm.weight": "layernorm_mlp.layer_norm_weight",
        "feed_forward.w2.weight": "layernorm_mlp.fc2_weight",
        "cross_attention_norm.weight": "inter_attention.layernorm_query.layer_norm_weight",
        "cross_attention.wq.weight": "inter_attention.layernorm_query.query_weight",
        "cross_attention.wk.weight": "inter_attention.key_value.key_weight",
        "cross_attention.wv.weight": "inter_attention.key_value.value_weight",
        "cross_attention.wo.weight": "inter_attention.proj.weight",
        "cross_attention.q_norm.weight": "inter_attention.q_norm.weight",
        "cross_attention.k_norm.weight": "inter_attention.k_norm.weight",
    }
    found = {}
    for key, tensor in plain.items():
        parts = key.split(".", 2)
        if parts[0] != "layers":
            found[key] = tensor
        elif parts[2] == "feed_forward.w1.weight":
            w3 = plain[key.replace("w1", "w3")]
            found[f"layers.{parts[1]}.layernorm_mlp.fc1_weight"] = torch.cat([tensor, w3])
        elif parts[2] != "feed_forward.w3.weight":
            found[f"layers.{parts[1]}.{names[parts[2]]}"] = tensor
    return found


def assert_equal(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_there_and_back(model):
    ours = model.state_dict()
    assert_equal(CONVERT.from_nvidia(CONVERT.to_nvidia(ours, model.config)), ours)


def test_engine_keys_and_wrappings_are_read(model):
    ours = model.state_dict()
    theirs = engine(CONVERT.to_nvidia(ours, model.config))
    wrapped = {f"model.{k}": v for k, v in theirs.items()}
    wrapped["model.layers.0.self_attention._extra_state"] = torch.zeros(0)
    assert_equal(CONVERT.from_nvidia({"model": wrapped}), ours)


def test_fused_rows_are_read(model):
    theirs = CONVERT.to_nvidia(model.state_dict(), model.config)
    for i in range(2):
        parts = [theirs.pop(f"layers.{i}.attention.w{x}.weight") for x in "qkv"]
        theirs[f"layers.{i}.attention.wqkv.weight"] = torch.cat(parts)
    assert_equal(CONVERT.from_nvidia(theirs), model.state_dict())


def test_strange_keys_are_named(model):
    theirs = CONVERT.to_nvidia(model.state_dict(), model.config)
    with pytest.raises(ValueError, match=r"conv\.weight: not a weight"):
        CONVERT.from_nvidia(theirs | {"conv.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"layers\.0\.medusa: not a weight"):
        CONVERT.from_nvidia(theirs | {"layers.0.medusa": torch.zeros(1)})
    del theirs["layers.1.attention.wk.weight"]
    with pytest.raises(ValueError, match=r"layers\.1\.attention\.wk\.weight: missing"):
        CONVERT.from_nvidia(theirs)


@pytest.mark.parametrize("preset", ["4B", "5B-V2W", "12B", "13B-V2W"])
def test_released_models_are_known_by_their_shapes(preset):
    config = wa.PRESETS[preset]
    with torch.device("meta"):
        weights = wa.ArTransformer(config).state_dict()
    assert CONVERT.config_from_weights(weights) == config
    with pytest.raises(ValueError, match="no released model"):
        CONVERT.config_from_weights({"embed.weight": torch.zeros(3, 4)})


def test_released_tensor_counts():
    for preset, count in (("4B", 179), ("5B-V2W", 291), ("12B", 443), ("13B-V2W", 723)):
        config = wa.PRESETS[preset]
        with torch.device("meta"):
            assert len(CONVERT.to_nvidia(wa.ArTransformer(config).state_dict(), config)) == count


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_nvidia_folders_load_as_they_are(golden, tmp_path, name):
    about, tensors = golden("v2w_5b_like_fp32")
    weights = {k[8:]: v for k, v in tensors.items() if k.startswith("weights.")}
    (tmp_path / "config.json").write_text(json.dumps(about["config"]))
    if name == "model.pt":
        torch.save({"model": weights}, tmp_path / name)
    else:
        save_file(weights, tmp_path / name)
    lm = wa.load(tmp_path)
    with torch.no_grad():
        scores = lm.logits(tensors["input_ids"], {"text": tensors["context"]})
    torch.testing.assert_close(scores, tensors["logits_full"], rtol=0, atol=1e-5)
    assert wa.convert_folder(tmp_path, tmp_path / "ours") == sum(
        w.numel() for w in weights.values()
    )
    again = wa.load(tmp_path / "ours")
    assert_equal(again.state_dict(), lm.state_dict())
    assert torch.equal(again.logits(tensors["input_ids"]), lm.logits(tensors["input_ids"]))


def test_saved_models_load(tmp_path, model):
    wa.save(model, tmp_path / "m", files={"README.md": "a model"})
    lm = wa.load(tmp_path / "m")
    assert lm.config == model.config
    assert lm.head.weight.dtype == torch.float32
    torch.testing.assert_close(lm.head.weight, model.head.weight, rtol=1e-3, atol=1e-4)
    assert wa.load(tmp_path / "m", dtype=torch.bfloat16).head.weight.dtype == torch.bfloat16


def test_bad_folders_are_named(tmp_path, model):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        wa.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds neither"):
        wa.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="builtin:none: not shipped"):
        wa.load("builtin:none")
    wa.save(model, tmp_path / "m")
    (tmp_path / "m/model.safetensors").write_bytes(b"12345678")
    with pytest.raises(ValueError, match="not a readable weights file"):
        wa.load(tmp_path / "m")
    wa.save(model, tmp_path / "n")
    (tmp_path / "n/config.json").write_text('{"num_layers": 3}')
    with pytest.raises(ValueError, match="do not fit the config"):
        wa.load(tmp_path / "n")
    (tmp_path / "n/config.json").write_text('{"num_layers": "x"}')
    with pytest.raises(ValueError, match="num_layers: Input should be a valid integer"):
        wa.load(tmp_path / "n")
    (tmp_path / "n/config.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        wa.load(tmp_path / "n")
    torch.save({"a": torch.zeros(1)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="not an autoregressive world model"):
        wa.load(tmp_path)
