"""Stages that were not built alike say so in every process, and name the difference, before any weight learns."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.pipelining import PipelineStage

import bpfree
from bpfree import pipeline
from bpfree.errors import BpfreeError
from support.two_ranks import run_on_two_ranks

M = 4


def whole(hidden=8, dtype=torch.float64):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(hidden, 7), nn.Tanh(), nn.Linear(7, 3))
    return layers.to(dtype)


def built(rank, *, kind="ScheduleSynchronous", module=None, index=None, count=2, m=M, attach=None, **options):
    """A schedule of this process; what a case says is said in one process alone."""
    module = whole() if module is None else module
    part = module[2:] if rank else module[:2]
    stage = PipelineStage(part, rank if index is None else index, count, torch.device("cpu"))
    attachment = pipeline.attach_stage(stage, **{"rule": bpfree.DFA(), "seed": 4, **(attach or {})})
    if kind == "ScheduleAsynchronous":
        options["optimizer"] = torch.optim.SGD(part.parameters(), 0.1)
    return getattr(pipeline, kind)(attachment, m, F.cross_entropy, **options)


CASES = {
    "schedule": ({"kind": "ScheduleAsynchronous"}, "schedule is ScheduleSynchronous in process 0 and ScheduleAsyn"),
    "micro-batches": ({"m": 2}, "n_microbatches is 4 in process 0 and 2 in process 1"),
    "scale_grads": ({"scale_grads": False}, "scale_grads is True in process 0 and False in process 1"),
    "rule": ({"attach": {"rule": bpfree.DRTP()}}, r"the rule is DFA\(.*in process 0 and DRTP\("),
    "option of the rule": ({"attach": {"rule": bpfree.DFA(error="sign")}}, "error='exact'.*error='sign'"),
    "feedback": (
        {"attach": {"rule": bpfree.DFA(feedback=bpfree.Feedback(shared=False))}},
        "the rule is .*shared=True.*shared=False",
    ),
    "window": ({"attach": {"window": 2}}, "window is 1 in process 0 and 2 in process 1"),
    "alternating cuts": ({"attach": {"alternate": 2}}, "the rule is .* with alternate=2 in process 1"),
    "weights inside": ({"attach": {"within": bpfree.FA()}}, r"the rule is .* with FA\(.*within in process 1"),
    "seed": ({"attach": {"seed": 5}}, "seed is 4 in process 0 and 5 in process 1"),
    "batch_dims": ({"attach": {"batch_dims": 1}}, "batch_dims is None in process 0 and 1 in process 1"),
    "number of stages": ({"count": 3}, "num_stages is 2 in process 0 and 3 in process 1"),
    "the same stage twice": ({"index": 0, "module": "above"}, "process 1 of the stages' group has stage 0"),
    "shapes": ({"module": "of 9"}, r"stage 1 cannot run on what stage 0 gives, .*shape \(2, 8\).*float64.*8 and 9x7"),
    "dtypes": ({"module": "single"}, r"stage 1 cannot run on what stage 0 gives, .*\(2, 8\) and torch.float64"),
}
MODULES = {"of 9": {"hidden": 9}, "single": {"dtype": torch.float32}, "above": {}}
IN_FIRST = {
    "error_at": ({"attach": {"error_at": "2"}}, "error_at is '2' in process 0 and None in the last one"),
    "what the first batch is": (
        {"rows": 7},
        "the first micro-batch had an input of shape|this batch gives an input of",
    ),
    "what the first stage takes": ({"columns": 5}, "stage 0 cannot run on its first micro-batch.*2x5 and 6x8"),
}
VERSIONS = {"torch": torch, "bpfree": bpfree}


def told(schedule, call, *args, **named):
    """What a batch ends in, and whether any weight of this stage has learned."""
    try:
        getattr(schedule, call)(*args, **named)
        says = "nothing"
    except BpfreeError as error:
        says = f"{type(error).__name__}: {error}"
    return says, any(parameter.grad is not None for parameter in schedule.attachment.model.parameters())


def batch(rank, rows=8, columns=6):
    y = torch.arange(rows) % 3
    return ((torch.ones(rows, columns, dtype=torch.float64),) if rank == 0 else ()), {"target": y}


def of_all(rank):
    found = {}
    for name, (said, _) in CASES.items():
        case = dict(said)
        if "module" in case:
            case["module"] = whole(**MODULES[case["module"]])
        schedule = built(rank, **(case if rank else {}))
        args, named = batch(rank)
        found[name] = told(schedule, "step", *args, **named)
    for name, (said, _) in IN_FIRST.items():
        case, shape = dict(said), {key: said[key] for key in ("rows", "columns") if key in said}
        for key in shape:
            del case[key]
        args, named = batch(rank, **({} if rank else shape))
        found[name] = told(built(rank, **({} if rank else case)), "step", *args, **named)
    for name, module in VERSIONS.items():
        version = module.__version__
        if rank:
            module.__version__ = "1.0"
        args, named = batch(rank)
        found[name] = told(built(rank), "step", *args, **named)
        module.__version__ = version
    args, named = batch(rank)
    found["eval in one"] = told(built(rank), "eval" if rank else "step", *args, **named)
    staleness = {"kind": "ScheduleAsynchronous", "staleness": 1 + rank}
    found["staleness"] = told(built(rank, **staleness), "step", *args, **named)
    found["alike"] = told(built(rank, attach={"error_at": "4" if rank else None}), "step", *args, **named)
    schedule = built(rank)
    told(schedule, "step", *args, **named)
    if rank == 0:
        told(schedule, "eval", *args, **named)
    schedule.attachment.model.zero_grad()
    try:
        found["eval in one, later"] = told(schedule, "step", *args, **named)
    except RuntimeError:  # whose errors nobody takes
        assert rank
    return found


@pytest.fixture(scope="module")
def both():
    return run_on_two_ranks(of_all)


EXPECTED = {
    **{name: says for name, (_, says) in {**CASES, **IN_FIRST}.items()},
    "torch": f"the version of torch is {torch.__version__[:3]}.* in process 0 and 1.0 in process 1",
    "bpfree": "the version of bpfree is .* in process 0 and 1.0 in process 1",
    "eval in one": "call is step in process 0 and eval in process 1",
    "staleness": "staleness is 1 in process 0 and 2 in process 1",
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_first_difference_is_named_in_every_process(both, name):
    (first, learned), (last, also) = (found[name] for found in both)
    assert first.startswith("StageError: ")
    assert last.startswith("StageError: ")
    for says in (first, last):
        assert re.search(EXPECTED[name], says, re.DOTALL), says
    assert not learned
    assert not also


def test_processes_that_are_alike_learn(both):
    """Where the error is taken may be said in the last stage alone."""
    for found in both:
        assert found["alike"] == ("nothing", True)


def test_no_error_is_taken_for_that_of_another_batch(both):
    """One process has evaluated where the last one has trained: the last one's errors are those of the batch before."""
    says, learned = both[0]["eval in one, later"]
    assert "sends the errors of its batch number 2, and this one waits for those of its own number 3" in says
    assert not learned
