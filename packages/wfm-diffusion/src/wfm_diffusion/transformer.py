"""The diffusion transformer of Cosmos 1.0 (arXiv 2501.03575, section 5.1), and its denoiser."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .config import DiffusionConfig, WorldSettings
from .edm import Scalings, noise_label, scalings
from .layers import (
    Block,
    Context,
    FinalLayer,
    TimeEmbedding,
    Uncertainty,
    add_ports,
    each_branch,
    token_planes,
)
from .parallel import ContextParallel
from .position import Grid, LearnedPosition, rope_angles, sincos_embedding, tile_views
from .steady import Steady, Words, collapsed, plain, uniform

PORTS = ("channels", "adaln", "adaln_shared", "view")
CONDITIONS = ("text", "text_mask", "fps", "given", "given_sigma", "tokens", "frame_repeat", *PORTS)

Residual = Callable[[int, Tensor, Context], Tensor]


class DiffusionTransformer(nn.Module):
    """Noisy latents, a noise level and text -> what preconditioning turns into a denoiser.

    ``world`` is the ``world.json`` that was loaded with the weights, if there was one. With
    ``recompute`` training keeps one activation a block and computes the rest again.
    """

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        self.config = config
        self.world: WorldSettings | None = None
        self.parallel: ContextParallel | None = None
        self.recompute = False
        (pt, ph, pw), width = config.patch, config.width
        self.embed = nn.Linear(config.in_channels * pt * ph * pw, width, bias=False)
        self.time = TimeEmbedding(width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final = FinalLayer(config)
        self._initialise()
        if config.position == "learnable":
            t, h, w = config.max_size
            self.position = LearnedPosition((t // pt, h // ph, w // pw), width)
        if config.views:
            self.view_embedding = nn.Embedding(config.views, config.view_channels)
        if config.frame_repeat:
            self.repeat_embedding = nn.Linear(1, config.view_channels)
        if config.uncertainty:
            self.uncertainty = Uncertainty(config.uncertainty)
        if config.token_vocab:
            self.token_embedding = nn.Embedding(config.token_vocab, config.token_channels)
        if config.extra_channels:
            self._add_extra_embed(config.extra_channels)

    def _initialise(self) -> None:
        """Xavier everywhere; blocks start without AdaLN-LoRA, so close to the identity."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        for linear in (self.time.linear_1, self.time.linear_2):
            nn.init.normal_(linear.weight, std=0.02)
        for name, weight in self.blocks.named_parameters():
            if name.endswith("modulation.up.weight"):
                nn.init.zeros_(weight)

    @property
    def sigma_data(self) -> float:
        return self.config.sigma_data

    @property
    def width(self) -> int:
        return self.config.width

    @property
    def fps(self) -> float:
        """The frame rate to assume when a condition says none: that of the training."""
        return self.world.fps if self.world is not None else self.config.base_fps

    def forward(  # noqa: PLR0913  the documented call of the raw network
        self,
        x: Float[Tensor, "b c t h w"],
        timestep: Float[Tensor, " b"],
        text: Float[Tensor, "b n d"],
        *,
        fps: float | Tensor | None = 24.0,
        condition_mask: Tensor | None = None,
        padding_mask: Tensor | None = None,
        views: int = 1,
        frame_repeat: Tensor | None = None,
        tokens: Tensor | None = None,
        ports: Mapping[str, Tensor] | None = None,
        residual: Residual | None = None,
    ) -> Float[Tensor, "b c t h w"]:
        """Return F of ``D(x) = c_skip x + c_out F(c_in x)``.

        ``timestep`` is ``ln(sigma) / 4``; ``fps`` None means an image. ``condition_mask``
        (b 1 t h w) is 1 on given frames, ``padding_mask`` (1 1 H W, pixels or latents) on
        padding; None is zeros. With several ``views`` time and text are camera-major, and
        ``frame_repeat`` (b v) says how often each camera's frame is repeated, in tens.
        ``tokens`` (b tl hl wl) are those that a decoder network turns into latents.
        ``ports`` are the condition keys of fine-tuned networks; ``residual`` gives what to add
        after each block.
        """
        ports = ports or {}
        x = self._add_channels(x, condition_mask, padding_mask, tokens)
        if self.config.views:
            x = self._add_views(x, views, ports.get("view"), frame_repeat)
        words, steady = plain(text.to(self.embed.weight.dtype), views), Steady()
        return self._answer(x, timestep, words, fps, views, ports, residual, steady)

    def _answer(
        self,
        x: Float[Tensor, "b _ t h w"],
        timestep: Float[Tensor, " _"],
        words: Words,
        fps: float | Tensor | None,
        views: int,
        ports: Mapping[str, Tensor],
        residual: Residual | None,
        steady: Steady,
    ) -> Float[Tensor, "_ c t h w"]:
        """Return F for every branch: the texts may be several times as many as the samples."""
        (_, _, t, h, w), (pt, ph, pw) = x.shape, self.config.patch
        grid = (t // pt, h // ph, w // pw)
        tokens = self.embed(self.patchify(x))
        if "channels" in ports:
            tokens = tokens + self._extra(ports["channels"], tokens)
        branches = len(words.slots) // views // len(tokens)
        one_view = (grid[0] // views, grid[1], grid[2])
        cos, sin, position = steady.once(
            "positions",
            (one_view, fps, views, tokens.dtype, tokens.device),
            lambda: self._positions(one_view, fps, views, tokens),
        )
        time, shared = add_ports(self.time(timestep.to(tokens.dtype)), ports)
        rows = (each_branch(y, branches) for y in (time, shared, cos, sin))
        time, shared, cos, sin = rows
        parallel = self.parallel
        if parallel is not None:
            tokens, cos, sin = map(parallel.share, (tokens, cos, sin))
            position = None if position is None else parallel.share(position)
        context = Context(time, shared, words, cos, sin, position, views, branches, parallel)
        for state in self._states(tokens, context, residual):
            tokens = state
        out = self.final(tokens, context)
        return self._unpatchify(out if parallel is None else parallel.whole(out), grid)

    def _states(
        self, tokens: Tensor, context: Context, residual: Residual | None
    ) -> Iterator[Tensor]:
        """Yield the tokens after each block."""
        for i, block in enumerate(self.blocks):
            if self.recompute and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, context, use_reentrant=False)
            else:
                tokens = block(tokens, context)
            if residual is not None:
                tokens = tokens + residual(i, tokens, context)
            yield tokens

    def _add_channels(
        self,
        x: Tensor,
        condition_mask: Tensor | None,
        padding: Tensor | None,
        tokens: Tensor | None,
    ) -> Tensor:
        b, _, t, h, w = x.shape
        parts = [x]
        if self.config.token_vocab:
            parts.append(token_planes(self.token_embedding, tokens, x))
        elif tokens is not None:
            raise ValueError("this network takes no tokens: its config has no token_vocab")
        if self.config.condition_mask:
            mask = x.new_zeros(1) if condition_mask is None else condition_mask.to(x.dtype)
            parts.append(mask.expand(b, 1, t, h, w))
        elif condition_mask is not None:
            raise ValueError("this network takes no given frames: its config has no condition_mask")
        if self.config.padding_mask:
            if padding is None:
                mask = x.new_zeros(1)
            else:
                mask = F.interpolate(padding.to(x.dtype), size=(h, w), mode="nearest")[:, :, None]
            parts.append(mask.expand(b, 1, t, h, w))
        return torch.cat(parts, dim=1)

    def _add_views(
        self, x: Tensor, views: int, ids: Tensor | None, frame_repeat: Tensor | None
    ) -> Tensor:
        b, _, t, h, w = x.shape
        if ids is None:
            ids = repeat(torch.arange(views, device=x.device), "v -> b v", b=b)
        embedding = self.view_embedding(ids)
        if self.config.frame_repeat:
            if frame_repeat is None:
                frame_repeat = x.new_zeros(b, views)
            embedding = embedding + self.repeat_embedding(frame_repeat[..., None].to(x.dtype))
        planes = repeat(embedding, "b v c -> b c (v t) h w", t=t // views, h=h, w=w)
        return torch.cat([x, planes.to(x.dtype)], dim=1)

    def patchify(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b n p"]:
        pt, ph, pw = self.config.patch
        pattern = "b c (t r) (h m) (w n) -> b (t h w) (c r m n)"
        return rearrange(x, pattern, r=pt, m=ph, n=pw)

    def _unpatchify(self, x: Float[Tensor, "b n p"], grid: Grid) -> Float[Tensor, "b c t h w"]:
        (t, h, w), (pt, ph, pw) = grid, self.config.patch
        pattern = "b (t h w) (m n r c) -> b c (t r) (h m) (w n)"
        return rearrange(x, pattern, t=t, h=h, w=w, m=ph, n=pw, r=pt)

    def _extra(self, channels: Tensor, tokens: Tensor) -> Tensor:
        if not self.config.extra_channels:
            raise ValueError("condition 'channels' needs net.extend_input(k) first")
        return self.extra_embed(self.patchify(channels.to(tokens.dtype)))

    def _positions(
        self, grid: Grid, fps: float | Tensor | None, views: int, tokens: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the cosines and sines of the rotary angles, and what is added in each block."""
        config = self.config
        angles = rope_angles(grid, config.head_dim, config.rope_scale, fps, config.base_fps)
        angles = tile_views(angles.to(tokens.device), views)[:, :, None]
        position = None
        if config.position == "learnable":
            position = self.position(grid)
        elif config.position == "sincos":
            position = sincos_embedding(grid, config.width).to(tokens.device)
        if position is not None:
            position = tile_views(position[None], views).to(tokens.dtype)
        return angles.cos(), angles.sin(), position

    def denoise(
        self,
        noisy: Float[Tensor, "b c t h w"],
        sigma: Float[Tensor, " b"],
        condition: Mapping[str, Tensor],
        /,
        *,
        residual: Residual | None = None,
    ) -> Float[Tensor, "b c t h w"]:
        """Return the best guess of the clean latents: EDM's D(x; sigma).

        Condition keys: ``text`` (none: an empty one); ``fps`` (none: that of the training);
        ``given`` with ``given_sigma`` (b; the noise in the given frames, default 0): there
        ``noisy`` is at that noise level and comes back as it is; ``view`` (b v; text then holds
        the cameras' one after another) and ``frame_repeat`` (b v); ``tokens`` (of a decoder);
        ``channels``, ``adaln``, ``adaln_shared``.
        ``text_mask`` is accepted and unused: padding is attended, as in the original.

        Raises:
            KeyError: an unknown condition key.
        """
        text = self._text(noisy, condition)
        words = plain(text.to(self.embed.weight.dtype), self._views(condition))
        return self._denoise(noisy, sigma, condition, words, residual, Steady())

    def denoise_branches(
        self,
        noisy: Float[Tensor, "b c t h w"],
        sigma: Float[Tensor, "1"],
        condition: Mapping[str, Tensor],
        steady: Steady,
        /,
    ) -> Float[Tensor, "_ c t h w"]:
        """Denoise at one noise level, for inference: the same answer as ``denoise``, sooner.

        ``condition["text"]`` may hold k texts for every sample, branch after branch; the answer
        then has k b rows. What ``steady`` remembers of the text and of the positions serves all
        calls that are given the same tensors.
        """
        text = steady.once(
            "given text", (len(noisy), condition.get("text")), lambda: self._text(noisy, condition)
        )
        views, dtype = self._views(condition), self.embed.weight.dtype
        words = steady.once("text", (text, dtype), lambda: collapsed(text.to(dtype), views))
        if "fps" in condition:
            fps = condition["fps"]
            rate = steady.once("fps", (fps,), lambda: uniform(fps))
            condition = {**condition, "fps": rate}
        return self._denoise(noisy, sigma, condition, words, None, steady)

    def _denoise(
        self,
        noisy: Tensor,
        sigma: Tensor,
        condition: Mapping[str, Tensor],
        words: Words,
        residual: Residual | None,
        steady: Steady,
    ) -> Tensor:
        if unknown := set(condition) - set(CONDITIONS):
            raise KeyError(
                f"unknown condition {sorted(unknown)}; known are {', '.join(CONDITIONS)}"
            )
        ports = {key: condition[key] for key in PORTS if key in condition}
        views, given = self._views(condition), condition.get("given")
        x, c = self._scaled_input(noisy, sigma, condition)
        x = self._add_channels(x, given, None, condition.get("tokens"))
        if self.config.views:
            x = self._add_views(x, views, ports.get("view"), condition.get("frame_repeat"))
        fps = condition.get("fps", self.fps)
        out = self._answer(x, noise_label(sigma), words, fps, views, ports, residual, steady)
        branches = len(out) // len(noisy)
        noisy, skip, scale = (each_branch(y, branches) for y in (noisy, c.skip, c.out))
        clean = torch.addcmul(skip * noisy, scale, out.to(noisy.dtype))
        if given is None:
            return clean
        return torch.where(each_branch(given, branches) > 0, noisy, clean)

    def _scaled_input(
        self, noisy: Tensor, sigma: Tensor, condition: Mapping[str, Tensor]
    ) -> tuple[Tensor, Scalings]:
        """Bring the input to unit variance, given frames by their own noise level."""
        c = scalings(sigma, self.sigma_data)
        into, given = c.into, condition.get("given")
        if given is not None:
            kept = condition.get("given_sigma", torch.zeros_like(sigma))
            into = torch.where(given > 0, scalings(kept, self.sigma_data).into, into)
        return (noisy * into).to(self.embed.weight.dtype), c

    def _text(self, noisy: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        if "text" in condition:
            return condition["text"]
        # A zero text gives zero values, so one slot is worth as much as any number of them.
        return noisy.new_zeros(len(noisy), self._views(condition), self.config.text_dim)

    def _views(self, condition: Mapping[str, Tensor]) -> int:
        return condition["view"].shape[1] if "view" in condition else 1

    def over_processes(self, group: ProcessGroup | None = None) -> "DiffusionTransformer":
        """Share the tokens of every clip among the processes of ``group``; return self.

        For one camera and one row of AdaLN for each sample: a network's answers are the same.

        Raises:
            ValueError: heads that do not divide, or several cameras.
        """
        self.parallel = ContextParallel(group).checked(self.config)
        return self

    def log_variance(self, sigma: Float[Tensor, " b"], /) -> Float[Tensor, " b"]:
        """Return u(sigma), the learned log-variance of the loss, or zeros."""
        if not self.config.uncertainty:
            return torch.zeros_like(sigma)
        return self.uncertainty(noise_label(sigma))

    def extend_input(self, channels: int, /) -> None:
        """Accept the condition ``channels``; its zero projection changes nothing at first."""
        if self.config.extra_channels:
            raise ValueError(f"the input has {self.config.extra_channels} extra channels already")
        self.config = self.config.model_copy(update={"extra_channels": channels})
        self._add_extra_embed(channels)

    def _add_extra_embed(self, channels: int) -> None:
        old, size = self.embed.weight, channels * math.prod(self.config.patch)
        self.extra_embed = nn.Linear(size, self.width, bias=False).to(old)
        nn.init.zeros_(self.extra_embed.weight)

    def features(
        self,
        noisy: Float[Tensor, "b c t h w"],
        sigma: Float[Tensor, " b"],
        condition: Mapping[str, Tensor],
        layers: Sequence[int],
        /,
    ) -> list[Tensor]:
        """Return the tokens ``b n d`` after those blocks, counted from 0."""
        seen: dict[int, Tensor] = {}

        def record(i: int, tokens: Tensor, context: Context) -> Tensor:
            seen[i] = tokens
            return tokens.new_zeros(())

        self.denoise(noisy, sigma, condition, residual=record)
        return [seen[i] for i in layers]

    def control_branch(self, layers: Sequence[int], /) -> nn.Module:
        """Return a trainable copy of those blocks that steers this network by a hint."""
        from .control import ControlBranch

        return ControlBranch(self, layers)
