"""A page to look at: what became of the clips, and what they look like. One file, no network."""

import base64
from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from . import sliders, taxonomy
from .config import FilterConfig
from .manifest import CurationReport, Entry

KEPT, EACH_REASON, PAIRS, EXTREMES = 48, 12, 24, 4
RANKED = ("quality", "unusual", "brisque", "motion", "object", "shake", "blur", "blocking", "luma")
RANKED += ("overlay",)
BY_SPLIT = ("short", "not in all views")

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
code { font-size: 12px; overflow-wrap: anywhere } pre:empty { display: none }
svg rect.limit { fill: var(--bad) } input[type=range], input[type=search] { width: 100% }
input[type=search] { padding: 8px; margin-bottom: 12px; font: inherit }
.card b { font-size: inherit; display: inline } .card > b { display: block; font-size: 26px }
"""

Strip = Callable[[Entry], bytes]


def render(
    report: CurationReport, entries: Sequence[Entry], strip: Strip, config: FilterConfig
) -> str:
    """Return the page as HTML; ``strip`` gives a clip's pictures as a JPEG."""
    clips = [e for e in entries if e.state != "quarantined"]
    body = [
        _head(report),
        _funnel(report),
        sliders.render(clips, config),
        _categories(clips),
        _kept(clips, strip),
        _extremes(clips, strip),
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
    """Show what each step left, and for what reasons clips went."""
    left, rows = report.clips, [("found by splitting", report.clips, "bar", report.clips)]
    reasons = sorted(report.rejected.items(), key=lambda item: item[0] not in BY_SPLIT)
    for reason, n in reasons:
        left -= n
        rows.append((f"rejected: {reason}", n, "bad", left))
    rows.append(("duplicate", report.duplicates, "twin", left - report.duplicates))
    rows.append(("kept", report.kept, "good", report.kept))
    most = max(1, report.clips)
    lines = "".join(
        f"<tr><td>{escape(name)}<td class=n>{n:,}<td class=n>{n / most:.1%}<td class=n>{left:,}"
        f'<td class=wide><div class=bar style="width:{100 * n / most:.1f}%;'
        f'background:var(--{tone})"></div>'
        for name, n, tone, left in rows
    )
    head = "<tr><th>step<th>clips<th>share<th>left<th>"
    captions = ", ".join(f"{n:,} {source}" for source, n in report.captions.items())
    note = f"<p class=soft>Captions of kept clips, by source: {escape(captions) or 'none'}.</p>"
    return f"<h2>What became of the clips</h2><table>{head}{lines}</table>{note}"


def _categories(clips: Sequence[Entry]) -> str:
    """Compare the kinds of footage that was kept with the paper's; nothing if none is known."""
    kinds = [e.category for e in clips if e.state == "kept" and e.category]
    if not kinds:
        return ""
    lines = "".join(
        f"<tr><td>{name}<td class=n>{share:.0%}<td class=n>{taxonomy.PAPER[name]:.0%}"
        f'<td class=wide><div class=bar style="width:{100 * share:.0f}%;background:var(--bar)">'
        f'</div><div class=bar style="width:{100 * taxonomy.PAPER[name]:.0f}%;'
        'background:var(--line)"></div>'
        for name, share in taxonomy.shares(kinds).items()
    )
    note = f"<p class=soft>Of {len(kinds):,} kept clips whose side-car names a category.</p>"
    head = "<tr><th>category<th>kept<th>paper<th>"
    return f"<h2>Category mix</h2><table>{head}{lines}</table>{note}"


def _extremes(clips: Sequence[Entry], strip: Strip) -> str:
    """Show the clips with the lowest and the highest of each score, rejected or kept."""
    judged = [e for e in clips if e.reason not in BY_SPLIT and e.state != "duplicate"]
    if len(judged) < 2:
        return ""
    parts = []
    for name in RANKED:
        if any(name not in e.scores for e in judged):
            continue
        order = sorted(judged, key=lambda e: (e.scores[name], e.key))
        count = min(EXTREMES, len(order) // 2)
        for title, some in (("lowest", order[:count]), ("highest", order[-count:][::-1])):
            figures = "".join(
                _figure(e, strip, f"{name} {e.scores[name]:.3g}; {e.reason or e.state}")
                for e in some
            )
            parts.append(f"<h3>{title} {name}</h3><div class=sheet>{figures}</div>")
    return f"<h2>Best and worst by score</h2>{''.join(parts)}"


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
    find = '<input type=search id=find placeholder="find in names and captions" aria-label=find>'
    return f"<h2>Kept</h2>{note}{find}<div class=sheet id=kept>{figures}</div>"


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
        how = f"{entry.duplicate_how}, " if entry.duplicate_how else ""
        numbers = f"cosine {entry.cosine:.3f}, difference {entry.difference:.3f}"
        evidence = f"left out: {how}{numbers}"
        twin = by_key.get(entry.duplicate_of)  # None: it is in an earlier run
        where = f"<figure>kept by an earlier run: {escape(entry.duplicate_of)}</figure>"
        kept = where if twin is None else _figure(twin, strip, f"kept for its {entry.kept_for}")
        pairs.append(f"<div class=twins>{kept}{_figure(entry, strip, evidence)}</div>")
    return f"<h2>Duplicates ({len(twins):,})</h2>{''.join(pairs) or '<p class=soft>None.</p>'}"


def _quarantine(report: CurationReport) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code><td>{escape(error)}"
        for name, error in report.quarantined.items()
    )
    table = f"<table>{rows}</table>" if rows else "<p class=soft>None.</p>"
    return f"<h2>Quarantined recordings ({len(report.quarantined):,})</h2>{table}"
