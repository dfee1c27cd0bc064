"""The subcommands that measure and train: attack, eval, train-text."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import console
from .terminal import guard_of, lines, listed, read, say


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
    """Print recall in disguise, false alarms, and recall on prompts of the caller."""
    from .attack import false_alarms, macro, matrix

    refuses = _refuses(args)
    table = matrix(refuses, listed(args.words, "attack_words.txt"))
    worst = min(table, key=lambda name: table[name].share)
    alarms, refused = false_alarms(refuses, listed(args.benign, "benign.txt"))
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
        record["unsafe"] = rows = _caught(refuses, args.unsafe, listed(args.benign, "benign.txt"))
        text += f"\n{'prompts that must not pass':<32} {'refused':>16} {'read at 1 %':>12}"
        for name, row in rows.items():
            text += f"\n  {name:<30} {row['refused']:>5} of {row['of']:<5} "
            text += f"{row['refused'] / row['of']:4.0%} {row['read_at_1_percent']:12.0%}"
    say(args, record, text)
    return console.DONE


def _caught(
    refuses: Callable[[str], bool], source: Path, benign: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Count, for each file and for all, what the guard refuses.

    Beside it, the recall of the scene check alone where one in a hundred of the benign prompts
    would be refused.
    """
    from .attack import false_alarms, recall_at
    from .classifier import builtin_weights

    def odds(text: str) -> float:
        return builtin_weights().score(text)[0]

    harmless = [odds(prompt) for prompt in benign]
    paths = sorted(source.glob("*.txt")) if source.is_dir() else [source]
    prompts = {path.stem: list(lines(path)) for path in paths}
    if len(prompts) > 1:
        prompts["all"] = [prompt for each in prompts.values() for prompt in each]
    rows: dict[str, dict[str, Any]] = {}
    for name, texts in prompts.items():
        if texts:
            caught, _ = false_alarms(refuses, texts)
            recall, _ = recall_at([odds(text) for text in texts], harmless)
            rows[name] = {"refused": caught.hits, "of": caught.count, "refused_95": caught.interval}
            rows[name]["read_at_1_percent"] = recall.share
    if not rows:
        raise ValueError(f"{source}: holds no prompts, one a line, in *.txt files")
    return rows


def train_text(args: argparse.Namespace) -> int:
    """Train the scene check's weights; say what they refuse of the half that was not used."""
    import numpy as np

    from .attack import false_alarms
    from .classifier import Weights
    from .trainer import builtin_scenes, encode_words, read_scenes, read_vectors, save, train
    from .videofile import replacing

    if not (args.encoder or args.vectors):
        raise ValueError("words need vectors: give --vectors FILE.npz or --encoder FOLDER")
    scenes = read_scenes(read(args.scenes) if args.scenes else builtin_scenes(), args.each)
    benign = listed(args.benign, "benign.txt")
    vectors = encode_words(args.encoder) if args.encoder else read_vectors(args.vectors)
    if args.encoder and args.vectors:
        np.savez(args.vectors, words=np.array(vectors[0]), vectors=vectors[1])
    arrays = train(scenes, benign[::2], vectors)
    with replacing(args.out) as partial:
        save(partial, arrays)
    weights = Weights.load(args.out)
    limit = weights.thresholds[1]
    alarms, _ = false_alarms(lambda t: weights.score(t)[0] >= limit, benign[1::2])
    record: dict[str, object] = {
        "out": str(args.out),
        "scenes": len(scenes.texts),
        "features": len(arrays["keys"]),
    }
    record["held_out"] = [alarms.hits, alarms.count]
    text = f"{args.out}: {len(scenes.texts)} scenes, {len(arrays['keys'])} features; refuses "
    say(args, record, f"{text}{alarms.hits} of {alarms.count} other harmless prompts")
    return console.DONE


def _refuses(args: argparse.Namespace) -> Callable[[str], bool]:
    guard = guard_of(args)
    return lambda text: not guard.check_text(text).safe
