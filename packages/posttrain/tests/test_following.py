"""A world that replays the clip whose condition it is told follows perfectly; others do not."""

import pytest
import torch
from einops import rearrange

pytest.importorskip("cv2")

from wfm_posttrain import sim
from wfm_posttrain.camera import Camera
from wfm_posttrain.clips import ClipFolder
from wfm_posttrain.fidelity import FidelityConfig
from wfm_posttrain.following import follow_conditions
from wfm_posttrain.imagine import ClipWorld
from wfm_posttrain.instruction import Instruction
from wfm_posttrain.moments import samples
from wfm_posttrain.multiview import Multiview
from wfm_posttrain.steering import Place

FRAMES, PAST = 5, 1
CONFIG = FidelityConfig(samples=4)


@pytest.fixture(scope="module")
def room(tmp_path_factory):
    folder = tmp_path_factory.mktemp("room")
    for seed in (1_000_001, 1_000_002, 1_000_004, 1_000_005):
        sim.write_episode(sim.generate("room", seed, size=(64, 64), frames=FRAMES), folder)
    return ClipFolder(folder)


class Replay(ClipWorld):
    """Shows the clip whose camera goes as it is told; or, deaf, the clip that it sees."""

    text_encoder = None

    def __init__(self, clips, *, deaf=False, steering=None, views=()):
        self.steering, self.frames, self.past_frames = steering or Camera(), FRAMES, PAST
        self.place = Place(
            compression=(1, 8, 8), size=(64, 64), latent_channels=4, width=12, views=views
        )
        self.deaf, self.label = deaf, "trajectory" if views else "camera_pose"
        self.known = list(samples(clips, FRAMES, views=views or None, stride=None))

    def rollout(self, past, /, *, frames, controls=None, prompts=None, generator=None):
        for sample in self.known:
            video = sample.video()
            told = sample.inputs(self.steering, self.place.views)[self.label]
            seen = rearrange(video[:, :, :PAST], "v c p h w -> 1 c (v p) h w")
            if torch.equal(seen, past) if self.deaf else torch.equal(told, controls[self.label]):
                return rearrange(video[:, :, PAST:], "v c f h w -> 1 c (v f) h w")
        raise AssertionError("told of a camera that no clip has")


def test_a_world_that_follows_the_camera_is_told_from_one_that_is_deaf(room):
    found = follow_conditions(Replay(room), room, CONFIG)
    assert found.clips == 4
    rotation = found.scores["rotation_deg"]
    assert rotation["own"].mean == pytest.approx(rotation["real"].mean)
    assert rotation["own"].mean < 2.5 < rotation["shuffled"].mean
    assert rotation["better"].low > 0
    assert found.scores["way"]["own"].mean < found.scores["way"]["shuffled"].mean
    turns = found.scores["turn_r"]
    assert turns["own"].mean == turns["real"].mean > 0.8 > turns["shuffled"].mean
    assert turns["own"].low <= turns["own"].mean <= turns["own"].high
    assert "| rotation_deg |" in found.table()
    deaf = follow_conditions(Replay(room, deaf=True), room, CONFIG)
    assert deaf.scores["rotation_deg"]["better"].mean == 0
    assert deaf.scores["turn_r"]["better"].mean == 0


def test_a_rig_is_held_against_its_calibration_and_its_way(tmp_path):
    views = ("front", "left")
    for seed in (1_000_000, 1_000_003):
        for episode in sim.generate_views("street", seed, sim.Capture((64, 64), FRAMES, views)):
            sim.write_episode(episode, tmp_path)
    street = ClipFolder(tmp_path)
    world = Replay(street, steering=Multiview(views=views), views=views)
    scores = follow_conditions(world, street, CONFIG).scores
    assert {"cse", "way", "rotation_deg", "turn_r"} <= scores.keys()
    assert scores["way"]["own"].mean == pytest.approx(scores["way"]["real"].mean)
    assert scores["cse"]["own"].mean == pytest.approx(scores["cse"]["real"].mean, nan_ok=True)


class Listener(ClipWorld):
    """Shows the clip that its prompt describes: a world that does what it is told."""

    steering, past_frames, text_encoder = Instruction(), PAST, "any"
    place = Place(compression=(1, 8, 8), size=(64, 64), latent_channels=4, width=12)

    def __init__(self, clips, frames):
        self.frames, self.known = frames, list(samples(clips, frames, views=None))

    def rollout(self, past, /, *, frames, controls=None, prompts=None, generator=None):
        told = next(s for s in self.known if [c.caption for c in s.clips] == prompts)
        return rearrange(told.video()[:, :, PAST:], "v c f h w -> 1 c (v f) h w")


def test_an_instruction_is_obeyed_when_its_object_goes_its_way(tmp_path):
    for seed in range(1_000_000, 1_000_006):
        sim.write_episode(sim.generate("arm-push", seed, size=(64, 64), frames=25), tmp_path)
    arm = ClipFolder(tmp_path)
    found = follow_conditions(Listener(arm, 25), arm, FidelityConfig(samples=6)).scores["obeyed"]
    assert found["own"].count == sum(c.attributes["pushed"] is not None for c in arm) > 2
    assert found["own"].mean == found["real"].mean > 0.9
    assert found["shuffled"].mean < 0.5


def test_masks_are_followed_where_objects_are_labelled(room):
    found = follow_conditions(Replay(room), room, CONFIG)
    if "mask_iou" in found.scores:
        assert found.scores["mask_iou"]["own"].mean >= found.scores["mask_iou"]["shuffled"].mean
    one = ClipFolder(room.stems[0].parent)
    one.stems = one.stems[:1]
    with pytest.raises(ValueError, match="1 samples of 5 frames"):
        follow_conditions(Replay(one), one, CONFIG)
