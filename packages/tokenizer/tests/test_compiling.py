"""In processes of their own: what checks shapes in the other tests cannot be compiled."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
import torch
from conftest import DISCRETE, make, noise, small
from wfm_tokenizer import fused

if sys.argv[1] != "inductor":
    fused.COMPILER = {"backend": sys.argv[1]}

def near(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)

def check(tokenizer, fast, seed):
    video = noise(1, 3, 13, 16, 16, seed=seed)
    latent = tokenizer.encode(video)
    encoder, decoder = fast.streaming_encoder(), fast.streaming_decoder()
    chunks = [encoder.push(chunk) for chunk in video.split((5, 4, 4), 2)]
    near(torch.cat(chunks, -3), latent)
    near(torch.cat([decoder.push(chunk) for chunk in chunks], 2), tokenizer.decode(latent))
    start = fast.encode(video[:, :, :5])
    near(start, tokenizer.encode(video[:, :, :5]))
    near(fast.decode(start), tokenizer.decode(start))

pairs = []
for changes in ({}, DISCRETE):
    tokenizer = make(small(temporal_compression=4, channels_mult=(1, 1), **changes))
    fast = tokenizer.fused(compile=True)
    assert fast.way.startswith("compiled")
    pairs.append((tokenizer, fast))
    check(tokenizer, fast, 0)
counters = torch._dynamo.utils.counters
assert counters["stats"]["unique_graphs"] > 8, counters
assert not counters["graph_break"] and not counters["unimplemented"], counters
torch.compiler.set_stance("fail_on_recompile")  # all sizes are compiled by now
for tokenizer, fast in pairs:
    check(tokenizer, fast, 1)
"""


@pytest.mark.parametrize(
    "backend",
    [
        "eager",
        pytest.param(
            "inductor",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler"),
            ],
        ),
    ],
)
def test_compiled_networks_and_streams_give_what_the_plain_ones_give(backend, tmp_path):
    surroundings = {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, backend],
        env=os.environ | surroundings,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
