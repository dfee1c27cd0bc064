"""The Haar wavelet packet of the Cosmos tokenizers: p x p (x p) pixels <-> as many bands.

Applying the two-tap low and high pass along each axis, level by level, and dividing by the
gain is one multiplication by a matrix of signs, ``bands = S @ pixels / p**dims``, and its
inverse is ``pixels = S.T @ bands``. Band ``k`` has sign ``(-1) ** (bits of k & bits of x)``,
where the finest level of the packet looks at the lowest bit of a pixel's place.
"""

from functools import cache

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from .memory import Memory


@cache
def haar_signs(patch_size: int, axes: str) -> Tensor:
    """Return the sign matrix, bands by pixels.

    ``axes`` lists the axes as their bits nest in a band's number, outermost first: ``thw`` in
    video and ``wh`` in images, where the published networks have it that way round. Pixels
    are numbered ``(t h w)`` or ``(h w)``.
    """
    depth = patch_size.bit_length() - 1
    place = torch.arange(patch_size)
    pixels = dict(zip(sorted(axes, key="thw".index), _grid(place, len(axes)), strict=True))
    signs = torch.ones(1, patch_size ** len(axes), dtype=torch.int64)
    for level in reversed(range(depth)):  # the coarsest level is outermost
        for axis in axes:
            high = 1 - 2 * (pixels[axis] >> level & 1)
            signs = torch.stack((signs, signs * high), 1).flatten(0, 1)
    return signs.float()


@cache
def haar_matrix(patch_size: int, axes: str, colours: int) -> Tensor:
    """Return the signs for cubes whose pixels have colours: ``(k c)`` by ``(c p)``."""
    signs = einsum(haar_signs(patch_size, axes), torch.eye(colours), "k p, c d -> k c d p")
    return rearrange(signs, "k c d p -> (k c) (d p)")


def _grid(place: Tensor, dims: int) -> list[Tensor]:
    return [axis.flatten() for axis in torch.meshgrid(*[place] * dims, indexing="ij")]


class Patcher(nn.Module):
    """Video -> bands, channels last; the first frame is repeated to fill its cube."""

    def __init__(self, patch_size: int, method: str, *, image: bool) -> None:
        super().__init__()
        self.size, self.method, self.image = patch_size, method, image

    def matrix(self, colours: int) -> Float[Tensor, "k p"]:
        """Return what turns the pixels of a cube into its bands."""
        pixels = self.size ** (2 if self.image else 3)
        if self.method == "rearrange":
            return torch.eye(colours * pixels)
        return haar_matrix(self.size, "wh" if self.image else "thw", colours) / pixels

    def forward(
        self, video: Float[Tensor, "b c t h w"], memory: Memory | None = None
    ) -> Float[Tensor, "b tl hl wl cl"]:
        cubes = self.cubes(video, memory)
        if self.method == "rearrange":
            return cubes
        matrix = self.matrix(video.shape[1]).to(video.device)
        return F.linear(cubes.float(), matrix).to(video.dtype)

    def cubes(
        self, video: Float[Tensor, "b c t h w"], memory: Memory | None = None
    ) -> Float[Tensor, "b tl hl wl cl"]:
        """Gather the pixels of each cube, colour by colour."""
        time = 1 if self.image else self.size
        if time > 1 and (memory is None or self not in memory):
            start = video[:, :, :1].expand(-1, -1, time - 1, -1, -1)
            video = torch.cat((start, video), 2)
        if memory is not None:
            memory[self] = video.new_empty(0)
        return rearrange(
            video,
            "b c (t i) (h j) (w k) -> b t h w (c i j k)",
            i=time,
            j=self.size,
            k=self.size,
        )


class Unpatcher(nn.Module):
    """Undo :class:`Patcher`, and drop the copies of the first frame."""

    def __init__(self, patch_size: int, method: str, *, image: bool) -> None:
        super().__init__()
        self.size, self.method, self.image = patch_size, method, image

    def matrix(self, colours: int) -> Float[Tensor, "p k"]:
        """Return what turns the bands of a cube into its pixels."""
        if self.method == "rearrange":
            return torch.eye(colours * self.size ** (2 if self.image else 3))
        return haar_matrix(self.size, "wh" if self.image else "thw", colours).T

    def forward(
        self, bands: Float[Tensor, "b tl hl wl cl"], memory: Memory | None = None
    ) -> Float[Tensor, "b c t h w"]:
        if self.method == "haar":
            colours = bands.shape[-1] // self.size ** (2 if self.image else 3)
            matrix = self.matrix(colours).to(bands.device)
            bands = F.linear(bands.float(), matrix).to(bands.dtype)
        return self.pixels(bands, memory)

    def pixels(
        self, cubes: Float[Tensor, "b tl hl wl cl"], memory: Memory | None = None
    ) -> Float[Tensor, "b c t h w"]:
        """Undo :meth:`Patcher.cubes`."""
        time = 1 if self.image else self.size
        video = rearrange(
            cubes,
            "b t h w (c i j k) -> b c (t i) (h j) (w k)",
            i=time,
            j=self.size,
            k=self.size,
        )
        first = memory is None or self not in memory
        if memory is not None:
            memory[self] = video.new_empty(0)
        return video[:, :, time - 1 :] if first else video
