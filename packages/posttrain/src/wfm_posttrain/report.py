"""One HTML file that shows an evaluation: curves with their controls, tables, and pictures.

Everything is inside the file: plots are SVG, pictures PNG. No script, no other file, no network.
"""

import base64
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import UInt8

from .checkpoint import replacing
from .evaluation import Evaluation, Strip
from .fidelity import Fidelity
from .metrics import Interval

COLOURS = ("#1f6feb", "#d1495b", "#8a8f98", "#2a9d6f")
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1b1f24;max-width:62rem;margin:2rem auto}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin:2rem 0 .5rem}
.plots{display:flex;flex-wrap:wrap;gap:1rem;margin-bottom:1.5rem}.plots figure{width:300px}
figure{margin:0}
figcaption{font-size:.85rem;color:#57606a}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:.2rem .7rem;border-bottom:1px solid #d8dee4;text-align:right}
td:first-child,th:first-child{text-align:left}
img{image-rendering:pixelated;display:block;margin:.2rem 0}
"""
OBJECTS = {
    "centroid_error": ("Objects, off by", "pixels"),
    "permanence": ("Object area", "share"),
    "mask_iou": ("Object masks", "IoU"),
}
WIDTH, HEIGHT, LEFT, RIGHT, BOTTOM, TOP = 300, 190, 44, 18, 30, 12


@dataclass(frozen=True)
class Curve:
    """One line of a plot; ``low`` and ``high`` draw a band around it."""

    name: str
    values: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None

    @staticmethod
    def of(name: str, intervals: Sequence[Interval]) -> "Curve":
        """Make a line with a band of intervals."""
        parts = ([getattr(i, key) for i in intervals] for key in ("mean", "low", "high"))
        return Curve(name, *parts)


def write_report(path: Path, found: Evaluation | Fidelity, *, title: str) -> None:
    """Write the page, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(page(found, title))
        partial.chmod(0o644)


def page(found: Evaluation | Fidelity, title: str) -> str:
    """Return the page as HTML."""
    condition = found.condition if isinstance(found, Fidelity) else "actions"
    if isinstance(found, Fidelity):
        curves = (found.psnr, found.psnr_shuffled, found.psnr_repeat, found.ssim)
        found = Evaluation(found.clips, *curves, found.gap)
    speed = (
        f"; {1000 * found.seconds_per_frame:.0f} ms per frame" if found.seconds_per_frame else ""
    )
    rows = found.rows(condition)
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
    parts = [
        head, f"<style>{STYLE}</style><h1>{escape(title)}</h1>",
        f"<p>{found.clips} held-out clips{speed}. Bands are 95 % bootstrap intervals over "
        "clips.</p>",
        "<h2>How near, frame by frame</h2>", _plots(found, condition),
        table(rows[0], rows[1:]),
    ]  # fmt: skip
    if found.inverse:
        parts += ["<h2>Are the actions visible?</h2>", _actions_table(found)]
    if rows := _other_rows(found):
        parts += ["<h2>Motion and distributions</h2>", table(("score", "value", "95 %"), rows)]
    if found.strips:
        parts.append("<h2>To the eye</h2>")
        parts += [_strip(strip) for strip in found.strips]
    return "\n".join(parts) + "\n"


def plot(curves: Sequence[Curve], caption: str, *, unit: str = "") -> str:
    """Draw lines over the frames of the horizon, with a legend under them."""
    if not (drawing := draw(curves)):
        return ""
    legend = " ".join(
        f'<span style="color:{colour}">&#9632;</span> {escape(curve.name)}'
        for curve, colour in zip(curves, COLOURS * 2, strict=False)
    )
    title = f"{caption} ({unit})" if unit else caption
    return f"<figure>{drawing}<figcaption>{escape(title)}<br>{legend}</figcaption></figure>"


def draw(curves: Sequence[Curve], ticks: Sequence[str] | None = None) -> str:
    """Draw lines with their bands as SVG; nothing if no number is known.

    ``ticks`` name the points along x, which are numbered otherwise.
    """
    every = [v for c in curves for v in (*c.values, *(c.low or ()), *(c.high or ()))]
    known = [v for v in every if np.isfinite(v)]
    if not known:
        return ""
    least, most = min(known), max(known)
    room = 0.06 * (most - least) or 1.0
    least, most = least - room, most + room
    count = max(len(curve.values) for curve in curves)

    def x(i: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (i / max(count - 1, 1))

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (most - value) / (most - least)

    def points(values: Sequence[float], order: Sequence[int]) -> str:
        known = [i for i in order if np.isfinite(values[i])]
        return " ".join(f"{x(i):.1f},{y(values[i]):.1f}" for i in known)

    parts = []
    for value in np.linspace(least + room, most - room, 4):
        line = f'x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"'
        parts.append(f'<line {line} stroke="#e4e8ec"/>')
        parts.append(_text(LEFT - 5.0, y(value) + 4, f"{value:.3g}", "end"))
    steps = max(1, (count - 1) // 6 + 1)
    ticks = ticks or [str(i + 1) for i in range(count)]
    parts += [_text(x(i), HEIGHT - 12.0, ticks[i], "middle") for i in range(0, count, steps)]
    for curve, colour in zip(curves, COLOURS * 2, strict=False):
        forth = range(len(curve.values))
        if curve.low is not None and curve.high is not None:
            band = f"{points(curve.high, forth)} {points(curve.low, forth[::-1])}"
            parts.append(f'<polygon points="{band}" fill="{colour}" opacity=".15"/>')
        parts.append(
            f'<polyline points="{points(curve.values, forth)}" fill="none" stroke="{colour}" '
            'stroke-width="2"/>'
        )
    size = f'width="{WIDTH}" height="{HEIGHT}" role="img"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(parts)}</svg>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return an HTML table."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def png(picture: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Encode a picture as PNG."""
    h, w, _ = picture.shape
    rows = np.concatenate([np.zeros((h, 1), np.uint8), picture.reshape(h, w * 3)], axis=1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", w, h, 8, 2, 0, 0, 0)
    body = (
        chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.tobytes())) + chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + body


def _plots(found: Evaluation, condition: str) -> str:
    plots = [
        plot(
            [
                Curve(f"own {condition}", found.psnr),
                Curve(f"another clip's {condition}", found.psnr_shuffled),
                Curve("last frame repeated", found.psnr_repeat),
            ],
            "PSNR", unit="dB",
        ),
        plot([Curve.of("own minus another's", found.gap)], "Fidelity gap", unit="dB"),
        plot([Curve("imagined", found.ssim)], "SSIM"),
    ]  # fmt: skip
    if found.latent_l2:
        curves = [Curve(name, values) for name, values in found.latent_l2.items()]
        plots.append(plot(curves, "Latent distance"))
    if found.effector:
        curves = [Curve.of(name, values) for name, values in found.effector.items()]
        plots.append(plot(curves, "End effector, off by", unit="pixels"))
    for name, values in found.objects.items():
        caption, unit = OBJECTS.get(name, (name, ""))
        plots.append(plot([Curve.of("imagined", values)], caption, unit=unit))
    return f'<div class="plots">{"".join(plots)}</div>'


def _actions_table(found: Evaluation) -> str:
    count = len(next(iter(found.inverse.values())))
    rows = [
        (f"read from {name} pictures", *(f"{v:.2f}" if np.isfinite(v) else "-" for v in values))
        for name, values in found.inverse.items()
    ]
    return table(("R² of the action's number", *(str(i + 1) for i in range(count))), rows)


def _other_rows(found: Evaluation) -> list[tuple[str, str, str]]:
    names = {
        "spatial": "where anything moves, IoU", "weighted": "how often, IoU",
        "temporal": "every frame, IoU", "physics_iq": "Physics-IQ (100: a second real take)",
    }  # fmt: skip
    rows = [
        (names.get(name, name), f"{i.mean:.3f}", f"{i.low:.3f} to {i.high:.3f}")
        for name, i in found.motion.items()
    ]
    for name, value in found.distances.items():
        what = "videos compared" if name == "count" else f"{name} distance, {found.distances_of}"
        shown = f"{value:.4g}" if np.isfinite(value) else "too few videos for its features"
        rows.append((what, shown, ""))
    return rows


def _strip(strip: Strip) -> str:
    """Show what was above what was imagined, enlarged by the browser."""
    sheets = [rearrange(frames, "t c h w -> h (t w) c") for frames in (strip.real, strip.imagined)]
    both = torch.cat(sheets)
    picture = ((both.clamp(-1, 1) + 1) * 127.5).round().byte().numpy()
    data = base64.b64encode(png(picture)).decode()
    wide = min(picture.shape[1] * 2, 940)
    caption = escape(strip.caption or "clip")
    return (
        f'<figure><img src="data:image/png;base64,{data}" width="{wide}" alt="{caption}">'
        f"<figcaption>{caption} Above: what happened. Below: imagined.</figcaption></figure>"
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    style = 'font-family="sans-serif" font-size="11" fill="#57606a"'
    return f"<text {place} {style}>{escape(text)}</text>"
