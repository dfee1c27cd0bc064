"""What a worker process does with one unit."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .analysis import Analysis, Recording, analyse
from .config import SplitConfig
from .video import Span, VideoInfo, Writer, copy_stream, cut


@dataclass(frozen=True)
class AnalyseUnit:
    recording: Recording
    mark: str
    config: SplitConfig


@dataclass(frozen=True)
class CutUnit:
    recording: Recording
    spans: tuple[Span, ...]
    outputs: tuple[Path, ...]
    info: VideoInfo
    crf: int
    preset: str
    whole: bool


def analyse_unit(unit: AnalyseUnit) -> tuple[dict[str, Any], list[tuple[bytes, bytes, bytes]]]:
    """Return the facts of a recording, and vector, cells and strip of each of its clips."""
    found: Analysis = analyse(unit.recording.path, unit.config, name=unit.recording.name)
    pairs = zip(found.embeddings, found.strips, strict=True)
    blobs = [
        (bytes.fromhex(e.hash) + e.vector.tobytes(), e.cells.tobytes(), strip) for e, strip in pairs
    ]
    return found.facts(), blobs


def cut_unit(unit: CutUnit) -> None:
    """Write the clips of a recording; H.264 that stays whole is not encoded again."""
    if unit.whole and unit.info.codec == "h264" and not unit.info.rotation:
        (span,), (output,) = unit.spans, unit.outputs
        if copy_stream(unit.recording.path, output, span.stop - span.start):
            return
    writer = Writer(unit.info, unit.crf, unit.preset)
    cut(unit.recording.path, unit.spans, unit.outputs, writer)
