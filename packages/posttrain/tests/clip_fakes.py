"""A small transformer with every port of the contracts, a codec in time, and clips that move."""

import math
from pathlib import Path

import torch
import torch.distributed as dist
from einops import rearrange
from fakes import PatchCodec, load_token_model
from pydantic import BaseModel
from safetensors.torch import load_file
from torch import nn

KNOWN = {"given", "fps", "text", "channels", "adaln", "adaln_shared", "view"}


class Settings(BaseModel):
    width: int = 16
    depth: int = 4
    extra_channels: int = 0
    patch: tuple[int, int, int] = (1, 2, 2)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        # No biases: a key's has no gradient but rounding, which Adam would make steps of.
        self.attention = nn.Linear(width, 3 * width, bias=False)
        self.text = nn.Linear(6, 2 * width, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x, shift, text, views, whole):
        q, k, v = self.attention(x).chunk(3, -1)
        k, v = whole(k), whole(v)
        x = x + 0.3 * nn.functional.scaled_dot_product_attention(q, k, v)
        y, words = (rearrange(z, "b (v n) d -> (b v) n d", v=views) for z in (x, text))
        k, v = self.text(words).chunk(2, -1)
        y = nn.functional.scaled_dot_product_attention(y, k, v)
        x = x + 0.3 * rearrange(y, "(b v) n d -> b (v n) d", v=views)
        return x + 0.3 * self.mlp(x + shift)


class Whole(torch.autograd.Function):
    """All processes' tokens; each takes its own part of the sum of the gradients."""

    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        parts = [torch.empty_like(x) for _ in range(group.size())]
        dist.all_gather(parts, x, group)
        return torch.cat(parts, 1)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad, group=ctx.group)
        return grad.chunk(ctx.group.size(), 1)[ctx.group.rank()], None


class TinyTransformer(nn.Module):
    """Satisfies TrainableDenoiser; cameras are told apart by the condition only."""

    sigma_data, group = 0.5, None

    def __init__(self, config=None):
        super().__init__()
        self.config = config or Settings()
        d = self.config.width
        self.embed, self.out = nn.Linear(5 * 4, d), nn.Linear(d, 4 * 4)
        self.shared = nn.Linear(3 * d, d, bias=False)
        self.blocks = nn.ModuleList(Block(d) for _ in range(self.config.depth))
        self.position = nn.Parameter(torch.randn(64, d))
        if self.config.extra_channels:
            self.extra = nn.Linear(self.config.extra_channels * 4, d, bias=False)

    @property
    def width(self):
        return self.config.width

    def denoise(self, noisy, sigma, condition, /):
        if unknown := set(condition) - KNOWN:
            raise KeyError(unknown)
        s = sigma.view(-1, 1, 1, 1, 1)
        b, _, t, h, w = noisy.shape
        given = condition.get("given", torch.zeros_like(noisy[:, :1]))
        views = condition["view"].shape[1] if "view" in condition else 1
        into = torch.where(given > 0, torch.full_like(s, 2.0), (s**2 + 0.25).rsqrt())
        x = self.embed(patches(torch.cat([noisy * into, given], 1)))
        if "channels" in condition:
            assert condition["channels"].shape[2:] == noisy.shape[2:]
            x = x + self.extra(patches(condition["channels"]))
        n = t // views * (h // 2) * (w // 2)
        x = x + self.position[:n].repeat(views, 1)
        shift = (0.25 * s.log()).view(b, 1, 1).expand(b, 1, self.width)
        for key, layer in (("adaln", nn.Identity()), ("adaln_shared", self.shared)):
            if key in condition:
                new = layer(condition[key])
                shift = shift + (new if new.dim() == 3 else new[:, None])
        text = condition.get("text", noisy.new_zeros(b, views, 6))
        shift = shift.repeat_interleave(x.shape[1] // shift.shape[1], 1)
        if self.group is not None:
            x, shift = (y.chunk(self.group.size(), 1)[self.group.rank()] for y in (x, shift))
        for block in self.blocks:
            x = block(x, shift, text, views, self.whole)
        x = self.whole(x)
        out = rearrange(
            self.out(x), "b (t h w) (c i j) -> b c t (h i) (w j)", t=t, h=h // 2, i=2, j=2
        )
        clean = noisy * 0.25 / (s**2 + 0.25) + out * s * 0.5 * (s**2 + 0.25).rsqrt()
        return torch.where(given > 0, noisy, clean)

    def over_processes(self, group=None):
        self.group = group or dist.group.WORLD

    def whole(self, x):
        """Put all processes' tokens together; gradients add up."""
        if self.group is None:
            return x
        return Whole.apply(x.contiguous(), self.group)

    def log_variance(self, sigma, /):
        return torch.zeros_like(sigma)

    def extend_input(self, channels, /):
        self.config = self.config.model_copy(update={"extra_channels": channels})
        self.extra = nn.Linear(channels * 4, self.width, bias=False)
        nn.init.zeros_(self.extra.weight)

    def control_branch(self, layers, /):
        return self

    def features(self, noisy, sigma, condition, layers, /):
        return []


def patches(x):
    return rearrange(x, "b c t (h i) (w j) -> b (t h w) (c i j)", i=2, j=2)


class GroupCodec(PatchCodec):
    """Latents of the first frame and of every fourth after it."""

    compression, fingerprint = (4, 8, 8), "group-codec"

    def encode(self, video, /):
        return super().encode(video[:, :, ::4])

    def decode(self, latent, /):
        latent = torch.cat([latent[:, :, :1], latent[:, :, 1:].repeat_interleave(4, 2)], 2)
        return super().decode(latent)


class LetterEncoder:
    """Embeds a prompt by its letters."""

    dim = 6

    def encode(self, prompts, /):
        rows = []
        for prompt in prompts:
            codes = torch.tensor([ord(c) for c in prompt.ljust(4)[:4]], dtype=torch.float32)
            rows.append(torch.stack([(codes * k / 7).sin() for k in range(1, 7)], -1))
        return torch.stack(rows), torch.ones(len(prompts), 4, dtype=torch.bool)


class Clip:
    """A clip in memory."""

    def __init__(self, frames, caption="", fps=5.0, labels=None, attributes=None):
        self.frames, self.caption, self.fps = frames, caption, fps
        self.arrays, self.attributes = labels or {}, attributes or {}

    def __len__(self):
        return len(self.frames)

    def read(self, start, stop, /):
        return self.frames[start:stop]

    def labels(self):
        return self.arrays


WIDTHS = {None: 16, "": 16, "new": 16, "wide": 64}


def load_transformer(folder=None):
    torch.manual_seed(0)
    if folder in WIDTHS:
        return TinyTransformer(Settings(width=WIDTHS[folder]))
    config = Settings.model_validate_json((Path(folder) / "config.json").read_text())
    net = TinyTransformer(config)
    weights = load_file(Path(folder) / "model.safetensors")
    net.load_state_dict({name: w.float() for name, w in weights.items()})
    return net


def load_text_token_model(folder=None):
    net = load_token_model("new")
    net.context = nn.Linear(6, 16)
    if folder and folder != "new":
        weights = load_file(Path(folder) / "model.safetensors")
        net.load_state_dict({name: w.float() for name, w in weights.items()})
    return net


WAYS = {"left": (-1, 0), "right": (1, 0), "up  ": (0, -1), "down": (0, 1)}


def pose(angle, x):
    """Return a camera at (x, 0, 0) that is turned about its vertical axis."""
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, 0, s, x], [0, 1, 0, 0], [-s, 0, c, 0], [0, 0, 0, 1.0]])


SIDE = 16
"""Of the square, in pixels: so large that where it goes is most of what changes."""


def moving_square(i, frames=9, size=32, views=("only",)):
    """Return one clip per camera: a square that goes where caption, path and actions say."""
    way = list(WAYS)[i % 4]
    dx, dy = WAYS[way]
    speed = 1 + (i // 4) % 2
    clips = []
    for k, camera in enumerate(views):
        video = torch.full((frames, 3, size, size), 20, dtype=torch.uint8)
        marks = torch.zeros(frames, size, size, dtype=torch.uint8)
        for t in range(frames):
            x, y = ((size - SIDE) // 2 + d * speed * t for d in (dx, dy))
            here = t, slice(max(y, 0), y + SIDE), slice(max(x, 0), x + SIDE)
            video[:, k % 3][here], video[:, (k + 1) % 3][here] = 250, 120
            marks[here] = 1
        path = torch.stack(
            [pose(0.05 * speed * dx * t, 0.1 * speed * dy * t) for t in range(frames)]
        )
        labels = {
            "action": torch.tensor([[dx * speed, dy * speed, 0.0]]).repeat(frames - 1, 1),
            "camera_pose": path,
            "intrinsics": torch.tensor([[30.0, 0, 16], [0, 30, 16], [0, 0, 1]]).repeat(
                frames, 1, 1
            ),
            "segmentation": marks,
            "depth": (5.0 - marks.float() * 3).half(),
            "trajectory": torch.arange(64.0)[:, None] * torch.tensor([1.0, dy * 0.1, 0]) * speed,
        }
        attributes = {"group": f"moment-{i}", "camera": camera, "views": list(views)}
        clips.append(Clip(video, way, 5.0, labels, attributes))
    return clips


class Moments:
    """A ClipDataset of moving squares; the argument names the cameras, if several."""

    def __init__(self, argument="", count=16):
        views = tuple(argument.split(",")) if argument else ("only",)
        self.clips = [clip for i in range(count) for clip in moving_square(i, views=views)]

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, index, /):
        return self.clips[index]


class EightByHeart(Moments):
    """Eight moving squares, as far as the codec can show them."""

    def __init__(self, argument=""):
        super().__init__(argument, count=8)
        codec = GroupCodec()
        for clip in self.clips:
            video = rearrange(clip.frames.float() / 127.5 - 1, "t c h w -> 1 c t h w")
            shown = (codec.decode(codec.encode(video)) + 1) * 127.5
            clip.frames = rearrange(shown.round().byte(), "1 c t h w -> t c h w")
