"""Measure this package; every figure stands beside a plainer way in the same run.

    python benchmarks/bench.py                     # all; minutes, more on a busy machine
    python benchmarks/bench.py samplers --tokens 256 640
    python benchmarks/bench.py steps --plot steps.png
    python benchmarks/bench.py shortcuts

``samplers`` samples with the installed diffusers' CosmosTransformer3DModel and EDMEulerScheduler as
its pipeline does, and with ours on the same weights, noise and text (512 slots, 120 of them
real, guidance 7), call by call in turn. ``steps`` levels are run of each; the time of the whole
sampler of 36 levels follows from the medians. One thread, float32. Ratios travel from machine
to machine, seconds do not.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import wfm_diffusion as wd
from wfm_diffusion.edm import karras_sigmas
from wfm_diffusion.guidance import Guided
from wfm_diffusion.samplers import call

LEVELS, GUIDANCE, SLOTS, REAL = 36, 7.0, 512, 120
GRIDS = {256: (4, 16, 16), 640: (5, 16, 32), 2560: (8, 32, 40)}
FLOORS = {256: 1.3, 640: 1.15, 2560: 1.05}
Row = tuple[str, str, str]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of this thread, and the answer."""
    began = time.thread_time()
    answer = work()
    return time.thread_time() - began, answer


def their_network(depth: int, heads: int) -> Any:
    """Make diffusers' network with random weights, every one of which says something."""
    from diffusers.models.transformers import transformer_cosmos as theirs

    # Without torchvision diffusers cannot resize the padding mask; nearest is nearest.
    nearest = SimpleNamespace(
        resize=lambda mask, size, interpolation: F.interpolate(mask, size=size),
        InterpolationMode=SimpleNamespace(NEAREST="nearest"),
    )
    if not hasattr(theirs, "transforms"):
        theirs.transforms = SimpleNamespace(
            functional=nearest, InterpolationMode=nearest.InterpolationMode
        )
    torch.manual_seed(0)
    net = theirs.CosmosTransformer3DModel(num_layers=depth, num_attention_heads=heads)
    for name, weight in net.named_parameters():
        if "pos_emb" in name:
            torch.nn.init.normal_(weight, std=0.5)
        elif weight.dim() == 2:
            torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    return net.eval().requires_grad_(False)


def our_network(net: Any) -> wd.DiffusionTransformer:
    """Give the same weights to ours."""
    ours = wd.DiffusionTransformer(wd.convert.config_from_diffusers(net.config))
    ours.load_state_dict(wd.convert.from_diffusers(net.state_dict()))
    return ours.eval().requires_grad_(False)


class Theirs:
    """The loop of diffusers' CosmosTextToWorldPipeline, one noise level at a time."""

    def __init__(self, net: Any, noise: Tensor, prompt: Tensor, negative: Tensor) -> None:
        from diffusers import EDMEulerScheduler

        self.net, self.texts = net, (prompt, negative)
        self.scheduler = EDMEulerScheduler(
            sigma_min=0.002,
            sigma_max=80,
            sigma_data=0.5,
            sigma_schedule="karras",
            prediction_type="epsilon",
            final_sigmas_type="sigma_min",
        )
        self.scheduler.set_timesteps(LEVELS)
        self.latents = noise * self.scheduler.config.sigma_max
        h, w = noise.shape[-2:]
        self.padding = torch.zeros(1, 1, 8 * h, 8 * w)

    @torch.no_grad()
    def step(self, i: int) -> Tensor:
        t, scheduler = self.scheduler.timesteps[i], self.scheduler
        scaled = scheduler.scale_model_input(self.latents, t)
        timestep = t.expand(len(scaled))
        clean = []
        for text in self.texts:
            out = self.net(
                hidden_states=scaled,
                timestep=timestep,
                encoder_hidden_states=text,
                fps=24,
                padding_mask=self.padding,
                return_dict=False,
            )[0]
            clean.append(scheduler.step(out, t, self.latents, return_dict=False)[1])
            scheduler._step_index -= 1
        guided = clean[0] + GUIDANCE * (clean[0] - clean[1])
        self.latents = scheduler.step(
            guided, t, self.latents, return_dict=False, pred_original_sample=guided
        )[0]
        return self.latents


class Ours:
    """Our Euler sampler, one noise level at a time."""

    def __init__(self, net: Any, noise: Tensor, prompt: Tensor, negative: Tensor) -> None:
        rate = torch.full((len(noise),), 24.0)
        prompt, negative = ({"text": text, "fps": rate} for text in (prompt, negative))
        self.denoise = Guided(net, prompt, negative, guidance=GUIDANCE)
        self.sigmas = karras_sigmas(LEVELS)
        self.latents = noise * 80.0

    @torch.no_grad()
    def step(self, i: int) -> Tensor:
        now, then = self.sigmas[i : i + 2]
        clean = call(self.denoise, self.latents, now)
        self.latents = self.latents + (self.latents - clean) / now * (then - now)
        return self.latents


def samplers(sizes: list[int], steps: int, depth: int, heads: int) -> Iterator[Row]:
    """Compare whole guided samplers, ours with all that it remembers made anew."""
    net = their_network(depth, heads)
    ours_net = our_network(net)
    real = (torch.arange(SLOTS) < REAL)[None, :, None]
    texts = [randn(1, SLOTS, 1024, seed=seed) * real for seed in (1, 2)]
    for size in sizes:
        t, h, w = GRIDS[size]
        noise = randn(1, 16, t, h, w)
        sides = (Theirs(net, noise, *texts), Ours(ours_net, noise, *texts))
        times: tuple[list[float], list[float]] = ([], [])
        for i in range(steps):
            for side, spent in zip(sides, times, strict=True):
                spent.append(timed(lambda side=side, i=i: side.step(i))[0])
        a, b = (side.latents for side in sides)
        off = ((a - b).abs().max() / a.abs().max()).item()
        their_time = LEVELS * statistics.median(times[0])
        our_time = times[1][0] + (LEVELS - 2) * statistics.median(times[1][1:])
        what = f"whole sampler, {depth} blocks of {128 * heads}, {size} tokens"
        ratio = their_time / our_time
        yield what, f"{ratio:.2f}x as fast as diffusers", f"floor {FLOORS[size]}x"
        yield f"largest difference after {steps} steps, over the largest value", f"{off:.1e}", ""


def pico() -> Iterator[Row]:
    """Measure the built-in network's call, and what guidance adds to it."""
    net, encoder = wd.load("builtin:pico"), wd.pico_text_encoder()
    noisy, sigma = randn(1, 16, 3, 8, 8), torch.ones(1)
    prompt, none = ({"text": encoder.encode([x])[0]} for x in ("a robot arm pushes a block", ""))
    plain, guided = Guided(net, prompt), Guided(net, prompt, none, guidance=1.0)
    spent: dict[str, list[float]] = {"denoise": [], "remembering": [], "guided": []}
    with torch.no_grad():
        for _ in range(12):
            spent["denoise"].append(timed(lambda: net.denoise(noisy, sigma, prompt))[0])
            spent["remembering"].append(timed(lambda: plain(noisy, sigma))[0])
            spent["guided"].append(timed(lambda: guided(noisy, sigma))[0])
    one, kept, both = (statistics.median(x[2:]) for x in spent.values())
    yield "pico, one call of 17 frames of 64x64", f"{1 / one:.0f} calls/s", ""
    yield "the same within a sampling", f"{one / kept:.2f}x as fast", "text and tables kept"
    yield "guidance by one call over no guidance", f"{both / kept:.2f}x the time", ""


PROMPTS = (
    "a robot arm pushes the red block to the left",
    "a ball rolls down a tilted plane",
    "the camera flies through a room",
    "a car drives along a street",
)


def pico_sampling(**options: Any) -> Callable[..., Tensor]:
    """Return a function that samples four clips of 17 frames of 64x64 with the built-in model."""
    net, encoder = wd.load("builtin:pico"), wd.pico_text_encoder()
    shortcuts = wd.Shortcuts(**options)
    if shortcuts.weights:
        wd.quantise(net.blocks, shortcuts.weights)
    text = encoder.encode(PROMPTS)[0]
    rate = torch.full((len(text),), net.fps)
    condition = {"text": text, "fps": rate}
    without = {"text": torch.zeros_like(text), "fps": rate}
    noise = randn(len(text), 16, 5, 8, 8)

    def sample(steps: int, sampler: str, guidance: float = 1.0) -> Tensor:
        interval = shortcuts.guidance_interval
        guided = Guided(net, condition, without, guidance=guidance, interval=interval)
        with torch.no_grad():
            return wd.SAMPLERS[sampler](
                shortcuts.around(guided, net.sigma_data), noise, steps
            ).float()

    return sample


def relative(x: Tensor, reference: Tensor) -> float:
    return ((x - reference).square().mean() / reference.square().mean()).sqrt().item()


def steps(plot: str | None, counts: tuple[int, ...] = (4, 8, 16, 35)) -> Iterator[Row]:
    """Measure how far each sampler is from the same ODE's end, at equal network calls."""
    sample = pico_sampling()
    exact = sample(100, "res2ab")
    found: dict[str, list[tuple[int, float]]] = {name: [] for name in wd.SAMPLERS}
    for name in wd.SAMPLERS:
        extra = {"res2ab": -1, "euler": 1, "nvidia": 0}[name]
        for calls in counts:
            off = relative(sample(calls + extra, name), exact)
            found[name].append((calls, off))
            yield f"{name}, {calls} network calls", f"{off:.3f}", "error over RES-2ab's 101 calls"
    if plot is not None:
        draw(found, plot)


def draw(found: dict[str, list[tuple[int, float]]], plot: str) -> None:
    """Draw error against network calls."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    for name, points in found.items():
        plt.loglog(*zip(*points, strict=True), marker="o", label=name)
    counts = sorted({calls for points in found.values() for calls, _ in points})
    plt.xticks(counts, [str(x) for x in counts])
    plt.minorticks_off()
    plt.xlabel("network calls")
    plt.ylabel("relative error of the latents")
    plt.legend()
    plt.savefig(plot, dpi=100, bbox_inches="tight")


def shortcuts(count: int = 24) -> Iterator[Row]:
    """Measure what each inexact option saves, and how far its latents are from the exact ones."""
    named: dict[str, dict[str, Any]] = {
        "guidance only at sigma 0.3 to 10": {"guidance_interval": (0.3, 10.0)},
        "step cache 0.05": {"step_cache": 0.05},
        "step cache 0.2": {"step_cache": 0.2},
        "int8 blocks": {"weights": "int8"},
        "fp8 blocks": {"weights": "fp8"},
    }
    plain = pico_sampling()
    plain(2, "res2ab")
    for name, options in named.items():
        short = pico_sampling(**options)
        base, exact = timed(lambda: plain(count, "res2ab"))
        spent, out = timed(lambda short=short: short(count, "res2ab"))
        yield name, f"{base / spent:.2f}x the speed", f"latents off by {relative(out, exact):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("only", nargs="*", help="samplers, pico, steps, shortcuts (default: all)")
    parser.add_argument("--tokens", type=int, nargs="*", default=[256, 640, 2560], choices=GRIDS)
    parser.add_argument("--steps", type=int, default=8, help="noise levels to run of 36")
    parser.add_argument("--plot", help="draw the samplers' errors to this picture")
    parser.add_argument("--depth", type=int, default=4, help="blocks of the network")
    parser.add_argument("--heads", type=int, default=8, help="heads of 128 features")
    args = parser.parse_args()
    if args.plot and find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib, which is not installed")
    torch.set_num_threads(1)
    parts = {
        "samplers": lambda: samplers(args.tokens, args.steps, args.depth, args.heads),
        "pico": pico,
        "steps": lambda: steps(args.plot),
        "shortcuts": shortcuts,
    }
    sys.stdout.write("| what | value | beside |\n| --- | --- | --- |\n")
    for name in args.only or parts:
        for row in parts[name]():
            sys.stdout.write(f"| {' | '.join(row)} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        main()
