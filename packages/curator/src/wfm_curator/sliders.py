"""The part of the report that can be moved: histograms with the thresholds of the filter.

The page holds the scores of the clips, and judges them as `filters.judge` does.
"""

import json
from collections.abc import Sequence

import numpy as np

from .config import FilterConfig
from .manifest import Entry

BINS, MOST = 30, 20_000
# setting, score, if the score must be at least (1) or at most (-1) that, label
SLIDERS = (
    ("min_motion", "motion", 1, "motion, widths/s"),
    ("min_change", "change", 1, "change of the liveliest block"),
    ("max_frozen", "frozen", -1, "standing frames"),
    ("max_blur", "blur", -1, "blur"),
    ("min_luma", "luma", 1, "brightness"),
    ("max_bright", "bright", -1, "burnt-out pixels"),
    ("min_contrast", "contrast", 1, "contrast"),
    ("max_bars", "bars", -1, "black bars"),
    ("max_shake", "shake", -1, "shake, widths/s"),
    ("max_overlay", "overlay", -1, "overlay text, of the moments"),
    ("max_placed", "placed", -1, "text where overlays are"),
    ("min_side", "side", 1, "shorter side, pixels"),
)

SCRIPT = """
const D = JSON.parse(document.getElementById('scores').textContent);
const at = {};
function draw() {
  let kept = 0;
  for (let i = 0; i < D.rows.length; i++) {
    const bad = {};
    D.sliders.forEach((s, k) => { bad[s.name] = s.sign * (D.rows[i][k] - at[s.name]) < 0; });
    const both = bad.min_motion && bad.min_change;
    bad.min_motion = bad.min_change = both;
    kept += Object.values(bad).some(Boolean) ? 0 : 1;
  }
  const scale = D.total / Math.max(1, D.rows.length);
  document.getElementById('would').textContent =
    Math.round(kept * scale) + ' of ' + D.total + ' clips pass';
  const changed = D.sliders.filter(s => Math.abs(at[s.name] - s.value) > 1e-9);
  document.getElementById('yaml').textContent = changed.length ?
    'filter:\\n' + changed.map(s => '  ' + s.name + ': ' + at[s.name]).join('\\n') : '';
}
D.sliders.forEach(s => {
  const input = document.getElementById('s-' + s.name);
  const shown = document.getElementById('v-' + s.name);
  const move = () => {
    const share = input.value / 1000;
    at[s.name] = input.dataset.moved ? +(s.low + share * (s.high - s.low)).toPrecision(3) : s.value;
    shown.textContent = at[s.name];
    document.getElementById('l-' + s.name).setAttribute('x', share * 300 - 1);
  };
  input.addEventListener('input', () => { input.dataset.moved = 1; move(); draw(); });
  move();
});
draw();
const box = document.getElementById('find');
if (box) box.addEventListener('input', () => {
  const words = box.value.toLowerCase().split(/\\s+/);
  document.querySelectorAll('#kept figure').forEach(f => {
    const text = f.textContent.toLowerCase();
    f.style.display = words.every(w => text.includes(w)) ? '' : 'none';
  });
});
"""


def render(clips: Sequence[Entry], config: FilterConfig) -> str:
    """Return histograms with sliders; clips that splitting gave up are not among them."""
    judged = [e for e in clips if e.reason not in ("short", "not in all views")]
    if not judged:
        return ""
    step = -(-len(judged) // MOST)
    sample = judged[::step]
    names, sliders, boxes = [], [], []
    for name, score, sign, label in SLIDERS:
        if any(score not in e.scores for e in judged):
            continue  # nobody looked for text
        names.append(score)
        values = np.array([e.scores[score] for e in judged])
        given = getattr(config, name)
        limit = float(given) if given is not None else float(values.max())
        low, high = min(float(values.min()), limit), max(float(values.max()), limit)
        high = high if high > low else low + 1
        slider = {"name": name, "sign": sign, "value": limit, "low": low, "high": high}
        sliders.append(slider)
        boxes.append(_box(name, label, values, slider))
    rows = [[e.scores[score] for score in names] for e in sample]
    data = json.dumps({"sliders": sliders, "rows": rows, "total": len(judged)})
    return (
        "<h2>Scores and thresholds</h2><p class=soft>Move a threshold to see how many clips would "
        "pass the filter; put what it says into a settings file and run again: nothing is "
        f"measured anew.</p><p><b id=would></b></p><pre id=yaml></pre>"
        f"<div class=cards>{''.join(boxes)}</div>"
        f'<script type="application/json" id=scores>{data}</script><script>{SCRIPT}</script>'
    )


def _box(name: str, label: str, values: np.ndarray, slider: dict) -> str:
    low, high = slider["low"], slider["high"]
    counts, _ = np.histogram(values, bins=BINS, range=(low, high))
    top = counts.max()
    bars = "".join(
        f'<rect x="{i * 10}" y="{70 - 68 * n / top:.1f}" width="9" height="{68 * n / top:.1f}"/>'
        for i, n in enumerate(counts)
    )
    place = round(1000 * (slider["value"] - low) / (high - low))
    side = "at least" if slider["sign"] > 0 else "at most"
    return (
        f'<div class=card>{label}<svg viewBox="0 0 300 72" preserveAspectRatio="none">{bars}'
        f'<rect id="l-{name}" class=limit width="2" height="72"/></svg>'
        f'<input id="s-{name}" type=range max=1000 value={place} aria-label="{name}">'
        f'<span class=soft>{side} <b id="v-{name}"></b>, {low:.3g} to {high:.3g}</span></div>'
    )
