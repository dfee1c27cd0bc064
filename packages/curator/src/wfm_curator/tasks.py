"""What a worker process does with one unit."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import rigs, sound
from .analysis import Analysis, analyse
from .config import LookConfig, SplitConfig
from .embed import pack
from .inputs import Recording
from .video import Span, VideoInfo, Writer, copy_stream, cut


@dataclass(frozen=True)
class AnalyseUnit:
    recording: Recording
    mark: str
    config: SplitConfig
    look: LookConfig


@dataclass(frozen=True)
class CutUnit:
    recording: Recording
    spans: tuple[Span, ...]
    outputs: tuple[Path, ...]
    info: VideoInfo
    crf: int
    preset: str
    whole: bool
    audio: bool
    seconds: tuple[float, ...]


def analyse_unit(unit: AnalyseUnit) -> tuple[dict[str, Any], list[tuple[bytes, ...]]]:
    """Return the facts of a recording, and vector, cells, strip and variants of its clips."""
    found: Analysis = _analyse(unit)
    blobs = []
    for embedding, strip in zip(found.embeddings, found.strips, strict=True):
        vector, cells, variants = pack(embedding)
        blobs.append((vector, cells, strip, variants))
    return found.facts(), blobs


def _analyse(unit: AnalyseUnit) -> Analysis:
    recording = unit.recording
    recording.fetch()
    named = {"name": recording.name, "rig": recording.rig, "look": unit.look}
    return analyse(recording.path, unit.config, **named)


def cut_unit(unit: CutUnit) -> None:
    """Write the clips of a recording; H.264 that stays whole is not encoded again."""
    unit.recording.fetch()
    if not (unit.audio and unit.info.sounds):
        _cut_pictures(unit, unit.outputs)
        return
    silent = tuple(o.with_suffix(".silent.mp4") for o in unit.outputs)
    _cut_pictures(unit, silent)
    unit_seconds = float(unit.info.time_base)
    for span, pictures, output, seconds in zip(
        unit.spans, silent, unit.outputs, unit.seconds, strict=True
    ):
        start = span.start_pts * unit_seconds
        sound.add(unit.recording.path, pictures, output, start, seconds)
        pictures.unlink()


def _cut_pictures(unit: CutUnit, outputs: tuple[Path, ...]) -> None:
    recording = unit.recording
    if (
        recording.rig is None
        and unit.whole
        and unit.info.codec == "h264"
        and not unit.info.rotation
    ):
        (span,), (output,) = unit.spans, outputs
        if copy_stream(recording.path, output, span.stop - span.start):
            return
    writer = Writer(unit.info, unit.crf, unit.preset)
    if recording.rig is not None:  # the reference comes last: its file says that all are there
        rigs.cut(rigs.find(recording.rig), unit.spans, unit.outputs, writer)
    cut(recording.path, unit.spans, outputs, writer)
