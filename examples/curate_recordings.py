"""Simulate recordings, curate them, and read the clips back with their labels.

python examples/curate_recordings.py out/curated
"""

import sys
from pathlib import Path

import wfm_curator as wc
from wfm_posttrain import sim


def main(out: Path, count: int = 3) -> None:
    for seed in range(count):
        episode = sim.generate("arm-push", seed=sim.HELD_OUT_SEED + seed, frames=17)
        sim.write_episode(episode, out / "recordings")
    print(wc.curate([out / "recordings"], out / "clips"))
    for clip in wc.ShardedDataset(out / "clips"):
        action = clip.labels()["action"]
        print(f"{clip.key}: {len(clip)} frames, {len(action)} actions: {clip.caption}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/curated"))
