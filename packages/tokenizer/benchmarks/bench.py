"""Time and memory of the full-width 8x8x8 network: diffusers, the reference path, the fused mode.

    python packages/tokenizer/benchmarks/bench.py [--device cuda --dtype bfloat16 --size 720x1280]

Same weights (random), same input, one process, one after the other in turn; medians. On a CPU the
seconds are processor seconds of one thread, which a busy machine disturbs least. Extra memory
is the peak above what a fresh process held before the call. Without diffusers (dependency
group ``bench``) its rows are left out.
"""

import argparse
import ctypes
import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from wfm_tokenizer.config import PRESETS
from wfm_tokenizer.convert import from_diffusers
from wfm_tokenizer.kernels import linear
from wfm_tokenizer.model import build

NAME = "Cosmos-1.0-Tokenizer-CV8x8x8"
ROWS = ("diffusers", "reference", "fused", "fused bfloat16")
COMPILED = "compiled"  # the fused mode by torch.compile: on request, since compiling takes minutes
Pair = tuple[Callable[[Any], Any], Callable[[Any], Any]]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", help="of all rows but the last (float32)")
    parser.add_argument("--frames", type=int, nargs="+", default=[9, 17])
    parser.add_argument("--size", default="256x256", help="HEIGHTxWIDTH")
    names = (*ROWS, COMPILED)
    parser.add_argument("--rows", nargs="+", choices=names, default=ROWS, help="which networks")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory-of", choices=ROWS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    if args.memory_of:
        say("{} {}".format(*memory(args)))
        return
    rows = {name: pair for name in args.rows if (pair := make(name, args)) is not None}
    say(f"{NAME}, {args.size}, {args.device}, {args.dtype}, torch {torch.__version__}\n")
    bases = [name for name in ROWS[:2] if name in rows]
    titles = ["encode s", "decode s", *(f"x {name}" for name in bases), "encode MB", "decode MB"]
    table(["frames", "network", *titles])
    table(["---"] * (2 + len(titles)))
    for frames in args.frames:
        times = measure(rows, frames, args)
        for name, (encode, decode) in times.items():
            figures = [f"{encode:.2f}", f"{decode:.2f}"]
            figures += [f"{times[b][0] / encode:.2f} / {times[b][1] / decode:.2f}" for b in bases]
            table([str(frames), name, *figures, *peak_of(name, frames, args)])
        work, moved, rate = flops(frames, args), traffic(frames, args), product_rate(args)
        blank = [""] * (len(titles) - 2)
        floor = [f"{gflop / rate:.2f}" for gflop in work]
        table([str(frames), f"floor: as published, {rate:.0f} GFLOP/s", *floor, *blank])
        amounts = [f"{a:.0f} GFLOP, {b:.2f} GB" for a, b in zip(work, moved, strict=True)]
        table([str(frames), "operations; weights, input, output", *amounts, *blank])
    say("\nx: times faster, encoding / decoding.\n")
    say("| stream of an encoder, bfloat16 | layers | attention, a minute at 24 frames/s |")
    say("| --- | --- | --- |")
    for height, width in ((256, 256), (720, 1280), (1088, 1920)):
        layers, growth = stream_memory(height, width)
        say(f"| {height}x{width} | {layers / 1e6:.0f} MB | {growth * 180 / 1e9:.2f} GB |")


def make(name: str, args: argparse.Namespace) -> Pair | None:
    """Return a network's two directions, between videos and raw latents."""
    dtype = torch.bfloat16 if name.endswith("bfloat16") else getattr(torch, args.dtype)
    weights = random_weights()
    if name == "diffusers":
        try:
            from diffusers import AutoencoderKLCosmos  # ty: ignore[import-not-found]
        except ImportError:
            return None
        vae = AutoencoderKLCosmos().eval()  # its wavelet is made here: not on the meta device
        names = {k: from_diffusers({k: torch.empty(1, 1, 1)}) for k in vae.state_dict()}
        shapes = {k: v.shape for k, v in vae.state_dict().items()}
        state = {k: weights[next(iter(ours))].reshape(shapes[k]) for k, ours in names.items()}
        vae.load_state_dict(state)
        vae.to(args.device, dtype)
        return (
            lambda video: vae.encode(video.to(dtype)).latent_dist.mode(),
            lambda latent: vae.decode(latent.to(dtype)).sample,
        )
    with torch.device("meta"):
        tokenizer = build(PRESETS[NAME]).eval().requires_grad_(False)
    tokenizer.load_state_dict(weights, assign=True)
    tokenizer.mean, tokenizer.std = torch.zeros(16, 1), torch.ones(16, 1)
    tokenizer.to(args.device, dtype if name == "reference" else torch.float32)
    if name != "reference":
        tokenizer = tokenizer.fused(dtype, compile=name == COMPILED)
    return (
        lambda video: tokenizer.encode(video, raw=True),
        lambda latent: tokenizer.decode(latent, raw=True),
    )


def random_weights() -> dict[str, torch.Tensor]:
    """Draw weights, the same at each call, that keep the signal's size."""
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in build(PRESETS[NAME]).state_dict().items()}
    dice = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            weights[name] = torch.randn(shape, generator=dice) * shape[1:].numel() ** -0.5
        else:
            weights[name] = torch.full(shape, float("norm" in name and name.endswith("weight")))
    return weights


def inputs(frames: int, args: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a video and a latent of its size."""
    h, w = map(int, args.size.split("x"))
    dice = torch.Generator().manual_seed(1)
    video = torch.rand(1, 3, frames, h, w, generator=dice) * 2 - 1
    latent = torch.randn(1, 16, 1 + (frames - 1) // 8, h // 8, w // 8, generator=dice)
    return video.to(args.device), latent.to(args.device)


def measure(
    rows: dict[str, Pair], frames: int, args: argparse.Namespace
) -> dict[str, tuple[float, float]]:
    """Return each network's median seconds for encoding and decoding."""
    data = inputs(frames, args)
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in rows}
    for i in (0, 1, 0, 1) if COMPILED in rows else ():
        rows[COMPILED][i](data[i])  # compiles, and makes the graph
    for _ in range(args.repeats):
        for name, pair in rows.items():
            for i in (0, 1):
                times[name][i].append(seconds(pair[i], data[i], args.device))
    return {
        name: (statistics.median(encode), statistics.median(decode))
        for name, (encode, decode) in times.items()
    }


def seconds(call: Callable[[Any], Any], data: torch.Tensor, device: str) -> float:
    """Time one call."""
    if device == "cpu":
        began = time.thread_time()
        call(data)
        return time.thread_time() - began
    torch.cuda.synchronize()
    began = time.perf_counter()
    call(data)
    torch.cuda.synchronize()
    return time.perf_counter() - began


def peak_of(name: str, frames: int, args: argparse.Namespace) -> list[str]:
    """Measure extra memory in a process of its own."""
    if name == COMPILED:
        return ["", ""]  # compiling takes more than the network
    command = [sys.executable, __file__, "--memory-of", name, "--frames", str(frames)]
    command += ["--size", args.size, "--device", args.device, "--dtype", args.dtype]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def memory(args: argparse.Namespace) -> tuple[int, int]:
    """Return the megabytes that encoding and decoding take beyond weights and input."""
    pair = make(args.memory_of, args)
    assert pair is not None
    used = []
    for call, data in zip(pair, inputs(args.frames[0], args), strict=True):
        if args.device == "cpu":
            before = settle()
            call(data)
            used.append(round((high_water() - before) / 2**20))
        else:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            call(data)
            used.append(round((torch.cuda.max_memory_allocated() - before) / 2**20))
    return used[0], used[1]


def settle() -> int:
    """Return what the process holds, in bytes, and forget its earlier peak."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free already must not hide what is taken
    Path("/proc/self/clear_refs").write_text("5")
    return high_water()


def high_water(process: int | str = "self") -> int:
    """Return a process's peak of memory, in bytes; 0 for one that has ended."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    sizes = (int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return 1024 * next(sizes, 0)


def flops(frames: int, args: argparse.Namespace) -> tuple[float, float]:
    """Count the multiply-adds of the network as published, times two, in 1e9; computes nothing."""
    with torch.device("meta"):
        tokenizer = build(PRESETS[NAME]).eval()
    video, latent = (data.to("meta") for data in inputs(frames, args))
    counts = []
    for call, data in ((tokenizer.features, video), (tokenizer.decode_codes, latent)):
        with FlopCounterMode(display=False) as counter:
            call(data)
        counts.append(counter.get_total_flops() / 1e9)
    return counts[0], counts[1]


def traffic(frames: int, args: argparse.Namespace) -> tuple[float, float]:
    """Return the bytes that must move at least, in 1e9: weights, input and output, once each."""
    with torch.device("meta"):
        tokenizer = build(PRESETS[NAME])
    size = getattr(torch, args.dtype).itemsize
    through = sum(data.numel() for data in inputs(frames, args))
    parts = (
        (tokenizer.encoder, tokenizer.to_latent),
        (tokenizer.from_latent, tokenizer.decoder),
    )
    weights = [sum(p.numel() for m in pair for p in m.parameters()) for pair in parts]
    return size * (weights[0] + through) / 1e9, size * (weights[1] + through) / 1e9


def product_rate(args: argparse.Namespace) -> float:
    """Return how many GFLOP/s products of large matrices reach here, the best of ten."""
    a = torch.rand(1024, 1024, device=args.device, dtype=getattr(torch, args.dtype))
    best = min(seconds(lambda x: linear(x, a), a, args.device) for _ in range(10))
    return 2 * 1024**3 / best / 1e9


def stream_memory(height: int, width: int) -> tuple[int, int]:
    """Return the bytes that do not grow, and those that each latent frame adds."""
    with torch.device("meta"):
        tokenizer = build(PRESETS[NAME]).eval().to(torch.bfloat16)
        encoder = tokenizer.streaming_encoder()
        encoder.push(torch.zeros(1, 3, 9, height, width))
        before = encoder.memory_bytes
        encoder.push(torch.zeros(1, 3, 8, height, width))
    growth = encoder.memory_bytes - before
    return before - 2 * growth, growth


def table(cells: list[str]) -> None:
    """Print a row."""
    say(f"| {' | '.join(cells)} |")


def say(line: str) -> None:
    """Print at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
