"""The command ``wfm-guardrail``. Nothing heavy is imported before a subcommand runs."""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__, console

if TYPE_CHECKING:
    from .guard import Guardrail
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

    command = _command(commands, "attack", attack, "count which disguises of words are caught")
    command.add_argument("--words", type=Path, help="words to disguise, one a line")
    _add_guard(command)

    command = _command(commands, "eval", evaluate, "measure catches and false alarms")
    command.add_argument("--words", type=Path, help="words to disguise, one a line")
    command.add_argument("--benign", type=Path, help="prompts that must pass, one a line")
    command.add_argument("--unsafe", type=Path, help="prompts that must not pass, one a line")
    _add_guard(command)

    command = _command(commands, "lint-policy", lint_policy, "check a policy or a lexicon file")
    command.add_argument("source", help="YAML file, or the name of a preset")
    command.add_argument("--words", type=Path, help="dictionary, one word a line")

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


def _guard(args: argparse.Namespace) -> "Guardrail":
    from .guard import Guardrail
    from .policy import Policy

    guard = Guardrail(Policy.load(args.policy), audit=args.audit)
    for gap in guard.posture().gaps:
        logger.info("not checked: %s (%s)", gap.check, gap.detail)
    return guard


def check_text(args: argparse.Namespace) -> int:
    """Print a verdict for each prompt."""
    texts = [*args.texts, *(_lines(args.file) if args.file else ())]
    if not texts:
        raise ValueError("no text given; write it after the command, or use --file")
    verdicts = _guard(args).check_texts(texts, stage=args.stage)
    for number, verdict in enumerate(verdicts, 1):
        _print(args, f"prompt {number}", verdict)
    return console.DONE if all(v.safe for v in verdicts) else console.REFUSED


def check_video(args: argparse.Namespace) -> int:
    """Print a verdict for each file; go on after one that cannot be read."""
    from . import videofile

    guard = _guard(args)
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
    guard = _guard(args)
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
    _say(args, record, f"{args.out}: {count} frames, faces found by {faces.detail}")
    return console.DONE


def posture(args: argparse.Namespace) -> int:
    """Print requested against effective checks."""
    found = _guard(args).posture()
    _say(args, found.to_dict(), str(found))
    return console.DONE


def attack(args: argparse.Namespace) -> int:
    """Print how many of the words are caught in each disguise."""
    from .attack import macro, matrix
    from .blocklist import PlainBlocklist

    words = _list(args.words, "attack_words.txt")
    table, plain = matrix(_refuses(args), words), matrix(PlainBlocklist(words).refuses, words)
    if args.json:
        rows = {
            n: {"hits": r.hits, "of": r.count, "plain": plain[n].hits} for n, r in table.items()
        }
        record = {"macro_recall": macro(table), "plain_recall": macro(plain), "disguises": rows}
        sys.stdout.write(json.dumps(record) + "\n")
        return console.DONE
    sys.stdout.write(f"{'disguise':<30} {'caught':>7} {'':>7} {'plain word list':>16}\n")
    for name, r in table.items():
        row = f"{name:<30} {r.hits:>3}/{r.count:<3} {r.share:7.1%} {plain[name].share:16.1%}"
        sys.stdout.write(row + "\n")
    mean = f"{'mean over disguises':<30} {'':>7} {macro(table):7.1%} {macro(plain):16.1%}"
    sys.stdout.write(mean + "\n")
    return console.DONE


def evaluate(args: argparse.Namespace) -> int:
    """Print recall in disguise, false alarms, and recall on prompts of the caller."""
    from .attack import false_alarms, macro, matrix

    refuses = _refuses(args)
    table = matrix(refuses, _list(args.words, "attack_words.txt"))
    worst = min(table, key=lambda name: table[name].share)
    alarms, refused = false_alarms(refuses, _list(args.benign, "benign.txt"))
    low, high = alarms.interval
    record: dict[str, object] = {
        "macro_recall": macro(table),
        "worst_disguise": worst,
        "worst_recall": table[worst].share,
        "benign": alarms.count,
        "false_alarms": alarms.hits,
        "false_alarm_rate_95": [low, high],
        "refused_benign": refused,
    }
    text = (
        f"caught in disguise   {macro(table):.1%} of {table[worst].count} words in {len(table)} "
        f"disguises (worst: {worst}, {table[worst].share:.0%})\n"
        f"false alarms         {alarms.hits} of {alarms.count} (95 %: {low:.1%} to {high:.1%})"
    )
    text += "".join(f"\n  refused: {prompt[:100]!r}" for prompt in refused)
    if args.unsafe:
        caught, _ = false_alarms(refuses, _list(args.unsafe, ""))
        low, high = caught.interval
        record |= {"unsafe": caught.count, "caught": caught.hits, "caught_95": [low, high]}
        text += f"\ncaught as written    {caught.hits} of {caught.count} "
        text += f"(95 %: {low:.1%} to {high:.1%})"
    _say(args, record, text)
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
    words = _lines(args.words) if args.words else ()
    problems += [f"{c.words!r} would fire {c.rule} ({c.view})" for c in collisions(lexicon, words)]
    _say(args, {"problems": problems}, "\n".join(problems) or f"{args.source}: no problem found")
    return console.FAILED if problems else console.DONE


def audit_verify(args: argparse.Namespace) -> int:
    """Check a log's chain of seals."""
    from .audit import verify

    key = _read(args.key_file).strip().encode() if args.key_file else None
    count = verify(args.log, key=key, head=args.head)
    _say(args, {"log": str(args.log), "records": count}, f"{args.log}: {count} records, unbroken")
    return console.DONE


def _refuses(args: argparse.Namespace) -> Callable[[str], bool]:
    guard = _guard(args)
    return lambda text: not guard.check_text(text).safe


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
    _say(args, record, f"{what}: {'safe' if verdict.safe else f'REFUSED, {verdict.reason}{seen}'}")


def _say(args: argparse.Namespace, record: object, text: str) -> None:
    sys.stdout.write((json.dumps(record) if args.json else text) + "\n")


def _list(path: Path | None, builtin: str) -> list[str]:
    if path is not None:
        return list(_lines(path))
    return list(_meant((files(str(__package__)) / "data" / builtin).read_text(encoding="utf-8")))


def _lines(path: Path) -> Iterator[str]:
    return _meant(sys.stdin.read() if str(path) == "-" else _read(path))


def _meant(text: str) -> Iterator[str]:
    """Yield the lines that are neither empty nor a comment (``# ...``)."""
    return (line for line in text.splitlines() if line.strip() and not line.startswith("# "))


def _read(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise ValueError(f"{path}: not UTF-8 text") from e


def _is_lexicon(path: Path) -> bool:
    import yaml

    try:
        data = yaml.safe_load(_read(path))
    except yaml.YAMLError as e:
        raise ValueError(f"{path}: not YAML ({e})") from e
    return isinstance(data, dict) and bool({"entries", "groups", "innocent"} & set(data))
