"""Stands in for the guardrails of NVIDIA's Cosmos repositories and of diffusers."""

import logging
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
from jaxtyping import UInt8

from .guard import Guardrail
from .verdict import Refused, Verdict

logger = logging.getLogger(__name__)

Frames = UInt8[np.ndarray, "t h w 3"]


class GuardrailRunner:
    """``run_safety_check`` and ``postprocess`` of NVIDIA's runner, on one of our guards.

    A list of ``safety_models`` (``is_safe(input) -> (bool, str)``) runs as well, and one that
    raises refuses; without any, the guard still does.
    """

    def __init__(
        self,
        safety_models: Sequence[Any] | None = None,
        generic_block_msg: str = "",
        generic_safe_msg: str = "",
        postprocessors: Sequence[Any] | None = None,
        *,
        guard: Guardrail | None = None,
    ) -> None:
        self.safety_models = list(safety_models or ())
        self.generic_block_msg = generic_block_msg
        self.generic_safe_msg = generic_safe_msg or "Prompt is safe"
        self.postprocessors = list(postprocessors or ())
        self.guard = guard or Guardrail.default()

    def run_safety_check(self, input: Any) -> tuple[bool, str]:
        """Return whether a prompt (str) or frames (``t h w 3`` uint8) are safe, and why not."""
        verdict = self._judge(input)
        if not verdict.safe:
            return False, self.generic_block_msg or verdict.reason
        for model in self.safety_models:
            name = type(model).__name__.upper()
            try:
                safe, message = model.is_safe(input)
            except Exception:
                logger.exception("%s failed; the input is refused", name)
                safe, message = False, "failed"
            if safe is not True:
                return False, self.generic_block_msg or f"{name}: {message}"
        return True, self.generic_safe_msg

    def _judge(self, input: Any) -> Verdict:
        if isinstance(input, str):
            return self.guard.check_text(input)
        return self.guard.check_video(_inward(input))

    def postprocess(self, frames: Frames) -> Frames:
        """Return a copy with faces blurred, run through the further postprocessors.

        Raises:
            Refused: faces could not be looked for.
        """
        frames = _outward(self.guard.redact(_inward(frames)))
        for processor in self.postprocessors:
            frames = processor.postprocess(frames)
        return frames


def create_text_guardrail_runner(
    checkpoint_dir: str | None = None,
    offload_model_to_cpu: bool = False,
    *,
    guard: Guardrail | None = None,
) -> GuardrailRunner:
    """Return a runner for prompts; the arguments of NVIDIA's function are taken, not needed."""
    return GuardrailRunner(guard=guard)


def create_video_guardrail_runner(
    checkpoint_dir: str | None = None,
    offload_model_to_cpu: bool = False,
    *,
    guard: Guardrail | None = None,
) -> GuardrailRunner:
    """Return a runner for frames."""
    return GuardrailRunner(generic_safe_msg="Video is safe", guard=guard)


def run_text_guardrail(prompt: str, guardrail_runner: GuardrailRunner) -> bool:
    """Tell whether a prompt is safe; the reason is logged, the prompt is not."""
    safe, message = guardrail_runner.run_safety_check(prompt)
    if not safe:
        logger.critical("GUARDRAIL BLOCKED: %s", message)
    return safe


def run_video_guardrail(frames: Frames, guardrail_runner: GuardrailRunner) -> Frames | None:
    """Return the frames with faces blurred, or None where they are refused."""
    safe, message = guardrail_runner.run_safety_check(frames)
    try:
        if safe:
            return guardrail_runner.postprocess(frames)
    except Refused as e:
        message = str(e)
    logger.critical("GUARDRAIL BLOCKED: %s", message)
    return None


def diffusers_safety_checker(guard: Guardrail | None = None) -> Any:
    """Return a ``safety_checker`` for the Cosmos pipelines of diffusers.

    It is of the class that diffusers knows, for newer pipelines pass over any other; without
    the package ``cosmos_guardrail`` it is a plain object, which the older ones accept. A video
    that is refused raises :class:`Refused`: those pipelines break on the None that NVIDIA's
    returns.

    Raises:
        ImportError: torch is missing.
    """
    import torch

    parent: Any = _known_class()
    checker = type("GuardrailChecker", (_Checker, parent), {})()
    if isinstance(checker, torch.nn.Module):
        torch.nn.Module.__init__(checker)
    checker.guard = guard or Guardrail.default()
    checker.placed = torch.device("cpu"), torch.float32
    return checker


class _Checker:
    """The interface of ``CosmosSafetyChecker``, to be mixed into that class."""

    guard: Guardrail
    placed: tuple[Any, Any]

    def __init__(self) -> None:
        """Load nothing."""

    @property
    def models(self) -> list[Any]:
        """None: nothing needs to be moved."""
        return []

    @property
    def device(self) -> Any:
        """Where the pipeline put it; the checks run on the CPU."""
        return self.placed[0]

    @property
    def dtype(self) -> Any:
        """The type that the pipeline asked for."""
        return self.placed[1]

    def to(self, *args: Any, device: Any = None, dtype: Any = None, **_: Any) -> Any:
        """Remember a device and a type."""
        import torch

        for arg in args:
            device, dtype = (device, arg) if isinstance(arg, torch.dtype) else (arg, dtype)
        old = self.placed
        self.placed = torch.device(device) if device is not None else old[0], dtype or old[1]
        return self

    def check_text_safety(self, prompt: str) -> bool:
        """Tell whether a prompt may be used."""
        return run_text_guardrail(prompt, GuardrailRunner(guard=self.guard))

    def check_video_safety(self, frames: Frames) -> Frames:
        """Return the frames with faces blurred; raise Refused where they may not be shown."""
        verdict = self.guard.check_video(_inward(frames))
        if not verdict.safe:
            raise Refused(verdict)
        return _outward(self.guard.redact(_inward(frames)))


def _known_class() -> type:
    """Return the class that diffusers' pipelines ask an instance of; object if there is none.

    Without the package cosmos_guardrail, each of its pipelines defines a stand-in of its own; the
    newest one is the one that asks.
    """
    for name in ("cosmos_guardrail", "diffusers.pipelines.cosmos.pipeline_cosmos3_omni"):
        try:
            return import_module(name).CosmosSafetyChecker
        except Exception:
            continue
    return object


def _inward(frames: Any) -> Any:
    """Turn ``t h w 3`` into ``t 3 h w``; what is neither is left for the guard to refuse."""
    array = np.asarray(frames)
    return array.transpose(0, 3, 1, 2) if array.ndim == 4 and array.shape[-1] == 3 else array


def _outward(frames: UInt8[np.ndarray, "t 3 h w"]) -> Frames:
    return np.ascontiguousarray(frames.transpose(0, 2, 3, 1))
