"""The optimiser's steps have the size and the shape that they should."""

import pytest
import torch
from torch import nn

from wfm_tokenizer.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(8, 8), (4, 30), (30, 4)])
def test_all_directions_of_a_matrix_come_out_alike(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(matrix))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_matrices_and_vectors_move_by_about_the_learning_rate():
    layer = nn.Conv2d(16, 32, 3)
    before = [p.detach().clone() for p in layer.parameters()]
    generator = torch.Generator().manual_seed(0)
    output = layer(torch.randn(2, 16, 8, 8, generator=generator))
    output.backward(torch.randn(output.shape, generator=generator))
    Muon(layer.parameters(), lr=1e-2).step()
    weight, bias = (
        (p.detach() - b).square().mean().sqrt()
        for p, b in zip(layer.parameters(), before, strict=True)
    )
    assert 0.001 < weight < 0.004  # a fifth of the rate, as AdamW's steps mostly are
    assert bias.item() == pytest.approx(1e-2, rel=1e-3)


def test_it_finds_the_minimum_of_a_bowl():
    matrix = nn.Parameter(torch.ones(4, 6))
    target = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    optimizer = Muon([matrix], lr=0.3)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.3 * (1 - step / 200)
        optimizer.zero_grad()
        (matrix - target).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(matrix.detach(), target, atol=0.05, rtol=0)
