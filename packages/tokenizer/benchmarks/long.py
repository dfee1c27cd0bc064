"""A long video through the command line: memory predicted and measured, killed and taken up.

    python packages/tokenizer/benchmarks/long.py                        # pico, ten minutes of 64x64
    python packages/tokenizer/benchmarks/long.py --width full --size 256 --seconds 30

Encodes and decodes with a process killed (SIGKILL) once in the middle, and again with none
killed; the bytes must agree. The prediction is made before, from a process that loads the model
and takes three chunks: what it holds when the model is ready, the peak of a chunk beyond that, the
layers' memory, the temporal attention's per latent frame, and the latents.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from bench import NAME, high_water, random_weights, say, settle

from wfm_tokenizer.config import PRESETS
from wfm_tokenizer.files import chunk_length, decode_file, encode_file
from wfm_tokenizer.loading import load
from wfm_tokenizer.model import build
from wfm_tokenizer.streaming import Stream
from wfm_tokenizer.writing import video_writer

FPS = 24
COMMAND = """
import sys
from wfm_tokenizer import work
from wfm_tokenizer.cli import main
work.EVERY = 2.0  # seconds between states, so that a fast run too can be killed in its middle
sys.exit(main(sys.argv[1:]))
"""
PICO = "builtin:pico-cv4x8x8"


def main() -> None:
    """Print what was predicted and what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", choices=("pico", "full"), default="pico")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--size", type=int, default=64, help="side of the frames")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--predict", metavar="MODEL", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    if args.predict:
        say(json.dumps(predict(args)))
        return
    with tempfile.TemporaryDirectory() as name:
        run(args, Path(name))


def run(args: argparse.Namespace, folder: Path) -> None:
    """Predict, encode, decode, compare."""
    frames = round(args.seconds * FPS)
    model = PICO if args.width == "pico" else make_model(folder / "model")
    film = make_film(folder / "film.mp4", frames, args.size)
    again = [sys.executable, __file__, "--predict", model, "--size", str(args.size)]
    again += ["--seconds", str(args.seconds), "--dtype", args.dtype]
    output = subprocess.run(again, check=True, capture_output=True, text=True).stdout
    parts = json.loads(output)
    say(f"{model}, {frames} frames of {args.size}x{args.size}, {args.dtype}\n")
    say("| MB | ready | a chunk | layers | attention | latents | predicted | measured | s |")
    say("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    source = film
    for command, suffix in (("encode", ".safetensors"), ("decode", ".mp4")):
        results = []
        for kill in (False, True):
            out = folder / f"{command}-{kill}" / f"{source.stem}{suffix}"
            peak, seconds = through_command(args, command, (source, out, model), kill=kill)
            results.append(out)
            row = parts[command]
            cells = [command + (", killed once" if kill else ""), *row.values(), peak, seconds]
            say("| " + " | ".join(str(cell) for cell in cells) + " |")
        if results[0].read_bytes() != results[1].read_bytes():
            raise SystemExit(f"{command}: other bytes after a kill")
        source = results[0]


def make_model(folder: Path) -> str:
    """Save the full-width network with random weights."""
    tokenizer = build(PRESETS[NAME])
    tokenizer.load_state_dict(random_weights())
    tokenizer.save(folder, dtype=torch.bfloat16)
    return str(folder)


def make_film(path: Path, frames: int, side: int) -> Path:
    """Write a ramp that moves."""
    ramp = torch.arange(side).expand(3, side, side) * (255 // side)
    with video_writer(path, FPS) as write:
        for i in range(frames):
            write(ramp.roll((i, i // 3), (1, 2)).byte()[None])
    return path


def through_command(
    args: argparse.Namespace, command: str, what: tuple[Path, Path, str], *, kill: bool
) -> tuple[int, int]:
    """Run the command, to the end at last; return the peak in MB and the seconds it took."""
    source, out, model = what
    argv = [sys.executable, "-c", COMMAND, command, str(source), "-m", model, "-q"]
    argv += ["-o", str(out.parent), "--dtype", args.dtype]
    state = out.parent / f".{out.name}.part" / "state.safetensors"
    began, peak = time.monotonic(), 0
    while not out.exists():
        child = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
        while os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            peak = max(peak, high_water(child.pid) // 2**20)
            time.sleep(0.2)
            if kill and state.exists():
                child.send_signal(signal.SIGKILL)
                kill = False
        if child.wait() not in (0, -signal.SIGKILL):
            raise SystemExit(f"{command} failed")
    if kill:
        say(f"({command} ended before its first state was saved; nothing was killed)")
    return peak, round(time.monotonic() - began)


def predict(args: argparse.Namespace) -> dict[str, dict[str, int]]:
    """Return for each command the parts of its memory in MB, and their sum."""
    tokenizer = load(args.predict, dtype=torch.float32).fused(getattr(torch, args.dtype))
    loading, (time_factor, high, wide) = high_water(), tokenizer.compression
    step = chunk_length(tokenizer, args.size, args.size)
    cells = (args.size // high) * (args.size // wide)
    count, few = 1 + round(args.seconds * FPS) // time_factor, 3 * step
    latents = 3 * tokenizer.latent_channels * cells * 4  # piece by piece, together, written
    rows = {}
    with tempfile.TemporaryDirectory() as name:
        middle = Path(name, "latents.safetensors")
        film = make_film(Path(name, "film.mp4"), few * time_factor, args.size)
        for command, work, stream, unit in (
            ("encode", encode_file, tokenizer.streaming_encoder(), (3, time_factor, high, wide)),
            ("decode", decode_file, tokenizer.streaming_decoder(), (16, 1, 1, 1)),
        ):
            layers, growth = (cells * size for size in held_for_a_cell(stream, unit))
            ready = settle()
            work(film, middle, tokenizer) if command == "encode" else work(middle, film, tokenizer)
            parts = {
                "ready": ready,
                "a chunk": high_water() - ready - layers - few * (growth + latents),
                "layers": layers,
                "attention": 2 * growth * count,  # once more while it is saved
                "latents": latents * count,
            }
            total = {"predicted": max(loading, sum(parts.values()))}
            rows[command] = {key: round(value / 2**20) for key, value in (parts | total).items()}
    return rows


def held_for_a_cell(stream: Stream, unit: tuple[int, ...]) -> tuple[int, int]:
    """Return the bytes that the layers hold for a latent cell's place, and those each frame adds.

    Both are in proportion to the picture, so a cell tells. ``unit`` is the cell's shape.
    """
    channels, frames, height, width = unit
    held = []
    for _ in range(3):
        stream.push(torch.zeros(1, channels, frames, height, width))
        held.append(stream.memory_bytes)
    growth = held[2] - held[1]
    return held[2] - 3 * growth, growth


if __name__ == "__main__":
    main()
