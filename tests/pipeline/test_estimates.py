"""Feedback that learns from forward passes over several stages, against the whole model in one process."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.pipelining import PipelineStage

import bpfree
import bpfree.pipeline
from bpfree.lab.models.transformer import CausalTransformer
from pipeline.test_schedules import WHERE, M, Part, assert_equal, batches, deep, of_tokens, run
from support.two_ranks import run_on_ranks, run_on_two_ranks

STEPS = 4
RULES = {
    "FDFA": (bpfree.FDFA(), {}),
    "FDFA, normal": (bpfree.FDFA(perturbations="normal"), {}),
    "FDFA, Hadamard signs": (bpfree.FDFA(perturbations="hadamard"), {}),
    "LMS, Hadamard signs, every second pass": (bpfree.LMS(perturbations="hadamard", every=2), {}),
    "FDFA, every second pass": (bpfree.FDFA(every=2), {}),
    "FDFA, one of two rows": (bpfree.FDFA(rows=0.5), {}),
    "FDFA, of rank 2": (bpfree.FDFA(feedback=bpfree.Feedback(shared=False, rank=2)), {}),
    "FDFA, stepped by an optimizer": (bpfree.FDFA(stepped_by="optimizer"), {}),
    "FDFA, KolenPollack within": (bpfree.FDFA(), {"taps": nn.Tanh, "within": bpfree.KolenPollack()}),
    "GrAPE": (bpfree.GrAPE(), {}),
    "GrAPE, of each batch": (bpfree.GrAPE(estimate="batch"), {}),
    "LMS": (bpfree.LMS(), {}),
    "LMS, one of two rows": (bpfree.LMS(rows=1), {}),
}


PARTS = {2: [slice(0, 4), slice(4, None)], 3: [slice(0, 4), slice(4, 8), slice(8, None)]}


def state(attachment):
    """The weights, and by name everything that the rule has learned."""
    weights = [parameter.detach().numpy().copy() for parameter in attachment.model.parameters()]
    learned = {name: tensor.numpy().copy() for name, tensor in attachment.state_dict().items() if name != "rule"}
    return weights, learned


def on_ranks(rank, count):
    found = {}
    for name, (rule, options) in RULES.items():
        stage = PipelineStage(deep()[PARTS[count][rank]], rank, count, torch.device("cpu"))
        attachment = bpfree.pipeline.attach_stage(stage, rule, seed=4, **options)
        schedule = bpfree.pipeline.ScheduleSynchronous(attachment, M, F.cross_entropy)
        optimizer = torch.optim.SGD([*attachment.model.parameters(), *attachment.parameters()], lr=0.5)
        for x, y in batches(STEPS):
            optimizer.zero_grad()
            run(schedule, x, y)
            optimizer.step()
        sent = schedule.sent_activation_bytes, schedule.sent_error_bytes, schedule.sent_estimate_bytes
        found[name] = *state(attachment), sent
    return found


@pytest.fixture(scope="module")
def by_count():
    return {count: run_on_ranks(count, on_ranks, count) for count in PARTS}


@pytest.mark.parametrize("count", PARTS)
@pytest.mark.parametrize("name", RULES)
def test_stages_learn_what_one_process_learns(by_count, name, count):
    rule, options = RULES[name]
    model = deep()
    attachment = bpfree.attach(model, rule, seed=4, **options)
    optimizer = torch.optim.SGD([*model.parameters(), *attachment.parameters()], lr=0.5)
    for x, y in batches(STEPS):
        optimizer.zero_grad()
        for part, target in zip(x.chunk(M), y.chunk(M), strict=True):
            F.cross_entropy(model(part), target).backward()
        for parameter in (*model.parameters(), *attachment.parameters()):
            if parameter.grad is not None:
                parameter.grad /= M
        optimizer.step()
    expected, learned = state(attachment)
    stages = [of_rank[name] for of_rank in by_count[count]]
    assert_equal([weight for weights, _, _ in stages for weight in weights], expected)
    for _, of_stage, _ in stages:
        assert of_stage
        for key, value in of_stage.items():
            assert abs(value - learned[key]).max() < 1e-12 if value.size else learned[key].size == 0, key
    assert {key for _, of_stage, _ in stages for key in of_stage} == learned.keys()


def test_what_travels(by_count):
    """Four steps of 8 samples in doubles: 5 and 6 numbers a sample forward, twice, and 3 back, twice, to two stages."""
    samples = STEPS * 8
    first, middle, last = (of_rank["FDFA"][2] for of_rank in by_count[3])
    assert first == (samples * 5 * 8, 0, samples * 5 * 8)
    assert middle == (samples * 6 * 8, 0, samples * 6 * 8)
    assert last == (0, samples * 3 * 8 * 2, samples * 3 * 8 * 2)


def test_what_travels_less_often_or_of_fewer_rows(by_count):
    for name in ("FDFA, every second pass", "FDFA, one of two rows"):
        assert by_count[3][0][name][2][2] == STEPS * 8 * 5 * 8 // 2
        assert by_count[3][2][name][2][2] == STEPS * 8 * 3 * 8 * 2 // 2


def test_what_travels_of_a_sum(by_count):
    """LMS adds up 3 numbers a sample over three stages: a ring sends two thirds of them twice."""
    assert by_count[3][1]["LMS"][2][2] == STEPS * 8 * (6 * 8 + 3 * 8 * 4 // 3)


# -- other places of the error ----------------------------------------------------------------------------------------


TOKENS = torch.arange(8 * 6).reshape(8, 6) % 5


def language():
    torch.manual_seed(0)
    return CausalTransformer((6,), 5, blocks=2, width=8, heads=2, hidden=16).double()


def classifier():
    """It ends in a softmax, before which errors are taken."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 3), nn.Softmax(1)
    ).double()


def of_probabilities(output, target):
    return F.nll_loss(output.log(), target)


ERRORS = {
    "softmax, DFA": (bpfree.DFA(), slice(2, None)),
    "softmax, FDFA": (bpfree.FDFA(), slice(2, None)),
    "softmax, FDFA, a head alone": (bpfree.FDFA(), slice(4, None)),
}


def elsewhere(rank):
    found = {}
    for name, (rule, last) in ERRORS.items():
        part = classifier()[last] if rank else classifier()[: last.start]
        stage = PipelineStage(part, rank, 2, torch.device("cpu"))
        attachment = bpfree.pipeline.attach_stage(stage, rule, seed=4)
        schedule = bpfree.pipeline.ScheduleSynchronous(attachment, M, of_probabilities)
        for x, y in batches(2):
            part.zero_grad()
            run(schedule, x, y)
        found[name] = [parameter.grad.numpy() for parameter in part.parameters()]
    stage = PipelineStage(Part(language(), rank), rank, 2, torch.device("cpu"))
    attachment = bpfree.pipeline.attach_stage(stage, bpfree.FDFA(), **WHERE)
    schedule = bpfree.pipeline.ScheduleSynchronous(attachment, M, of_tokens)
    for _ in range(2):
        stage.submod.zero_grad()
        run(schedule, TOKENS, TOKENS)
    found["tokens"] = [(name, parameter.grad.numpy()) for name, parameter in stage.submod.named_parameters()]
    return found


@pytest.fixture(scope="module")
def other_errors():
    return run_on_two_ranks(elsewhere)


@pytest.mark.filterwarnings("ignore:the model ends in a softmax")
@pytest.mark.parametrize("name", ERRORS)
def test_the_error_is_taken_before_a_softmax(other_errors, name):
    model = classifier()
    bpfree.attach(model, ERRORS[name][0], seed=4)
    for x, y in batches(2):
        model.zero_grad()
        for part, target in zip(x.chunk(M), y.chunk(M), strict=True):
            (of_probabilities(model(part), target) / M).backward()
    assert_equal([*other_errors[0][name], *other_errors[1][name]], [p.grad.numpy() for p in model.parameters()])


def test_tokens_with_the_error_below_the_head(other_errors):
    model = language()
    bpfree.attach(model, bpfree.FDFA(), **WHERE)
    for _ in range(2):
        model.zero_grad()
        for part in TOKENS.chunk(M):
            (of_tokens(model(part), part) / M).backward()
    found = dict(other_errors[0]["tokens"] + other_errors[1]["tokens"])
    expected = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert abs(found[name] - gradient).max() < 1e-12


# -- one stage, and a run that is taken up -----------------------------------------------------------------------------


def learner(rank, count, kind):
    """A stage with its schedule and optimizer."""
    stage = PipelineStage(deep()[PARTS[count][rank]], rank, count, torch.device("cpu"))
    attachment = bpfree.pipeline.attach_stage(stage, bpfree.FDFA(every=3), seed=4, alternate=2)
    optimizer = torch.optim.SGD(attachment.model.parameters(), lr=0.5)
    if kind == "asynchronous":
        schedule = bpfree.pipeline.ScheduleAsynchronous(attachment, M, F.cross_entropy, optimizer=optimizer)
    else:
        schedule = bpfree.pipeline.ScheduleSynchronous(attachment, M, F.cross_entropy)
    return schedule, optimizer


def trained(schedule, optimizer, kind, given):
    for x, y in given:
        run(schedule, x, y)
        if kind == "synchronous":
            optimizer.step()
            optimizer.zero_grad()
    if kind == "asynchronous":
        schedule.flush()


def resumed(rank):
    """In each schedule six batches without a pause, and three and three with new objects between."""
    found = {}
    for kind in ("synchronous", "asynchronous"):
        given = list(batches(6))
        whole = learner(rank, 2, kind)
        trained(*whole, kind, given[:3])
        trained(*whole, kind, given[3:])
        first = learner(rank, 2, kind)
        trained(*first, kind, given[:3])
        second = learner(rank, 2, kind)
        second[0].attachment.model.load_state_dict(first[0].attachment.model.state_dict())
        second[0].attachment.load_state_dict(first[0].attachment.state_dict())
        trained(*second, kind, given[3:])
        found[kind] = state(whole[0].attachment), state(second[0].attachment)
    return found


def test_a_resumed_run_goes_on_bit_for_bit():
    for of_rank in run_on_two_ranks(resumed):
        for (weights, learned), (again, learned_again) in of_rank.values():
            assert all((a == b).all() for a, b in zip(weights, again, strict=True))
            assert all((value == learned_again[key]).all() for key, value in learned.items())


def test_one_stage_learns_too(one_process):
    stage = PipelineStage(deep(), 0, 1, torch.device("cpu"))
    attachment = bpfree.pipeline.attach_stage(stage, bpfree.FDFA(), seed=4)
    run(bpfree.pipeline.ScheduleSynchronous(attachment, M, F.cross_entropy), *next(batches(1)))
    whole = deep()
    expected = bpfree.attach(whole, bpfree.FDFA(), seed=4)
    x, y = next(batches(1))
    for part, target in zip(x.chunk(M), y.chunk(M), strict=True):
        F.cross_entropy(whole(part), target).backward()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(attachment.state_dict()[name], tensor), name


# -- what cannot be estimated is said in every process, before any weight learns ---------------------------------------


class Resample(nn.Module):
    """It has no forward-mode derivative."""

    def forward(self, h):
        grid = torch.linspace(-1, 1, 16, dtype=h.dtype).reshape(1, 4, 2, 2).expand(len(h), -1, -1, -1)
        return F.grid_sample(h.reshape(-1, 1, 2, 4), grid, align_corners=False).flatten(1)


class Centred(nn.Module):
    def forward(self, h):
        return h - h.mean(0)


class Moving(nn.Module):
    """It gives other numbers in every run, from what nobody can put back."""

    def __init__(self):
        super().__init__()
        self.numbers = iter(range(1, 1000))

    def forward(self, h):
        return h * next(self.numbers)


class Twice(nn.Sequential):
    def forward(self, h):
        h = super().forward(h)
        return h, h


class Added(nn.Sequential):
    def forward(self, h, again):
        return super().forward(h + again)


def first(*parts, kind=nn.Sequential):
    return kind(nn.Linear(6, 8), *parts, nn.Tanh())


def last(*parts, kind=nn.Sequential):
    return kind(*parts, nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


FAILING = {
    "no derivative": (bpfree.FDFA(), first, lambda: last(Resample()), r"layer '0' \(Resample\) has no forward-mode"),
    "another run": (bpfree.FDFA(), lambda: first(Moving()), last, "second run at '1'"),
    "samples together": (bpfree.GrAPE(rows=0.5), lambda: first(Centred()), last, r"Leave rows= out"),
    "a head alone": (bpfree.LMS(), first, lambda: nn.Sequential(nn.Linear(8, 3)), "stage 1 has no tap below the error"),
    "one tensor twice": (bpfree.FDFA(), lambda: first(kind=Twice), lambda: last(kind=Added), "gives one tensor twice"),
}


def failing(rank):
    found = {}
    for name, (rule, *parts, _) in FAILING.items():
        module = parts[rank]().double()
        stage = PipelineStage(module, rank, 2, torch.device("cpu"))
        attachment = bpfree.pipeline.attach_stage(stage, rule, seed=4, prefix="last" if rank else "")
        schedule = bpfree.pipeline.ScheduleSynchronous(attachment, M, F.cross_entropy)
        try:
            run(schedule, *next(batches(1)))
            says = "nothing"
        except bpfree.errors.BpfreeError as error:
            says = f"{type(error).__name__}: {error}"
        found[name] = says, any(parameter.grad is not None for parameter in module.parameters())
    return found


@pytest.fixture(scope="module")
def failures():
    return run_on_two_ranks(failing)


@pytest.mark.parametrize("name", FAILING)
def test_what_cannot_be_estimated_is_named_in_every_process(failures, name):
    for of_rank in failures:
        says, learned = of_rank[name]
        assert re.search(FAILING[name][-1], says), says
        assert not learned
