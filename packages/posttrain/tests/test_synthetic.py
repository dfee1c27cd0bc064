import json

import pytest
import torch
from fakes import NextFrameWorld, PatchCodec, SmallDenoiser, SquareWorld
from torch import nn

from wfm_posttrain.clips import ClipFolder
from wfm_posttrain.synthetic import (
    Quality,
    SyntheticConfig,
    sharpness,
    synthesize,
    world_fingerprint,
)

CONFIG = SyntheticConfig(clips=6, frames=4, keep=1.0, least_sharpness=0)


def test_imagined_recordings_are_labelled_and_marked(recordings, tmp_path):
    harvest = synthesize(SquareWorld(), ClipFolder(recordings), tmp_path, CONFIG, name="squares")
    made = ClipFolder(tmp_path)
    assert harvest.kept == len(made) == 6
    clip = made[0]
    assert len(clip) == 5
    assert clip.attributes["synthetic"] is True
    assert clip.attributes["generator"]["model"] == "squares"
    assert clip.attributes["source"] != clip.attributes["actions_from"]
    source = ClipFolder(recordings.parent / recordings.name)
    names = [stem.name for stem in source.stems]
    other = source[names.index(clip.attributes["actions_from"])]
    assert torch.equal(clip.labels()["action"], other.labels()["action"][:4])
    body = source[names.index(clip.attributes["source"])]
    assert (clip.read(0, 1).float() - body.read(0, 1)).abs().mean() < 3


def test_the_pictures_follow_the_actions(recordings, tmp_path):
    synthesize(SquareWorld(), ClipFolder(recordings), tmp_path, CONFIG)
    clip = ClipFolder(tmp_path)[2]

    def place(frame):
        red = (frame[0].int() - frame[1]) > 60
        return red.nonzero().float().mean(0).flip(0)

    frames, action = clip.read(0, 5), clip.labels()["action"]
    for i in range(4):
        moved = place(frames[i + 1]) - place(frames[i])
        assert (moved - action[i]).abs().max() < 1.2


def test_what_is_uncertain_is_dropped(recordings, tmp_path):
    class Moody(SquareWorld):
        """Sometimes sure, sometimes not."""

        def rollout(self, past, /, *, generator=None, **keywords):
            self.noise = 0.3 * torch.rand((), generator=generator).item()
            return super().rollout(past, generator=generator, **keywords)

    config = CONFIG.model_copy(update={"clips": 8, "keep": 0.5})
    harvest = synthesize(Moody(), ClipFolder(recordings), tmp_path, config)
    assert harvest.dropped == {"uncertain": 4}
    kept = ClipFolder(tmp_path)
    assert len(kept) == harvest.kept == 4
    doubts = [kept[i].attributes["quality"]["uncertainty"] for i in range(4)]
    assert max(doubts) < 0.15


def test_blurred_and_still_futures_are_dropped(recordings, tmp_path):
    class Still(SquareWorld):
        def rollout(self, past, /, *, frames, **keywords):
            return past[:, :, -1:].expand(-1, -1, frames, -1, -1)

    class Grey(SquareWorld):
        def rollout(self, past, /, *, frames, **keywords):
            fade = torch.linspace(0.8, 0, frames)[:, None, None]
            return past[:, :, -1:].expand(-1, -1, frames, -1, -1) * fade

    config = SyntheticConfig(clips=4, frames=4, keep=1.0)
    for world, fault in ((Still(), "still"), (Grey(), "blurred")):
        harvest = synthesize(world, ClipFolder(recordings), tmp_path, config)
        assert harvest.dropped == {fault: 4}
        assert not list(tmp_path.glob("*.json"))


def test_a_quality_names_its_fault():
    config = SyntheticConfig()
    assert Quality(0.1, 1.0, 1.0).fault(config, 0.2) is None
    assert Quality(0.3, 1.0, 1.0).fault(config, 0.2) == "uncertain"


def test_blur_lowers_sharpness():
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    soft = nn.functional.avg_pool2d(picture, 3, 1, 1)
    assert sharpness(soft) < 0.3 * sharpness(picture)


def test_the_fingerprint_is_of_the_weights():
    def world(seed):
        torch.manual_seed(seed)
        return NextFrameWorld(SmallDenoiser(), codec=PatchCodec(), condition_encoder=None)

    assert world_fingerprint(world(0)) == world_fingerprint(world(0))
    assert world_fingerprint(world(0)) != world_fingerprint(world(1))
    assert world_fingerprint(SquareWorld()) == "SquareWorld"


def test_one_recording_is_not_enough(recordings, tmp_path):
    config = CONFIG.model_copy(update={"frames": 30})
    with pytest.raises(ValueError, match="0 recordings have 31 frames"):
        synthesize(SquareWorld(), ClipFolder(recordings), tmp_path, config)


def test_the_same_seed_makes_the_same_recordings(recordings, tmp_path):
    for name in ("a", "b"):
        synthesize(SquareWorld(noise=0.1), ClipFolder(recordings), tmp_path / name, CONFIG)
    one, two = (ClipFolder(tmp_path / name)[3] for name in ("a", "b"))
    assert torch.equal(one.read(0, 5), two.read(0, 5))
    assert json.dumps(one.attributes, sort_keys=True) == json.dumps(two.attributes, sort_keys=True)
