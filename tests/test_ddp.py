"""DistributedDataParallel on two processes equals one process on the joined batch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import bpfree
from distributed import run_on_two_ranks

RULES = {
    "DFA": bpfree.DFA(),
    "DFA, one matrix a tap": bpfree.DFA(feedback=bpfree.Feedback("launay2019", shared=False)),
    "DRTP": bpfree.DRTP(),
    "FA": bpfree.FA(),
    "brSF": bpfree.SignSymmetry("batch"),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 6, generator=generator, dtype=torch.float64), torch.randint(0, 3, (8,), generator=generator)


def train(rank, name):
    """Three steps of SGD; rank 0 and 1 take half of the batch each, rank None all of it."""
    model, (x, y) = network(), data()
    attachment = bpfree.attach(model, RULES[name], seed=4)
    trained = model
    if rank is not None:
        x, y = x[4 * rank : 4 * rank + 4], y[4 * rank : 4 * rank + 4]
        trained = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        attachment.targets(y)
        F.cross_entropy(trained(x), y).backward()
        optimizer.step()
    return [parameter.detach().numpy() for parameter in model.parameters()]


def train_all(rank):
    return {name: train(rank, name) for name in RULES}


@pytest.fixture(scope="module")
def ranks():
    return run_on_two_ranks(train_all)


@pytest.mark.parametrize("name", RULES)
def test_two_processes_equal_one_on_the_joined_batch(ranks, name):
    whole = train(None, name)
    for found in ranks:
        for ours, theirs in zip(found[name], whole, strict=True):
            assert abs(ours - theirs).max() < 1e-12
