"""Say what should happen, and see it, with a guard in front and behind.

python examples/text_to_world.py "a robot arm pushes the red block to the left"
"""

import sys
from pathlib import Path

import wfm_diffusion as wd
import wfm_guardrail as wg
import wfm_tokenizer as wt
from wfm_tokenizer.video import to_frames, write_video


def main(out: Path, prompt: str, steps: int = 20) -> None:
    world = wd.WorldModel(
        wd.load("builtin:pico"),
        codec=wt.load("builtin:pico-cv4x8x8"),
        text_encoder=wd.pico_text_encoder(),
        guard=wg.Guardrail.default(),
    )
    try:
        video = world.text2world([prompt], steps=steps, seed=0)
    except wd.Refused as refusal:
        sys.exit(f"refused: {refusal}")
    write_video(out / "world.mp4", to_frames(video), world.settings.fps)
    print(out / "world.mp4")


if __name__ == "__main__":
    main(Path("out"), sys.argv[1] if len(sys.argv) > 1 else "A robot arm pushes the red block.")
