import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import Box, scene

from wfm_guardrail import Guardrail, Refused
from wfm_guardrail.cosmos import (
    GuardrailRunner,
    create_text_guardrail_runner,
    create_video_guardrail_runner,
    diffusers_safety_checker,
    run_text_guardrail,
    run_video_guardrail,
)

UNSAFE = "a decapitated man"


def frames():
    """As NVIDIA's functions take them: t h w 3."""
    return np.ascontiguousarray(scene().transpose(0, 2, 3, 1))


@pytest.fixture
def blurring():
    return Guardrail(detector=Box(lambda i: (10, 10, 30, 40)))


class Model:
    def __init__(self, answer):
        self.answer = answer

    def is_safe(self, input):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer, "why"


def test_prompts_are_judged_and_not_logged(guard, caplog):
    runner = create_text_guardrail_runner("checkpoints", offload_model_to_cpu=True, guard=guard)
    assert runner.run_safety_check("a robot arm") == (True, "Prompt is safe")
    assert run_text_guardrail("a robot arm", runner) is True
    assert run_text_guardrail(UNSAFE, runner) is False
    assert "GUARDRAIL BLOCKED" in caplog.text
    assert "man" not in caplog.text.lower().split()


def test_frames_come_back_blurred_in_their_layout_and_the_input_is_kept(blurring):
    given = frames()
    before = given.copy()
    done = run_video_guardrail(given, create_video_guardrail_runner("checkpoints", guard=blurring))
    assert done.shape == given.shape
    assert np.array_equal(given, before)
    assert not np.array_equal(done[:, 12:28, 12:28], given[:, 12:28, 12:28])


@pytest.mark.parametrize("broken", [np.zeros((4, 8, 8, 3), np.uint8), np.zeros(3), None])
def test_frames_that_are_refused_are_none(guard, broken):
    assert run_video_guardrail(broken, create_video_guardrail_runner(guard=guard)) is None


@pytest.mark.parametrize("answer", [False, None, "yes", RuntimeError("x")])
def test_a_model_of_theirs_that_is_not_sure_refuses(guard, answer):
    runner = GuardrailRunner([Model(True), Model(answer)], guard=guard)
    assert runner.run_safety_check("a robot arm")[0] is False
    assert GuardrailRunner([Model(True)], guard=guard).run_safety_check("a robot arm")[0] is True


def test_a_runner_without_models_still_refuses(guard):
    runner = GuardrailRunner(generic_block_msg="blocked", guard=guard)
    assert runner.run_safety_check(UNSAFE) == (False, "blocked")


@pytest.fixture
def pipeline(monkeypatch):
    """A package cosmos_guardrail whose checker downloads when it is built."""

    class CosmosSafetyChecker(torch.nn.Module):
        def __init__(self):
            raise AssertionError("this would download")

    module = ModuleType("cosmos_guardrail")
    module.CosmosSafetyChecker = CosmosSafetyChecker
    monkeypatch.setitem(sys.modules, "cosmos_guardrail", module)
    return CosmosSafetyChecker


def test_the_checker_is_of_the_class_that_diffusers_asks_for(pipeline, blurring):
    checker = diffusers_safety_checker(blurring)
    assert isinstance(checker, pipeline)
    assert checker.to("cpu", dtype=torch.bfloat16) is checker
    assert (checker.device, checker.dtype) == (torch.device("cpu"), torch.bfloat16)
    assert checker.to(torch.float16).dtype == torch.float16
    assert checker.models == []
    assert checker.check_text_safety("a robot arm")
    assert not checker.check_text_safety(UNSAFE)
    assert checker.check_video_safety(frames()).shape == frames().shape
    with pytest.raises(Refused):
        checker.check_video_safety(np.zeros((4, 8, 8, 3), np.uint8))


@pytest.mark.parity
def test_a_pipeline_of_diffusers_takes_the_checker(guard):
    cosmos = pytest.importorskip("diffusers.pipelines.cosmos.pipeline_cosmos3_omni")
    checker = diffusers_safety_checker(guard)
    assert isinstance(checker, cosmos.CosmosSafetyChecker)
    assert checker.check_text_safety("a robot arm")
