"""Take a video through both tokenizers and back.

python examples/reconstruct_video.py [VIDEO] writes VIDEO's reconstructions to out/.
"""

import sys
from pathlib import Path

import torch

import wfm_tokenizer as wt
from wfm_posttrain import sim
from wfm_tokenizer.video import read_video, to_frames, to_model, write_video


def main(out: Path, path: str | None = None) -> None:
    if path:
        frames, fps = read_video(path)
    else:
        episode = sim.generate("arm-push", seed=sim.HELD_OUT_SEED)
        frames, fps = torch.from_numpy(episode.frames), episode.fps
    video = to_model(frames[:17])
    for name in ("pico-cv4x8x8", "pico-dv8x16x16"):
        tokenizer = wt.load(f"builtin:{name}")
        with torch.no_grad():
            rebuilt = tokenizer.reconstruct(video)
        psnr = 10 * torch.log10(4 / (rebuilt.clamp(-1, 1) - video).square().mean())
        print(f"{name}: {psnr:.1f} dB")
        write_video(out / f"{name}.mp4", to_frames(rebuilt), fps)


if __name__ == "__main__":
    main(Path("out/reconstructed"), *sys.argv[1:2])
