import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from safetensors.torch import load_file

GOLDEN = Path(__file__).parent / "golden"

settings.register_profile("here", deadline=None, max_examples=15, derandomize="CI" in os.environ)
settings.load_profile("here")


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden():
    """Read a stored vector of NVIDIA's own modules: its description and its tensors."""

    def read(name):
        return json.loads((GOLDEN / f"{name}.json").read_text()), load_file(
            GOLDEN / f"{name}.safetensors"
        )

    return read
