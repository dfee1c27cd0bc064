import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from fakes import TINY, network, randn

from wfm_diffusion.edm import edm_error, uncertain
from wfm_diffusion.guidance import Guided

SIGMA = torch.tensor([1.5])


def inputs():
    mask = torch.zeros(1, 1, 2, 4, 4)
    mask[:, :, 0] = 1
    text = randn(1, 4, 8, seed=1)
    return randn(1, 3, 2, 4, 4), {"text": text, "given": mask, "fps": torch.tensor([10.0])}


def answers(net):
    """A guided answer, a loss, and the gradients of some weights."""
    x, condition = inputs()
    with torch.no_grad():
        without = {**condition, "text": torch.zeros(1, 4, 8)}
        guided = Guided(net, condition, without, guidance=2.0)(x, SIGMA)
    net.requires_grad_(True).zero_grad()
    error = edm_error(net, x, SIGMA, randn(*x.shape, seed=3), condition)
    loss = uncertain(error, net.log_variance(SIGMA))
    loss.backward()
    if net.parallel is not None:
        net.parallel.average_gradients(net)
    return guided, loss.detach(), {k: p.grad for k, p in net.named_parameters()}


def one_of_two(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(answers(network().over_processes()), f"{folder}/{rank}.pt")
    with pytest.raises(ValueError, match="do not divide"):
        network(TINY.model_copy(update={"num_heads": 3})).over_processes()
    with pytest.raises(ValueError, match="9 tokens"):
        network().over_processes().denoise(randn(1, 3, 1, 6, 6), SIGMA, {})
    dist.destroy_process_group()


def test_two_processes_answer_and_learn_as_one(tmp_path):
    mp.start_processes(one_of_two, args=(str(tmp_path),), nprocs=2, start_method="spawn")
    guided, loss, gradients = answers(network())
    for rank in (0, 1):
        theirs = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(theirs[0], guided, rtol=0, atol=1e-5)
        torch.testing.assert_close(theirs[1], loss, rtol=1e-6, atol=0)
        assert theirs[2].keys() == gradients.keys()
        for name, expected in gradients.items():
            torch.testing.assert_close(theirs[2][name], expected, rtol=1e-4, atol=1e-5, msg=name)
