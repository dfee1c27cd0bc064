"""Compare ways to decode the same tokens of held-out clips; print a Markdown table.

    python tools/evaluate_decoder.py CLIPS... pico-decoder

CLIPS are folders that the curator wrote. The tokens are those that the discrete codec makes of 17
real frames, so what is lost is lost in the tokens or in decoding them. Sharpness is the mean
difference between pixels side by side, as a part of the real clips'.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from wfm_curator import ShardedDataset
from wfm_posttrain import metrics
from wfm_posttrain.references import resolve
from wfm_tokenizer.video import to_model

FRAMES = 17


def read(folder: Path, count: int) -> Tensor:
    """Return the first frames of clips, evenly chosen, b 3 t h w in [-1, 1]."""
    data = ShardedDataset(folder)
    long = [i for i in range(len(data)) if len(data[i]) >= FRAMES]
    chosen = long[:: max(1, len(long) // count)][:count]
    return torch.cat([to_model(data[i].read(0, FRAMES)) for i in chosen])


def sharpness(video: Tensor) -> float:
    return (video[..., 1:] - video[..., :-1]).abs().mean().item()


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("clips", type=Path, nargs="+", help="folders of shards")
    parser.add_argument("decoder", help="name or reference, of wfm.token_decoders")
    parser.add_argument("--count", type=int, default=24, help="clips of each folder")
    args = parser.parse_args()
    decoder = resolve(args.decoder, "wfm.token_decoders")
    codec = resolve(decoder.settings.token_codec, "wfm.codecs")  # ty: ignore[missing-attribute]
    print("| clips | decoded by | PSNR dB (95 %) | SSIM | sharpness |\n|---|---|---|---|---|")
    for folder in args.clips:
        real = read(folder, args.count)
        tokens = codec.encode(real)  # ty: ignore[missing-attribute]
        for name, way in (("its own codec", codec), (args.decoder, decoder)):
            video = way.decode(tokens).clamp(-1, 1)  # ty: ignore[missing-attribute]
            peak = metrics.bootstrap(metrics.psnr(video, real).mean(1))
            cells = (
                f"{folder.name}, {len(real)}",
                name,
                f"{peak.mean:.1f} ({peak.low:.1f} to {peak.high:.1f})",
                f"{metrics.ssim(video, real).mean():.2f}",
                f"{sharpness(video) / sharpness(real):.2f}",
            )
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
