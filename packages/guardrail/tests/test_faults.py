"""Every fault, in every check, at every step: nothing may pass. And nothing else is refused."""

import time
from functools import partial
from itertools import product

import numpy as np
import pytest
from conftest import Box, scene

from wfm_guardrail import Finding, Guardrail, Policy, Refused, Severity
from wfm_guardrail.classifier import CLASSES, SceneCheck
from wfm_guardrail.content import FrameCheck, Vote
from wfm_guardrail.semantic import SemanticReader


def _raise(error, *_):
    raise error


def _hang(*_):
    time.sleep(5)


def _nan(*_):
    return [Finding("any", "sexual", Severity.NOTE, float("nan"), "x")]


FAULTS = {
    "exception": partial(_raise, RuntimeError("broken")),
    "out of memory": partial(_raise, MemoryError()),
    "tries to exit": partial(_raise, SystemExit(0)),
    "interrupt": partial(_raise, KeyboardInterrupt()),
    "recursion": partial(_raise, RecursionError()),
    "timeout": _hang,
    "NaN score": _nan,
    "score beyond 1": lambda *_: [Finding("any", "sexual", Severity.NOTE, 2.0, "x")],
    "nothing": lambda *_: None,
    "a boolean": lambda *_: True,
    "words": lambda *_: "safe",
    "a list of words": lambda *_: ["safe"],
    "dictionaries": lambda *_: [{"safe": True}],
    "one finding too deep": lambda *_: [[]],
}
ENDLESS = ("tries to exit", "interrupt", "timeout")  # faults that only a thread of its own stops


class Faulty:
    """A check, and its session, that fails at one step and is content at the others."""

    def __init__(self, name, step, fault):
        self.name, self.step, self.fault = name, step, fault

    def _do(self, step, *given):
        return self.fault(*given) if step == self.step else ()

    def check(self, text, stage, /):
        return self._do("check", text, stage)

    def open(self, stage, fps, /):
        self._do("open", stage, fps)
        return self

    def push(self, frames, /):
        return self._do("push", frames)

    def close(self):
        return self._do("close")


@pytest.fixture(scope="module", params=["physical_ai", "research_shadow"])
def whole(request):
    """A guard that has every check there is, each of them content."""
    policy = Policy.load(request.param).model_copy(update={"timeout_s": 0.05})
    guard = Guardrail(policy, detector=None)
    guard._text = (*guard._text[:5], *(Faulty(name, "", None) for name in ("semantic", "llm")))
    guard._video = (*guard._video[:3], *(Faulty(n, "", None) for n in ("nudity", "content")))
    return guard


def replaced(checks, name, step, fault):
    return tuple(Faulty(name, step, fault) if check.name == name else check for check in checks)


def test_every_fault_of_every_text_check_refuses(whole, monkeypatch):
    checks = whole._text
    for check, (what, fault) in product(checks, FAULTS.items()):
        if what in ENDLESS and check.name in whole._bounded:
            continue  # our own code, whose work is linear in a text of limited length
        monkeypatch.setattr(whole, "_text", replaced(checks, check.name, "check", fault))
        verdict = whole.check_text("a robot arm")
        assert (verdict.safe, verdict.category) == (False, "undecided"), (check.name, what)
        assert check.name not in verdict.checked


def test_every_fault_of_every_video_check_refuses(whole, monkeypatch):
    checks = whole._video
    for check, step, (what, fault) in product(checks, ("open", "push", "close"), FAULTS.items()):
        if what in ENDLESS and check.name in whole._bounded:
            continue
        if step == "open" and not isinstance(fault, partial) and fault is not _hang:
            continue  # what open returns is no findings
        monkeypatch.setattr(whole, "_video", replaced(checks, check.name, step, fault))
        verdict = whole.check_video(scene(4))
        assert (verdict.safe, verdict.category) == (False, "undecided"), (check.name, step, what)
        assert check.name not in verdict.checked


BOXES = {
    "NaN": np.full((1, 5), np.nan),
    "infinite": np.full((1, 5), np.inf),
    "too short": np.ones((1, 3)),
    "one row for all": np.ones(5),
    "nothing": None,
    "a boolean": True,
    "words": "no face",
    "a list": ["no face"],
}


def test_every_fault_of_the_face_detector_refuses():
    faults = {name: fault for name, fault in FAULTS.items() if isinstance(fault, partial)}
    faults |= {"timeout": _hang, **{k: partial(lambda v, *_: v, v) for k, v in BOXES.items()}}
    for what, fault in faults.items():
        detector = Box(None)
        detector.detect = fault
        guard = Guardrail(Policy(timeout_s=0.05), detector=detector)
        with pytest.raises(Refused):
            assert guard.redact(scene(3)) is None, what


ARRAYS = {
    "NaN": lambda n, k: np.full((n, k), np.nan),
    "infinite": lambda n, k: np.full((n, k), np.inf),
    "one row too many": lambda n, k: np.zeros((n + 1, k)),
    "one row too few": lambda n, k: np.zeros((n - 1, k)),
    "one column too few": lambda n, k: np.zeros((n, k - 1)),
    "no rows": lambda n, k: np.zeros((0, k)),
    "complex": lambda n, k: np.full((n, k), np.nan + 1j),
    "nothing": lambda n, k: None,
    "words": lambda n, k: ["safe"] * n,
}


@pytest.mark.parametrize("what", ARRAYS)
def test_a_network_that_answers_nonsense_refuses(what):
    wrong = ARRAYS[what]
    judge = FrameCheck("nudity", lambda f: wrong(len(f), 2), ("safe", "sexual"), Vote())
    head = np.zeros((8, len(CLASSES)), np.float32)
    reader = SemanticReader(lambda t: wrong(len(t), 8), head, np.zeros(len(CLASSES)), (9, 9))
    guard = Guardrail(detector=None)
    guard._text = (*guard._text[:5], SceneCheck(reader, name="semantic"))
    guard._video = (*guard._video[:3], judge)
    assert guard.check_text("a robot arm. it lifts a red cube there.").category == "undecided"
    assert guard.check_video(scene(4)).category == "undecided"


def test_a_guard_whose_checks_all_work_refuses_nothing_here(whole):
    assert whole.check_text("a robot arm lifts a red cube").safe
    assert whole.check_video(scene(4)).safe
