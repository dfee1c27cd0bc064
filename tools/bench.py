"""Measure speed, each figure beside a plainer way in the same run.

    nox -s bench                # all
    nox -s bench -- tokenizer   # one package

Medians of several runs. Ratios travel from machine to machine, seconds do not.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

Row = tuple[str, float, str]


def median(call: Callable[[], object], repeats: int = 5) -> float:
    """Return the median seconds of a call, after one that does not count."""
    call()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


@torch.no_grad()
def tokenizer() -> Iterator[Row]:
    """Frames per second of the pico tokenizers, and what streaming costs."""
    import wfm_tokenizer as wt

    video = torch.rand(1, 3, 33, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for name in ("pico-cv4x8x8", "pico-dv8x16x16"):
        tok = wt.load(f"builtin:{name}")
        code = tok.encode(video)
        encode = median(lambda tok=tok: tok.encode(video), 3)
        yield f"{name} encode 33x128x128", 33 / encode, "frames/s"
        yield f"{name} decode", 33 / median(lambda t=tok, c=code: t.decode(c), 3), "frames/s"

        chunked = median(lambda tok=tok: stream(tok, video), 3)
        yield f"{name} streaming over whole-clip encoding", chunked / encode, "x time"


def stream(tok: Any, video: torch.Tensor) -> None:
    """Encode in chunks of 8 frames."""
    encoder = tok.streaming_encoder()
    for chunk in video.split(8, dim=2):
        encoder.push(chunk)
    encoder.flush()


@torch.no_grad()
def wfm_diffusion() -> Iterator[Row]:
    """One call of the pico network against one that also does guidance."""
    import wfm_diffusion as wd

    net = wd.load("builtin:pico")
    noisy = torch.randn(2, 16, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    text, mask = wd.pico_text_encoder().encode(["a robot arm pushes the red block", ""])
    sigma = torch.ones(2)
    both = median(lambda: net.denoise(noisy, sigma, {"text": text, "text_mask": mask}))
    one = median(
        lambda: net.denoise(noisy[:1], sigma[:1], {"text": text[:1], "text_mask": mask[:1]})
    )
    yield "pico denoise, 17x64x64", 1 / one, "calls/s"
    yield "guidance batched over one call", both / one, "x time"


@torch.no_grad()
def wfm_ar() -> Iterator[Row]:
    """Cached decoding against recomputing the whole sequence for each token."""
    import wfm_ar as wa

    lm = wa.load("builtin:pico-ar")
    prompt = torch.zeros(1, 32, dtype=torch.long)
    context = wa.pico_text_encoder().encode(["a robot arm pushes the red block"])[0]
    new = 16
    cached = median(lambda: wa.generate(lm, prompt, new, context=context), 3)
    plain = median(
        lambda: wa.decode_plainly(lm, prompt, new, wa.Sampler(temperature=0), context=context), 3
    )
    yield "pico cached decoding", new / cached, "tokens/s"
    yield "cached over plain decoding", plain / cached, "x speed"


def curator() -> Iterator[Row]:
    """Clips per second through all steps."""
    import wfm_curator as wc
    from wfm_posttrain import sim

    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        for seed in range(40):
            sim.write_episode(sim.generate("tilted-plane", seed=seed, frames=17), raw)
        runs = iter(range(100))
        seconds = median(lambda: wc.curate([raw], Path(folder) / f"clips-{next(runs)}"), 2)
    yield (
        "split, filter, caption, deduplicate, shard 40 clips of 17 frames",
        40 / seconds,
        "clips/s",
    )


def guardrail() -> Iterator[Row]:
    """Microseconds of a text check, short and long."""
    import wfm_guardrail as wg

    guard = wg.Guardrail.default()
    short = "A robot arm picks up the red block and places it on the shelf beside the blue one."
    for text in (short, short * 12):
        seconds = median(lambda text=text: guard.check_text(text), 50)
        yield f"check a prompt of {len(text)} characters", seconds * 1e6, "us"


def posttrain() -> Iterator[Row]:
    """Simulated clips per minute, and imagined frames per second."""
    import wfm_posttrain as wp
    from wfm_posttrain import sim
    from wfm_tokenizer.video import to_model

    seeds = iter(range(1000))
    clip = median(lambda: sim.generate("arm-push", seed=next(seeds)), 5)
    yield "simulate arm-push, 17 frames of 64x64", 60 / clip, "clips/min on a core"
    for name in ("pico-arm-diffusion", "pico-arm-ar"):
        world = wp.load(f"builtin:{name}")
        episode = sim.generate("arm-push", seed=sim.HELD_OUT_SEED)
        past = to_model(torch.from_numpy(episode.frames))[:, :, : world.past_frames]
        for count in (1, 24):
            action = torch.zeros(count, 4, 7)
            past_n = past.expand(count, -1, -1, -1, -1)
            seconds = median(
                lambda w=world, p=past_n, a=action: w.rollout(p, frames=4, controls={"action": a}),
                3,
            )
            yield f"{name}, {count} futures at once", 4 * count / seconds, "frames/s"


BENCHES = {
    "tokenizer": tokenizer,
    "wfm-diffusion": wfm_diffusion,
    "wfm-ar": wfm_ar,
    "curator": curator,
    "guardrail": guardrail,
    "posttrain": posttrain,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("packages", nargs="*", metavar="PACKAGE", help=", ".join(BENCHES))
    args = parser.parse_args()
    if unknown := set(args.packages) - set(BENCHES):
        parser.error(f"no bench of {', '.join(sorted(unknown))}; there are {', '.join(BENCHES)}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for package in args.packages or BENCHES:
        for what, value, unit in BENCHES[package]():
            print(f"{package:14} {what:66} {value:10.2f} {unit}", flush=True)


if __name__ == "__main__":
    main()
