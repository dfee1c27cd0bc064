"""Say how well what networks of several sizes imagine holds together as a place.

    python tools/evaluate_capacity.py CAPACITY CLIPS

CAPACITY is what `packages/wfm-diffusion/benchmarks/capacity.py` left, CLIPS are held-out flights
through rooms, with camera poses. Each network, and `pico` as it ships, sees 9 frames and goes on
for 8. Of these, of the real ones and of the real ones after the codec: the temporal Sampson error
(TSE, pixels of 64; Cosmos 1.0, section 5.3.1), the share of steps from frame to frame whose camera
motion can be recovered at all and within 10 degrees of the true turn, and PSNR. Intervals are 95 %,
from resampling the clips. Also written to CAPACITY/place.json.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

import wfm_diffusion as wd
from wfm_curator import ShardedDataset
from wfm_diffusion.latents import decode_video, encode_video
from wfm_posttrain import geometry, metrics
from wfm_posttrain.interfaces import LabelledClip
from wfm_tokenizer.video import to_model

sys.path.insert(0, str(Path(__file__).parents[1] / "packages/wfm-diffusion/benchmarks"))
import capacity  # ty: ignore[import-not-found]

PAST, FUTURE, CLOSE, AT_ONCE = 9, 8, 10.0, 8
Imagine = Callable[[Tensor, list[str]], Tensor]


def imaginers(folder: Path) -> Iterator[tuple[str, Imagine]]:
    """Yield the networks that are there, each as a function from past frames to new ones."""
    pico = wd.load_world("builtin:pico")
    s = pico.settings
    for name in capacity.NAMES:
        if not (folder / name / "model").is_dir():
            continue
        net = wd.load(folder / name / "model")
        if name == "factorised":
            _, ch, cw = pico.codec.compression
            capacity.factorise(net, s.height // ch * (s.width // cw) // 4)
        world = wd.WorldModel(net, pico.codec, pico.text_encoder, settings=s)
        yield name, lambda past, words, world=world: world.video2world(past, words, frames=FUTURE)
    yield "pico", lambda past, words: pico.video2world(past, words, frames=FUTURE)


def score(new: Tensor, real: Tensor, clip: LabelledClip) -> dict[str, float]:
    """Score the new frames of a clip, 3 t h w, after the last one that was seen."""
    labels = clip.labels()
    poses = labels["camera_pose"][PAST - 1 : PAST + FUTURE].double().numpy()
    pinhole = labels["intrinsics"][0].double().numpy()
    shown = torch.cat([real[:, PAST - 1 : PAST], new.to(real)], dim=1)
    pixels = ((shown.clamp(-1, 1) + 1) * 127.5).round().byte().transpose(0, 1).numpy()
    turns = geometry.pose_errors(pixels, poses, pinhole).rotation
    return {
        "tse": geometry.temporal_sampson(pixels).error,
        "recovered": len(turns) / FUTURE,
        "close": float((turns < CLOSE).sum()) / FUTURE,
        "psnr": float(metrics.psnr(new[None], real[None, :, PAST : PAST + FUTURE]).mean()),
    }


@torch.no_grad()
def evaluate(
    folder: Path, clips: Sequence[LabelledClip]
) -> Iterator[tuple[str, list[dict[str, float]]]]:
    """Yield the scores of every clip: of the real ones, after the codec, and of each network."""
    video = torch.cat([to_model(clip.read(0, PAST + FUTURE)) for clip in clips])
    words = [clip.caption for clip in clips]
    codec = wd.load_world("builtin:pico").codec
    passed = decode_video(codec, encode_video(codec, video, "video"), "video")
    rows = {"real": video[:, :, PAST:], "real, after the codec": passed[:, :, PAST : PAST + FUTURE]}
    for name, imagine in imaginers(folder):
        starts = range(0, len(clips), AT_ONCE)
        new = [imagine(video[i : i + AT_ONCE, :, :PAST], words[i : i + AT_ONCE]) for i in starts]
        rows[name] = torch.cat(new)
    for name, new in rows.items():
        yield name, [score(a, b, clip) for a, b, clip in zip(new, video, clips, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("capacity", type=Path)
    parser.add_argument("clips", type=Path, help="folder of shards with clips of rooms")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = ShardedDataset(args.clips)
    clips = [data[i] for i in range(len(data)) if data[i].attributes.get("scene") == "room"]
    clips = [clip for clip in clips if len(clip) >= PAST + FUTURE]
    if not clips:
        parser.error(f"{args.clips}: no clips of rooms with {PAST + FUTURE} frames")
    print(f"| {len(clips)} clips | TSE, px | recovered | within {CLOSE:g} degrees | PSNR, dB |")
    print("| --- | --- | --- | --- | --- |")
    table = {}
    for name, found in evaluate(args.capacity, clips):
        columns = {key: torch.tensor([one[key] for one in found]).double() for key in found[0]}
        means = {key: metrics.bootstrap(x[~x.isnan()]) for key, x in columns.items()}
        table[name] = {key: vars(mean) for key, mean in means.items()}
        cells = (f"{m.mean:.2f} ({m.low:.2f} to {m.high:.2f})" for m in means.values())
        print(f"| {' | '.join([name, *cells])} |", flush=True)
    (args.capacity / "place.json").write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
