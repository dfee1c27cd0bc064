"""Ten-line stand-ins for what other packages provide, through the same contracts."""

from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from pydantic import BaseModel
from safetensors.torch import load_file
from torch import nn

SIZE = 32


def square_video(action, start=(16.0, 16.0)):
    """Draw a red square that each action moves by (x, y) pixels; its frames and its mask."""
    places = torch.cat([torch.zeros(1, 2), action[:, :2].cumsum(0)]) + torch.as_tensor(start)
    masks = torch.stack([square_mask(place) for place in places])
    grey = torch.full((3, SIZE, SIZE), 90)
    red = torch.tensor([220, 30, 30])[:, None, None]
    frames = torch.where(masks[:, None] > 0, red, grey)
    return frames.byte(), masks


def square_mask(place):
    x, y = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="xy")
    return (((x - place[0]).abs() < 4) & ((y - place[1]).abs() < 4)).byte()


class SquareWorld:
    """A world whose truth is known: actions move a square, and it keeps its place otherwise."""

    past_frames = 1

    def __init__(self, noise=0.0, gain=1.0):
        self.noise, self.gain, self.calls = noise, gain, 0

    def rollout(self, past, /, *, frames, controls=None, prompts=None, generator=None):
        self.calls += 1
        red = (past[:, 0, -1] - past[:, 1, -1]) > 0.5
        axis = torch.arange(SIZE) + 0.5
        mass = red.sum((1, 2)).clamp_min(1)
        x = (red * axis).sum((1, 2)) / mass
        y = (red * axis[:, None]).sum((1, 2)) / mass
        place = torch.stack([x, y], -1)
        moves = torch.zeros(len(past), frames, 2) if controls is None else controls["action"]
        videos = [
            square_video(self.gain * move, start=at)[0][1:]
            for move, at in zip(moves, place, strict=True)
        ]
        video = rearrange(torch.stack(videos), "b t c h w -> b c t h w") / 127.5 - 1
        return video + self.noise * torch.randn(video.shape, generator=generator)


class PatchCodec:
    """Latents are 8x8 patches of grey-scale pixels: exact enough to train on."""

    latent_channels, compression, fingerprint = 4, (1, 8, 8), "fake-codec"

    def encode(self, video, /):
        b = len(video)
        small = F.avg_pool2d(rearrange(video, "b c t h w -> (b t) c h w"), 8)
        latent = torch.cat([small, small.mean(1, keepdim=True)], 1)
        return rearrange(latent, "(b t) c h w -> b c t h w", b=b)

    def decode(self, latent, /):
        return repeat(latent[:, :3], "b c t h w -> b c t (h i) (w j)", i=8, j=8)


class TokenCodec:
    """A token is one of sixteen levels of a patch's redness."""

    vocab_size, compression, fingerprint = 16, (1, 8, 8), "fake-tokens"

    def encode(self, video, /):
        latent = PatchCodec().encode(video)
        level = (latent[:, 0] - latent[:, 1] + 0.5) / 2 * 15
        return level.round().clamp(0, 15).long()

    def decode(self, tokens, /):
        red = tokens / 15 * 2 - 0.5
        video = torch.stack([red / 2, -red / 2, -red / 2], 1)
        return repeat(video, "b c t h w -> b c t (h i) (w j)", i=8, j=8)


class Sizes(BaseModel):
    width: int = 12
    context_dim: int = 8


class SmallDenoiser(nn.Module):
    """A Denoiser with a port for actions; latents are mixed over time and channels."""

    sigma_data, width = 0.5, 12

    def __init__(self):
        super().__init__()
        self.config = Sizes()
        self.blocks = nn.ModuleList()
        self.inner = nn.Conv3d(5, 12, (3, 3, 3), padding=(2, 1, 1))
        self.outer = nn.Conv3d(12, 4, 1)
        self.shared = nn.Linear(36, 12, bias=False)

    def denoise(self, noisy, sigma, condition, /):
        if unknown := set(condition) - {"given", "fps", "adaln", "adaln_shared"}:
            raise KeyError(unknown)
        s = sigma.view(-1, 1, 1, 1, 1)
        given = condition["given"]
        scaled = torch.where(given > 0, noisy * 2, noisy * (s**2 + 0.25).rsqrt())
        x = self.inner(torch.cat([scaled, given], 1))[:, :, : noisy.shape[2]].contiguous()
        if "adaln" in condition:
            shift = condition["adaln"] + self.shared(condition["adaln_shared"])
            x = x * (1 + rearrange(shift, "b d -> b d 1 1 1"))
        out = self.outer(F.gelu(x)) * s * 0.5 * (s**2 + 0.25).rsqrt()
        return torch.where(given > 0, noisy, noisy * 0.25 / (s**2 + 0.25) + out)

    def log_variance(self, sigma, /):
        return torch.zeros_like(sigma)

    def extend_input(self, channels, /): ...

    def control_branch(self, layers, /):
        return self

    def features(self, noisy, sigma, condition, layers, /):
        return []


class SmallTokenModel(nn.Module):
    """Scores tokens from the token one frame before and the context."""

    vocab_size, max_tokens = 16, 0

    def __init__(self):
        super().__init__()
        self.config = Sizes()
        self.embed = nn.Embedding(16, 16)
        self.context = nn.Linear(8, 16)
        self.head = nn.Linear(16, 16)

    def logits(self, tokens, condition, /, *, grid=None):
        x = self.embed(tokens)
        if grid:
            h, w = grid[1:]
            x = x + F.pad(x, (0, 0, h * w - 1, 0))[:, : x.shape[1]]
        return self.head(F.gelu(x + self.context(condition["text"].mean(1, keepdim=True))))

    def generate(self, tokens, n, condition, /, *, grid=None, generator=None):
        for _ in range(n):
            new = self.logits(tokens, condition, grid=grid)[:, -1].argmax(-1, keepdim=True)
            tokens = torch.cat([tokens, new], 1)
        return tokens[:, -n:]


class NextFrameWorld:
    """What a base package makes of the parts: one frame after another, fed back."""

    def __init__(self, net, *, codec, condition_encoder):
        self.net, self.codec, self.encoder = net, codec, condition_encoder
        self.past_frames = 2

    @torch.no_grad()
    def rollout(self, past, /, *, frames, controls=None, prompts=None, generator=None):
        new = []
        for i in range(frames):
            assert controls is not None
            step = {"action": controls["action"][:, i : i + 1]}
            new.append(self._next(past[:, :, -2:], self.encoder.encode(step), generator))
            past = torch.cat([past, new[-1]], 2)
        return torch.cat(new, 2)

    def _next(self, past, condition, generator):
        b = len(past)
        codes = self.codec.encode(rearrange(past, "b c t h w -> (b t) c 1 h w"))
        if isinstance(self.net, SmallTokenModel):
            grid = (3, *codes.shape[2:])
            tokens = rearrange(codes, "(b t) 1 h w -> b (t h w)", b=b)
            n = grid[1] * grid[2]
            new = self.net.generate(tokens, n, condition, grid=grid, generator=generator)
            return self.codec.decode(rearrange(new, "b (h w) -> b 1 h w", h=grid[1]))
        z = rearrange(codes, "(b t) c 1 h w -> b c t h w", b=b) * 0.5
        given = F.pad(torch.ones_like(z[:, :1]), (0, 0, 0, 0, 0, 1))
        noise = torch.randn(z[:, :, :1].shape, generator=generator) * 80
        x = torch.cat([z, noise], 2)
        x = self.net.denoise(x, torch.full((b,), 80.0), {**condition, "given": given})
        return self.codec.decode(x[:, :, -1:] / 0.5)


def load_denoiser(folder=None):
    return _loaded(SmallDenoiser, folder)


def load_token_model(folder=None):
    return _loaded(SmallTokenModel, folder)


def _loaded(kind, folder):
    torch.manual_seed(0)
    net = kind()
    if folder and folder != "new":
        weights = load_file(Path(folder) / "model.safetensors")
        net.load_state_dict({name: w.float() for name, w in weights.items()})
    return net
