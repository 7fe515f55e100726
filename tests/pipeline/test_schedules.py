"""Stages on several processes against the whole model in one process."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.pipelining import PipelineStage

import bpfree
import bpfree.pipeline
from bpfree.lab.models.transformer import CausalTransformer
from support.two_ranks import run_on_ranks, run_on_two_ranks

M = 4
RULES = {
    "DFA": bpfree.DFA(),
    "DFA, one matrix a tap": bpfree.DFA(feedback=bpfree.Feedback("launay2019", shared=False)),
    "DFA, scale of the widest": bpfree.DFA(feedback=bpfree.Feedback("launay2020-code")),
    "DFA, regenerated": bpfree.DFA(feedback=bpfree.Feedback(stored=False)),
    "sDFA": bpfree.DFA(error="sign"),
    "DRTP": bpfree.DRTP(),
    "DKP": bpfree.DKP(decay=0.01),
    "Shallow": bpfree.Shallow(),
}


def mlp():
    """Two stages with taps of unequal width; the widest, 12, is in the first."""
    torch.manual_seed(0)
    widths = [6, 8, 12, 7, 5]
    layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers, nn.Linear(5, 3)).double()


def batches(count):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        x = torch.randn(8, 6, generator=generator, dtype=torch.float64)
        yield x, torch.randint(0, 3, (8,), generator=generator)


def numbers(*modules):
    return [parameter.detach().numpy().copy() for module in modules for parameter in module.parameters()]


def in_one_process(rule, steps=3):
    model = mlp()
    attachment = bpfree.attach(model, rule, seed=4)
    optimizer = torch.optim.SGD([*model.parameters(), *attachment.parameters()], lr=0.5)
    losses = []
    for x, y in batches(steps):
        optimizer.zero_grad()
        for part, target in zip(x.chunk(M), y.chunk(M), strict=True):
            attachment.targets(target)
            loss = F.cross_entropy(model(part), target)
            loss.backward()
            losses.append(loss.item())
        for parameter in (*model.parameters(), *attachment.parameters()):
            if parameter.grad is not None:
                parameter.grad /= M
        optimizer.step()
    return numbers(model[:4]), numbers(model[4:]), losses


def attached(rank, rule, model, **options):
    stage = PipelineStage(model[4:] if rank else model[:4], rank, 2, torch.device("cpu"))
    return bpfree.pipeline.attach_stage(stage, rule, seed=4, **options)


def run(schedule, x, y):
    """One step, targets given everywhere; the losses where they are known."""
    losses = []
    inputs = (x,) if schedule._stage.is_first else ()
    schedule.step(*inputs, target=y, losses=losses)
    return [loss.item() for loss in losses]


def synchronous(rank, rule, steps=3):
    attachment = attached(rank, rule, mlp())
    schedule = bpfree.pipeline.ScheduleSynchronous(attachment, M, F.cross_entropy)
    optimizer = torch.optim.SGD([*attachment.model.parameters(), *attachment.parameters()], lr=0.5)
    losses = []
    for x, y in batches(steps):
        optimizer.zero_grad()
        losses += run(schedule, x, y)
        optimizer.step()
    sent = (schedule.sent_activation_bytes, schedule.sent_error_bytes)
    return numbers(attachment.model), losses, sent


class Part(nn.Module):
    """One block of a transformer of two, in its place."""

    def __init__(self, whole, number):
        super().__init__()
        self.blocks = nn.ModuleDict({str(number): whole.blocks[number]})
        if number == 0:
            self.tokens, self.positions = whole.tokens, whole.positions
        else:
            self.below_head, self.head = whole.below_head, whole.head

    def forward(self, h):
        if hasattr(self, "tokens"):
            h = self.tokens(h) + self.positions(torch.arange(h.shape[1]))
        for block in self.blocks.values():
            h = block(h)
        return self.head(self.below_head(h)) if hasattr(self, "head") else h


WHERE = {"taps": "blocks.*.tap", "error_at": "below_head", "seed": 4}
OWN = bpfree.DFA(feedback=bpfree.Feedback("launay2019", shared=False))
TOKENS = torch.arange(8 * 6).reshape(8, 6) % 5


def language():
    torch.manual_seed(0)
    return CausalTransformer((6,), 5, blocks=2, width=8, heads=2, hidden=16).double()


def of_tokens(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def gradients(module):
    return {name: parameter.grad.numpy() for name, parameter in module.named_parameters()}


def transformer(rank):
    """The last stage's only tap stands where the error is taken."""
    stage = PipelineStage(Part(language(), rank), rank, 2, torch.device("cpu"))
    attachment = bpfree.pipeline.attach_stage(stage, OWN, **WHERE)
    schedule = bpfree.pipeline.ScheduleSynchronous(attachment, M, of_tokens)
    evaluated = schedule.eval(*((TOKENS,) if rank == 0 else ()), target=TOKENS)
    run(schedule, TOKENS, TOKENS)
    return gradients(attachment.model), None if evaluated is None else evaluated.numpy()


def synchronous_all(rank):
    return {"transformer": transformer(rank), **{name: synchronous(rank, rule) for name, rule in RULES.items()}}


@pytest.fixture(scope="module")
def by_rule():
    return run_on_two_ranks(synchronous_all)


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert abs(ours - theirs).max() < 1e-12


@pytest.mark.parametrize("name", RULES)
def test_the_synchronous_schedule_equals_one_process(by_rule, name):
    first, last, losses = in_one_process(RULES[name])
    assert_equal(by_rule[0][name][0], first)
    assert_equal(by_rule[1][name][0], last)
    assert by_rule[1][name][1] == pytest.approx(losses, abs=1e-12)


def test_a_transformer_with_the_error_below_its_head(by_rule):
    model = language()
    with torch.no_grad():
        expected = model(TOKENS).numpy()
    bpfree.attach(model, OWN, **WHERE)
    of_tokens(model(TOKENS), TOKENS).backward()
    parts = [of_rank["transformer"] for of_rank in by_rule]
    found = parts[0][0] | parts[1][0]
    assert found.keys() == gradients(model).keys()
    for name, gradient in gradients(model).items():
        assert abs(found[name] - gradient).max() < 1e-12
    assert abs(parts[1][1] - expected).max() < 1e-12


def test_what_travels(by_rule):
    """Three steps of 8 samples: 12 activations forward; 3 numbers of error back, and none where no error is needed."""
    (activations, _), (_, errors) = by_rule[0]["DFA"][2], by_rule[1]["DFA"][2]
    assert (activations, errors) == (3 * 8 * 12 * 8, 3 * 8 * 3 * 8)
    assert by_rule[1]["DRTP"][2][1] == by_rule[1]["Shallow"][2][1] == 0


# -- the asynchronous schedule -------------------------------------------------------------------------------------


def deep():
    """Three stages; each segment is two layers, so that its own backward pass needs a weight as it was."""
    torch.manual_seed(0)
    layers = []
    for a, b, c in [(6, 7, 5), (5, 8, 6), (6, 4, 9)]:
        layers += [nn.Linear(a, b), nn.Sigmoid(), nn.Linear(b, c), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(9, 3)).double()


PARTS = [slice(0, 4), slice(4, 8), slice(8, None)]


def asynchronous(rank, cases, steps, rule):
    found = {}
    for micro_batches, staleness in cases:
        stage = PipelineStage(deep()[PARTS[rank]], rank, 3, torch.device("cpu"))
        attachment = bpfree.pipeline.attach_stage(stage, rule, taps=nn.Tanh, seed=4)
        optimizer = torch.optim.SGD(attachment.model.parameters(), lr=0.5)
        schedule = bpfree.pipeline.ScheduleAsynchronous(
            attachment, micro_batches, F.cross_entropy, optimizer=optimizer, staleness=staleness
        )
        for x, y in batches(steps):
            run(schedule, x, y)
        schedule.flush()
        found[micro_batches, staleness] = numbers(attachment.model)
    return found


def stale(micro_batches, staleness, steps, rule):
    """The same in one process: stage s forwards micro-batch k with the weights that were there when it had learned from
    all up to k - (2 - s) - 1, and of the batches before the last ``staleness`` in any case.
    """
    model = deep()
    bpfree.attach(model, rule, taps=nn.Tanh, seed=4)
    versions = [[[p.detach().clone() for p in model[part].parameters()]] for part in PARTS]
    for batch, (x, y) in enumerate(batches(steps)):
        model.zero_grad()
        for number, (inputs, target) in enumerate(zip(x.chunk(micro_batches), y.chunk(micro_batches), strict=True)):
            k = batch * micro_batches + number
            for s, part in enumerate(PARTS):
                version = max((k - (2 - s)) // micro_batches, batch - staleness, 0)
                for parameter, value in zip(model[part].parameters(), versions[s][version], strict=True):
                    parameter.data = value.clone()
            F.cross_entropy(model(inputs), target).backward()
        for s, part in enumerate(PARTS):
            newest = zip(versions[s][-1], model[part].parameters(), strict=True)
            versions[s].append([value - 0.5 * p.grad / micro_batches for value, p in newest])
    return [[value.numpy() for value in of_stage[-1]] for of_stage in versions]


CASES = [(4, 1), (1, 1), (1, 2), (2, 0)]
ASYNCHRONOUS = {
    "DFA": bpfree.DFA(),
    "FDFA": bpfree.FDFA(),
    "FDFA, every second pass": bpfree.FDFA(every=2),
    "GrAPE": bpfree.GrAPE(),
    "LMS": bpfree.LMS(),
}


@pytest.fixture(scope="module")
def by_case():
    return {name: run_on_ranks(3, asynchronous, CASES, 4, rule) for name, rule in ASYNCHRONOUS.items()}


@pytest.mark.parametrize("name", ASYNCHRONOUS)
@pytest.mark.parametrize("case", CASES)
def test_the_asynchronous_schedule_equals_training_with_stale_weights(by_case, name, case):
    """Estimating passes see the weights of their forward pass; feedback learns in the order of the micro-batches."""
    for found, expected in zip(by_case[name], stale(*case, steps=4, rule=ASYNCHRONOUS[name]), strict=True):
        assert_equal(found[case], expected)
