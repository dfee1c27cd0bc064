"""Compare sizes of this network, and factorised attention, on equal data and equal steps.

    python benchmarks/capacity.py RUN/latents.safetensors -o capacity --plot capacity.png

The latents are those that any `wfm-diffusion train` left in its folder. Four networks see the
same batches with the same noise: three sizes of ours, whose attention goes over all tokens of a
clip, and one of the middle size whose blocks attend within a frame and across frames in turn, the
way of VideoLDM (arXiv 2304.08818). It has the same weights, to the last one, and the same text
attention and MLPs.

The held-out error is that of `wfm-diffusion train`: five noise levels, from text and after one
given frame, the same noise for all. A run that was cut off resumes. Every network is left in a
folder `NAME/model`. How well what they imagine holds together as a place is said by
`tools/evaluate_capacity.py` of the repository; run this once more to have that in the picture.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor, nn

from wfm_diffusion.attention import attention
from wfm_diffusion.checkpoint import save_network
from wfm_diffusion.config import PRESETS, DiffusionConfig, TrainConfig
from wfm_diffusion.latents import Latents
from wfm_diffusion.layers import Attention, Context
from wfm_diffusion.position import rotate
from wfm_diffusion.training import Run

SIZES = {"small": (64, 4, 2), "middle": (128, 6, 4), "large": (192, 8, 6)}
"""Width, blocks and heads."""
NAMES = (*SIZES, "factorised")
MEASURES = ("Sampson error, pixels of 64", "steps whose camera motion can be recovered")


class Factorised(Attention):
    """Attention over the tokens of one frame, or over one place's tokens of all frames."""

    per_frame: int
    across: bool

    @classmethod
    def of(cls, plain: Attention, per_frame: int, *, across: bool) -> "Factorised":
        """Make one of a plain attention, with its weights."""
        plain.__class__ = cls
        assert isinstance(plain, cls)
        plain.per_frame, plain.across = per_frame, across
        return plain

    def over_self(self, x: Tensor, context: Context) -> Tensor:
        q, (k, v) = self.queries(x), self.keys_values(x)
        cos, sin = context.cos[: len(x)], context.sin[: len(x)]
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        apart = "(b n) t k d" if self.across else "(b t) n k d"
        size = {"n": self.per_frame, "b": len(x)}
        q, k, v = (rearrange(y, f"b (t n) k d -> {apart}", **size) for y in (q, k, v))
        y = rearrange(attention(q, k, v), f"{apart} -> b (t n) (k d)", **size)
        return self.out(y)


def factorise(net: nn.Module, per_frame: int) -> None:
    """Let the blocks attend within a frame and across frames in turn."""
    for i, block in enumerate(net.blocks):
        Factorised.of(block.self_attention, per_frame, across=bool(i % 2))


def network(name: str, text_dim: int, channels: int) -> DiffusionConfig:
    """Return the sizes of one of the four."""
    width, depth, heads = SIZES.get(name, SIZES["middle"])
    changes = {"width": width, "depth": depth, "num_heads": heads, "text_dim": text_dim}
    return PRESETS["pico"].model_copy(update=changes | {"latent_channels": channels})


def train(name: str, data: Latents, args: argparse.Namespace) -> None:
    """Train one network, or go on; write down its size, its time and its held-out errors."""
    out = args.out / name
    out.mkdir(parents=True, exist_ok=True)
    config = TrainConfig(
        out=str(out),
        clips="unused",
        model=network(name, data.embeddings.shape[2], data.latents.shape[1]),
        steps=args.steps,
        batch=args.batch,
        optimizer="muon",
        precision=args.precision,
        rate=1.5e-3,
        warmup=args.steps // 20,
        validate_every=max(1, args.steps // 4),
        save_every=max(1, args.steps // 4),
        held_out=0.05,
    )

    def log(step: int, numbers: Mapping[str, float]) -> None:
        if "validation/mean" in numbers:
            sys.stderr.write(f"{name}, step {step}: {numbers['validation/mean']:.4f}\n")

    run = Run(config, [data], log)
    if name == "factorised":
        h, w = data.latents.shape[3:]
        factorise(run.net, h * w // 4)
    run.resume()
    spent, before = time.process_time(), run.step
    run.to_the_end()
    spent = (time.process_time() - spent) * args.steps / max(1, args.steps - before)
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    found = {
        "weights": sum(p.numel() for p in run.net.parameters()),
        "seconds": spent,
        "errors": {line["step"]: line for line in lines if "validation/mean" in line},
    }
    save_network(run.averaged(), out / "model", card=f"`{name}` of benchmarks/capacity.py\n")
    (out / "found.json").write_text(json.dumps(found, indent=2) + "\n")


def table(results: Mapping[str, dict]) -> str:
    """Return the last held-out errors as Markdown."""
    lines = [
        "| network | weights | processor time | held-out error | from text | after a frame |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    base = results["middle"]["seconds"] if "middle" in results else None
    for name, found in results.items():
        last = list(found["errors"].values())[-1]
        tasks = [
            sum(x for key, x in last.items() if f"/{task}/" in key)
            / sum(f"/{task}/" in key for key in last)
            for task in ("text", "given")
        ]
        spent = f"{found['seconds'] / base:.2f} of middle's" if base else "?"
        cells = [f"{found['weights'] / 1e6:.2f} M", spent, f"{last['validation/mean']:.4f}"]
        lines.append(f"| {' | '.join([name, *cells, *(f'{x:.4f}' for x in tasks)])} |")
    return "\n".join(lines)


def draw(results: Mapping[str, dict], place: Mapping[str, dict], path: str) -> None:
    """Draw the held-out error against training steps and time, and Sampson error and poses."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 4 if place else 2, figsize=(16 if place else 10, 4))
    left, right = axes[:2]
    for name, found in results.items():
        steps = [int(step) for step in found["errors"]]
        errors = [line["validation/mean"] for line in found["errors"].values()]
        label = f"{name}, {found['weights'] / 1e6:.1f} M weights"
        style = "--" if name == "factorised" else "-"
        left.plot(steps, errors, style, marker="o", label=label)
        minutes = [found["seconds"] / 60 * step / steps[-1] for step in steps]
        right.plot(minutes, errors, style, marker="o")
    left.set(xlabel="steps", ylabel="held-out error")
    right.set(xlabel="minutes of one core")
    right.sharey(left)
    left.legend()
    for axis, key, label in zip(axes[2:], ("tse", "recovered"), MEASURES, strict=False):
        for x, (name, found) in enumerate(place.items()):
            mean, low, high = (found[key][k] for k in ("mean", "low", "high"))
            axis.errorbar(x, mean, [[mean - low], [high - mean]], fmt="o", capsize=4)
            axis.text(x + 0.1, mean, name, fontsize=8, rotation=90, va="center")
        axis.set(ylabel=label, xticks=[], xlim=(-0.5, len(place) - 0.2))
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("latents", type=Path, help="latents.safetensors of a training's folder")
    parser.add_argument("-o", "--out", type=Path, default=Path("capacity"), help="folder to write")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--only", nargs="*", choices=NAMES, default=NAMES)
    parser.add_argument("--plot", help="draw the errors to this picture")
    args = parser.parse_args()
    if args.plot and find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib, which is not installed")
    torch.set_num_threads(1)
    if not args.latents.is_file():
        parser.error(f"{args.latents}: no such file; `wfm-diffusion train` leaves one")
    data = Latents(**load_file(args.latents))
    results = {}
    for name in args.only:
        known = args.out / name / "found.json"
        if not known.is_file():
            train(name, data, args)
        results[name] = json.loads(known.read_text())
    sys.stdout.write(table(results) + "\n")
    if args.plot:
        place = args.out / "place.json"
        draw(results, json.loads(place.read_text()) if place.is_file() else {}, args.plot)


if __name__ == "__main__":
    main()
