from pathlib import Path

import pytest
import torch
from hypothesis import settings

from wfm_tokenizer.config import TokenizerConfig
from wfm_tokenizer.model import build
from wfm_tokenizer.video import write_video

settings.register_profile("repository", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("repository")

GOLDEN = Path(__file__).parent / "golden"

SMALL = {"channels": 4, "channels_mult": (1, 2, 2), "num_res_blocks": 1, "z_channels": 8}
DISCRETE = {"kind": "discrete", "latent_channels": 3, "levels": (7, 5, 4)}


def small(**changes):
    return TokenizerConfig.model_validate(SMALL | changes)


FAMILIES = {
    "CV8x8x8": small(),
    "CV4x8x8": small(temporal_compression=4),
    "CV4x8x8-p2": small(temporal_compression=4, patch_size=2),
    "CV8x16x16": small(spatial_compression=16),
    "DV8x16x16": small(spatial_compression=16, **DISCRETE),
    "DV4x8x8": small(temporal_compression=4, **DISCRETE),
    "CI8x8": small(network="image", temporal_compression=1),
    "DI16x16": small(network="image", temporal_compression=1, spatial_compression=16, **DISCRETE),
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(params=FAMILIES)
def family(request):
    """A narrow tokenizer of each family, with random weights."""
    return make(FAMILIES[request.param])


def make(config: TokenizerConfig):
    torch.manual_seed(0)
    tokenizer = build(config)
    with torch.no_grad():  # past the gentle start, so that time and space really mix
        for name, parameter in tokenizer.named_parameters():
            if name.endswith("weight") and "norm" not in name:
                fan_in = parameter[0].numel()
                parameter.normal_(0, fan_in**-0.5)
    return tokenizer.eval().requires_grad_(False)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture
def film(tmp_path):
    """A video file: 20 frames of 30x44, a square that moves over a gradient."""
    path = tmp_path / "film.mp4"
    write_film(path, frames=20)
    return path


def write_film(path: Path, frames: int, height: int = 30, width: int = 44, seed: int = 0) -> None:
    ramp = torch.linspace(0, 200, width).expand(frames, 3, height, width).clone()
    ramp[:, seed % 3] += 40
    for i in range(frames):
        at = (i + seed) % (width - 8)
        ramp[i, :, 8:16, at : at + 8] = 255
    write_video(path, ramp.byte(), 10.0)
