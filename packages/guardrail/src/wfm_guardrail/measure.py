"""The subcommands that measure: attack, eval."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from . import console
from .terminal import guard_of, lines, listed, say


def attack(args: argparse.Namespace) -> int:
    """Print how many of the words are caught in each disguise."""
    from .attack import macro, matrix
    from .blocklist import PlainBlocklist

    words = listed(args.words, "attack_words.txt")
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
    """Print false alarms, and recall on prompts of the caller; disguises are what attack counts."""
    from .attack import false_alarms

    refuses, benign = _refuses(args), listed(args.benign, "benign.txt")
    alarms, refused = false_alarms(refuses, benign)
    low, high = alarms.interval
    record: dict[str, object] = {
        "benign": alarms.count,
        "false_alarms": alarms.hits,
        "false_alarm_rate_95": [low, high],
        "refused_benign": refused,
    }
    text = f"false alarms {alarms.hits} of {alarms.count} (95 %: {low:.1%} to {high:.1%})"
    text += "".join(f"\n  refused: {prompt[:100]!r}" for prompt in refused)
    if args.unsafe:
        record["unsafe"] = rows = _caught(refuses, args.unsafe, benign)
        readers = [name for name in ("scene", "semantic") if name in next(iter(rows.values()))]
        text += f"\n{'prompts that must not pass':<32} {'refused':>16}"
        text += "".join(f"{name + ' at 1 %':>16}" for name in readers)
        for name, row in rows.items():
            text += f"\n  {name:<30} {row['refused']:>5} of {row['of']:<5} "
            text += f"{row['refused'] / row['of']:4.0%}"
            text += "".join(f"{row[reader]:16.0%}" for reader in readers)
    say(args, record, text)
    return console.DONE


def _caught(
    refuses: Callable[[str], bool], source: Path, benign: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Count, for each file and for all, what the guard refuses.

    Beside it, the recall of the readers alone where one in a hundred of the benign prompts
    would be refused; that of ``semantic`` where its encoder is installed.
    """
    from .attack import false_alarms, recall_at
    from .classifier import builtin_weights
    from .semantic import find_reader

    found = {"scene": builtin_weights(), "semantic": find_reader()}
    readers = {name: cache(reader.score) for name, reader in found.items() if reader}
    harmless = {name: [read(text)[0] for text in benign] for name, read in readers.items()}
    paths = sorted(source.glob("*.txt")) if source.is_dir() else [source]
    prompts = {path.stem: list(lines(path)) for path in paths}
    if len(prompts) > 1:
        prompts["all"] = [prompt for each in prompts.values() for prompt in each]
    rows: dict[str, dict[str, Any]] = {}
    for name, texts in prompts.items():
        if texts:
            caught, _ = false_alarms(refuses, texts)
            rows[name] = {"refused": caught.hits, "of": caught.count, "refused_95": caught.interval}
            for reader, read in readers.items():
                odds = [read(text)[0] for text in texts]
                rows[name][reader] = recall_at(odds, harmless[reader])[0].share
    if not rows:
        raise ValueError(f"{source}: holds no prompts, one a line, in *.txt files")
    return rows


def _refuses(args: argparse.Namespace) -> Callable[[str], bool]:
    guard = guard_of(args)
    return cache(lambda text: not guard.check_text(text).safe)
