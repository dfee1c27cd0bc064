"""Rays and paths of cameras, against cases that can be worked out by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wfm_posttrain.camera import (
    Camera,
    CameraEncoder,
    latent_frames,
    normalised,
    plucker,
    relative_path,
)
from wfm_posttrain.steering import Place

PINHOLE = torch.tensor([[0.9, 0, 0.5], [0, 0.9, 0.5], [0, 0, 1]])
PLACE = Place((8, 8, 8), (32, 48), 16, 64)
ANGLE = st.floats(-3, 3)
LENGTH = st.floats(-5, 5)


def rotation(a, b, c):
    """Turn about z, then y, then x."""
    (ca, sa), (cb, sb), (cc, sc) = ((math.cos(t), math.sin(t)) for t in (a, b, c))
    z = torch.tensor([[ca, -sa, 0], [sa, ca, 0], [0, 0, 1]])
    y = torch.tensor([[cb, 0, sb], [0, 1, 0], [-sb, 0, cb]])
    x = torch.tensor([[1, 0, 0], [0, cc, -sc], [0, sc, cc]])
    return (x @ y @ z).double()


def pose(turn, place):
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3], matrix[:3, 3] = turn, torch.tensor(place).double()
    return matrix


def path(seed=0, count=9):
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(count, 6, generator=generator) * 0.2
    return torch.stack([pose(rotation(*s[:3].tolist()), s[3:].tolist()) for s in steps.cumsum(0)])


def rays(matrix, grid=(3, 5)):
    return plucker(matrix[None, None].float(), PINHOLE[None, None], grid)[0, :, 0]


def test_a_camera_at_the_origin_has_no_moment():
    found = rays(torch.eye(4))
    assert found[:3].abs().max() == 0
    torch.testing.assert_close(found[3:].square().sum(0), torch.ones(3, 5))


def test_the_ray_of_the_middle_is_the_optical_axis():
    turn = rotation(0.3, -0.4, 0.9)
    found = rays(pose(turn, [1.0, 2, 3]))
    torch.testing.assert_close(found[3:, 1, 2].double(), turn[:, 2], atol=1e-6, rtol=0)


def test_pixels_are_looked_through_at_their_centres():
    found = rays(torch.eye(4), (1, 2))[3:, 0]
    torch.testing.assert_close(found[0] / found[2], torch.tensor([-0.25, 0.25]) / 0.9)


@given(turn=st.tuples(ANGLE, ANGLE, ANGLE), place=st.tuples(LENGTH, LENGTH, LENGTH))
def test_the_moment_is_centre_cross_direction(turn, place):
    found = rays(pose(rotation(*turn), place))
    centre = torch.tensor(place)[:, None, None].expand(3, 3, 5).float()
    expected = torch.linalg.cross(centre, found[3:], dim=0)
    torch.testing.assert_close(found[:3], expected, atol=1e-5, rtol=1e-5)


def test_the_middle_frame_stands_for_a_latent():
    assert latent_frames(57, 8) == [0, 4, 12, 20, 28, 36, 44, 52]
    assert latent_frames(17, 4) == [0, 2, 6, 10, 14]
    assert latent_frames(4, 1) == [0, 1, 2, 3]


@given(
    turn=st.tuples(ANGLE, ANGLE, ANGLE), place=st.tuples(LENGTH, LENGTH, LENGTH),
    scale=st.floats(0.1, 30),
)  # fmt: skip
def test_where_the_world_has_its_origin_and_its_metre_does_not_matter(turn, place, scale):
    old = path()[None]
    moved = pose(rotation(*turn), place) @ old
    moved[..., :3, 3] *= scale
    torch.testing.assert_close(relative_path(moved), relative_path(old), atol=1e-4, rtol=0)


def test_a_path_spans_one_and_begins_at_the_origin():
    found = relative_path(path()[None])[0]
    torch.testing.assert_close(found[0], torch.eye(4), atol=1e-6, rtol=0)
    centre = found[:, :3, 3]
    torch.testing.assert_close(torch.cdist(centre, centre).max(), torch.tensor(1.0))
    metric = relative_path(path()[None], metric=True)[0, :, :3, 3]
    assert torch.cdist(metric, metric).max() != 1


def test_turning_on_the_spot_stays_finite():
    turning = torch.stack([pose(rotation(0, 0.1 * t, 0), [1.0, 2, 3]) for t in range(5)])
    found = relative_path(turning[None])
    assert found.isfinite().all()
    assert found[..., :3, 3].abs().max() < 1e-6


def test_pixel_intrinsics_are_brought_to_a_picture_of_side_one():
    pixels = torch.tensor([[48.0, 0, 24], [0, 32, 16], [0, 0, 1]])[None, None]
    expected = torch.tensor([[1.0, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    torch.testing.assert_close(normalised(pixels, (32, 48))[0, 0], expected)


def controls(frames=17):
    pinhole = torch.tensor([[40.0, 0, 24], [0, 40, 16], [0, 0, 1]]).expand(1, frames, 3, 3)
    return {"camera_pose": path(count=frames)[None].float(), "intrinsics": pinhole}


def test_the_encoder_makes_one_map_for_each_latent_frame():
    inputs = controls()
    found = CameraEncoder(PLACE, Camera()).encode(inputs)["channels"]
    assert found.shape == (1, 6, 3, 4, 6)
    middle = relative_path(inputs["camera_pose"])[:, [0, 4, 12]]
    pinhole = normalised(inputs["intrinsics"], (32, 48))[:, :3]
    torch.testing.assert_close(found, plucker(middle, pinhole, (4, 6)))


def test_the_order_of_a_ray_is_a_setting_that_is_saved():
    settings = Camera(ray=("direction", "moment"))
    one, other = (
        CameraEncoder(PLACE, s).encode(controls())["channels"] for s in (Camera(), settings)
    )
    assert torch.equal(one, torch.cat([other[:, 3:], other[:, :3]], 1))
    assert Camera().model_dump(mode="json")["ray"] == ["moment", "direction"]


def test_padding_has_no_rays():
    padding = torch.zeros(1, 1, 32, 48)
    padding[..., :8] = 1
    found = CameraEncoder(PLACE, Camera()).encode({**controls(), "padding": padding})["channels"]
    assert found[..., 0].abs().max() == 0
    assert found[..., 1].abs().min(dim=1).values.shape == (1, 3, 4)
    assert (found[:, 3:, ..., 1:].square().sum(1) - 1).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"intrinsics": None}, ValueError, "controls lack intrinsics"),
        ({"hint": torch.zeros(1)}, KeyError, "unknown controls hint"),
        ({"camera_pose": torch.zeros(1, 17, 3, 4)}, ValueError, "b t 4 4"),
        (controls(16), ValueError, r"16 frames; the codec takes 1 \+ 8 k"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, words):
    inputs = {k: x for k, x in {**controls(), **change}.items() if x is not None}
    with pytest.raises(error, match=words):
        CameraEncoder(PLACE, Camera()).encode(inputs)
