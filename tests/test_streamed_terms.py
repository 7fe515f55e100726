"""Streaming, and losses that go around ``error_at``: refused when a gradient arrives, and never taken for nothing.

The measure of what is refused is the plain model: with a stored graph its side terms teach what made them.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bpfree
from bpfree import errors

DIRECT = [bpfree.DFA(), bpfree.Shallow(), bpfree.DRTP(), bpfree.DKP(), bpfree.FDFA(), bpfree.GrAPE()]


class Net(nn.Module):
    """Two taps, the head at the error, and a side layer; what is returned says the way."""

    def __init__(self):
        super().__init__()
        self.a, self.t, self.b, self.t2 = nn.Linear(4, 8), bpfree.Tap(), nn.Linear(8, 8), bpfree.Tap()
        self.h, self.side, self.last = nn.Linear(8, 2), nn.Linear(8, 2), nn.Linear(2, 2)
        self.gain = nn.Parameter(torch.ones(2))

    def below(self, x):
        return self.t(self.a(x).tanh())

    def above(self, z):
        return self.t2(self.b(z).tanh())


@dataclass
class Result:
    logits: torch.Tensor
    extra: torch.Tensor


class BesideBefore(Net):
    def forward(self, x):
        z = self.below(x)
        aux = self.side(z)
        return self.h(self.above(z)), aux


class BesideBehind(Net):
    def forward(self, x):
        z = self.below(x)
        return self.h(self.above(z)), self.side(z)


class InDictionary(Net):
    def forward(self, x):
        z = self.below(x)
        aux = self.side(z)
        return {"logits": self.h(self.above(z)), "inner": {"aux": aux}}


class InObject(Net):
    def forward(self, x):
        z = self.below(x)
        return Result(self.h(self.above(z)), z.square().mean())


class OfTheWeights(Net):
    def forward(self, x):
        penalty = self.a.weight.square().sum()
        return self.h(self.above(self.below(x))), penalty


class OfTheArguments(Net):
    """A branch beside the taps."""

    def forward(self, x):
        aux = self.side(torch.cat([x, x], 1))
        return self.h(self.above(self.below(x))), aux


class BehindTheError(Net):
    """Behind the head a layer that also sees what lies below it."""

    def forward(self, x):
        z = self.below(x)
        o = self.h(self.above(z))
        return o, self.last(o) + self.side(z)


class Mean(Net):
    """As DeiT with a distillation token: the mean of two heads; the error is taken at one of them."""

    def forward(self, x):
        z = self.above(self.below(x))
        aux = self.side(z)
        return (self.h(z) + aux) / 2


class MeanBehind(Net):
    def forward(self, x):
        z = self.above(self.below(x))
        return (self.h(z) + self.side(z)) / 2


class Scaled(Net):
    def forward(self, x):
        gain = self.gain.exp()
        return self.h(self.above(self.below(x))) * gain


TERMS = {
    BesideBefore: (lambda out: out[1], "at 1"),
    BesideBehind: (lambda out: out[1], "at 1"),
    InDictionary: (lambda out: out["inner"]["aux"], r"at \('inner', 'aux'\)"),
    InObject: (lambda out: out.extra, "at 'extra'"),
    OfTheWeights: (lambda out: out[1], "at 1"),
    OfTheArguments: (lambda out: out[1], "at 1"),
    BehindTheError: (lambda out: out[1], "at 1"),
}
MEANS = [Mean, MeanBehind, Scaled]


def first(out):
    parts = (
        tuple(out.values()) if isinstance(out, dict) else tuple(vars(out).values()) if isinstance(out, Result) else out
    )
    return parts[0] if isinstance(parts, tuple) else parts


def setting(kind):
    torch.manual_seed(0)
    return kind().double(), torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 2


def stream(kind, rule=None, **options):
    model, x, y = setting(kind)
    attachment = bpfree.attach(model, rule or bpfree.DFA(), error_at="h", seed=0, streaming=True, **options)
    attachment.targets(y)
    return model, x, y


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("rule", DIRECT, ids=str)
@pytest.mark.parametrize("kind", TERMS, ids=lambda kind: kind.__name__)
def test_a_loss_around_the_error_is_refused_before_anything_learns(kind, rule):
    term, place = TERMS[kind]
    model, x, y = stream(kind, rule)
    out = model(x)
    loss = F.cross_entropy(first(out), y) + term(out).sum()
    with pytest.raises(errors.StreamingError, match=f"output {place}, which does not come of 'h' alone.*detach"):
        loss.backward()
    assert all(gradient is None for gradient in gradients(model).values())


@pytest.mark.parametrize("kind", TERMS, ids=lambda kind: kind.__name__)
def test_it_is_refused_in_every_later_pass(kind):
    term, _ = TERMS[kind]
    model, x, y = stream(kind)
    for _ in range(2):
        F.cross_entropy(first(model(x)), y).backward()
    with pytest.raises(errors.StreamingError, match="streaming=True has no graph"):
        term(model(torch.randn(3, 4, dtype=torch.float64))).sum().backward()


@pytest.mark.parametrize("options", [{}, {"alternate": 2}, {"within": bpfree.FA()}], ids=str)
@pytest.mark.parametrize("kind", TERMS, ids=lambda kind: kind.__name__)
def test_an_output_that_is_only_looked_at_changes_nothing(kind, options):
    """Beside the stored graph of the same rule. Such an output may be detached, and is the plain model's."""
    term, _ = TERMS[kind]
    model, x, y = stream(kind, **options)
    stored, *_ = setting(kind)
    expected = term(stored(x))
    bpfree.attach(stored, bpfree.DFA(), error_at="h", seed=0, **options)
    for _ in range(2):
        out = model(x)
        torch.testing.assert_close(term(out), expected)
        assert term(out).requires_grad == expected.requires_grad
        F.cross_entropy(first(out) + 0 * term(out).detach().mean(), y).backward()
        F.cross_entropy(first(stored(x)), y).backward()
    for name, gradient in gradients(stored).items():
        found = gradients(model)[name]
        assert (found is None) == (gradient is None), name
        if gradient is not None:
            torch.testing.assert_close(found, gradient)


@pytest.mark.parametrize("rule", DIRECT, ids=str)
@pytest.mark.parametrize("kind", MEANS)
def test_an_output_that_holds_more_than_the_error_is_refused(kind, rule):
    model, x, y = stream(kind, rule)
    loss = F.cross_entropy(model(x), y)
    with pytest.raises(errors.StreamingError, match=r"the model's output, which.*error_at=''"):
        loss.backward()
    assert all(gradient is None for gradient in gradients(model).values())


@pytest.mark.parametrize("kind", MEANS)
def test_what_the_refusal_advises_teaches_it_all(kind):
    """With the error at the output, both heads get the gradients of backpropagation."""
    (model, x, y), (plain, *_) = setting(kind), setting(kind)
    bpfree.attach(model, bpfree.DFA(), error_at="", streaming=True)
    for one in (model, plain):
        F.cross_entropy(one(x), y).backward()
    for name in ("h.weight", "side.weight", "gain"):
        found, expected = gradients(model)[name], gradients(plain)[name]
        assert (found is None) == (expected is None), name
        if expected is not None:
            torch.testing.assert_close(found, expected)


def test_layers_behind_the_error_are_no_side_term():
    class Behind(Net):
        def forward(self, x):
            o = self.h(self.above(self.below(x)))
            return self.last(o) * self.gain, o.square().mean(), self.last.weight.square().sum()

    found = []
    for streaming in (True, False):
        model, x, y = setting(Behind)
        bpfree.attach(model, bpfree.DFA(), error_at="h", seed=0, streaming=streaming)
        out, size, penalty = model(x)
        (F.cross_entropy(out, y) + size + penalty).backward()
        found.append(gradients(model))
    for name, gradient in found[1].items():
        if gradient is not None:
            torch.testing.assert_close(found[0][name], gradient)


def test_outputs_without_a_graph_stay_without():
    """Constants, detached numbers, arguments, and a frozen side layer: none has a graph in the plain model."""

    class Constants(Net):
        def forward(self, x):
            frozen = self.side(torch.cat([x, x], 1))
            z = self.below(x)
            return self.h(self.above(z)), {"ones": torch.ones(2), "z": z.detach(), "x": x, "frozen": frozen}

    model, x, y = setting(Constants)
    model.side.requires_grad_(False)
    bpfree.attach(model, bpfree.DFA(), error_at="h", streaming=True)
    for _ in range(2):
        out, others = model(x)
        assert not any(other.requires_grad for other in others.values())
        (F.cross_entropy(out, y) + sum(other.sum() for other in others.values())).backward()


def test_what_frozen_layers_make_has_no_graph():
    """Where nothing below the tap learns, a term of the tap's output teaches nothing in the plain model either."""

    class Frozen(Net):
        def forward(self, x):
            z = self.below(x)
            return self.h(self.above(z)), z.square().mean()

    model, x, _ = setting(Frozen)
    model.a.requires_grad_(False)
    assert not model(x)[1].requires_grad
    bpfree.attach(model, bpfree.DFA(), error_at="h", streaming=True)
    assert not model(x)[1].requires_grad


@pytest.mark.parametrize("of", ["side layer", "tap", "mean"])
def test_what_is_kept_behind_the_error_is_refused_as_what_is_kept_before(of):
    class Keeping(Net):
        def forward(self, x):
            z = self.below(x)
            o = self.h(self.above(z))
            made = {
                "side layer": lambda: self.side(z).sum(),
                "tap": lambda: z.square().mean(),
                "mean": lambda: o + z[:, :2],
            }
            self.kept = made[of]()
            return o

    model, x, _ = stream(Keeping)
    with pytest.raises(errors.StreamingError, match="keeps tensors with a graph below the error's place: 'kept'"):
        model(x)
    attachment = bpfree.attachments(model)[0]
    assert "keeps tensors with a graph" in str(bpfree.verify(attachment, x))


def test_what_is_kept_of_the_error_alone_is_served():
    class Keeping(Net):
        def forward(self, x):
            o = self.h(self.above(self.below(x)))
            self.kept = self.last(o).square().mean() + self.gain.sum()
            return o

    model, x, _ = stream(Keeping)
    for _ in range(2):
        (model(x).sum() + model.kept).backward()
    assert model.last.weight.grad.any()


def test_drtp_that_learns_in_its_forward_pass_refuses_it_too():
    model, x, y = setting(BesideBehind)
    attachment = bpfree.attach(model, bpfree.DRTP(), error_at="h", streaming=True, example_inputs=x)
    attachment.targets(y)
    _, aux = model(x)
    assert model.a.weight.grad is not None  # it has learned already
    with pytest.raises(errors.StreamingError, match="output at 1"):
        aux.sum().backward()


def test_a_pass_that_stores_its_graph_serves_such_a_loss():
    """Without the option, and within measurements of a streaming attachment."""
    (model, x, _), (plain, *_) = stream(BesideBefore), setting(BesideBefore)
    with bpfree.attachments(model)[0].paused():
        model(x)[1].sum().backward()
    plain(x)[1].sum().backward()
    torch.testing.assert_close(model.side.weight.grad, plain.side.weight.grad)


@pytest.mark.parametrize("kind", [BesideBefore, OfTheArguments], ids=lambda kind: kind.__name__)
def test_without_checks_a_term_without_a_graph_is_warned_of(kind):
    model, x, _ = stream(kind, verify=False)
    with pytest.warns(bpfree.BpfreeWarning, match=r"a tensor \(6, 2\) without a graph.*also not the layers that made"):
        model(x)


def test_an_output_that_the_first_pass_of_its_kind_did_not_have_is_warned_of():
    class Asked(Net):
        def forward(self, x, *, more):
            z = self.below(x)
            aux = self.side(z)
            return (self.h(self.above(z)), aux) if more else (self.h(self.above(z)),)

    model, x, y = stream(Asked)
    F.cross_entropy(model(x, more=False)[0], y).backward()
    with pytest.warns(bpfree.BpfreeWarning, match="without a graph besides what comes of 'h'"):
        model(x, more=True)
