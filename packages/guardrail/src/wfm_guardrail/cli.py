"""The command ``wfm-guardrail``. Nothing heavy is imported before a subcommand runs."""

import argparse
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__, console, measure, provenance, training
from .terminal import guard_of, lines, read, say

if TYPE_CHECKING:
    from .verdict import Verdict

logger = logging.getLogger(__name__)

_TEXT_STAGES = ("prompt", "negative_prompt", "upsampled_prompt")
_MEDIA_STAGES = ("conditioning_media", "output_media")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0 safe, 3 refused, 1 failed, 2 wrongly called."""
    return console.run(build_parser(), argv)


def build_parser() -> argparse.ArgumentParser:
    """Describe all subcommands."""
    parser = argparse.ArgumentParser(
        prog="wfm-guardrail", description="Check prompts and videos, blur faces; no download."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = _command(commands, "check-text", check_text, "decide about prompts")
    command.add_argument("texts", nargs="*", metavar="TEXT")
    command.add_argument("--file", type=Path, help="one prompt a line; - is standard input")
    command.add_argument("--stage", choices=_TEXT_STAGES, default="prompt")
    _add_guard(command)

    command = _command(commands, "check-video", check_video, "decide about video files")
    command.add_argument("inputs", nargs="+", type=Path, metavar="VIDEO")
    command.add_argument("--stage", choices=_MEDIA_STAGES, default="output_media")
    _add_guard(command)

    command = _command(commands, "blur", blur, "write a video with its faces blurred")
    command.add_argument("input", type=Path, metavar="VIDEO")
    command.add_argument("-o", "--out", type=Path, required=True, help="MP4 file to write")
    command.add_argument("--crf", type=int, default=12, help="x264 quality, 0 to 51 (12)")
    _add_guard(command)

    command = _command(commands, "posture", posture, "list what is checked and what is missing")
    _add_guard(command)

    command = _command(commands, "attack", measure.attack, "count the disguises that are caught")
    command.add_argument("--words", type=Path, help="words to disguise, one a line")
    _add_guard(command)

    command = _command(commands, "eval", measure.evaluate, "measure catches and false alarms")
    command.add_argument("--benign", type=Path, help="prompts that must pass, one a line")
    command.add_argument("--unsafe", type=Path, help="prompts that must not pass: file or folder")
    _add_guard(command)

    training.add_commands(commands)

    command = _command(commands, "lint-policy", lint_policy, "check a policy or a lexicon file")
    command.add_argument("source", help="YAML file, or the name of a preset")
    command.add_argument("--words", type=Path, help="dictionary, one word a line")

    command = _command(commands, "serve", serve, "answer /v1/moderations, as OpenAI's does")
    command.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1)")
    command.add_argument("--port", type=int, default=8484)
    _add_guard(command)

    provenance.add_commands(commands)

    audit = commands.add_parser("audit", help="work with audit logs")
    actions = audit.add_subparsers(dest="action", required=True, metavar="ACTION")
    command = actions.add_parser("verify", help="check that no record was changed")
    console.add_common(command, audit_verify)
    command.add_argument("log", type=Path)
    command.add_argument("--head", help="the last seal, as noted elsewhere")
    command.add_argument("--key-file", type=Path, help="file with the key of the seals")
    return parser


def _command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=text, description=text)
    console.add_common(command, run)
    return command


def _add_guard(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--policy",
        default="physical_ai",
        help="physical_ai, strict, research_shadow or a YAML file (physical_ai)",
    )
    command.add_argument("--audit", type=Path, help="append the verdicts to this log")


def check_text(args: argparse.Namespace) -> int:
    """Print a verdict for each prompt."""
    texts = [*args.texts, *(lines(args.file) if args.file else ())]
    if not texts:
        raise ValueError("no text given; write it after the command, or use --file")
    verdicts = guard_of(args).check_texts(texts, stage=args.stage)
    for number, verdict in enumerate(verdicts, 1):
        _print(args, f"prompt {number}", verdict)
    return console.DONE if all(v.safe for v in verdicts) else console.REFUSED


def check_video(args: argparse.Namespace) -> int:
    """Print a verdict for each file; go on after one that cannot be read."""
    from . import videofile

    guard = guard_of(args)
    refused = failed = False
    for path in args.inputs:
        try:
            rate = videofile.frame_rate(path)
            verdict = guard.check_stream(videofile.read_chunks(path), stage=args.stage, fps=rate)
        except (ValueError, OSError) as e:
            if len(args.inputs) == 1:
                raise
            logger.error("wfm-guardrail check-video: error: %s", e)
            failed = True
            continue
        _print(args, str(path), verdict)
        refused |= not verdict.safe
    if refused:
        return console.REFUSED
    return console.FAILED if failed else console.DONE


def blur(args: argparse.Namespace) -> int:
    """Write a video in which faces cannot be recognised."""
    from . import videofile
    from .faces import INSTALL
    from .posture import Coverage
    from .verdict import Refused

    if not 0 <= args.crf <= 51:
        raise ValueError(f"--crf {args.crf}: it lies between 0 and 51")
    if args.out.resolve() == args.input.resolve():
        raise ValueError(f"{args.out}: is the input; name another file")
    guard = guard_of(args)
    faces: Coverage = next(c for c in guard.posture().coverage if c.check == "faces")
    if not faces.effective or faces.mode != "enforce":
        raise ImportError(f"blurring faces needs a detector ({faces.mode}); install: {INSTALL}")
    if videofile.has_sound(args.input):
        logger.info("%s: its sound is not carried over", args.input)
    rate = videofile.frame_rate(args.input) or guard.policy.video.fps
    try:
        chunks = guard.redact_stream(videofile.read_chunks(args.input))
        count = videofile.write_chunks(args.out, chunks, rate, crf=args.crf)
    except Refused as e:
        _print(args, str(args.input), e.verdict)
        return console.REFUSED
    record = {"out": str(args.out), "frames": count, "detector": faces.detail}
    say(args, record, f"{args.out}: {count} frames, faces found by {faces.detail}")
    return console.DONE


def posture(args: argparse.Namespace) -> int:
    """Print requested against effective checks."""
    found = guard_of(args).posture()
    say(args, found.to_dict(), str(found))
    return console.DONE


def serve(args: argparse.Namespace) -> int:
    """Listen until interrupted."""
    from .serve import LOOPBACK, TOKEN_VARIABLE, Server

    token = os.environ.get(TOKEN_VARIABLE)
    if args.host not in LOOPBACK and not token:
        raise ValueError(f"{args.host} is open to others: set {TOKEN_VARIABLE}, the bearer token")
    with Server(guard_of(args), args.host, args.port, token=token) as server:
        logger.info("http://%s:%d/v1/moderations", args.host, server.server_port)
        server.serve_forever()
    return console.DONE


def lint_policy(args: argparse.Namespace) -> int:
    """Check that a policy or lexicon can be used, and what ordinary words it would refuse."""
    from .guard import Guardrail
    from .lexicon import builtin_lexicon, read_lexicon
    from .lint import collisions, duplicates
    from .policy import PRESETS, Policy

    lexicon = builtin_lexicon()
    if args.source not in PRESETS and _is_lexicon(Path(args.source)):
        lexicon = lexicon + read_lexicon(args.source)
    else:
        policy = Policy.load(args.source)
        for path in policy.text.lexicons:
            lexicon = lexicon + read_lexicon(path)
        logger.info("%s", Guardrail(policy).posture())
    problems = list(duplicates(lexicon))
    words = lines(args.words) if args.words else ()
    problems += [f"{c.words!r} would fire {c.rule} ({c.view})" for c in collisions(lexicon, words)]
    say(args, {"problems": problems}, "\n".join(problems) or f"{args.source}: no problem found")
    return console.FAILED if problems else console.DONE


def audit_verify(args: argparse.Namespace) -> int:
    """Check a log's chain of seals."""
    from .audit import verify

    key = read(args.key_file).strip().encode() if args.key_file else None
    count = verify(args.log, key=key, head=args.head)
    say(args, {"log": str(args.log), "records": count}, f"{args.log}: {count} records, unbroken")
    return console.DONE


def _print(args: argparse.Namespace, what: str, verdict: "Verdict") -> None:
    findings = [
        {
            "check": f.check,
            "category": f.category,
            "severity": f.severity.name.lower(),
            "score": f.score,
            "rule": f.rule,
            "view": f.view,
            "matched": f.matched,
        }
        for f in verdict.findings
    ]
    record = {
        "input": what,
        "safe": verdict.safe,
        "reason": verdict.reason,
        "category": verdict.category,
        "stage": verdict.stage,
        "score": verdict.score,
        "findings": findings,
        "checked": list(verdict.checked),
    }
    words = sorted({repr(f.matched) for f in verdict.findings if f.matched and not verdict.safe})
    seen = f" [matched {', '.join(words)}]" if words else ""
    say(args, record, f"{what}: {'safe' if verdict.safe else f'REFUSED, {verdict.reason}{seen}'}")


def _is_lexicon(path: Path) -> bool:
    import yaml

    try:
        data = yaml.safe_load(read(path))
    except yaml.YAMLError as e:
        raise ValueError(f"{path}: not YAML ({e})") from e
    return isinstance(data, dict) and bool({"entries", "groups", "innocent"} & set(data))
