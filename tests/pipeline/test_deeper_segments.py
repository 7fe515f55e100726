"""Stages whose segments are several taps deep: alternating cuts, windows, and other backward weights inside."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.pipelining import PipelineStage

import bpfree
import bpfree.pipeline
from bpfree.mechanisms.direct.alternation import Phase
from pipeline.test_schedules import M, assert_equal, batches, deep, numbers, run
from support.two_ranks import run_on_ranks, run_on_two_ranks

OWN = bpfree.DFA(feedback=bpfree.Feedback("launay2019", shared=False))
FIRST, SPLIT, DEPTH = 3, 6, 5
"""Taps in the first stage of two; the layers before the second; taps in all."""
BOUNDARY = "5"
STEPS = 5


def mlp():
    """Three taps in the first stage, two in the second: cuts of every second tap fall at the boundary in turns."""
    torch.manual_seed(0)
    layers = [part for a, b in pairwise([6, 8, 9, 7, 5, 6]) for part in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(6, 3)).double()


CASES = {
    "alternate 2": (mlp, OWN, {"alternate": 2}),
    "alternate 3": (mlp, OWN, {"alternate": 3}),
    "alternate 2, random": (mlp, OWN, {"alternate": 2, "alternate_order": "random"}),
    "alternate 2, FA within": (mlp, OWN, {"alternate": 2, "within": bpfree.FA()}),
    "alternate 2, DRTP": (mlp, bpfree.DRTP(feedback=OWN.feedback), {"alternate": 2}),
    "alternate 2, DKP": (mlp, bpfree.DKP(), {"alternate": 2}),
    "alternate 2, FDFA": (mlp, bpfree.FDFA(), {"alternate": 2}),
    "alternate 2, LMS": (mlp, bpfree.LMS(), {"alternate": 2}),
    "window 2": (mlp, OWN, {"window": 2}),
    "window 3": (mlp, OWN, {"window": 3}),
    "FA within": (deep, OWN, {"within": bpfree.FA(), "taps": nn.Tanh}),
    "KolenPollack within": (deep, OWN, {"within": bpfree.KolenPollack(), "taps": nn.Tanh}),
}


def on_rank(rank, name):
    make, rule, options = CASES[name]
    whole, split = make(), SPLIT if make is mlp else 4
    stage = PipelineStage(whole[split:] if rank else whole[:split], rank, 2, torch.device("cpu"))
    attachment = bpfree.pipeline.attach_stage(stage, rule, seed=4, **options)
    schedule = bpfree.pipeline.ScheduleSynchronous(attachment, M, F.cross_entropy)
    optimizer = torch.optim.SGD([*attachment.model.parameters(), *attachment.parameters()], lr=0.5)
    for x, y in batches(STEPS):
        optimizer.zero_grad()
        run(schedule, x, y)
        optimizer.step()
    assert schedule.sent_error_bytes == (STEPS * 8 * 3 * 8 if rank and not isinstance(rule, bpfree.DRTP) else 0)
    return numbers(attachment.model)


def all_cases(rank):
    return {name: on_rank(rank, name) for name in CASES}


@pytest.fixture(scope="module")
def by_case():
    return run_on_two_ranks(all_cases)


def trained(model, gradients, parameters=()):
    """Train ``model`` with the gradients that ``gradients(step, x, y)`` leaves for one micro-batch."""
    optimizer = torch.optim.SGD([*model.parameters(), *parameters], lr=0.5)
    for step, (x, y) in enumerate(batches(STEPS)):
        optimizer.zero_grad()
        for part, target in zip(x.chunk(M), y.chunk(M), strict=True):
            gradients(step, part, target)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad /= M
        optimizer.step()
    return numbers(model)


def learn(attachment, model, x, y):
    attachment.targets(y)
    F.cross_entropy(model(x), y).backward()


def cut_in(step, period, order):
    """The names of the taps that a step cuts: those of its number, and the one at which the first stage ends."""
    t = step
    if order == "random":  # as drawn in one process
        drawn = bpfree.attach(mlp(), OWN, seed=4, alternate=period, alternate_order="random")
        t = drawn.mechanism.alternation.ahead(step).offset
    return [str(2 * i + 1) for i in range(DEPTH) if (i + t) % period == 0 or i == FIRST - 1]


KEPT = ["alternate 2, DKP", "alternate 2, FDFA", "alternate 2, LMS", "alternate 2, FA within"]
"""Cases with feedback that learns or is drawn once: in one process it must stay from step to step."""


@pytest.mark.parametrize("name", [name for name in CASES if "alternate" in name and name not in KEPT])
def test_alternating_cuts_are_the_rule_attached_to_the_taps_of_each_step(by_case, name):
    _, rule, options = CASES[name]
    model = mlp()

    def gradients(step, x, y):
        taps = cut_in(step, options["alternate"], options.get("alternate_order"))
        with bpfree.attach(model, rule, taps=taps, seed=4) as attachment:
            learn(attachment, model, x, y)

    assert_equal([*by_case[0][name], *by_case[1][name]], trained(model, gradients))


@pytest.mark.parametrize("name", KEPT)
def test_feedback_stays_from_step_to_step(by_case, name):
    _, rule, options = CASES[name]
    model = mlp()
    attachment = bpfree.attach(model, rule, seed=4, **options)

    def gradients(step, x, y):
        with attachment.mechanism.alternation.held(Phase(2, step % 2, frozenset({BOUNDARY}))):
            learn(attachment, model, x, y)

    assert_equal([*by_case[0][name], *by_case[1][name]], trained(model, gradients, attachment.parameters()))


@pytest.mark.parametrize("window", [2, 3])
def test_a_window_ends_where_its_stage_ends(by_case, window):
    """The layers of tap l learn from the signal of tap l + w - 1 or, if that comes first, of their stage's last tap."""
    model = mlp()
    drawn = bpfree.attach(mlp(), OWN, seed=4, example_inputs=torch.zeros(2, 6, dtype=torch.float64))
    sites = drawn.mechanism.sites
    B = [drawn.feedback.matrix(site) for site in sites]
    segments = [model[2 * i : 2 * i + 2] for i in range(DEPTH)]

    def gradients(step, x, y):
        ends, entries = [], [x]
        for segment in segments:
            ends.append(segment(entries[-1]))
            entries.append(ends[-1].detach().requires_grad_())
        logits = model[-1](entries[-1])
        loss = F.cross_entropy(logits, y)
        (error,) = torch.autograd.grad(loss, logits, retain_graph=True)
        (top,) = torch.autograd.grad(loss, entries[-1], retain_graph=True)
        for tap, segment in enumerate(segments):
            last = FIRST - 1 if tap < FIRST else DEPTH
            source = min(tap + window - 1, last)
            signal = top if source == DEPTH else error @ B[source]
            for above in range(min(source, DEPTH - 1), tap, -1):
                (signal,) = torch.autograd.grad(ends[above], entries[above], signal, retain_graph=True)
            torch.autograd.backward(ends[tap], signal, inputs=list(segment.parameters()), retain_graph=True)
        loss.backward(inputs=list(model[-1].parameters()))

    expected = trained(model, gradients)
    assert_equal([*by_case[0][f"window {window}"], *by_case[1][f"window {window}"]], expected)


@pytest.mark.parametrize("name", ["FA within", "KolenPollack within"])
def test_other_backward_weights_inside_are_those_of_one_process(by_case, name):
    _, rule, options = CASES[name]
    model = deep()
    attachment = bpfree.attach(model, rule, seed=4, **options)
    expected = trained(model, lambda step, x, y: learn(attachment, model, x, y), attachment.parameters())
    assert_equal([*by_case[0][name], *by_case[1][name]], expected)


# -- the asynchronous schedule: a step is a batch, whatever was learned from meanwhile ------------------------------


PARTS = [slice(0, 4), slice(4, 8), slice(8, None)]
STALE = [(4, 1), (1, 2), (2, 0)]


def thin():
    """Three stages of two taps, one layer a tap."""
    torch.manual_seed(0)
    layers = [part for a, b in pairwise([6, 7, 5, 8, 6, 4, 9]) for part in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(9, 3)).double()


def asynchronous(rank):
    found = {}
    for micro_batches, staleness in STALE:
        stage = PipelineStage(thin()[PARTS[rank]], rank, 3, torch.device("cpu"))
        attachment = bpfree.pipeline.attach_stage(stage, OWN, seed=4, alternate=2)
        optimizer = torch.optim.SGD(attachment.model.parameters(), lr=0.5)
        schedule = bpfree.pipeline.ScheduleAsynchronous(
            attachment, micro_batches, F.cross_entropy, optimizer=optimizer, staleness=staleness
        )
        for x, y in batches(STEPS):
            run(schedule, x, y)
        schedule.flush()
        found[micro_batches, staleness] = numbers(attachment.model), attachment.mechanism.alternation.numbers["step"]
    return found


@pytest.fixture(scope="module")
def stale_by_case():
    return run_on_ranks(3, asynchronous)


@pytest.mark.parametrize("case", STALE)
def test_the_asynchronous_schedule_cuts_the_taps_of_each_batch(stale_by_case, case):
    """As test_schedules.stale has it: stage s uses the weights that it had when it forwarded."""
    micro_batches, staleness = case
    model = thin()
    versions = [[[p.detach().clone() for p in model[part].parameters()]] for part in PARTS]
    for batch, (x, y) in enumerate(batches(STEPS)):
        model.zero_grad()
        taps = [str(2 * i + 1) for i in range(6) if (i + batch) % 2 == 0 or i in (1, 3)]
        for number, (inputs, target) in enumerate(zip(x.chunk(micro_batches), y.chunk(micro_batches), strict=True)):
            k = batch * micro_batches + number
            for s, part in enumerate(PARTS):
                version = max((k - (2 - s)) // micro_batches, batch - staleness, 0)
                for parameter, value in zip(model[part].parameters(), versions[s][version], strict=True):
                    parameter.data = value.clone()
            with bpfree.attach(model, OWN, taps=taps, seed=4):
                F.cross_entropy(model(inputs), target).backward()
        for s, part in enumerate(PARTS):
            newest = zip(versions[s][-1], model[part].parameters(), strict=True)
            versions[s].append([value - 0.5 * p.grad / micro_batches for value, p in newest])
    for of_rank, of_stage in zip(stale_by_case, versions, strict=True):
        found, steps = of_rank[case]
        assert_equal(found, [value.numpy() for value in of_stage[-1]])
        assert steps == STEPS
