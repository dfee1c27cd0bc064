"""The subcommands that train: train-text, train-video."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import console
from .terminal import listed, read, say

if TYPE_CHECKING:
    from .classifier import Reader
    from .siglip import Encoder


def add_commands(commands: Any) -> None:
    """Describe the subcommands."""
    about = "train the checks scene and semantic"
    command = commands.add_parser("train-text", help=about, description=about)
    console.add_common(command, train_text)
    command.add_argument("-o", "--out", type=Path, required=True, help="weights (.npz) to write")
    command.add_argument("--head", type=Path, help="head of the encoder (.npz) to write")
    command.add_argument("--vectors", type=Path, help="word vectors (.npz); made by --encoder")
    command.add_argument(
        "--encoder", type=Path, help="folder of a sentence encoder, as all-MiniLM-L6-v2"
    )
    command.add_argument("--scenes", type=Path, help="`class: pattern` a line (the built-in ones)")
    command.add_argument(
        "--benign", type=Path, help="harmless prompts; every other one sets the thresholds"
    )
    command.add_argument("--each", type=int, default=12, help="sentences of each pattern (12)")

    about = "train a head for the check content"
    command = commands.add_parser("train-video", help=about, description=about)
    console.add_common(command, train_video)
    command.add_argument("-o", "--out", type=Path, required=True, help="head (.pt) to write")
    command.add_argument(
        "--videos", type=Path, help="a folder for each class: safe/a.mp4, violence/b.mp4"
    )
    command.add_argument("--encoder", type=Path, help="SigLIP weights that open_clip reads")
    command.add_argument("--frames", type=int, default=16, help="frames of each video (16)")
    command.add_argument("--vectors", type=Path, help="frames' vectors (.npz); made by --videos")
    command.add_argument("--epochs", type=int, default=30, help="rounds over all frames (30)")


def train_text(args: argparse.Namespace) -> int:
    """Train the checks scene and semantic; say what they refuse of the half that was not used."""
    import numpy as np

    from . import trainer
    from .classifier import Weights
    from .semantic import Encoder, SemanticReader

    if not (args.encoder or args.vectors):
        raise ValueError("words need vectors: give --vectors FILE.npz or --encoder FOLDER")
    if args.head and not args.encoder:
        raise ValueError("--head is trained on sentences: give --encoder FOLDER, too")
    text = read(args.scenes) if args.scenes else trainer.builtin_scenes()
    scenes = trainer.read_scenes(text, args.each)
    benign = listed(args.benign, "benign.txt")
    encode = Encoder(args.encoder) if args.encoder else None
    if args.vectors and args.vectors.exists():
        vectors = trainer.read_vectors(args.vectors)
    elif encode is None:
        raise FileNotFoundError(f"{args.vectors}: no such file; --encoder FOLDER makes it")
    else:
        vectors = trainer.vocabulary_vectors(args.encoder, encode)
        if args.vectors:
            _write(args.vectors, {"words": np.array(vectors[0]), "vectors": vectors[1]})
    _write(args.out, trainer.train(scenes, benign[::2], vectors))
    words = Weights.load(args.out)
    _trained(args, args.out, len(scenes.texts), words, benign[1::2])
    if args.head and encode is not None:
        _write(args.head, trainer.train_head(scenes, benign[::2], words, encode))
        reader = SemanticReader.load(args.head, encode, words)
        _trained(args, args.head, len(scenes.texts), reader, benign[1::2])
    return console.DONE


def _write(path: Path, arrays: Mapping[str, Any]) -> None:
    import numpy as np

    from .videofile import replacing

    with replacing(path) as partial, partial.open("wb") as file:
        np.savez_compressed(file, **arrays)


def _trained(
    args: argparse.Namespace, path: Path, scenes: int, reader: "Reader", benign: Sequence[str]
) -> None:
    from .attack import false_alarms

    alarms, _ = false_alarms(lambda text: reader.score(text)[0] >= reader.thresholds[1], benign)
    record = {"out": str(path), "scenes": scenes, "held_out": [alarms.hits, alarms.count]}
    refused = f"refuses {alarms.hits} of {alarms.count} other harmless prompts"
    say(args, record, f"{path}: {scenes} scenes; {refused}")


def train_video(args: argparse.Namespace) -> int:
    """Train a head; print its recall at 1 % false alarms on every fifth video, held out whole."""
    import numpy as np
    import torch

    from .siglip import open_clip_encoder, train_head
    from .videofile import replacing

    if args.vectors and args.vectors.exists():
        with np.load(args.vectors, allow_pickle=False) as z:
            frames = {name: z[name] for name in ("vectors", "labels", "videos")}
    elif args.videos and args.encoder:
        paths = _labelled(args.videos)
        frames = _encoded(paths, open_clip_encoder(args.encoder), args.frames)
        if args.vectors:
            _write(args.vectors, frames)
    else:
        raise ValueError("give --videos FOLDER and --encoder FILE, or --vectors FILE of before")
    head, rate, limit = train_head(
        frames["vectors"], frames["labels"], frames["videos"], epochs=args.epochs
    )
    with replacing(args.out) as partial:
        torch.save({"model": head.state_dict()}, partial)
    low, high = rate.interval
    record = {"out": str(args.out), "recall": rate.share, "of": rate.count, "threshold": limit}
    text = f"{args.out}: {rate.share:.1%} of {rate.count} held-out unsafe frames (95 %: {low:.1%} "
    say(args, record, f"{text}to {high:.1%}) at 1 % false alarms, threshold {limit:.3f}")
    return console.DONE


def _labelled(folder: Path) -> list[tuple[Path, int]]:
    from .siglip import CLASSES

    found = [(path, path.parent.name) for path in sorted(folder.glob("*/*")) if path.is_file()]
    unknown = {name for _, name in found} - set(CLASSES)
    if unknown or not found:
        named = ", ".join(sorted(unknown)) or "no file"
        raise ValueError(f"{folder}: holds {named}; its folders are named {', '.join(CLASSES)}")
    return [(path, CLASSES.index(name)) for path, name in found]


def _encoded(paths: Sequence[tuple[Path, int]], encode: "Encoder", count: int) -> dict[str, Any]:
    """Return the vectors of frames evenly spread over each video, labels, and videos' numbers."""
    import numpy as np
    from tqdm import tqdm

    from .videofile import read_chunks

    vectors, labels, videos = [], [], []
    for number, (path, label) in enumerate(tqdm(paths, desc="videos", disable=None)):
        total = sum(len(chunk) for chunk in read_chunks(path))
        wanted = set(np.linspace(0, total - 1, min(count, total)).astype(int).tolist())
        start = 0
        for chunk in read_chunks(path):
            picked = [i for i in range(len(chunk)) if start + i in wanted]
            start += len(chunk)
            if picked:
                vectors.append(encode(chunk[picked]).numpy())
                labels += [label] * len(picked)
                videos += [number] * len(picked)
    return {
        "vectors": np.concatenate(vectors),
        "labels": np.array(labels),
        "videos": np.array(videos),
    }
