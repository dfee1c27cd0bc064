import json

import numpy as np
import pytest
import torch
from fakes import square_video
from hypothesis import settings
from safetensors.torch import save_file

settings.register_profile("quick", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("quick")


@pytest.fixture(scope="session")
def recordings(tmp_path_factory):
    """Twelve recordings of a red square that its actions move, in the clip folder format."""
    from wfm_posttrain.video import write_video

    folder = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(0)
    for i in range(12):
        action = torch.from_numpy(rng.uniform(-4, 4, (7, 2)).astype(np.float32))
        frames, mask = square_video(action, start=rng.uniform(10, 22, 2))
        write_video(folder / f"clip-{i:02}.mp4", frames, 5.0, crf=4, pixels="yuv444p")
        about = {
            "caption": "a red square", "fps": 5.0, "seed": i,
            "segments": {"1": "red square"}, "objects": [{"name": "red square"}],
        }  # fmt: skip
        (folder / f"clip-{i:02}.json").write_text(json.dumps(about))
        save_file({"action": action, "segmentation": mask}, folder / f"clip-{i:02}.safetensors")
    return folder
