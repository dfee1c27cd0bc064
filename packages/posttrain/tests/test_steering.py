"""Cameras, hints and action chunks as conditions; the control branch; worlds over stretches."""

import pytest
import torch
from clip_fakes import Clip, GroupCodec, LetterEncoder, Moments, TinyTransformer
from test_engine import ask, config_for, parts_for

from wfm_posttrain.branch import BranchConfig, ControlBranch, Controlled
from wfm_posttrain.chunk import ActionChunk, ChunkEncoder
from wfm_posttrain.clip_recipe import steered
from wfm_posttrain.control import Control
from wfm_posttrain.hints import blur_picture, depth_picture, edge_picture, segment_picture
from wfm_posttrain.imagine import ClipWorld
from wfm_posttrain.instruction import Instruction
from wfm_posttrain.moments import cameras_of, samples
from wfm_posttrain.multiview import Multiview, ViewEncoder, from_there
from wfm_posttrain.steering import Place

PLACE = Place((4, 8, 8), (32, 32), 4, 16)


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Several cameras


def trained_views(names):
    torch.manual_seed(0)
    place = Place((4, 8, 8), (32, 32), 4, 16, views=names)
    encoder = ViewEncoder(place, Multiview(views=names))
    network = TinyTransformer()
    network.extend_input(Multiview().channels)
    torch.nn.init.normal_(network.extra.weight, std=0.3)
    return encoder, network


def denoised(encoder, network, noisy, view, text, way):
    from wfm_posttrain.imagine import spread

    condition = encoder.encode({"view": view, "trajectory": way})
    condition = spread(condition, noisy.shape, view.shape[1])
    with torch.no_grad():
        return network.denoise(noisy, torch.ones(len(noisy)), {**condition, "text": text})


@pytest.mark.parametrize("count", range(1, 8))
def test_cameras_in_another_order_see_the_same(count):
    names = tuple("abcdefg"[:count])
    encoder, network = trained_views(names)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(count))
    noisy, text = seeded(1, 4, count, 3, 4, 4), seeded(1, count, 4, 6, seed=1)
    way, view = seeded(1, 64, 3), torch.arange(count)[None]

    def run(index):
        flat = noisy[:, :, index].flatten(2, 3)
        out = denoised(encoder, network, flat, view[:, index], text[:, index].flatten(1, 2), way)
        return out.unflatten(2, (count, 3))

    torch.testing.assert_close(run(torch.arange(count))[:, :, order], run(order))


def test_a_caption_speaks_of_its_own_camera_only():
    encoder, network = trained_views(("a", "b"))
    for block in network.blocks:  # cameras attend to each other, which is not asked about here
        torch.nn.init.zeros_(block.attention.weight)
    noisy, way, view = seeded(1, 4, 6, 4, 4), seeded(1, 64, 3), torch.arange(2)[None]
    text = seeded(1, 8, 6)
    other = text.clone()
    other[:, 4:] += 1
    a, b = (denoised(encoder, network, noisy, view, x, way) for x in (text, other))
    assert torch.equal(a[:, :, :3], b[:, :, :3])
    assert not torch.equal(a[:, :, 3:], b[:, :, 3:])


def test_the_trajectory_and_the_camera_matter():
    encoder, network = trained_views(("a", "b"))
    noisy, text = seeded(1, 4, 3, 4, 4), seeded(1, 4, 6)
    way = seeded(1, 64, 3)
    first = denoised(encoder, network, noisy, torch.tensor([[0]]), text, way)
    assert not torch.equal(first, denoised(encoder, network, noisy, torch.tensor([[1]]), text, way))
    assert not torch.equal(
        first, denoised(encoder, network, noisy, torch.tensor([[0]]), text, way + 1)
    )


def test_unknown_cameras_are_refused():
    encoder, _ = trained_views(("a", "b"))
    with pytest.raises(ValueError, match=r"numbers from 0 to 1 \(a, b\)"):
        encoder.encode({"view": torch.tensor([[2]])})
    with pytest.raises(ValueError, match="controls lack view"):
        encoder.encode({})


def test_the_order_of_cameras_comes_from_the_data():
    clips = Moments("front,left,back")
    assert cameras_of(clips) == ("front", "left", "back")
    (first, *_) = samples(clips, 9, views=("back", "front"))
    assert [clip.attributes["camera"] for clip in first.clips] == ["back", "front"]
    with pytest.raises(ValueError, match="no clip of camera top"):
        next(samples(clips, 9, views=("top",)))


def test_a_trajectory_is_seen_from_where_the_car_is():
    angle = torch.arange(64) / 64
    circle = torch.stack([angle.sin() * 10, 10 - angle.cos() * 10, 0 * angle], 1)
    later = from_there(circle, 20)
    torch.testing.assert_close(later[:44], circle[:44], atol=0.1, rtol=0)
    assert torch.equal(later[44], later[63])


# Hints


def test_segments_keep_their_colours_and_nothing_is_black():
    picture = segment_picture(torch.tensor([[[0, 1], [2, 1]]]))
    assert picture[0, :, 0, 0].tolist() == [0, 0, 0]
    assert torch.equal(picture[0, :, 0, 1], picture[0, :, 1, 1])
    colours = segment_picture(torch.arange(20)[None, None])[0, :, 0].T
    assert len(colours.unique(dim=0)) == 20


def test_depth_is_white_near_and_black_far_and_where_there_is_none():
    depth = torch.tensor([[[0.5, 1.0, 50.0, 0.0, float("inf")]]])
    assert depth_picture(depth, 0.5, 50.0)[0, 0, 0].tolist() == [255, 126, 0, 0, 0]


def test_edges_are_thin_and_where_the_picture_jumps():
    frames = torch.zeros(1, 3, 24, 24, dtype=torch.uint8)
    frames[:, :, :, 12:] = 200
    edge = edge_picture(frames)[0, 0]
    assert edge.sum(1).tolist() == [255] * 24
    assert set(edge.nonzero()[:, 1].tolist()) <= {11, 12}
    assert edge_picture(torch.full_like(frames, 90)).max() == 0


def test_faint_edges_go_on_only_where_strong_ones_lead():
    frames = torch.zeros(1, 3, 24, 24, dtype=torch.uint8)
    frames[:, :, :16, 12:] = 25
    assert edge_picture(frames, low=40, high=150).max() == 0
    frames = torch.linspace(25, 80, 24)[:, None].expand(1, 3, 24, 24).byte().contiguous()
    frames[:, :, :, :12] = 0  # ever fainter from the bottom to the top
    edge = edge_picture(frames, low=40, high=150)[0, 0]
    assert (edge[2:22, 10:14] > 0).any(1).all()


def test_blur_leaves_the_mean_and_takes_the_detail():
    checks = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 200
    frames = checks.byte().expand(1, 3, 16, 16).contiguous()
    assert (blur_picture(frames, factor=4).float() - 100).abs().max() <= 1


def test_control_reads_each_hint_from_its_source():
    (sample, *_) = samples(Moments(), 9, views=None)
    found = Control(hints=("depth", "segmentation", "edge", "blur")).read(sample.clips, 0, 9)[
        "hint"
    ]
    assert found.shape == (12, 9, 32, 32)
    assert all(part.max() > part.min() for part in found.split(3))
    bare = Clip(sample.clips[0].read(0, 9), "bare")
    with pytest.raises(ValueError, match="bare: control by depth needs the array 'depth'"):
        Control(hints=("depth",)).read((bare,), 0, 9)


# The branch


def test_a_branch_adds_where_it_is_told_to():
    assert BranchConfig(blocks=3).layers(28) == [0, 1, 2]
    assert BranchConfig(blocks=4, placement="spread").layers(28) == [0, 7, 14, 21]
    with pytest.raises(ValueError, match="9 control blocks for a network of 6"):
        BranchConfig(blocks=9).layers(6)


def branched(count=1, **settings):
    torch.manual_seed(0)
    network = TinyTransformer()
    branches = []
    for _ in range(count):
        branch = ControlBranch(
            network, BranchConfig(blocks=2, **settings), hint_channels=4, patch=(1, 2, 2)
        )
        for layer in (branch.mlp[-1], *branch.outs):
            torch.nn.init.normal_(layer.weight, std=0.2)
        branches.append(branch)
    return network, branches


@torch.no_grad()
def test_weights_say_where_and_how_much_a_hint_counts():
    network, branches = branched()
    steered = Controlled(network, branches)
    noisy, sigma, hint = seeded(1, 4, 3, 4, 4), torch.ones(1), seeded(1, 4, 3, 4, 4, seed=2)
    base = steered.denoise(noisy, sigma, {})
    full = steered.denoise(noisy, sigma, {"hint": hint})
    assert not torch.equal(base, full)
    off = steered.denoise(noisy, sigma, {"hint": hint, "hint_weight": torch.zeros(1, 1, 3, 4, 4)})
    assert torch.equal(base, off)
    on = steered.denoise(noisy, sigma, {"hint": hint, "hint_weight": torch.ones(1, 1, 3, 4, 4)})
    torch.testing.assert_close(full, on)
    assert torch.equal(base, steered.denoise(noisy, sigma, {}))


@torch.no_grad()
def test_several_branches_add_up_and_their_weights_stay_below_one():
    network, branches = branched(2)
    both = Controlled(network, branches)
    noisy, sigma, hint = seeded(1, 4, 3, 4, 4), torch.ones(1), seeded(1, 8, 3, 4, 4, seed=2)
    ones = torch.ones(1, 2, 3, 4, 4)
    strong, half = (
        both.denoise(noisy, sigma, {"hint": hint, "hint_weight": w}) for w in (ones, ones / 2)
    )
    torch.testing.assert_close(strong, half)
    assert not torch.equal(half, both.denoise(noisy, sigma, {"hint": hint}))
    with pytest.raises(ValueError, match="hint latents are"):
        both.denoise(noisy, sigma, {"hint": hint[:, :4]})
    with pytest.raises(ValueError, match="b 2 t h w, not negative"):
        both.denoise(noisy, sigma, {"hint": hint, "hint_weight": -ones})


# Action chunks


@pytest.mark.parametrize("numbers", [2, 7, 12, 18])
def test_both_paths_of_a_chunk_reach_the_network(numbers):
    torch.manual_seed(0)
    encoder = ChunkEncoder(PLACE, ActionChunk(numbers=numbers, steps=8))
    network = TinyTransformer()
    for path in (encoder.adaln, encoder.adaln_shared):
        torch.nn.init.normal_(path[-1].weight, std=0.3)
    noisy = seeded(1, 4, 3, 4, 4)
    for name in ("adaln", "adaln_shared"):
        action = seeded(1, 8, numbers).requires_grad_()
        condition = encoder.encode({"action": action})
        assert condition[name].shape[:2] == (1, 3)
        network.denoise(noisy, torch.ones(1), {name: condition[name]}).square().sum().backward()
        assert action.grad is not None
        assert (action.grad.abs().sum(-1) > 0).all()


def test_an_action_moves_its_own_latent_frame():
    torch.manual_seed(0)
    encoder = ChunkEncoder(PLACE, ActionChunk(numbers=2, steps=8))
    torch.nn.init.normal_(encoder.adaln[-1].weight)
    action = seeded(1, 8, 2)
    other = action.clone()
    other[:, 5] += 1
    a, b = (encoder.encode({"action": x})["adaln"] for x in (action, other))
    assert torch.equal(a[:, :2], b[:, :2])
    assert not torch.equal(a[:, 2], b[:, 2])
    assert a[:, 0].abs().max() == 0


def test_unknown_actions_count_as_the_mean_one():
    encoder = ChunkEncoder(PLACE, ActionChunk(numbers=2, steps=8))
    encoder.fit({"action": seeded(5, 8, 2) + 3})
    torch.nn.init.normal_(encoder.adaln[-1].weight)
    mean = encoder.mean.expand(1, 8, 2)
    a, b = (
        encoder.encode({"action": x})["adaln"] for x in (mean, torch.full_like(mean, torch.nan))
    )
    torch.testing.assert_close(a, b)


def test_actions_of_another_size_are_refused():
    encoder = ChunkEncoder(PLACE, ActionChunk(numbers=7, steps=8))
    with pytest.raises(ValueError, match=r"takes b s 7, s a multiple of 4"):
        encoder.encode({"action": torch.zeros(1, 6, 7)})


# Worlds


class Recorder(TinyTransformer):
    """Keeps the conditions that it was asked with."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def denoise(self, noisy, sigma, condition, /):
        self.seen.append({k: x.clone() for k, x in condition.items()})
        return super().denoise(noisy, sigma, condition)


def world_of(name, **changes):
    recipe, model, _, _ = parts_for(config_for(name, **changes))
    torch.manual_seed(0)
    network = steered(model)
    return ClipWorld(
        network, GroupCodec(), model["encoder"], recipe.condition, recipe.place(GroupCodec()),
        text_encoder=LetterEncoder(), past_frames=recipe.past_frames, frames=9, fps=5.0, steps=2,
    )  # fmt: skip


def test_a_long_rollout_takes_each_control_at_its_own_time():
    world = world_of("action")
    network = Recorder()
    world.network = network
    torch.nn.init.normal_(world.encoder.adaln[-1].weight)
    action = seeded(1, 13, 3)
    found = world.rollout(torch.zeros(1, 3, 1, 32, 32), frames=13, controls={"action": action})
    assert found.shape == (1, 3, 13, 32, 32)
    assert found.abs().max() <= 1
    first, second = network.seen[0]["adaln"], network.seen[-1]["adaln"]
    encode = world.encoder.encode
    torch.testing.assert_close(first, encode({"action": action[:, :8]})["adaln"])
    rest = torch.cat([action[:, 8:], torch.full((1, 3, 3), torch.nan)], 1)
    torch.testing.assert_close(second, encode({"action": rest})["adaln"])


def test_the_same_generator_gives_the_same_world():
    world = world_of("camera")
    (sample, *_) = samples(Moments(), 9, views=None)
    controls = sample.inputs(world.steering, ())
    past = sample.video()[:, :, :1]
    a, b, c = (
        world.rollout(past, frames=8, controls=controls, generator=torch.Generator().manual_seed(s))
        for s in (3, 3, 4)
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    world.temperature = 0.0
    cold = [
        world.rollout(past, frames=8, controls=controls, generator=torch.Generator().manual_seed(s))
        for s in (3, 4)
    ]
    assert torch.equal(*cold)


def test_cameras_stand_one_after_another_in_the_answer():
    world = world_of("multiview")
    past = torch.zeros(2, 3, 3, 32, 32)
    view = torch.arange(3).expand(2, 3)
    found = world.rollout(past, frames=4, controls={"view": view}, prompts=["a", "b"])
    assert found.shape == (2, 3, 12, 32, 32)
    pair = world.rollout(past[:, :, :2], frames=4, controls={"view": view[:, 1:]})
    assert pair.shape == (2, 3, 8, 32, 32)


@pytest.mark.parametrize(
    ("name", "controls", "words"),
    [
        ("multiview", {}, "needs controls"),
        ("camera", {}, "controls lack camera_pose, intrinsics"),
        ("camera", {"camera_pose": torch.zeros(1, 8, 4, 4)}, "camera_pose has 8 rows; it needs 9"),
        ("action", {"action": torch.zeros(1, 7, 3)}, "7 actions for 8 new frames"),
    ],
)
def test_controls_that_do_not_fit_are_refused(name, controls, words):
    with pytest.raises(ValueError, match=words):
        world_of(name).rollout(torch.zeros(1, 3, 1, 32, 32), frames=8, controls=controls)


def test_guidance_leads_away_from_no_text():
    world = world_of("instruction")
    assert isinstance(world.steering, Instruction)
    past = torch.zeros(1, 3, 1, 32, 32)
    plain = world.rollout(past, frames=8, prompts=["left"])
    world.guidance = 3.0
    assert not torch.equal(plain, world.rollout(past, frames=8, prompts=["left"]))


def test_the_base_is_asked_for_cameras_as_the_fakes_are():
    _, model, _, data = parts_for(config_for("multiview"))
    with torch.no_grad():
        assert ask(steered(model), model["encoder"], data).shape == (2, 4, 9, 4, 4)
