"""The guard: runs the checks of a policy, fails closed, and keeps the record."""

import logging
from asyncio import Semaphore, gather, to_thread
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import UInt8

from . import suite
from .audit import AuditLog
from .blur import FaceBlur
from .checks import CoverageError, TextCheck, VideoCheck, VideoSession
from .deadline import within
from .faces import INSTALL, FaceDetector, find_detector
from .frames import CHUNK, as_pixels, like
from .media import BROKEN
from .policy import Policy
from .posture import Coverage, Posture
from .textchecks import LengthCheck
from .verdict import (
    MEDIA_STAGES,
    TEXT_STAGES,
    UNDECIDED,
    Finding,
    MediaStage,
    Refused,
    Severity,
    Stage,
    TextStage,
    Verdict,
    undecided,
)

logger = logging.getLogger(__name__)

Frames = TypeVar("Frames")
Pixels = UInt8[np.ndarray, "t 3 h w"]

FACES = "faces"


class Guardrail:
    """Text and video guard of one policy.

    ``text_checks`` and ``video_checks`` come on top of the built-in ones; a video check called
    ``content`` is what a picture classifier should be called. ``detector`` None means that no
    faces are looked for. Whatever a check does wrong (it raises, hangs, or returns something
    else than findings), the input is refused.

    Raises:
        CoverageError: the policy requires a check that cannot run.
        FileNotFoundError: a lexicon or a model that the policy names is not there.
        ImportError: what a model that the policy names needs is not installed.
        ValueError: a lexicon or a model is not one, or two checks have the same name.
    """

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        text_checks: Sequence[TextCheck] = (),
        video_checks: Sequence[VideoCheck] = (),
        detector: FaceDetector | Literal["auto"] | None = "auto",
        audit: AuditLog | str | Path | None = None,
    ) -> None:
        self.policy = policy or Policy()
        self.audit = audit if isinstance(audit, AuditLog | None) else AuditLog(audit)
        text, video = suite.bounded_text(self.policy), suite.bounded_video(self.policy)
        # Their work is linear and their input limited: no deadline, no thread for each prompt.
        self._bounded = {check.name for check in (*text, *video)}
        self._text = (*text, *suite.model_text(self.policy), *text_checks)
        self._video = (*video, *suite.model_video(self.policy), *video_checks)
        self._detector = self._find(detector)
        names = [check.name for check in (*self._text, *self._video)]
        if len({*names, FACES}) <= len(names):
            raise ValueError(f"each check needs a name of its own, got {', '.join(names)}")
        self._require()
        self._record("start", {"posture": self.posture().to_dict()})

    @classmethod
    def default(cls) -> "Guardrail":
        """Return a guard with the preset ``physical_ai``; nothing is downloaded."""
        return cls(Policy.load("physical_ai"))

    # Text

    def check_text(self, text: str, /, *, stage: TextStage = "prompt") -> Verdict:
        """Decide whether a text may be used.

        Never raises for what the text is or what a check does; an unknown stage is a ValueError.
        """
        _known(stage, TEXT_STAGES)
        if not isinstance(text, str):
            finding = undecided("input", f"a text is wanted, got {type(text).__name__}")
            return self._decide(stage, [finding], [], b"")
        findings: list[Finding] = []
        checked: list[str] = []
        for check in self._running(self._text):
            found, done = self._attempt(check.name, partial(check.check, text, stage))
            findings += found
            checked += [check.name] if done else []
            if check.name == LengthCheck.name and found:
                break  # too long to be looked at
        return self._decide(stage, findings, checked, text.encode("utf-8", "surrogatepass"))

    def check_texts(self, texts: Iterable[str], /, *, stage: TextStage = "prompt") -> list[Verdict]:
        """Return one verdict for each text, in order."""
        return [self.check_text(text, stage=stage) for text in texts]

    async def acheck_texts(
        self, texts: Iterable[str], /, *, stage: TextStage = "prompt", at_once: int = 8
    ) -> list[Verdict]:
        """Return one verdict for each text, in order, without holding up the event loop."""
        slots = Semaphore(at_once)

        async def judge(text: str) -> Verdict:
            async with slots:
                return await to_thread(self.check_text, text, stage=stage)

        return list(await gather(*map(judge, texts)))

    # Video

    async def acheck_video(
        self, frames: object, /, *, stage: MediaStage = "output_media", fps: float | None = None
    ) -> Verdict:
        """Do as :meth:`check_video`, without holding up the event loop."""
        return await to_thread(self.check_video, frames, stage=stage, fps=fps)

    def check_video(
        self, frames: object, /, *, stage: MediaStage = "output_media", fps: float | None = None
    ) -> Verdict:
        """Decide whether frames may be shown, or may condition a model.

        ``frames`` is a tensor or an array, ``t 3 h w``, uint8 or float in [-1, 1]; ``fps`` in Hz
        matters for flashes (None: the policy's). Bad frames are refused, not raised for. What
        is *seen* in the frames is judged only by the checks ``nudity`` and ``content``, where
        there are such: see :meth:`posture`.
        """
        _known(stage, MEDIA_STAGES)
        try:
            pixels = as_pixels(frames)
        except ValueError as e:
            finding = Finding("sanity", BROKEN, Severity.SEVERE, 1.0, str(e))
            return self._decide(stage, [finding], [], b"")
        except Exception as e:
            logger.exception("frames could not be read")
            return self._decide(stage, [_failed("input", e)], [], b"")
        chunks = (pixels[i : i + CHUNK] for i in range(0, len(pixels), CHUNK))
        return self.check_stream(chunks, stage=stage, fps=fps)

    def check_stream(
        self,
        chunks: Iterable[Pixels],
        /,
        *,
        stage: MediaStage = "output_media",
        fps: float | None = None,
    ) -> Verdict:
        """Decide about a video that comes in chunks of frames; memory does not grow with it."""
        _known(stage, MEDIA_STAGES)
        rate = float(fps) if fps and np.isfinite(fps) and fps > 0 else self.policy.video.fps
        findings: list[Finding] = []
        sessions: dict[str, VideoSession] = {}
        for check in self._running(self._video):
            opened: list[VideoSession] = []
            start = partial(_opened, check, stage, rate, opened)
            findings += self._attempt(check.name, start)[0]
            if opened:
                sessions[check.name] = opened[0]
        digest = sha256()
        for chunk in chunks:
            digest.update(np.ascontiguousarray(chunk).data)
            self._each(sessions, lambda session, chunk=chunk: session.push(chunk), findings)
        self._each(sessions, lambda session: session.close(), findings)
        return self._decide(stage, findings, list(sessions), digest.digest())

    def _each(
        self,
        sessions: dict[str, VideoSession],
        call: Callable[[VideoSession], Sequence[Finding]],
        findings: list[Finding],
    ) -> None:
        """Call every session; drop those that fail."""
        for name, session in list(sessions.items()):
            found, done = self._attempt(name, partial(call, session))
            findings += found
            if not done:
                del sessions[name]

    # Faces

    def redact(self, frames: Frames, /) -> Frames:
        """Return the frames with faces made unrecognisable; the input is not written to.

        Type, device and value range stay; float frames come back in steps of 1/127.5. Without a
        detector a policy that does not require one passes frames on, and a warning says so.

        Raises:
            Refused: the frames are broken, or the detector failed: nothing is let through.
        """
        if not self._blurs():
            return frames
        try:
            pixels = as_pixels(frames)
        except Exception as e:
            raise Refused(self._decide("output_media", [_failed(FACES, e)], [], b"")) from e
        chunks = (pixels[i : i + CHUNK] for i in range(0, len(pixels), CHUNK))
        return like(np.concatenate(list(self.redact_stream(chunks))), frames)

    def redact_stream(self, chunks: Iterable[Pixels], /) -> Iterator[Pixels]:
        """Redact a video that comes in chunks; what is yielded lags some frames behind.

        Raises:
            Refused: the detector failed.
        """
        if not self._blurs() or self._detector is None:
            yield from chunks
            return
        blur = FaceBlur(self._detector, self.policy.faces)
        for chunk in chunks:
            done = self._guarded(partial(blur.push, chunk))
            if len(done):
                yield done
        rest = self._guarded(lambda: list(blur.finish()))
        if rest:
            yield np.stack(rest)
        self._record("redact", {"detector": blur.detector.name, "boxes": blur.faces})

    def _guarded(self, call: Callable[[], Any]) -> Any:
        try:
            return within(self.policy.timeout_s, call)
        except Exception as e:
            logger.exception("face detector failed")
            raise Refused(self._decide("output_media", [_failed(FACES, e)], [], b"")) from e

    def _blurs(self) -> bool:
        """Tell whether faces are to be blurred; say loudly when they are not."""
        mode = self.policy.check(FACES).mode
        if mode == "enforce" and self._detector is not None:
            return True
        why = "no face detector is installed" if mode == "enforce" else f"the policy says {mode}"
        logger.warning("FACES ARE NOT BLURRED: %s. To blur them: %s", why, INSTALL)
        self._record("redact", {"detector": None, "why": why})
        return False

    # What runs

    def posture(self) -> Posture:
        """Say what was asked for and what runs."""
        rows = [self._row(c.name, getattr(c, "stages", TEXT_STAGES)) for c in self._text]
        rows += [self._row(check.name, MEDIA_STAGES) for check in self._video]
        names = {row.check for row in rows}
        for name, (stages, why) in suite.EXPECTED.items():
            if name not in names:
                rows.append(self._row(name, stages, missing=why))
        missing = "" if self._detector else f"no face detector: {INSTALL}"
        rows.append(self._row(FACES, ("output_media",), missing=missing))
        for name in sorted(set(self.policy.checks) - {row.check for row in rows}):
            rows.append(self._row(name, (), missing="there is no check of this name"))
        return Posture(self.policy.name, self.policy.fingerprint, tuple(rows))

    def _row(self, name: str, stages: tuple[Stage, ...], missing: str = "") -> Coverage:
        asked = self.policy.check(name)
        detail = asked.reason or missing
        if name == FACES and self._detector and asked.mode == "enforce":
            detail = self._detector.name
        return Coverage(name, stages, asked.mode, asked.mode != "off" and not missing, detail)

    def _require(self) -> None:
        for row in self.posture().gaps:
            if self.policy.check(row.check).required:
                raise CoverageError(f"policy {self.policy.name} requires {row.check}: {row.detail}")

    def _find(self, detector: FaceDetector | Literal["auto"] | None) -> FaceDetector | None:
        if self.policy.check(FACES).mode == "off":
            return None
        if detector == "auto":
            return find_detector(self.policy.faces.detector, self.policy.faces.threshold)
        return detector

    # Deciding

    def _running(self, checks: Sequence[Any]) -> list[Any]:
        return [check for check in checks if self.policy.check(check.name).mode != "off"]

    def _attempt(
        self, name: str, call: Callable[[], Sequence[Finding]]
    ) -> tuple[list[Finding], bool]:
        """Return the findings of a check, and whether it came to an end."""
        try:
            bounded = name in self._bounded
            found = list(call() if bounded else within(self.policy.timeout_s, call))
            if not all(isinstance(f, Finding) for f in found):
                raise TypeError("a check returned something else than findings")
        except Exception as e:
            logger.exception("check %s failed; the input is refused", name)
            return [_failed(name, e)], False
        return found, True

    def _counts(self, finding: Finding, stage: Stage) -> bool:
        if finding.category == UNDECIDED or finding.severity >= Severity.SEVERE:
            return True
        if self.policy.check(finding.check).mode == "shadow":
            return False
        if finding.review:
            return True
        least = self.policy.text.refuse_from[stage] if stage in TEXT_STAGES else "explicit"
        return finding.severity >= Severity[least.upper()]

    def _decide(
        self, stage: Stage, findings: Sequence[Finding], checked: Sequence[str], data: bytes
    ) -> Verdict:
        counted = [f for f in findings if self._counts(f, stage)]
        reason, category, score = "", None, 0.0
        if counted:
            worst = max(counted, key=lambda f: (f.severity, f.score))
            reason, category, score = worst.describe(), worst.category, worst.score
            reason += f" and {len(counted) - 1} more" if len(counted) > 1 else ""
        found, done = tuple(findings), tuple(checked)
        return self._noted(Verdict(not counted, reason, category, stage, score, found, done), data)

    def _noted(self, verdict: Verdict, data: bytes) -> Verdict:
        """Record a verdict; one that cannot be recorded refuses."""
        record = {
            "stage": verdict.stage,
            "safe": verdict.safe,
            "category": verdict.category,
            "score": verdict.score,
            "findings": [
                {"check": f.check, "rule": f.rule, "view": f.view, "severity": f.severity.name}
                for f in verdict.findings
            ],
            "checked": list(verdict.checked),
        }
        try:
            if self.audit is not None:
                self._record("verdict", {**record, "input": self.audit.digest(data)})
        except (OSError, ValueError) as e:
            logger.exception("the audit log could not be written")
            finding = _failed("audit", e)
            found, why = (*verdict.findings, finding), finding.describe()
            return Verdict(False, why, UNDECIDED, verdict.stage, 1.0, found, verdict.checked)
        return verdict

    def _record(self, event: str, record: dict[str, Any]) -> None:
        if self.audit is not None:
            self.audit.append(event, {"policy": self.policy.fingerprint, **record})


def default() -> Guardrail:
    """Return the default guard; the entry point ``wfm.guards: default``."""
    return Guardrail.default()


def _opened(check: VideoCheck, stage: Stage, fps: float, into: list[VideoSession]) -> tuple[()]:
    into.append(check.open(stage, fps))
    return ()


def _failed(check: str, error: BaseException) -> Finding:
    """Make the finding of a failure; the error's text may quote the input, so its type only."""
    return undecided(check, f"failed with {type(error).__name__}")


def _known(stage: str, stages: Sequence[str]) -> None:
    if stage not in stages:
        raise ValueError(f"stage {stage!r} is none of {', '.join(stages)}")
