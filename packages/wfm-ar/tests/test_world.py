import pytest
import torch
from fakes import ActionEncoder, GreyCodec, LengthEncoder, moving_square, tiny

import wfm_ar as wa
from wfm_ar.config import WorldSettings


def world(latents="video", past=3, lm=None, **changes):
    settings = WorldSettings(
        codec="grey", latents=latents, past_frames=past, frames=2, height=8, width=8
    )
    return wa.WorldModel(lm or tiny(), GreyCodec(), settings=settings, **changes)


class Copying(wa.ArTransformer):
    """Says that each token is the one a latent frame before: all motion stops."""

    def __init__(self):
        super().__init__(tiny().config)
        self.asked = []

    def new_cache(self, batch, length, context=None):
        self.asked.append(context)
        self.seen = []
        return super().new_cache(batch, length, context)

    def step(self, tokens, cache, *, grid=None):
        self.seen.extend(tokens.unbind(1))
        return torch.nn.functional.one_hot(self.seen[-4], 40).float()


def test_new_frames_only_and_as_many_as_asked():
    past = moving_square(5).repeat(2, 1, 1, 1, 1)
    for frames in (1, 2, 3, 7):
        future = world().rollout(past, frames=frames)
        assert future.shape == (2, 3, frames, 8, 8)
    assert world().video2world(past).shape == (2, 3, 2, 8, 8)


@pytest.mark.parametrize("latents", ["video", "image"])
def test_a_model_that_repeats_repeats_the_picture(latents):
    model = world(latents, lm=Copying(), temperature=0)
    past = moving_square(1).repeat(1, 1, 3, 1, 1)
    future = model.rollout(past, frames=5)
    expected = GreyCodec().decode(GreyCodec().encode(past))[:, :, :1]
    assert torch.equal(future, expected.expand_as(future))


@pytest.mark.parametrize("latents", ["video", "image"])
def test_same_generator_state_same_answer(latents):
    past = moving_square(5)

    def draw(seed):
        return world(latents).rollout(past, frames=4, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert torch.equal(world(latents).rollout(past, frames=4), draw(0))


def test_only_the_last_frames_count():
    past = moving_square(9)
    a, b = world().rollout(past, frames=2), world().rollout(past[:, :, -3:], frames=2)
    assert torch.equal(a, b)


def test_one_picture_is_enough():
    assert world().video2world(moving_square(1)).shape == (1, 3, 2, 8, 8)
    assert world().video2world(moving_square(2), frames=5).shape == (1, 3, 5, 8, 8)
    assert world("image").video2world(moving_square(1), frames=4).shape == (1, 3, 4, 8, 8)


def test_the_prompt_matters():
    model = world(text_encoder=LengthEncoder(), temperature=0)
    past = moving_square(5).repeat(3, 1, 1, 1, 1)
    future = model.video2world(past, ["a", "bcd", "bcd"], frames=6)
    assert torch.equal(future[1], future[2])
    assert not torch.equal(future[0], future[1])
    assert torch.equal(model.video2world(past, ["bcd"], frames=6)[0], future[1])


def test_each_new_frame_has_its_action():
    lm = Copying()
    model = world("image", lm=lm, condition_encoder=ActionEncoder())
    action = torch.arange(12).reshape(2, 6, 1).float()
    model.rollout(moving_square(3).repeat(2, 1, 1, 1, 1), frames=3, controls={"action": action})
    assert [x[:, :, 0].tolist() for x in lm.asked] == [
        [[0, 1], [6, 7]],
        [[2, 3], [8, 9]],
        [[4, 5], [10, 11]],
    ]


def test_candidates_of_a_batch_do_not_mix():
    model = world("image", condition_encoder=ActionEncoder(), temperature=0)
    past = moving_square(3)
    action = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0)) * 3
    together = model.rollout(past.repeat(3, 1, 1, 1, 1), frames=4, controls={"action": action})
    alone = [model.rollout(past, frames=4, controls={"action": a[None]}) for a in action]
    assert torch.equal(together, torch.cat(alone))


def test_a_token_decoder_paints_instead():
    class White:
        def decode(self, tokens, /):
            b, t, h, w = tokens.shape
            return torch.ones(b, 3, 1 + 2 * (t - 1), 4 * h, 4 * w)

    future = world(token_decoder=White()).rollout(moving_square(3), frames=2)
    assert torch.equal(future, torch.ones(1, 3, 2, 8, 8))


def test_begin_of_video_is_put_in_front():
    lm = tiny(bov=True, max_positions=64)
    assert world(lm=lm).rollout(moving_square(3), frames=3).shape == (1, 3, 3, 8, 8)


def test_sizes_come_from_the_grid_where_nothing_is_said():
    model = wa.WorldModel(tiny(), GreyCodec())
    assert (model.past_frames, model.settings.frames, model.settings.height) == (3, 2, 8)


def test_another_codec_is_refused():
    settings = WorldSettings(codec="grey", codec_fingerprint="feedbeeffeedbeef")
    with pytest.raises(ValueError, match=r"grey \(feedbeeffeedbeef\).*0123456789abcdef"):
        wa.WorldModel(tiny(), GreyCodec(), settings=settings)
    with pytest.raises(ValueError, match="the codec has 40 tokens; the model 41"):
        wa.WorldModel(tiny(vocab_size=41), GreyCodec())


def test_mistakes_are_named():
    past = moving_square(5)
    with pytest.raises(ValueError, match="past is 16x16; the model was made for 8x8"):
        world().rollout(moving_square(5, 16), frames=2)
    with pytest.raises(ValueError, match="frames must be 1 or more"):
        world().rollout(past, frames=0)
    with pytest.raises(ValueError, match="prompts need a text encoder"):
        world().video2world(past, ["a"])
    with pytest.raises(ValueError, match="2 prompts for 1 videos"):
        world(text_encoder=LengthEncoder()).video2world(past, ["a", "b"])
    with pytest.raises(ValueError, match="controls need a condition encoder"):
        world("image").rollout(past, frames=2, controls={"action": torch.zeros(1, 2, 3)})
    acting = world("image", condition_encoder=ActionEncoder())
    with pytest.raises(ValueError, match="3 actions do not spread over 2 frames"):
        acting.rollout(past, frames=2, controls={"action": torch.zeros(1, 3, 3)})


def test_inputs_are_left_alone():
    past = moving_square(5)
    before = past.clone()
    world().rollout(past, frames=3)
    assert torch.equal(past, before)
