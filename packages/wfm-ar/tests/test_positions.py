"""Position tables, bit by bit, against those of the released sizes."""

import pytest
import torch

import wfm_ar as wa
from wfm_ar.positions import absolute_table, frequencies_3d, rotary_tables

TINY = [
    "base_4b_like_fp32",
    "base_hd32_fp32",
    "v2w_5b_like_fp32",
    "v2w_hd32_fp32",
    "rope1d_v1_fp32",
    "rope1d_v2_fp32",
    "rope1d_v2_yarn_fp32",
]


@pytest.mark.parametrize("name", TINY)
def test_small_tables_are_equal(golden, name):
    about, tensors = golden(name)
    config = wa.convert.config_from_nvidia(about["config"])
    cos, sin = rotary_tables(config)
    assert torch.equal(cos, tensors["rope_cos"])
    assert torch.equal(sin, tensors["rope_sin"])
    if "abs_pos_emb" in tensors:
        assert torch.equal(absolute_table(config), tensors["abs_pos_emb"])


@pytest.mark.parametrize(
    ("preset", "name"), [("4B", "4B"), ("12B", "12B"), ("5B-V2W", "5B"), ("13B-V2W", "13B")]
)
def test_released_tables_are_equal(golden, preset, name):
    _, tensors = golden("position_tables_released_sizes")
    config = wa.PRESETS[preset]
    temporal, spatial = frequencies_3d(config)
    assert torch.equal(temporal, tensors[f"{name}.temporal_inv_freq"])
    assert torch.equal(spatial, tensors[f"{name}.spatial_inv_freq"])
    rows = tensors["rows_v2w" if config.bov else "rows_base"]
    cos, sin = rotary_tables(config)
    assert len(cos) == config.max_positions
    assert torch.equal(cos[rows], tensors[f"{name}.rope_cos"])
    assert torch.equal(sin[rows], tensors[f"{name}.rope_sin"])
    if config.absolute_positions:
        table = absolute_table(config)
        assert torch.equal(table[rows], tensors[f"{name}.abs_pos_emb"])
        total = table.double().sum(0)
        assert torch.equal(total, tensors[f"{name}.abs_pos_emb_colsum"])
