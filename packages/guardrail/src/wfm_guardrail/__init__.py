"""Guards for world models: prompts in, video out, faces blurred; nothing to download."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .audit import AuditLog, verify
    from .checks import CoverageError, TextCheck, VideoCheck, VideoSession
    from .faces import FaceDetector
    from .guard import Guardrail, default
    from .policy import Policy
    from .posture import Posture
    from .verdict import Finding, Refused, Severity, Verdict

__version__ = "0.1.0"

__all__ = [
    "AuditLog",
    "CoverageError",
    "FaceDetector",
    "Finding",
    "Guardrail",
    "Policy",
    "Posture",
    "Refused",
    "Severity",
    "TextCheck",
    "Verdict",
    "VideoCheck",
    "VideoSession",
    "default",
    "verify",
]

_HOMES = {
    "AuditLog": "audit",
    "verify": "audit",
    "FaceDetector": "faces",
    "CoverageError": "checks",
    "Guardrail": "guard",
    "TextCheck": "checks",
    "VideoCheck": "checks",
    "VideoSession": "checks",
    "default": "guard",
    "Policy": "policy",
    "Posture": "posture",
    "Finding": "verdict",
    "Refused": "verdict",
    "Severity": "verdict",
    "Verdict": "verdict",
}


def __getattr__(name: str) -> object:
    """Import on first use: ``wfm-guardrail --help`` must not wait for numpy and pydantic."""
    if name in _HOMES:
        value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
