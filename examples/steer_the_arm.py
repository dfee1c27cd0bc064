"""Give an imagined robot arm commands, one frame each.

python examples/steer_the_arm.py writes out/steered.mp4: left, then right, then left again.
"""

from pathlib import Path

import torch

import wfm_posttrain as wp
from wfm_posttrain import sim
from wfm_tokenizer.video import to_frames, to_model, write_video


def main(out: Path, steps: int = 12) -> None:
    world = wp.load("builtin:pico-arm-diffusion")
    episode = sim.generate("arm-push", seed=sim.HELD_OUT_SEED, frames=9)
    past = to_model(torch.from_numpy(episode.frames))[:, :, -world.past_frames :]
    action = torch.zeros(1, steps, 7)
    action[0, :, 1] = torch.tensor([-1.0, 1.0, -1.0]).repeat_interleave(-(-steps // 3))[:steps]
    future = world.rollout(past, frames=steps, controls={"action": action})
    write_video(out / "steered.mp4", to_frames(future), episode.fps, pixels="yuv444p")
    print(out / "steered.mp4")


if __name__ == "__main__":
    main(Path("out"))
