"""``wfm-curator``: the run, its five steps one by one, and a look at the outcome."""

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__, cli_bench, console

if TYPE_CHECKING:
    from .analysis import Analysis
    from .config import CaptionConfig, CurateConfig

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="wfm-curator", description="Turn raw video into training clips."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="all five steps, resumable")
    _add_run(run, _run)
    run.add_argument("--dry-run", action="store_true", help="estimate the cost, write nothing")
    run.add_argument("--strict", action="store_true", help="exit 1 if anything is quarantined")
    only = commands.add_parser("shard", help="every recording whole into shards, unjudged")
    _add_run(only, _shard)
    for name, function, about in (
        ("split", _split, "print the shots of videos"),
        ("filter", _filter, "print the scores and the verdict on each clip"),
        ("caption", _caption, "print the caption of each clip and where it is from"),
        ("dedup", _dedup, "print clips that show the same footage"),
    ):
        step = commands.add_parser(name, help=about)
        console.add_common(step, function)
        step.add_argument("inputs", nargs="+", type=Path, help="video files or folders")
        if name == "dedup":
            about = "what other cosines would leave out; also for what `run -o` wrote"
            step.add_argument("--sweep", action="store_true", help=about)
        _add_settings(step)
    for name, function, about in (
        ("report", _report, "write report.html anew and print the summary"),
        ("view", _view, "list the kept clips, or unpack one"),
    ):
        look = commands.add_parser(name, help=about)
        console.add_common(look, function)
        look.add_argument("folder", type=Path, help="what `run -o` wrote")
        if name == "view":
            look.add_argument("key", nargs="?", help="the clip to unpack")
            look.add_argument("-o", "--out", type=Path, default=Path(), help="where to [.]")
    search = commands.add_parser("search", help="find clips like a clip or a video, or by words")
    console.add_common(search, _search)
    search.add_argument("folder", type=Path, help="what `run -o` wrote")
    search.add_argument("query", nargs="+", help="a clip's key, a video file, or with --text words")
    search.add_argument(
        "--text", action="store_true", help="by what clips show (open_clip), or by captions"
    )
    search.add_argument("-n", "--count", type=int, default=10, help="how many [10]")
    cli_bench.add(commands)
    return console.run(parser, argv)


def _add_run(parser: argparse.ArgumentParser, function: Any) -> None:
    console.add_common(parser, function)
    about = "video files, folders, patterns, lists, or addresses such as s3://bucket/raw"
    parser.add_argument("inputs", nargs="+", help=about)
    parser.add_argument("-o", "--out", type=Path, required=True, help="output folder")
    parser.add_argument("--executor", default="local", help="local, or ray (extra) [local]")
    parser.add_argument("--workers", type=int, help="processes [2]; 0 works in this one")
    parser.add_argument("--seed", type=int, help="of the clustering that finds duplicates [0]")
    _add_settings(parser)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE.yaml", help="settings")
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=VALUE", help="override one of them"
    )


def _settings(args: argparse.Namespace, *fixed: str) -> "CurateConfig":
    from .config import CurateConfig
    from .settings import load_settings

    flags = (("run.workers", "workers"), ("dedup.seed", "seed"))
    given = [f"{k}={getattr(args, a)}" for k, a in flags if getattr(args, a, None) is not None]
    return load_settings(CurateConfig, args.config, [*fixed, *args.set, *given])


def _run(args: argparse.Namespace) -> int:
    return _estimate(args) if args.dry_run else _curate(args, _settings(args))


def _estimate(args: argparse.Namespace) -> int:
    from .estimate import estimate
    from .inputs import CACHE, find_recordings

    found = find_recordings(args.inputs, cache=args.out / CACHE)
    bars = _Bars(hidden=args.quiet or not sys.stderr.isatty())
    try:
        cost = estimate(found, _settings(args), progress=lambda *n: bars.update("headers", *n))
    finally:
        bars.close()
    print(json.dumps(cost.as_dict()) if args.json else cost)
    return console.DONE


def _shard(args: argparse.Namespace) -> int:
    open_gates = (
        "split.method=whole",
        "split.max_seconds=1e9",
        "dedup.enabled=false",
        "filter={min_motion: 0, min_change: 0, max_frozen: 1, max_blur: 1, min_luma: 0, "
        "max_bright: 1, min_contrast: 0, max_bars: 1, min_side: 1, max_overlay: 1}",
        "look.text=none",
    )
    return _curate(args, _settings(args, *open_gates))


def _curate(args: argparse.Namespace, config: "CurateConfig") -> int:
    from .pipeline import curate

    bars = _Bars(hidden=args.quiet or not sys.stderr.isatty())
    try:
        report = curate(args.inputs, args.out, config, args.executor, progress=bars.update)
    finally:
        bars.close()
    logger.info("%s", bars)
    print(json.dumps(report.as_dict()) if args.json else f"{report}\n{args.out}/report.html")
    strict = getattr(args, "strict", False)
    return console.FAILED if strict and report.quarantined else console.DONE


class _Bars:
    """One progress bar after another on stderr; as text, where the time went."""

    def __init__(self, *, hidden: bool) -> None:
        self.hidden, self.what, self.bar = hidden, "", None
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def update(self, what: str, done: int, total: int) -> None:
        now = time.perf_counter()
        self.seconds[what] = self.seconds.get(what, 0.0) + now - self.last
        self.last = now
        if self.hidden:
            return
        from tqdm import tqdm

        if what != self.what or self.bar is None:
            self.close()
            self.what, self.bar = what, tqdm(desc=what, total=total, file=sys.stderr)
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def __str__(self) -> str:
        total = sum(self.seconds.values())
        longest = sorted(self.seconds.items(), key=lambda s: -s[1])
        parts = [f"{what} {took:.1f} s ({took / total:.0%})" for what, took in longest]
        return f"time by the clock: {', '.join(parts)}"


def _analyses(args: argparse.Namespace, config: "CurateConfig") -> Iterator["Analysis"]:
    """Analyse the inputs one by one; an unreadable one is an error here, not a quarantine."""
    from .analysis import analyse
    from .inputs import find_recordings

    found = find_recordings(args.inputs)
    for recording in console.progress(found, "measure", quiet=args.quiet):
        yield analyse(recording.path, config.split, name=recording.name, look=config.look)


def _say(args: argparse.Namespace, row: dict[str, Any], text: str) -> None:
    print(json.dumps(row, ensure_ascii=False) if args.json else text)


def _split(args: argparse.Namespace) -> int:
    for found in _analyses(args, _settings(args)):
        for clip in found.clips:
            row: dict[str, Any] = {"recording": found.name, "start": clip.start, "stop": clip.stop}
            row |= {"start_seconds": clip.start_seconds, "stop_seconds": clip.stop_seconds}
            times = f"{clip.start_seconds:9.3f} {clip.stop_seconds:9.3f} s"
            text = f"{found.name}  {clip.start:7d} {clip.stop:7d}  {times}  {clip.reason}"
            _say(args, row | {"reason": clip.reason}, text.rstrip())
    return console.DONE


def _filter(args: argparse.Namespace) -> int:
    from .filters import judge

    config = _settings(args)
    for found in _analyses(args, config):
        for clip in found.clips:
            reason = clip.reason or judge(clip.scores, config.filter)
            row: dict[str, Any] = {"recording": found.name, "start": clip.start, "stop": clip.stop}
            row |= {"reason": reason, "tags": clip.tags, "scores": clip.scores}
            scores = ", ".join(f"{k} {v:g}" for k, v in clip.scores.items())
            verdict = f"rejected: {reason}" if reason else "kept"
            where = f"{found.name} [{clip.start}:{clip.stop}]"
            _say(args, row, f"{where}  {verdict}  ({', '.join(clip.tags)})\n    {scores}")
    return console.DONE


def _caption(args: argparse.Namespace) -> int:
    from .decide import captioned

    config = _settings(args)
    ask = _model(config.caption)
    for found in _analyses(args, config):
        facts = found.facts()
        for clip in facts["clips"]:
            words = captioned(clip, facts, config.caption)
            text, source, parts = words.text, words.source, []
            if ask is not None and source in ("described", "none"):
                text, source, parts = ask(found.path, facts, clip)
            where = {"recording": found.name, "start": clip["start"], "stop": clip["stop"]}
            row: dict[str, Any] = {**where, "caption": text, "caption_source": source}
            bad = [w for w in parts if w["status"] != "ok"]
            note = "".join(f"\n    {w['status']}: {w.get('error', '')}" for w in bad)
            row |= {"windows": parts} if parts else {}
            line = f"{found.name} [{clip['start']}:{clip['stop']}]  ({source})  {text}{note}"
            _say(args, row, line)
    return console.DONE


def _model(config: "CaptionConfig") -> Any:
    """Return a function that captions a clip by a model, if there is one."""
    from .analysis import span
    from .captioning import Clip, caption_clips, joined
    from .vlm import model_of

    endpoint = model_of(config)
    if endpoint is None:
        return None
    endpoint.probe()

    def ask(path: Path, facts: dict, clip: dict) -> tuple[str, str, list[dict]]:
        one = Clip(clip["key"], path, span(clip, facts["exact"]), facts["fps"])
        (parts,) = caption_clips([one], endpoint).values()
        return joined(parts), f"model {endpoint.model}", [w.facts() for w in parts]

    return ask


def _dedup(args: argparse.Namespace) -> int:
    from .dedup import find_duplicates
    from .sweep import clips_of, sweep

    config = _settings(args)
    if len(args.inputs) == 1 and (args.inputs[0] / "ledger.sqlite").is_file():
        names, embeddings, ranks = clips_of(args.inputs[0])
    else:
        names, embeddings, ranks = _embedded(args, config)
    if args.sweep:
        for cosine, found in sweep(embeddings, ranks, config.dedup):
            share = len(found) / max(1, len(names))
            row: dict[str, Any] = {"cosine": cosine, "left_out": len(found), "clips": len(names)}
            least = min(found, key=lambda d: d.cosine, default=None)
            pair = f"; least alike: {names[least.index]} = {names[least.kept]}" if least else ""
            _say(args, row, f"{cosine:.2f}  {len(found)} of {len(names)} ({share:.1%}){pair}")
        return console.DONE
    for twin in find_duplicates(embeddings, ranks, config.dedup):
        row = {"clip": names[twin.index], "duplicate_of": names[twin.kept], "how": twin.how}
        row |= {"cosine": twin.cosine, "difference": twin.difference}
        evidence = f"cosine {twin.cosine:.3f}, difference {twin.difference:.3f}"
        how = f"{twin.how}, " if twin.how else ""
        _say(args, row, f"{names[twin.index]}  =  {names[twin.kept]}  ({how}{evidence})")
    return console.DONE


def _embedded(args: argparse.Namespace, config: "CurateConfig") -> Any:
    """Return names, embeddings and ranks of the clips of videos."""
    names, embeddings, ranks = [], [], []
    for found in _analyses(args, config):
        pixels = found.info.height * found.info.width
        for clip, embedding in zip(found.clips, found.embeddings, strict=True):
            names.append(f"{found.name} [{clip.start}:{clip.stop}]")
            embeddings.append(embedding)
            ranks.append((pixels, clip.scores["quality"], clip.stop - clip.start, -len(ranks)))
    return names, embeddings, ranks


def _report(args: argparse.Namespace) -> int:
    from .publish import rewrite_report

    report = rewrite_report(args.folder)
    print(json.dumps(report.as_dict()) if args.json else f"{report}\n{args.folder}/report.html")
    return console.DONE


def _view(args: argparse.Namespace) -> int:
    from .dataset import ShardedDataset

    clips = ShardedDataset(args.folder)
    if args.key is None:
        for clip in clips:
            row: dict[str, Any] = {"key": clip.key, "frames": len(clip), "fps": clip.fps}
            row |= {"height": clip.height, "width": clip.width, "caption": clip.caption}
            size = f"{len(clip):5d} frames {clip.width}x{clip.height} {clip.fps:g} fps"
            _say(args, row, f"{clip.key}  {size}  {clip.caption}")
        return console.DONE
    clip = next((c for c in clips if c.key == args.key), None)
    if clip is None:
        raise ValueError(f"{args.folder}: no clip {args.key!r}; leave the key out to list them")
    args.out.mkdir(parents=True, exist_ok=True)
    for suffix in clip.members:
        path = args.out / f"{clip.key}.{suffix}"
        path.write_bytes(clip.member(suffix))
        _say(args, {"path": str(path)}, str(path))
    return console.DONE


def _search(args: argparse.Namespace) -> int:
    from . import search

    find = search.text if args.text else search.like
    for hit in find(args.folder, " ".join(args.query), count=args.count):
        where = f"{hit.recording} [{hit.start}:{hit.stop}]"
        _say(args, vars(hit), f"{hit.score:.3f}  {hit.key}  {where}  ({hit.state})  {hit.caption}")
    return console.DONE
