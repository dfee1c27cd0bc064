import asyncio
import time

import pytest
import torch
from conftest import PLAIN, Box, scene

from wfm_guardrail import (
    CoverageError,
    Finding,
    Guardrail,
    Policy,
    Severity,
    Verdict,
    default,
)


class Words:
    """A text check that does what it is told."""

    name = "words"

    def __init__(self, act):
        self.act = act

    def check(self, text, _stage, /):
        return self.act(text)


class Pictures:
    """A video check that is content with all it sees."""

    name = "content"

    def open(self, _stage, _fps, /):
        return self

    def push(self, _frames, /):
        return ()

    def close(self):
        return ()


def test_one_bad_frame_among_many_is_enough():
    class Red:
        name = "content"

        def open(self, _stage, _fps, /):
            return self

        def push(self, frames, /):
            bad = (frames.min(axis=(2, 3))[:, 0] > 250).sum()
            return [Finding("content", "gore", Severity.EXPLICIT, 0.9, "red")] * int(bad)

        def close(self):
            return ()

    guard = Guardrail(video_checks=[Red()], detector=None)
    video = scene(121)
    assert guard.check_video(video).safe
    video[77, 0] = 255
    verdict = guard.check_video(video)
    assert (verdict.safe, verdict.category) == (False, "gore")


def test_a_verdict_cannot_be_taken_for_a_boolean(guard):
    with pytest.raises(TypeError, match=r"ask its \.safe"):
        bool(guard.check_text("a robot"))


@pytest.mark.parametrize("text", [None, 3, b"robot", ["robot"]])
def test_what_is_no_text_is_refused(guard, text):
    verdict = guard.check_text(text)
    assert not verdict.safe
    assert type(text).__name__ in verdict.reason


@pytest.mark.parametrize("text", ["", " ", "\n\t", "\u200b"])
def test_nothing_is_asked_and_nothing_refused(guard, text):
    verdict = guard.check_text(text)
    assert verdict == Verdict(True, "", None, "prompt", 0.0, (), verdict.checked)
    assert verdict.checked == ("length", "script", "payload", "lexicon", "scene")


def test_what_is_too_long_is_refused_unread(guard):
    verdict = guard.check_text("robot " * 20_000)
    assert not verdict.safe
    assert "more than 20000 characters" in verdict.reason


def test_other_scripts_and_payloads_go_to_a_person(guard):
    for text in (
        "\u0440\u043e\u0431\u043e\u0442 \u0431\u0435\u0440\u0451\u0442",
        "\u673a\u5668\u4eba",
        "&#x43f;&#x43e;&#x440;&#x43d;&#x43e;",
        "xV9kQ2mZ7pL4wT8rB1nY6cH3jD5gF0sA9eU2iO4qW6tR8yP1",
        "%25252541 robot",
    ):
        verdict = guard.check_text(text)
        assert not verdict.safe
        assert "for review" in verdict.reason


def test_lone_surrogates_and_nul_are_no_trouble(guard):
    assert guard.check_text("a rob\x00ot \ud800 arm").safe
    assert not guard.check_text("p\x00o\x00r\x00n \ud800").safe


def test_many_texts_keep_their_order(guard):
    verdicts = guard.check_texts(["a robot", "hentai", "a car"])
    assert [v.safe for v in verdicts] == [True, False, True]


def test_many_at_once_keep_their_order_and_do_not_hold_up_the_loop():
    def slow(text):
        time.sleep(0.2 if text == "a robot" else 0)
        return ()

    guard = Guardrail(text_checks=[Words(slow)], detector=None)

    async def run():
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.create_task(tick())
        verdicts = await guard.acheck_texts(["a robot", "hentai", "a car"] * 4, at_once=4)
        film = await guard.acheck_video(scene())
        ticking.cancel()
        return ticks, verdicts, film

    ticks, verdicts, film = asyncio.run(run())
    assert [v.safe for v in verdicts] == [True, False, True] * 4
    assert film.safe
    assert ticks > 3


def test_an_unknown_stage_is_an_error(guard):
    with pytest.raises(ValueError, match="none of prompt, negative_prompt"):
        guard.check_text("a robot", stage="output_media")
    with pytest.raises(ValueError, match="none of conditioning_media"):
        guard.check_video(scene(), stage="prompt")


def test_shadow_mode_records_and_lets_pass_but_not_what_is_severe():
    guard = Guardrail(Policy.load("research_shadow"), detector=None)
    verdict = guard.check_text("hentai")
    assert verdict.safe
    assert [f.category for f in verdict.findings] == ["sexual"]
    assert not guard.check_text("a naked child").safe


def test_strict_refuses_more():
    guard = Guardrail(Policy.load("strict"), detector=Box(lambda i: None))
    assert not guard.check_text("a man with a gun").safe
    assert not guard.check_text("gore", stage="negative_prompt").safe
    assert guard.check_text("a robot arm lifts a cube").safe


def test_a_required_check_that_cannot_run_is_an_error_at_once():
    with pytest.raises(CoverageError, match="requires faces: no face detector"):
        Guardrail(Policy.load("strict"), detector=None)
    policy = Policy(checks={"content": {"required": True}})
    with pytest.raises(CoverageError, match="requires content"):
        Guardrail(policy, detector=None)
    Guardrail(policy, video_checks=[Pictures()], detector=None)


def test_posture_tells_requested_from_effective():
    posture = Guardrail(PLAIN, detector=None).posture()
    assert {gap.check for gap in posture.gaps} == {"content", "faces"}
    assert not posture.complete
    assert "MISSING" in str(posture)
    assert "gore" in str(posture)
    full = Guardrail(PLAIN, detector=Box(lambda i: None), video_checks=[Pictures()]).posture()
    assert full.complete
    assert [c.check for c in full.coverage if not c.effective] == ["semantic", "nudity"]


def test_posture_shows_a_check_that_does_not_exist():
    policy = Policy(checks={"lexikon": {"mode": "enforce"}})
    gaps = Guardrail(policy, detector=None).posture().gaps
    assert "lexikon" in {gap.check for gap in gaps}


def test_a_check_can_be_off_with_a_reason_and_then_does_not_run():
    policy = Policy(checks={"lexicon": {"mode": "off", "reason": "measured elsewhere"}})
    guard = Guardrail(policy, detector=None)
    verdict = guard.check_text("hentai")
    assert verdict.safe
    assert "lexicon" not in verdict.checked
    row = next(c for c in guard.posture().coverage if c.check == "lexicon")
    assert (row.effective, row.detail) == (False, "measured elsewhere")


def test_two_checks_of_one_name_are_refused():
    with pytest.raises(ValueError, match="name of its own"):
        Guardrail(video_checks=[Pictures(), Pictures()], detector=None)


def test_without_a_detector_frames_pass_and_a_warning_says_so(guard, caplog):
    video = torch.from_numpy(scene())
    assert torch.equal(guard.redact(video), video)
    assert "FACES ARE NOT BLURRED" in caplog.text
    assert 'pip install "wfm-guardrail[faces]"' in caplog.text


def test_the_default_guard_keeps_the_contracts():
    guard = default()
    frames = torch.from_numpy(scene())
    before = frames.clone()
    verdict = guard.check_video(frames)
    assert (verdict.safe, verdict.reason) == (True, "")
    assert guard.check_text("a robot arm").safe
    redacted = guard.redact(frames)
    assert (redacted.shape, redacted.dtype) == (frames.shape, torch.uint8)
    assert torch.equal(frames, before)
