from collections import Counter

import numpy as np
import pytest
import torch

from wfm_guardrail import Guardrail, Refused
from wfm_guardrail.retinaface import RetinaFace, RetinaFaceDetector, load_retinaface, priors


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return RetinaFace().eval()


def test_the_keys_are_those_of_the_public_checkpoint(net):
    state = net.state_dict()
    groups = Counter(key.split(".")[0].rstrip("123") for key in state)
    assert groups == {
        "body": 318,
        "fpn": 30,
        "ssh": 90,
        **dict.fromkeys(("ClassHead", "BboxHead", "LandmarkHead"), 6),
    }
    assert state["body.layer3.5.conv2.weight"].shape == (256, 256, 3, 3)
    assert state["body.layer1.0.downsample.0.weight"].shape == (256, 64, 1, 1)
    assert state["ssh2.conv7x7_3.0.weight"].shape == (64, 64, 3, 3)
    assert state["LandmarkHead.2.conv1x1.bias"].shape == (20,)


@pytest.mark.parametrize("wrap", [dict, lambda s: {"state_dict": s}], ids=["flat", "nested"])
def test_both_forms_of_the_checkpoint_load_and_a_part_does_not(net, tmp_path, wrap):
    state = {f"module.{key}": value for key, value in net.state_dict().items()}
    torch.save(wrap(state), tmp_path / "r.pth")
    loaded = load_retinaface(tmp_path / "r.pth")
    assert torch.equal(loaded.fpn.merge1[0].weight, net.fpn.merge1[0].weight)
    state.popitem()
    torch.save(wrap(state), tmp_path / "part.pth")
    with pytest.raises(ValueError, match="not RetinaFace-R50"):
        load_retinaface(tmp_path / "part.pth")


def test_priors_are_those_of_the_paper():
    boxes = priors(704, 1280)
    assert boxes.shape == (36_960, 4)
    assert boxes[0].tolist() == [4, 4, 16, 16]
    assert boxes[1].tolist() == [4, 4, 32, 32]
    assert boxes[2].tolist() == [12, 4, 16, 16]
    assert boxes[-1].tolist() == [1264, 688, 512, 512]


@pytest.mark.parametrize("size", [(64, 96), (50, 71)])
def test_a_box_is_where_its_prior_is_moved_to(net, size, monkeypatch):
    """With one prior made sure of, the only box is that prior, moved by what the head says."""
    detector = RetinaFaceDetector(net)
    count = len(priors(*size))
    with torch.inference_mode():
        real = [x.shape[1] for x in net(torch.zeros(1, 3, *size))]
    assert real == [count] * 3
    offsets, scores = torch.zeros(1, count, 4), torch.zeros(1, count, 2)
    scores[..., 0], scores[0, 5] = 1, torch.tensor([0.1, 0.9])
    offsets[0, 5] = torch.tensor([1.0, 0, 0, 0])
    monkeypatch.setattr(detector, "net", lambda x: (offsets, scores, None))
    box = detector.detect(np.zeros((3, *size), np.uint8))
    x, y, w, h = priors(*size)[5].tolist()
    x += 0.1 * w
    assert np.allclose(box, [[x - w / 2, y - h / 2, x + w / 2, y + h / 2, 0.9]])


def test_numbers_that_are_none_let_no_frame_through(net, monkeypatch):
    detector = RetinaFaceDetector(net)
    broken = torch.full((1, 1, 2), float("nan"))
    monkeypatch.setattr(detector, "net", lambda x: (torch.zeros(1, 1, 4), broken, None))
    monkeypatch.setattr("wfm_guardrail.retinaface.priors", lambda *_: torch.zeros(1, 4))
    with pytest.raises(Refused):
        Guardrail(detector=detector).redact(np.full((2, 3, 32, 32), 9, np.uint8))
