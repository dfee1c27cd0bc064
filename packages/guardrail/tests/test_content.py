import numpy as np
import pytest
import torch
from conftest import scene
from hypothesis import given
from hypothesis import strategies as st

from wfm_guardrail import Guardrail
from wfm_guardrail.sampling import Sampler
from wfm_guardrail.siglip import (
    CLASSES,
    ContentCheck,
    Head,
    Vote,
    load_head,
    open_clip_encoder,
    prepared,
    train_head,
)


def test_the_head_has_the_keys_and_the_size_of_the_public_one(tmp_path):
    head = Head()
    assert sum(p.numel() for p in head.parameters()) == 724_999
    sizes = {0: (512, 1152), 3: (256, 512), 6: (7, 256)}
    state = head.state_dict()
    for i, size in sizes.items():
        assert state[f"network.layers.{i}.weight"].shape == size
    assert "network.layers.4.running_var" in state
    assert len(state) == 16
    torch.save({"model": state}, tmp_path / "safety_filter.pt")
    loaded = load_head(tmp_path / "safety_filter.pt")
    assert not loaded.training
    state.pop("network.layers.6.bias")
    torch.save({"model": state}, tmp_path / "part.pt")
    with pytest.raises(ValueError, match="layout"):
        load_head(tmp_path / "part.pt")


def encode(frames):
    """Four numbers: how much red, green and blue there is, and one."""
    means = torch.from_numpy(frames.mean(axis=(2, 3))).float() / 255
    return torch.cat([means, torch.ones(len(frames), 1)], dim=1)


@pytest.fixture(scope="module")
def head():
    """Learnt: red is violence, the rest is safe."""
    rng = np.random.default_rng(0)
    colours = rng.random((600, 3)) * 0.5
    colours[::2] = rng.normal((0.95, 0.05, 0.05), 0.02, (300, 3))
    rows = np.concatenate([colours, np.ones((600, 1))], axis=1).astype(np.float32)
    labels = np.where(np.arange(600) % 2 == 0, 2, 0)
    head, rate, limit = train_head(rows, labels, np.arange(600) // 10)
    assert rate.share > 0.95
    assert 0 < limit < 1
    return head


def video(red, total=121):
    frames = scene(total)
    for i in red:
        frames[i] = np.array([242, 12, 12], np.uint8)[:, None, None]
    return frames


@pytest.mark.parametrize("every_frame", [True, False])
@pytest.mark.parametrize(
    ("red", "safe"),
    [((), True), ((40,), True), ((40, 41), True), ((3, 40, 77), False), (range(30, 60), False)],
)
def test_k_of_n_frames_decide(head, every_frame, red, safe):
    check = ContentCheck(encode, head, Vote(frames=3, share=0.02), every_frame=every_frame)
    verdict = Guardrail(video_checks=[check], detector=None).check_video(video(red))
    assert verdict.safe is safe, verdict.reason
    if not safe:
        assert verdict.category == "violence"


def test_one_frame_is_enough_where_the_vote_says_so(head):
    guard = Guardrail(
        video_checks=[ContentCheck(encode, head, Vote(frames=1, share=0))], detector=None
    )
    for place in range(0, 121, 17):
        assert not guard.check_video(video([place])).safe
    assert guard.posture().complete or not any(g.check == "content" for g in guard.posture().gaps)


def test_an_image_is_judged_by_itself(head):
    guard = Guardrail(video_checks=[ContentCheck(encode, head)], detector=None)
    assert guard.check_video(scene(1)).safe
    red = scene(1)
    red[:, 0], red[:, 1:] = 230 + red[:, 0] // 12, red[:, 1:] // 12
    assert not guard.check_video(red).safe


def test_an_encoder_that_gives_nonsense_refuses(head):
    for wrong in (lambda f: encode(f) * float("nan"), lambda f: encode(f)[:, :2], lambda f: None):
        guard = Guardrail(video_checks=[ContentCheck(wrong, head)], detector=None)
        assert guard.check_video(scene()).category == "undecided"


@given(st.integers(0, 59), st.integers(1, 20))
def test_nothing_hides_between_the_frames_that_are_picked(place, chunk):
    frames = np.full((60, 3, 32, 32), 90, np.uint8)
    frames[place, :, 8:14, 8:14] = 200
    sampler, picked, total = Sampler(), [], 0
    for start in range(0, 60, chunk):
        chosen, counts = sampler.pick(frames[start : start + chunk])
        picked += [start + i for i in chosen.tolist()]
        total += int(counts.sum())
    assert place in picked
    assert len(picked) <= 3
    assert total == 60


def test_frames_are_prepared_as_the_encoder_wants_them():
    x = prepared(scene(2))
    assert x.shape == (2, 3, 384, 384)
    assert -1 <= x.min() < x.max() <= 1


def test_training_needs_both_kinds_held_out():
    with pytest.raises(ValueError, match="both safe and unsafe"):
        train_head(np.zeros((20, 4), np.float32), np.zeros(20, np.int64), np.arange(20))


def test_an_encoder_file_that_is_not_there_is_no_download(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing is downloaded"):
        open_clip_encoder(tmp_path / "none.bin")
    assert len(CLASSES) == 7
