"""Small parts that satisfy the contracts; no package beside this one is needed."""

import json

import torch
import torch.nn.functional as F

import wfm_diffusion as wd
from wfm_diffusion.video import write_video

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}

TINY = wd.DiffusionConfig(
    latent_channels=3,
    width=24,
    depth=2,
    num_heads=2,
    text_dim=8,
    adaln_rank=4,
    max_size=(8, 8, 8),
    condition_mask=True,
    uncertainty=8,
)


class Codec:
    """Every eighth frame, eight times smaller."""

    latent_channels = 3
    compression = (8, 8, 8)

    def __init__(self, fingerprint="0123456789abcdef"):
        self.fingerprint = fingerprint

    def encode(self, video, /):
        if (video.shape[2] - 1) % 8:
            raise ValueError(f"{video.shape[2]} frames; wanted 1 + 8 k")
        return F.avg_pool3d(video[:, :, ::8], (1, 8, 8))

    def decode(self, latent, /):
        big = latent.repeat_interleave(8, 3).repeat_interleave(8, 4)
        return torch.cat([big[:, :, :1], big[:, :, 1:].repeat_interleave(8, 2)], 2)


class Text:
    """Four slots, filled from the letters of the prompt."""

    dim = 8

    def encode(self, prompts, /):
        mask = torch.zeros(len(prompts), 4, dtype=torch.bool)
        out = torch.zeros(len(prompts), 4, 8)
        for i, prompt in enumerate(prompts):
            words = prompt.split()[:4]
            mask[i, : len(words)] = True
            for j, word in enumerate(words):
                seed = sum(map(ord, word))
                out[i, j] = torch.randn(8, generator=torch.Generator().manual_seed(seed))
        return out, mask


class Actions:
    """Two numbers -> one row for each sample."""

    def encode(self, inputs, /):
        action = inputs["action"].mean(1)
        row = F.pad(action, (0, TINY.width - action.shape[1])) * 3
        return {"adaln": row, "adaln_shared": row.repeat(1, 3)}


class Answer:
    def __init__(self, safe, reason=""):
        self.safe, self.reason = safe, reason


class Guard:
    """Refuses the word "bad" and white frames; redaction blackens the first row."""

    def __init__(self):
        self.seen = []

    def check_text(self, text, /):
        self.seen.append(text)
        return Answer("bad" not in text, "a bad word")

    def check_video(self, frames, /):
        return Answer(int(frames.min()) < 255, "a white video")

    def redact(self, frames, /):
        frames = frames.clone()
        frames[:, :, 0] = 0
        return frames


def codec():
    return Codec()


def other_codec():
    return Codec("fedcba9876543210")


def text():
    return Text()


def guard():
    return Guard()


def network(config=TINY, seed=0):
    """A network whose every weight says something, unlike a freshly initialised one."""
    torch.manual_seed(seed)
    net = wd.DiffusionTransformer(config)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if name.endswith("modulation.up.weight"):
                weight.normal_(std=0.1)
    return net.eval()


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def squares(folder, count=6, frames=17):
    """Write clips of a coloured square that moves."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        name = list(COLOURS)[i % len(COLOURS)]
        video = torch.full((frames, 3, 32, 32), 60, dtype=torch.uint8)
        for t in range(frames):
            video[t, :, 8:20, t : t + 12] = torch.tensor(COLOURS[name], dtype=torch.uint8)[
                :, None, None
            ]
        write_video(folder / f"{i}.mp4", video, 10.0)
        facts = {"caption": f"a {name} square moves", "colour": name, "seed": i, "fps": 10.0}
        (folder / f"{i}.json").write_text(json.dumps(facts))
    return folder
