"""What a tokenizer is made of: one config, and the published variants as presets. No torch here."""

import json
from math import prod
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Statistics = tuple[tuple[float, ...], ...]


class TokenizerConfig(BaseModel):
    """The shape of a tokenizer and, once trained, the statistics of its latents.

    The names of NVIDIA's and of diffusers' settings are mapped to these in ``convert.py``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "unnamed"
    kind: Literal["continuous", "discrete"] = "continuous"
    network: Literal["video", "image"] = Field(
        "video", description="video: causal, factorised in space and time; image: frame by frame"
    )
    temporal_compression: int = Field(8, ge=1, description="video frames per latent frame")
    spatial_compression: int = Field(8, ge=2, description="pixels per side of a latent cell")
    patch_size: Literal[2, 4] = Field(4, description="side of the wavelet's cube or square")
    patch_method: Literal["haar", "rearrange"] = "haar"
    channels: int = Field(128, ge=1)
    channels_mult: tuple[int, ...] = Field((2, 4, 4), description="width of each level / channels")
    decoder_channels_mult: tuple[int, ...] | None = Field(
        None, description="the decoder's, where they are not the encoder's"
    )
    num_res_blocks: int = Field(2, ge=1, description="per level; the decoder has one more")
    attention_resolutions: tuple[int, ...] = Field(
        (32,), description="nominal sides, out of `resolution`, of levels that have attention"
    )
    resolution: int = Field(1024, description="the nominal side that attention_resolutions mean")
    z_channels: int = Field(16, description="width between network and bottleneck")
    latent_channels: int = Field(16, description="channels of a latent; len(levels) if discrete")
    levels: tuple[int, ...] = Field((), description="FSQ levels per channel; () if continuous")
    norm_groups: int = Field(1, description="groups of every norm: 1 in video networks")
    legacy_upsample: bool = Field(False, description="upsample one level earlier (old releases)")
    latent_mean: Statistics | None = Field(None, description="per channel and latent frame")
    latent_std: Statistics | None = None

    def identity(self) -> str:
        """Return what a fingerprint hashes: the settings that are not at their defaults, as JSON.

        So a setting that a later version adds leaves the fingerprints of older models alone.
        """
        return json.dumps(self.model_dump(mode="json", exclude_defaults=True), sort_keys=True)

    @property
    def compression(self) -> tuple[int, int, int]:
        """Frames, rows and columns of video per cell of the latent."""
        return self.temporal_compression, self.spatial_compression, self.spatial_compression

    @property
    def vocab_size(self) -> int:
        """The number of tokens of a discrete tokenizer."""
        return prod(self.levels)

    @property
    def decoder_mult(self) -> tuple[int, ...]:
        return self.decoder_channels_mult or self.channels_mult

    @property
    def space_halvings(self) -> int:
        """Halvings of height and width that are left after the wavelet."""
        return (self.spatial_compression // self.patch_size).bit_length() - 1

    @property
    def time_halvings(self) -> int:
        if self.network == "image":
            return 0
        return (self.temporal_compression // self.patch_size).bit_length() - 1

    @property
    def downsampling(self) -> tuple[tuple[bool, bool], ...]:
        """For each level of the encoder: does it end by halving (space, time)?"""
        count = len(self.channels_mult)
        inner = range(count if self.network == "image" else count - 1)
        return tuple(
            (i in inner and i < self.space_halvings, i in inner and i < self.time_halvings)
            for i in range(count)
        )

    @property
    def upsampling(self) -> tuple[tuple[bool, bool], ...]:
        """For each level of the decoder, in order of execution: does it double (space, time)?

        At 8x8x8 this is not the encoder's mirror image: the published decoders double later.
        """
        space, time, count = self.space_halvings, self.time_halvings, len(self.decoder_mult)
        if self.network == "image":
            return tuple((r < space, False) for r in range(count))
        flags = []
        for r in range(count - 1):
            doubles_time = r < time if self.legacy_upsample else 0 < r < time + 1
            flags.append((doubles_time or (r < space and space > time), doubles_time))
        return (*flags, (False, False))

    @model_validator(mode="after")
    def _fits_together(self) -> "TokenizerConfig":
        for what, factor in (("spatial", self.spatial_compression), *self._time_factor()):
            quotient, rest = divmod(factor, self.patch_size)
            if rest or not quotient or quotient & (quotient - 1):
                raise ValueError(
                    f"{what} compression {factor} is not patch_size {self.patch_size} times 2^n"
                )
        if (self.kind == "discrete") != bool(self.levels):
            raise ValueError(f"levels are {self.levels}: a discrete tokenizer has some, no other")
        if self.levels and (min(self.levels) < 2 or len(self.levels) != self.latent_channels):
            raise ValueError(
                f"levels {self.levels}: each >= 2, one for each of {self.latent_channels} channels"
            )
        self._reaches_its_compression()
        self._has_matching_statistics()
        return self

    def _time_factor(self) -> tuple[tuple[str, int], ...]:
        if self.network == "video":
            return (("temporal", self.temporal_compression),)
        if self.temporal_compression != 1:
            raise ValueError("an image network has temporal_compression 1")
        return ()

    def _reaches_its_compression(self) -> None:
        """Refuse level counts for which the published formula resamples too little."""
        for what, flags in (("encoder", self.downsampling), ("decoder", self.upsampling)):
            done = tuple(sum(flag[axis] for flag in flags) for axis in (0, 1))
            wanted = (self.space_halvings, self.time_halvings)
            if done != wanted:
                raise ValueError(
                    f"the {what} would halve (space, time) {done} times, not {wanted}: "
                    f"compression {self.compression} needs another number of levels"
                )

    def _has_matching_statistics(self) -> None:
        if (self.latent_mean is None) != (self.latent_std is None):
            raise ValueError("give latent_mean and latent_std, or neither")
        for rows in (self.latent_mean, self.latent_std):
            if rows is not None and len({len(row) for row in rows}) != 1:
                raise ValueError("latent statistics are one row per channel, all of one length")
            if rows is not None and len(rows) != self.latent_channels:
                raise ValueError(
                    f"latent statistics of {len(rows)} channels; there are {self.latent_channels}"
                )


def _published(name: str, **changes: object) -> tuple[str, TokenizerConfig]:
    """Read kind, network and compression from a name such as ``...-DV8x16x16-720p``."""
    code = next(part for part in name.split("-") if part[:2] in ("CI", "CV", "DI", "DV"))
    sizes = [int(size) for size in code[2:].split("x")]
    image, discrete = code[1] == "I", code[0] == "D"
    settings: dict[str, object] = {
        "name": name,
        "kind": "discrete" if discrete else "continuous",
        "network": "image" if image else "video",
        "temporal_compression": 1 if image else sizes[0],
        "spatial_compression": sizes[-1],
        "norm_groups": 32 if image else 1,
    }
    if discrete:
        settings |= {"levels": (8, 8, 8, 5, 5, 5), "latent_channels": 6}
        settings |= {"z_channels": 256 if image else 16}
    return name, TokenizerConfig.model_validate(settings | changes)


PRESETS: dict[str, TokenizerConfig] = dict(
    [
        *(
            _published(f"Cosmos-0.1-Tokenizer-{code}")
            for code in ("CI8x8", "CI16x16", "DI8x8", "DI16x16")
        ),
        # The released file has a decoder of two levels, not of the encoder's three.
        _published("Cosmos-0.1-Tokenizer-CV4x8x8", decoder_channels_mult=(2, 4)),
        *(
            _published(f"Cosmos-0.1-Tokenizer-{code}")
            for code in ("CV8x8x8", "CV8x16x16", "DV4x8x8", "DV8x8x8", "DV8x16x16")
        ),
        _published("Cosmos-1.0-Tokenizer-CV8x8x8"),
        _published("Cosmos-1.0-Tokenizer-DV8x16x16"),
        _published("Cosmos-Tokenize1-CV8x8x8-720p"),  # the same weights as the two above
        _published("Cosmos-Tokenize1-DV8x16x16-720p"),
        *(
            _published(f"Cosmos-Tokenize1-{code}-360p", patch_size=2)
            for code in ("CI8x8", "CI16x16", "DI8x8", "CV4x8x8")
        ),
        # Trained with one group; the file does not show it.
        _published("Cosmos-Tokenize1-DI16x16-360p", patch_size=2, norm_groups=1),
        _published("Cosmos-Tokenize1-DV4x8x8-360p", patch_size=2, z_channels=256),
        (
            "pico-cv4x8x8",
            TokenizerConfig(
                name="pico-cv4x8x8",
                temporal_compression=4,
                channels=32,
                channels_mult=(2, 4),
                num_res_blocks=1,
            ),
        ),
        (
            "pico-dv8x16x16",
            TokenizerConfig(
                name="pico-dv8x16x16",
                kind="discrete",
                spatial_compression=16,
                channels=32,
                channels_mult=(2, 4, 4),
                num_res_blocks=1,
                z_channels=64,
                latent_channels=4,
                levels=(8, 5, 5, 5),
            ),
        ),
    ]
)
