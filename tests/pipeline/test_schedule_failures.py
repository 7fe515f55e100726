"""What a schedule refuses or cannot go on with, told in every process as far as that can know."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.pipelining import PipelineStage

import bpfree
import bpfree.pipeline
from bpfree.errors import BpfreeError, ErrorPlacementError, NonFiniteError, StageError
from support.two_ranks import run_on_two_ranks

M = 2


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def batch(rows=8):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 6, generator=generator, dtype=torch.float64), torch.arange(rows) % 3


def told(call, *args, **named):
    """The kind of bpfree's error that ``call`` ends in, and what it says."""
    try:
        call(*args, **named)
    except BpfreeError as error:
        return type(error).__name__, str(error)


def norms(module):
    return [parameter.grad.norm().item() for parameter in module.parameters()]


class Own(bpfree.DirectRule):
    """Signals of its own making: no feedback projects, and the error is needed all the same."""

    def signals(self, delivery):
        weights = torch.arange(1, 4).to(delivery.error)
        return [torch.outer(delivery.error @ weights, weights.new_ones(site.width)) for site in delivery.sites]


def attached(rank, rule=None, cut=2, group=None):
    stage = PipelineStage(mlp()[cut:] if rank else mlp()[:cut], rank, 2, torch.device("cpu"), group=group)
    return bpfree.pipeline.attach_stage(stage, rule or bpfree.DFA(), seed=4)


def schedule(attachment):
    return bpfree.pipeline.ScheduleSynchronous(attachment, M, F.cross_entropy)


def step(of, rank, x, y):
    of.step(*((x,) if rank == 0 else ()), target=y)


def of_all(rank):
    x, y = batch()
    found = {}
    attachment = attached(rank, Own(feedback=None))
    one = schedule(attachment)
    step(one, rank, x, y)
    found["own"] = norms(attachment.model)
    small, few = batch(6)
    found["smaller"] = told(one.eval, *((small,) if rank == 0 else ()), target=few)
    found["afterwards"] = told(step, one, rank, x, y)
    # Rank 1 is in one group less.
    dist.new_group([0])
    step(schedule(attached(rank)), rank, x, y)
    part = dist.new_group([0, 1])
    found["groups"] = told(step, schedule(attached(rank, group=part)), rank, x, y)
    last = schedule(attached(rank))
    found["not finite"] = told(step, last, rank, x * torch.nan, y)
    found["after it"] = told(step, last, rank, x, y)
    return found


@pytest.fixture(scope="module")
def found():
    return run_on_two_ranks(of_all)


def test_signals_of_ones_own_need_the_error(found):
    model = mlp()
    bpfree.attach(model, Own(feedback=None))
    F.cross_entropy(model(batch()[0]), batch()[1]).backward()
    expected = norms(model)
    assert found[0]["own"] == pytest.approx(expected[:2], abs=1e-12)
    assert found[1]["own"] == pytest.approx(expected[2:], abs=1e-12)


def test_a_batch_of_another_size_is_refused(found):
    """Short messages fill a part of the receivers' buffers: the rest would be numbers of the batch before."""
    (kind, first), (also, last) = (of_rank["smaller"] for of_rank in found)
    assert kind == also == "StageError"
    assert "split into 2 micro-batches, this batch gives an input of shape (3, 6)" in first
    assert "the first micro-batch had an input of shape (4, 6)" in first
    assert "gives 3 targets where the first micro-batch had 4 targets" in last


def test_what_has_failed_once_says_so_at_once(found):
    for of_rank in found:
        assert of_rank["not finite"][0] == NonFiniteError.__name__
        for kind, says in (of_rank["afterwards"], of_rank["after it"]):
            assert kind == StageError.__name__
            assert "an earlier step of this schedule failed" in says


def test_groups_of_a_part_of_the_processes_must_be_as_many_everywhere(found):
    """Stages on all processes need not have that: ``of_all`` has trained some."""
    for of_rank in found:
        kind, says = of_rank["groups"]
        assert kind == StageError.__name__
        assert "the processes 0, 1 belong to " in says


def alone(module):
    return bpfree.pipeline.attach_stage(PipelineStage(module, 0, 1, torch.device("cpu")), bpfree.DFA())


def test_an_error_of_ours_in_a_forward_pass_arrives_as_it_is(one_process):
    """Torch's pipelining wraps it into a RuntimeError."""
    module = nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.LogSoftmax(1)).double()
    with pytest.raises(ErrorPlacementError, match="nothing that learns lies between the last tap"):
        schedule(alone(module)).step(batch()[0], target=batch()[1])


@pytest.mark.parametrize("cached", [True, False])
def test_an_update_within_autocast_is_seen_by_the_next_pass(one_process, cached):
    """A batch's loss falls from step to step: with weights converted before the updates it would stay."""
    torch.manual_seed(0)
    attachment = alone(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)))
    optimizer = torch.optim.SGD(attachment.model.parameters(), lr=1.0)
    owner = bpfree.pipeline.ScheduleAsynchronous(attachment, M, F.cross_entropy, optimizer=optimizer)
    x, y = batch()
    losses = []
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=cached):
        for _ in range(3):
            of_step = []
            owner.step(x.float(), target=y, losses=of_step)
            losses.append(sum(loss.item() for loss in of_step))
    assert losses[2] < losses[1] < losses[0]
