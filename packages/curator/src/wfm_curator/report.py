"""A page to look at: what became of the clips, and what they look like. One file, no scripts."""

import base64
from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from .manifest import CurationReport, Entry

KEPT, EACH_REASON, PAIRS = 48, 12, 24
BINS = 24

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #667; --line: #d8dce2; --card: #fff;
  --page: #f5f6f8; --good: #2f7d5b; --bad: #b4553d; --twin: #8a6d1f; --bar: #4a6fa5 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #99a; --line: #333a44;
  --card: #1d2229; --page: #14171c; --good: #5fb98f; --bad: #dd8268; --twin: #cfae57;
  --bar: #7da2d8 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1120px; padding: 32px 24px 64px; background: var(--page);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 26px; margin: 0 0 4px } h2 { font-size: 18px; margin: 40px 0 12px }
h3 { font-size: 15px; margin: 20px 0 8px } .soft { color: var(--soft) }
.cards { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)) }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px }
.card b { display: block; font-size: 26px; line-height: 1.2 }
table { border-collapse: collapse; width: 100%; background: var(--card) }
td, th { border: 1px solid var(--line); padding: 6px 10px; text-align: left; vertical-align: top }
td.n { text-align: right; font-variant-numeric: tabular-nums } td.wide { width: 55% }
.bar { height: 14px; border-radius: 3px }
.sheet { display: grid; gap: 10px; grid-template-columns: repeat(auto-fill, minmax(256px, 1fr)) }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 8px; overflow: hidden } figure img { width: 100%; display: block; border-radius: 4px }
figcaption { font-size: 12px; color: var(--soft); margin-top: 6px; overflow-wrap: anywhere }
.twins { display: grid; grid-template-columns: 1fr 1fr; gap: 8px; margin-bottom: 10px }
svg { display: block; width: 100%; height: 72px } svg rect { fill: var(--bar) }
code { font-size: 12px; overflow-wrap: anywhere }
"""

HISTOGRAMS = (
    ("motion", "motion, widths/s"),
    ("change", "change of the liveliest block"),
    ("frozen", "standing frames"),
    ("blur", "blur"),
    ("luma", "brightness"),
    ("contrast", "contrast"),
    ("blocking", "blocking"),
    ("quality", "quality"),
)

Strip = Callable[[Entry], bytes]


def render(report: CurationReport, entries: Sequence[Entry], strip: Strip) -> str:
    """Return the page as HTML; ``strip`` gives a clip's pictures as a JPEG."""
    clips = [e for e in entries if e.state != "quarantined"]
    body = [
        _head(report),
        _funnel(report),
        _histograms(clips),
        _kept(clips, strip),
        _rejected(clips, report, strip),
        _duplicates(clips, strip),
        _quarantine(report),
    ]
    return (
        "<!doctype html>\n<html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>Curation report</title><style>{STYLE}</style>\n" + "\n".join(body) + "</html>\n"
    )


def _head(report: CurationReport) -> str:
    total = sum(report.frames.values())
    share = f"{report.frames['kept'] / total:.0%} of {total:,} frames" if total else "no frames"
    cards = (
        ("recordings", f"{report.recordings:,}", f"{len(report.quarantined):,} quarantined"),
        ("clips found", f"{report.clips:,}", f"{total:,} frames"),
        ("clips kept", f"{report.kept:,}", share),
        ("kept footage", _duration(report.seconds_kept), f"in {_count(report.shards, 'shard')}"),
    )
    boxes = "".join(
        f"<div class=card>{name}<b>{value}</b><span class=soft>{note}</span></div>"
        for name, value, note in cards
    )
    return f"<h1>Curation report</h1><div class=cards>{boxes}</div>"


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _funnel(report: CurationReport) -> str:
    rows = [("kept", report.kept, "good"), ("duplicate", report.duplicates, "twin")]
    rows += [(f"rejected: {reason}", n, "bad") for reason, n in report.rejected.items()]
    most = max(1, report.clips)
    lines = "".join(
        f"<tr><td>{escape(name)}<td class=n>{n:,}<td class=n>{n / most:.1%}"
        f'<td class=wide><div class=bar style="width:{100 * n / most:.1f}%;'
        f'background:var(--{tone})"></div>'
        for name, n, tone in rows
    )
    captions = ", ".join(f"{n:,} {source}" for source, n in report.captions.items())
    note = f"<p class=soft>Captions of kept clips, by source: {escape(captions) or 'none'}.</p>"
    return f"<h2>What became of the clips</h2><table>{lines}</table>{note}"


def _histograms(clips: Sequence[Entry]) -> str:
    if not clips:
        return ""
    boxes = [_histogram([e.seconds for e in clips], "length, s")]
    boxes += [_histogram([e.scores[k] for e in clips], name) for k, name in HISTOGRAMS]
    grid = f"<div class=cards>{''.join(boxes)}</div>"
    return f"<h2>Scores</h2><p class=soft>All clips found, kept or not.</p>{grid}"


def _histogram(values: Sequence[float], name: str) -> str:
    low, high = min(values), max(values)
    counts, _ = np.histogram(values, bins=BINS, range=(low, high if high > low else low + 1))
    top = counts.max()
    bars = "".join(
        f'<rect x="{i * 10}" y="{70 - 68 * n / top:.1f}" width="9" height="{68 * n / top:.1f}"/>'
        for i, n in enumerate(counts)
    )
    svg = f'<svg viewBox="0 0 {BINS * 10} 72" preserveAspectRatio="none">{bars}</svg>'
    ends = f"<span class=soft>{low:.3g} to {high:.3g}</span>"
    return f"<div class=card>{name}{svg}{ends}</div>"


def _figure(entry: Entry, strip: Strip, note: str) -> str:
    data = base64.b64encode(strip(entry)).decode()
    where = f"{entry.recording} [{entry.start}:{entry.stop}]"
    return (
        f'<figure><img alt="{escape(entry.key)}" src="data:image/jpeg;base64,{data}">'
        f"<figcaption>{escape(where)}<br>{escape(note)}</figcaption></figure>"
    )


def _some(entries: Sequence[Entry], most: int) -> list[Entry]:
    """Return at most so many, evenly spread."""
    if len(entries) <= most:
        return list(entries)
    return [entries[i] for i in np.linspace(0, len(entries) - 1, most).round().astype(int)]


def _kept(clips: Sequence[Entry], strip: Strip) -> str:
    kept = [e for e in clips if e.state == "kept"]
    shown = _some(kept, KEPT)
    figures = "".join(_figure(e, strip, e.caption) for e in shown)
    note = f"<p class=soft>{len(shown):,} of {len(kept):,}, four frames of each.</p>"
    return f"<h2>Kept</h2>{note}<div class=sheet>{figures}</div>"


def _rejected(clips: Sequence[Entry], report: CurationReport, strip: Strip) -> str:
    parts = []
    for reason, count in report.rejected.items():
        shown = _some([e for e in clips if e.reason == reason], EACH_REASON)
        figures = "".join(_figure(e, strip, _evidence(e)) for e in shown)
        parts.append(f"<h3>{escape(reason)} ({count:,})</h3><div class=sheet>{figures}</div>")
    return f"<h2>Rejected</h2>{''.join(parts) or '<p class=soft>None.</p>'}"


def _evidence(entry: Entry) -> str:
    names = ("motion", "change", "frozen", "blur", "luma", "contrast")
    return f"{entry.seconds:.1f} s; " + ", ".join(f"{k} {entry.scores[k]:.3g}" for k in names)


def _duplicates(clips: Sequence[Entry], strip: Strip) -> str:
    by_key = {e.key: e for e in clips}
    twins = [e for e in clips if e.state == "duplicate"]
    pairs = []
    for entry in _some(twins, PAIRS):
        evidence = f"left out: cosine {entry.cosine:.3f}, difference {entry.difference:.3f}"
        kept = _figure(by_key[entry.duplicate_of], strip, "kept")
        pairs.append(f"<div class=twins>{kept}{_figure(entry, strip, evidence)}</div>")
    return f"<h2>Duplicates ({len(twins):,})</h2>{''.join(pairs) or '<p class=soft>None.</p>'}"


def _quarantine(report: CurationReport) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code><td>{escape(error)}"
        for name, error in report.quarantined.items()
    )
    table = f"<table>{rows}</table>" if rows else "<p class=soft>None.</p>"
    return f"<h2>Quarantined recordings ({len(report.quarantined):,})</h2>{table}"
