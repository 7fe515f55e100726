"""Tangents that contradict gradients are found in the first pass: under streaming, and at taps within a checkpoint."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import bpfree
from bpfree.errors import SecondRunError, VerificationError
from bpfree.rerun.snapshot import RunSnapshot
from bpfree.verification import segment_adjoint
from bpfree.verification.adjoint import check_adjoint
from test_adjoint import wrong_jvp

CLASSES, WIDTH, N = 3, 6, 8

RULES = {
    "GrAPE": bpfree.GrAPE(),
    "FDFA": bpfree.FDFA(),
    "FDFA, every second pass": bpfree.FDFA(every=2),
    "LMS": bpfree.LMS(),
    "ForwardGradient": bpfree.ForwardGradient(),
}


def net(*inner: nn.Module, width: int = WIDTH) -> nn.Sequential:
    """Two tapped layers, ``inner``, and a layer for the classes: the names are "1", "3", and from "4" on."""
    torch.manual_seed(0)
    layers = [nn.Linear(5, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()]
    return nn.Sequential(*layers, *inner, nn.Linear(width, CLASSES)).double()


def first_step(model: nn.Module, rule: bpfree.Rule, **options) -> bpfree.Attachment:
    attachment = bpfree.attach(model, rule, **{"streaming": True, "taps": ["1", "3"], **options})
    x, classes = torch.randn(N, 5, dtype=torch.float64), torch.arange(N) % CLASSES
    F.cross_entropy(model(x), classes).backward()
    return attachment


class Compiled(nn.Module):
    """An elementwise function of one's own, in a part that is compiled."""

    def __init__(self, function: type[nn.Module]) -> None:
        super().__init__()
        self.part = torch.compile(nn.Sequential(function()), backend="eager")

    def forward(self, x):
        return self.part(x)


class OnOneOfTwoBranches(nn.Module):
    """The fault carries a tenth of the change: the other branch has none."""

    def __init__(self, function: type[nn.Module]) -> None:
        super().__init__()
        self.function = function()

    def forward(self, x):
        return x + 0.1 * self.function(x)


class Around(nn.Module):
    """What comes of the first layer leads around the taps, to the faulty function."""

    def __init__(self, function: type[nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.one = nn.Linear(5, WIDTH), nn.Tanh()
        self.second, self.two = nn.Linear(WIDTH, WIDTH), nn.Tanh()
        self.function, self.head = function(), nn.Linear(WIDTH, CLASSES)
        self.double()

    def forward(self, x):
        h = self.one(self.first(x))
        return self.head(self.two(self.second(h)) + self.function(h))


NEGATED = wrong_jvp(lambda t: -t)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "inner",
    [NEGATED, lambda: Compiled(NEGATED), lambda: OnOneOfTwoBranches(NEGATED), wrong_jvp(torch.zeros_like)],
    ids=["the other sign", "compiled", "on one of two branches", "no tangent"],
)
def test_a_wrong_jvp_is_found_before_any_weight_learns(rule, inner):
    model = net(inner())
    with pytest.raises(VerificationError, match=r"between tap '3' and the error.*bpfree\.verify"):
        first_step(model, RULES[rule])
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_wrong_jvp_between_two_taps_is_placed_there():
    model = net(nn.Linear(WIDTH, WIDTH), nn.Tanh())
    model[2] = nn.Sequential(nn.Linear(WIDTH, WIDTH).double(), NEGATED())
    with pytest.raises(VerificationError, match="between tap '1' and '3'"):
        first_step(model, bpfree.GrAPE(), taps=["1", "3", "5"])


def test_a_wrong_jvp_that_leads_around_a_tap_is_found():
    with pytest.raises(VerificationError, match="between tap 'one', 'two' and the error"):
        first_step(Around(NEGATED), bpfree.FDFA(), taps=["one", "two"])


def test_below_the_first_tap_a_wrong_jvp_does_no_harm():
    model = net()
    model[0] = nn.Sequential(nn.Linear(5, WIDTH).double(), NEGATED())
    first_step(model, bpfree.GrAPE())
    assert all(parameter.grad is not None for parameter in model.parameters())


class Scaled(nn.Module):
    """Half of its derivative is stopped by no_grad."""

    def forward(self, x):
        with torch.no_grad():
            scale = x.norm(dim=1, keepdim=True)
        return x * scale


class Step(torch.autograd.Function):
    """A step with a surrogate gradient, and no jvp: as in libraries for spiking networks."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g / (1 + x.abs()).square()


class Spike(nn.Module):
    def forward(self, x):
        return Step.apply(x)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "inner",
    [Scaled, Spike, lambda: Compiled(Spike), lambda: nn.Dropout(0.4), lambda: nn.BatchNorm1d(WIDTH), nn.Identity],
    ids=["no_grad", "surrogate", "compiled surrogate", "dropout", "statistics", "nothing"],
)
def test_right_tangents_pass_and_streaming_is_plain(rule, inner):
    found = {}
    for streaming in (True, False):
        model = net(inner())
        torch.manual_seed(1)
        first_step(model, RULES[rule], streaming=streaming)
        found[streaming] = [parameter.grad for parameter in model.parameters()]
    for ours, theirs in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rounding_is_no_fault(dtype):
    for seed in range(10):
        model = net(nn.LayerNorm(300), nn.Linear(300, 300), nn.GELU(), nn.LayerNorm(300), width=300).to(dtype)
        torch.manual_seed(seed)
        bpfree.attach(model, bpfree.GrAPE(), streaming=True, taps=["1", "3"])
        model(torch.randn(64, 5, dtype=dtype))


@pytest.mark.parametrize("most", [1, 7, 48, 1000])
def test_few_signs_show_a_fault_as_many_do(most, monkeypatch):
    monkeypatch.setattr(segment_adjoint, "_GROUPS", most)
    first_step(net(), bpfree.GrAPE())
    with pytest.raises(VerificationError, match="tangents of the estimating pass"):
        first_step(net(NEGATED()), bpfree.GrAPE())


def test_a_run_that_cannot_be_repeated_is_told_as_such():
    class Iterated(nn.Module):
        def __init__(self):
            super().__init__()
            self.numbers = (float(number % 7 + 1) for number in itertools.count())

        def forward(self, x):
            return x * next(self.numbers)

    with pytest.raises(SecondRunError, match="differs between two runs"):
        first_step(net(Iterated()), bpfree.GrAPE())


class Checkpointed(nn.Module):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.Sequential(*parts)

    def forward(self, x):
        return checkpoint(self.parts, x, use_reentrant=False)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_taps_within_a_checkpoint_are_tried_too(rule, streaming):
    def model(*inner):
        return net(Checkpointed(nn.Linear(WIDTH, WIDTH), nn.Tanh(), *inner, nn.Linear(WIDTH, WIDTH)))

    options = {"taps": ["1", "3", "4.parts.1"], "streaming": streaming}
    first_step(model(), RULES[rule], **options)
    with pytest.raises(VerificationError, match=r"4\.parts\.1'|'4\.parts\.2' \(Inner\)"):
        first_step(model(NEGATED()), RULES[rule], **options)


def test_a_checkpoint_without_taps_stays_one():
    """It runs a second time in the check's backward pass: the memory that it saves is not taken."""
    runs = []

    class Counted(nn.Tanh):
        def forward(self, x):
            runs.append(1)
            return super().forward(x)

    attachment = first_step(net(Checkpointed(Counted(), nn.Linear(WIDTH, WIDTH))), bpfree.GrAPE(), verify=False)
    mechanism, call = attachment.mechanism, ((torch.randn(N, 5, dtype=torch.float64),), {})
    runs.clear()
    start = RunSnapshot.now(mechanism.plan, call)
    assert check_adjoint(mechanism._estimator, call, start, mechanism.sites) == []
    assert len(runs) == 3  # with tangents, with a graph, and again on the way back
