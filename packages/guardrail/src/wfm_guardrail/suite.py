"""The checks that a policy asks for, as far as they can run here, and why others cannot."""

from .checks import TextCheck, VideoCheck
from .classifier import SceneCheck, Weights
from .lexicon import Lexicon, builtin_lexicon, read_lexicon
from .media import FlashCheck, FrozenCheck, SanityCheck
from .nudity import INSTALL as NUDITY
from .nudity import nudity_check
from .policy import Policy
from .semantic import INSTALL as SEMANTIC
from .semantic import find_reader
from .textchecks import LengthCheck, LexiconCheck, PayloadCheck, ScriptCheck
from .verdict import MEDIA_STAGES, Stage

# Checks that a guard is expected to have; where one is missing, the posture says this.
EXPECTED: dict[str, tuple[tuple[Stage, ...], str]] = {
    "semantic": (SceneCheck.stages, f"no sentence encoder: {SEMANTIC}"),
    "nudity": (MEDIA_STAGES, f"no nudity classifier: {NUDITY}"),
    "content": (
        MEDIA_STAGES,
        "no picture classifier is installed: gore and other content of frames is not judged",
    ),
}


def bounded_text(policy: Policy) -> tuple[TextCheck, ...]:
    """Return the checks whose work is linear in a text: they need no deadline."""
    weights = Weights.load(policy.text.weights) if policy.text.weights else None
    lexicon = _lexicon(policy)
    return (
        LengthCheck(policy.text.max_chars),
        ScriptCheck(),
        PayloadCheck(),
        LexiconCheck(lexicon),
        SceneCheck(weights, lexicon.allow),
    )


def model_text(policy: Policy) -> tuple[TextCheck, ...]:
    """Return the checks that ask a network: those that are installed, and the policy's own."""
    found: list[TextCheck] = []
    reader = find_reader() if policy.check("semantic").mode != "off" else None
    if reader is not None:
        found.append(SceneCheck(reader, _lexicon(policy).allow, name="semantic"))
    if policy.llm and policy.check("llm").mode != "off":
        from .llm import http_check, local_check

        asked = policy.llm
        if asked.url:
            timeout = policy.timeout_s
            found.append(http_check(asked.url, asked.model, asked.dialect, timeout_s=timeout))
        else:
            found.append(local_check(asked.model, asked.dialect, device=asked.device))
    return tuple(found)


def bounded_video(policy: Policy) -> tuple[VideoCheck, ...]:
    """Return the checks whose work is linear in the frames."""
    return (SanityCheck(policy.video), FrozenCheck(), FlashCheck(policy.video))


def model_video(policy: Policy) -> tuple[VideoCheck, ...]:
    """Return the checks that ask a network: those that are installed, and the policy's own."""
    found: list[VideoCheck] = []
    nudity = nudity_check() if policy.check("nudity").mode != "off" else None
    if nudity is not None:
        found.append(nudity)
    if policy.content and policy.check("content").mode != "off":
        from .siglip import ContentCheck, Vote, load_head, open_clip_encoder

        asked = policy.content
        encode, vote = open_clip_encoder(asked.encoder, device=asked.device), Vote(asked.threshold)
        found.append(ContentCheck(encode, load_head(asked.head), vote))
    return tuple(found)


def _lexicon(policy: Policy) -> Lexicon:
    lexicon = builtin_lexicon()
    for path in policy.text.lexicons:
        lexicon = lexicon + read_lexicon(path)
    return lexicon.allowing(policy.text.allow)
