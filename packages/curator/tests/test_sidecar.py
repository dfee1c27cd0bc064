import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from wfm_curator import sidecar
from wfm_curator.sidecar import SidecarError

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int64]


@given(
    frames=st.integers(2, 30),
    dtype=st.sampled_from(DTYPES),
    tail=st.lists(st.integers(1, 4), max_size=2),
    data=st.data(),
)
def test_arrays_are_cut_as_slices_would(tmp_path_factory, frames, dtype, tail, data):
    start = data.draw(st.integers(0, frames - 1))
    stop = data.draw(st.integers(start + 1, frames))
    made = {
        "per_frame": torch.arange(frames * int(np.prod(tail))).reshape(frames, *tail).to(dtype),
        "per_step": torch.arange(frames - 1).to(dtype),
        "whole": torch.arange(frames + 3).to(dtype),
        "scalar": torch.tensor(3.0).to(dtype),
    }
    path = tmp_path_factory.mktemp("arrays") / "a.safetensors"
    path.write_bytes(save(made))
    content = sidecar.dump(sidecar.cut(sidecar.read_arrays(path), start, stop, frames))
    found = load(content)
    expected = made | {"per_frame": made["per_frame"][start:stop]}
    expected["per_step"] = made["per_step"][start : stop - 1]
    assert set(found) == set(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0)
    assert content == sidecar.dump(sidecar.cut(sidecar.read_arrays(path), start, stop, frames))


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b"",
        lambda b: b[:5],
        lambda b: b[:-4],
        lambda b: b[:30],
        lambda b: b"\xff" * len(b),
        lambda b: b[:8] + b"[" + b[9:],
        lambda b: b.replace(b"F32", b"X99"),
        lambda b: b.replace(b'"shape":[6', b'"shape":[7'),
    ],
    ids=["empty", "stub", "cut off", "no header", "noise", "list", "dtype", "shape"],
)
def test_damaged_arrays_are_explained_in_a_line(tmp_path, damage):
    path = tmp_path / "a.safetensors"
    path.write_bytes(damage(save({"action": torch.zeros(6, 2)})))
    with pytest.raises(SidecarError, match=r"a\.safetensors") as caught:
        sidecar.read_arrays(path)
    assert "\n" not in str(caught.value)


def test_labels_that_do_not_fit_the_video_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(save({"action": torch.zeros(6, 2), "camera_pose": torch.eye(4)}))
    arrays = sidecar.read_arrays(path)
    for frames in (6, 7):
        sidecar.check(path, arrays, frames)
    with pytest.raises(SidecarError, match="action has 6 rows, the video 9 frames"):
        sidecar.check(path, arrays, 9)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe", b"3"])
def test_damaged_json_is_explained(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(SidecarError, match=r"a\.json"):
        sidecar.read_attributes(path)


def test_no_file_is_no_attributes(tmp_path):
    assert sidecar.read_attributes(tmp_path / "a.json") == {}
    assert sidecar.read_text(tmp_path / "a.txt") == ""
    assert sidecar.read_arrays(tmp_path / "a.safetensors") == {}
