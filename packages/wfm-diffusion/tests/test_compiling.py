"""In a process of its own: what checks shapes in the other tests cannot be compiled."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import torch
from fakes import network, randn, TINY
import wfm_diffusion as wd
from wfm_diffusion.guidance import Guided

net = network(TINY.model_copy(update={"depth": 12}))
text = randn(2, 6, 8, seed=1)
text[:, 4:] = 0
conditions = {"text": text, "fps": torch.tensor([10.0, 10.0])}, {"text": torch.zeros_like(text)}
x = randn(2, 3, 2, 4, 4)

def sample():
    with torch.no_grad():
        return wd.SAMPLERS["euler"](Guided(net, *conditions, guidance=2.0), x, 4)

plain = sample()
graphs = []

def count(graph, inputs):
    graphs.append(graph)
    return graph

wd.compile_blocks(net, backend=count)
torch.testing.assert_close(sample(), plain, rtol=0, atol=1e-5)
print(len(graphs), "graphs")
"""


def test_compiled_blocks_answer_the_same_and_share_their_graphs():
    here = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=os.environ | here, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[0]) <= 3
