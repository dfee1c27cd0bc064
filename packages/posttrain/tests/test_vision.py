import pytest
import torch
from fakes import square_video

from wfm_posttrain.clips import ClipFolder
from wfm_posttrain.video import to_model
from wfm_posttrain.vision import (
    Examples,
    SeenDistance,
    SmallVision,
    fit,
    goal_examples,
    inverse_examples,
    predictions,
    r_squared,
    read_gallery,
    state_examples,
)


def squares(count, seed):
    """Pictures of squares, and where the squares are."""
    generator = torch.Generator().manual_seed(seed)
    places = 8 + 16 * torch.rand(count, 2, generator=generator)
    frames = torch.cat([square_video(torch.zeros(0, 2), start=place)[0] for place in places])
    return Examples(frames, torch.arange(count)[:, None], places)


@pytest.fixture(scope="module")
def reader():
    torch.manual_seed(0)
    return fit(SmallVision(3, 2, width=8), squares(200, 0), steps=120, batch=32)


def test_a_reader_learns_where_things_are(reader):
    held_out = squares(40, 1)
    found = predictions(reader, held_out)
    assert (found - held_out.targets).norm(dim=1).mean() < 1.0
    assert (r_squared(found, held_out.targets) > 0.9).all()


def test_training_is_seeded(reader):
    torch.manual_seed(0)
    again = fit(SmallVision(3, 2, width=8), squares(200, 0), steps=120, batch=32)
    for a, b in zip(reader.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_is_seen_is_rewarded_and_judged(reader):
    near, far = (square_video(torch.zeros(0, 2), start=(x, 16.0))[0] for x in (15.0, 8.0))
    goal = square_video(torch.zeros(0, 2), start=(16.0, 16.0))[0][0]
    wanted = SeenDistance(reader, goal, within=3.0)
    scores = wanted.score(torch.cat([to_model(near), to_model(far)]), None)
    assert scores[0] > scores[1] + 3
    assert wanted.reached(near[0])
    assert not wanted.reached(far[0])


def test_later_frames_weigh_more(reader):
    there, away = (square_video(torch.zeros(0, 2), start=(x, 16.0))[0] for x in (16.0, 8.0))
    wanted = SeenDistance(reader, there[0], within=3.0)
    arrives, leaves = torch.cat([away, there]), torch.cat([there, away])
    assert wanted.score(to_model(arrives), None) > wanted.score(to_model(leaves), None)


def test_examples_never_span_two_clips(recordings):
    gallery = read_gallery(ClipFolder(recordings), 3)
    assert gallery.frames.shape[0] == 24
    for examples in (inverse_examples(gallery), goal_examples(gallery, ahead=3)):
        clips = gallery.clip[examples.rows]
        assert (clips == clips[:, :1]).all()
    assert len(inverse_examples(gallery).rows) == 3 * 7
    assert len(goal_examples(gallery, ahead=3).rows) == 3 * (7 + 6 + 5)


def test_goals_are_what_was_reached_later(recordings):
    gallery = read_gallery(ClipFolder(recordings), 1)
    examples = goal_examples(gallery, [0], ahead=2)
    assert set((examples.rows[:, 1] - examples.rows[:, 0]).tolist()) == {1, 2}
    assert torch.equal(examples.targets, gallery.action[examples.rows[:, 0]][:, :1])


def test_clips_without_states_teach_no_reader(recordings):
    with pytest.raises(ValueError, match="no such label"):
        state_examples(read_gallery(ClipFolder(recordings), 1))


def test_unexplained_and_constant_numbers_are_told_apart():
    true = torch.tensor([[0.0, 5.0], [1.0, 5.0], [2.0, 5.0]])
    scores = r_squared(torch.stack([true[:, 0], true[:, 1]], 1), true)
    assert scores[0] == 1
    assert scores[1].isnan()
    assert r_squared(torch.ones(3, 1), true[:, :1]).item() == pytest.approx(0)
