import logging

import pytest
import torch
from fakes import TINY, Actions, Answer, Codec, Guard, Text, network, randn

import wfm_diffusion as wd

VIDEO = wd.WorldSettings(
    codec="fake",
    codec_fingerprint=Codec().fingerprint,
    past_frames=9,
    frames=8,
    height=32,
    width=32,
    fps=10,
    guidance=2.0,
)
IMAGE = VIDEO.model_copy(update={"latents": "image", "past_frames": 2, "frames": 1})


def world(settings=VIDEO, net=None, **parts):
    parts = {"text_encoder": Text(), "condition_encoder": Actions(), **parts}
    return wd.WorldModel(net or network(), Codec(), settings=settings, steps=3, **parts)


def past(b=1, p=9, seed=0):
    return randn(b, 3, p, 32, 32, seed=seed).clamp(-1, 1)


def test_a_seed_is_a_video():
    first, again, other = (world().text2world(["a cube"], seed=s) for s in (1, 1, 2))
    assert first.shape == (1, 3, 17, 32, 32)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.abs().max() <= 1


def test_text_matters_and_so_do_guidance_and_the_negative_prompt():
    w = world()
    plain = w.text2world(["a cube"], guidance=0)
    assert not torch.equal(plain, w.text2world(["a ball"], guidance=0))
    assert not torch.equal(plain, w.text2world(["a cube"], guidance=2))
    assert not torch.equal(
        w.text2world(["a cube"]), w.text2world(["a cube"], negative_prompt="blurry")
    )


@pytest.mark.parametrize("sampler", wd.SAMPLERS)
def test_every_sampler_makes_videos_of_any_length(sampler):
    video = world().text2world(["a cube"], frames=5, sampler=sampler)
    assert video.shape == (1, 3, 5, 32, 32)
    assert video.isfinite().all()


@pytest.mark.parametrize("frames", [3, 8, 20])
def test_video2world_returns_the_new_frames_only(frames):
    video = world().video2world(past(2), ["a cube"], frames=frames)
    assert video.shape == (2, 3, frames, 32, 32)


@pytest.mark.parametrize("p", [1, 5, 9, 12])
def test_any_number_of_past_frames_will_do(p):
    assert world().video2world(past(p=p), frames=8).shape[2] == 8


def test_only_the_last_frames_count():
    long = torch.cat([past(p=4, seed=1), past(p=9)], 2)
    a, b = (world().video2world(x, frames=8) for x in (long, past(p=9)))
    assert torch.equal(a, b)


def test_rollouts_follow_the_generator():
    def roll(seed):
        generator = torch.Generator().manual_seed(seed)
        return world().rollout(past(), frames=8, generator=generator)

    assert torch.equal(roll(1), roll(1))
    assert not torch.equal(roll(1), roll(2))


def test_actions_move_an_image_world_frame_by_frame():
    w = world(IMAGE)
    actions = torch.zeros(1, 4, 2)
    later = actions.clone()
    later[:, 2:] = 1
    a, b = (w.rollout(past(p=2), frames=4, controls={"action": x}) for x in (actions, later))
    assert torch.equal(a[:, :, :2], b[:, :, :2])
    assert not torch.equal(a[:, :, 2:], b[:, :, 2:])


def test_one_past_serves_many_candidates():
    w = world(IMAGE)
    actions = randn(3, 2, 2, seed=4)
    out = w.rollout(past(p=2), frames=2, controls={"action": actions})
    assert out.shape == (3, 3, 2, 32, 32)
    repeated = w.rollout(
        past(p=2).expand(3, -1, -1, -1, -1), frames=2, controls={"action": actions}
    )
    torch.testing.assert_close(out, repeated, rtol=0, atol=1e-5)


def test_actions_are_spread_over_a_video_worlds_stretches():
    seen = []

    class Recording(Actions):
        def encode(self, inputs, /):
            seen.append(inputs["action"].shape[1])
            return super().encode(inputs)

    w = world(condition_encoder=Recording())
    w.rollout(past(), frames=12, controls={"action": torch.zeros(1, 24, 2)})
    assert seen == [16, 8]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda w: w.rollout(past(), frames=8, controls={"action": torch.zeros(1, 9, 2)}),
            "spread",
        ),
        (
            lambda w: w.rollout(past(2), frames=8, controls={"action": torch.zeros(3, 8, 2)}),
            "pasts",
        ),
        (lambda w: w.rollout(past(p=0), frames=8), "no frame"),
        (lambda w: w.rollout(past(), frames=0), "one frame"),
        (lambda w: w.text2world(["x"], height=40), "multiple of 16"),
        (lambda w: w.text2world(["x"], width=1024), "takes up to"),
        (lambda w: w.text2world(["x"], steps=1), "two steps"),
        (lambda w: w.video2world(past(2), ["a", "b", "c"]), "3 prompts"),
    ],
)
def test_what_does_not_fit_is_a_value_error(call, message):
    with pytest.raises(ValueError, match=message):
        call(world())


def test_parts_that_are_missing_are_named():
    bare = world(text_encoder=None, condition_encoder=None)
    with pytest.raises(ValueError, match="text encoder"):
        bare.text2world(["x"])
    with pytest.raises(ValueError, match="condition encoder"):
        bare.rollout(past(), frames=8, controls={"action": torch.zeros(1, 8, 2)})
    blind = world(net=network(TINY.model_copy(update={"condition_mask": False})))
    with pytest.raises(ValueError, match="takes no frames"):
        blind.video2world(past())


def test_another_codec_is_refused_and_both_are_named():
    with pytest.raises(ValueError, match=r"0123456789abcdef.*fedcba9876543210"):
        wd.WorldModel(network(), Codec("fedcba9876543210"), settings=VIDEO)


def test_a_guard_refuses_prompts_and_redacts_videos():
    guard = Guard()
    w = world(guard=guard)
    with pytest.raises(wd.Refused, match="a bad word"):
        w.text2world(["a bad cube"])
    with pytest.raises(wd.Refused, match="a bad word"):
        w.text2world(["a cube"], negative_prompt="bad")
    with pytest.raises(wd.Refused, match="a bad word"):
        w.rollout(past(), frames=1, prompts=["bad"])
    video = w.text2world(["a cube"])
    assert torch.equal(video[..., 0, :], torch.full_like(video[..., 0, :], -1))


def test_settings_may_want_another_guidance_where_frames_are_given():
    settings = VIDEO.model_copy(update={"guidance": 2.0, "guidance_given": 0.0})
    parts = network(), Codec(), Text()
    w = wd.WorldModel(*parts, settings=settings)
    assert torch.equal(w.text2world(["a"]), w.text2world(["a"], guidance=2.0))
    assert torch.equal(w.video2world(past(), ["a"]), w.video2world(past(), ["a"], guidance=0.0))
    own = wd.WorldModel(*parts, settings=settings, guidance=3.0)
    assert torch.equal(own.video2world(past(), ["a"]), w.video2world(past(), ["a"], guidance=3.0))


def test_settings_may_want_other_steps_where_frames_are_given():
    settings = VIDEO.model_copy(update={"steps": 3, "steps_given": 2})
    parts = network(), Codec(), Text()
    w = wd.WorldModel(*parts, settings=settings)
    assert torch.equal(w.text2world(["a"]), w.text2world(["a"], steps=3))
    assert torch.equal(w.video2world(past(), ["a"]), w.video2world(past(), ["a"], steps=2))
    own = wd.WorldModel(*parts, settings=settings, steps=4)
    assert torch.equal(own.video2world(past(), ["a"]), w.video2world(past(), ["a"], steps=4))


def test_a_lower_temperature_starts_from_less_noise():
    settings = VIDEO.model_copy(update={"temperature_given": 0.5, "given_sigma": 0.0})
    parts = network(), Codec(), Text()
    w = wd.WorldModel(*parts, settings=settings)
    assert torch.equal(w.text2world(["a"]), w.text2world(["a"], temperature=1.0))
    cool = w.video2world(past(), temperature=0.5)
    assert torch.equal(w.video2world(past()), cool)
    assert not torch.equal(w.video2world(past(), temperature=1.0), cool)
    own = wd.WorldModel(*parts, settings=settings, temperature=0)
    seeds = [own.video2world(past(), seed=seed) for seed in (0, 1)]
    assert torch.equal(*seeds)  # nothing is left to chance
    with pytest.raises(ValueError, match="temperature -1: must be 0 or more"):
        w.video2world(past(), temperature=-1)


def test_what_was_refused_is_said_once():
    class Wordy(Guard):
        def check_text(self, text, /):
            return Answer(False, "prompt refused: weapons")

    with pytest.raises(wd.Refused) as found:
        world(guard=Wordy()).text2world(["a cube"])
    assert str(found.value) == "prompt refused: weapons"


def test_a_guard_refuses_frames_that_come_in():
    with pytest.raises(wd.Refused, match="input video refused: a white video"):
        world(guard=Guard()).video2world(torch.ones(1, 3, 9, 32, 32))


def test_a_missing_guard_is_said_aloud(caplog):
    with caplog.at_level(logging.WARNING):
        world()
    assert "NO GUARD" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        world(guard=Guard())
    assert "NO GUARD" not in caplog.text


def test_a_world_model_loads_by_itself(tmp_path):
    wd.save_network(network(), tmp_path / "m", card="card", world=VIDEO)
    w = wd.load_world(tmp_path / "m", codec="fakes:codec", text_encoder="fakes:text")
    assert w.past_frames == 9
    with pytest.raises(ValueError, match="latents differ"):
        wd.load_world(tmp_path / "m", codec="fakes:other_codec")
    with pytest.raises(ValueError, match="not a LatentCodec"):
        wd.load_world(tmp_path / "m", codec="fakes:text")
