import pytest
import torch
from fakes import square_video

from wfm_posttrain.clips import ClipFolder
from wfm_posttrain.video import to_model
from wfm_posttrain.vision import (
    Examples,
    Gallery,
    SeenDistance,
    SmallVision,
    fit,
    goal_examples,
    imagined_examples,
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


def test_a_reader_that_saw_the_worlds_mistakes_reads_them():
    """A world that shows everything four pixels too far right is read right by who learned it."""

    class Shifted:
        past_frames = 2

        def rollout(self, past, /, *, frames, controls=None, prompts=None, generator=None):
            ways = controls["action"].cumsum(dim=1)
            found = [
                torch.stack([square(start + way + 4) for way in row], dim=1)
                for row, start in zip(ways, places(past[:, :, -1]), strict=True)
            ]
            return torch.stack(found)

    def square(place):
        frame = torch.full((3, 32, 32), -1.0)
        x, y = place.round().int().clamp(0, 27).tolist()
        frame[:, y : y + 4, x : x + 4] = 1
        return frame

    def places(frames):
        return torch.stack([(f[0] > 0).nonzero().min(0).values.flip(0).float() for f in frames])

    starts = torch.randint(2, 12, (24, 2), generator=torch.Generator().manual_seed(0)).float()
    way = torch.tensor([2.0, 1.0])
    state = torch.stack([starts + k * way for k in range(5)], 1)
    frames = torch.stack([square(p) for p in state.flatten(0, 1)])
    gallery = Gallery(
        ((frames + 1) * 127.5).byte(), way.repeat(120, 1), state.flatten(0, 1),
        torch.arange(24).repeat_interleave(5),
    )  # fmt: skip
    found = imagined_examples(gallery, Shifted(), frames=3)
    pictures = places(found.frames[found.rows[:, 0]] / 127.5 - 1)
    count = len(gallery.frames)
    assert len(found.rows) == 2 * count
    assert torch.equal(pictures[:count], found.targets[:count])
    assert torch.equal(pictures[count:], found.targets[count:] + 4)
