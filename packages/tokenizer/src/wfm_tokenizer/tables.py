"""Figures as a Markdown table, as JSON, and as a picture: quality against compression."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from math import floor, log2
from pathlib import Path
from typing import Any

from .checkpoint import replacing

Number = float | int
COLOURS = ("#1b6ca8", "#c8553d", "#588157", "#8a4fff", "#b8860b", "#444444")
WIDTH, HEIGHT, EDGE = 640, 400, 60


def write_report(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write ``table.md``, ``table.json`` and ``plot.svg``."""
    for name, text in (
        ("table.md", markdown(rows)),
        ("table.json", json.dumps(list(rows), indent=1) + "\n"),
        ("plot.svg", plot(rows)),
    ):
        with replacing(folder / name) as partial:
            partial.write_text(text)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table with a column for each key of any row."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = [keys, ["---"] * len(keys), *([str(row.get(k, "")) for k in keys] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def plot(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return an SVG of PSNR against bits per pixel, a line for each resolution."""
    places = [(log2(row["bits_per_pixel"]), float(row["psnr"])) for row in rows]
    left, right = _range([x for x, _ in places])
    bottom, top = _range([y for _, y in places])

    def at(x: Number, y: Number) -> tuple[Number, Number]:
        across = (x - left) / (right - left) * (WIDTH - 2 * EDGE)
        return EDGE + across, HEIGHT - EDGE - (y - bottom) / (top - bottom) * (HEIGHT - 2 * EDGE)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12"><rect width="{WIDTH}" height="{HEIGHT}" '
        'fill="white"/>',
        _text(WIDTH / 2, HEIGHT - 12, "bits per pixel of video (log scale)", "middle"),
        _text(12, 24, "PSNR in dB", "start"),
    ]
    for x in range(left, right + 1):
        parts.append(_line(at(x, bottom), at(x, top), "#ddd"))
        parts.append(_text(at(x, bottom)[0], HEIGHT - EDGE + 18, f"{2.0**x:g}", "middle"))
    for i in range(5):
        y = bottom + (top - bottom) * i / 4
        parts.append(_line(at(left, y), at(right, y), "#ddd"))
        parts.append(_text(EDGE - 8, at(left, y)[1] + 4, f"{y:g}", "end"))
    sizes = list(dict.fromkeys(row["resolution"] for row in rows))
    for number, size in enumerate(sizes):
        colour = COLOURS[number % len(COLOURS)]
        own = sorted(
            (p, row["model"])
            for p, row in zip(places, rows, strict=True)
            if row["resolution"] == size
        )
        points = [at(*place) for place, _ in own]
        parts += [_line(a, b, colour) for a, b in pairwise(points)]
        for (x, y), (_, model) in zip(points, own, strict=True):
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
            parts.append(_text(x, y - 8, f"{model} {size}", "middle", colour))
    return "".join([*parts, "</svg>\n"])


def _range(values: list[float]) -> tuple[int, int]:
    return floor(min(values)), floor(max(values)) + 1


def _line(a: tuple[Number, Number], b: tuple[Number, Number], colour: str) -> str:
    ends = f'x1="{a[0]:.1f}" y1="{a[1]:.1f}" x2="{b[0]:.1f}" y2="{b[1]:.1f}"'
    return f'<line {ends} stroke="{colour}"/>'


def _text(x: Number, y: Number, text: str, anchor: str, colour: str = "black") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"'
    return f"<text {place}>{escape(text)}</text>"
