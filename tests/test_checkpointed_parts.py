"""Checkpointed parts: the backward pass runs them again, and they learn what they learn without a checkpoint.

The measure is the same model without ``torch.utils.checkpoint``, whose backward pass runs nothing twice.
"""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import bpfree
from bpfree.rerun import checkpoints
from bpfree.rerun.checkpoints import NOWHERE, Repetition, SecondRun, checkpoints_around
from bpfree.rerun.own_graphs import own_graphs


class Part(nn.Module):
    """What it holds, behind a checkpoint where ``again`` says so."""

    def __init__(self, again: bool, *inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.again = nn.Sequential(*inner), again

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=False) if self.again else self.inner(x)


def block(into, out):
    return nn.Sequential(nn.Linear(into, out), nn.Tanh())


def below(again):
    return nn.Sequential(Part(again, block(4, 5), block(5, 5)), Part(again, block(5, 6), block(6, 6)), nn.Linear(6, 3))


def above(again):
    """Default taps above the error are left alone, in both runs."""
    top = Part(again, block(5, 6), block(6, 6))
    return nn.Sequential(Part(again, block(4, 5)), nn.Linear(5, 5), top, nn.Linear(6, 3))


def inside(again):
    part = Part(again, block(5, 5), nn.Linear(5, 5), block(5, 5), nn.Linear(5, 5))
    return nn.Sequential(block(4, 5), part, nn.Linear(5, 3))


def nested(again):
    inner = Part(again, block(5, 5), block(5, 6))
    return nn.Sequential(block(4, 5), Part(again, block(5, 5), inner, block(6, 5)), nn.Linear(5, 3))


def ends_in_tap(again):
    """The last module is a tap, and the error is taken in its part: it is no tap then."""
    return nn.Sequential(block(4, 5), Part(again, block(5, 5)), Part(again, nn.Linear(5, 3), nn.Sigmoid()))


def error_alone(again):
    """The part holds nothing but the layer where the error is taken."""
    return nn.Sequential(block(4, 5), Part(again, nn.Linear(5, 5)), nn.Sequential(nn.Sigmoid(), nn.Linear(5, 3)))


class OneActivation(nn.Module):
    """One module is a tap below the error, called twice, and none above it."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        self.a, self.b, self.error, self.c = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 5)
        self.act, self.head, self.again = nn.Tanh(), nn.Linear(5, 3), again

    def _part(self, function, x):
        return checkpoint(function, x, use_reentrant=False) if self.again else function(x)

    def forward(self, x):
        h = self._part(lambda z: self.b(self.act(self.a(z))), x)
        h = self.error(self.act(h))
        return self.head(self._part(lambda z: self.c(self.act(z)).sin() * self.act(z), h))


class LastCallAlone(OneActivation):
    """Of one module's three calls, the last is left alone: no layer is behind it."""

    def forward(self, x):
        h = self._part(lambda z: self.b(self.act(self.a(z))), x)
        return self._part(lambda z: 2 * self.act(self.head(self.act(self.error(z)))), h)


class ForceAbove(nn.Module):
    """Differentiates within its own pass, in the part that holds the tap: the part runs again inside the forward."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        self.below, self.tap, self.energy, self.head = nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Linear(5, 3)
        self.again = again

    def _force(self, x):
        h = self.tap(self.below(x))
        with torch.enable_grad():
            at = h.detach().requires_grad_()
            (force,) = torch.autograd.grad(self.energy(at).sin().square().sum(), at, create_graph=True)
        return self.energy(h) + force

    def forward(self, x):
        return self.head(checkpoint(self._force, x, use_reentrant=False) if self.again else self._force(x))


MODELS = {
    "below the error": (below, {}),
    "above the error": (above, {"error_at": "1"}),
    "around the error": (inside, {"error_at": "1.inner.1"}),
    "with the last tap": (ends_in_tap, {}),
    "of the error's layer": (error_alone, {"error_at": "1.inner.0"}),
    "in each other": (nested, {}),
    "with one module": (OneActivation, {"error_at": "error"}),
    "with one module at the end": (LastCallAlone, {}),
    "that differentiate": (ForceAbove, {}),
}

WAYS = {
    "DFA": (bpfree.DFA(), {}),
    "streaming": (bpfree.DFA(), {"streaming": True}),
    "window": (bpfree.DFA(), {"window": 2}),
    "threads": (bpfree.DFA(), {"threads": 2}),
    "GrAPE": (bpfree.GrAPE(), {}),
    "FA within": (bpfree.DFA(), {"within": bpfree.FA()}),
    "FA": (bpfree.FA(), {}),
}

NOT_SERVED = {
    # Estimating passes of checkpoints in each other lose their tangents, and are refused by name.
    ("in each other", "GrAPE"),
    # Gradients in the model's own pass: refused by name, with a checkpoint and without.
    *(("that differentiate", way) for way in ("streaming", "FA within", "FA")),
}


def loss(model, x):
    return model(x).square().sum()


def plain(model, attachment, x):
    loss(model, x).backward()


def from_outside(model, attachment, x):
    checkpoint(model, x, use_reentrant=False).square().sum().backward()


def two_passes(model, attachment, x):
    first, second = loss(model, x), loss(model, 2 * x)
    first.backward()
    second.backward()


def paused(model, attachment, x):
    with attachment.paused():
        measured = loss(model, x)
    measured.backward()


def paused_between(model, attachment, x):
    learned = loss(model, x)
    with attachment.paused():
        measured = loss(model, 2 * x)
    measured.backward()
    learned.backward()


def a_part_between(model, attachment, x):
    learned = loss(model, x)
    next(model.children())(x)
    learned.backward()


def evaluated_between(model, attachment, x):
    learned = loss(model, x)
    with torch.no_grad():
        model.eval()(x)
    model.train()
    learned.backward()


def without_early_stop(model, attachment, x):
    with torch.utils.checkpoint.set_checkpoint_early_stop(False):
        loss(model, x).backward()


USES = [
    plain,
    from_outside,
    two_passes,
    paused,
    paused_between,
    a_part_between,
    evaluated_between,
    without_early_stop,
]


def gradients(build, way, options, use, again):
    torch.manual_seed(0)
    model, x = build(again).double(), torch.randn(6, 4, dtype=torch.float64)
    rule, more = WAYS[way]
    attachment = bpfree.attach(model, rule, seed=0, **options, **more)
    for _ in range(2):
        model.zero_grad()
        use(model, attachment, x)
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.filterwarnings("ignore::bpfree.BpfreeWarning")
@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("parts", MODELS)
def test_a_part_learns_with_a_checkpoint_what_it_learns_without(parts, way, use):
    build, options = MODELS[parts]
    if (parts, way) in NOT_SERVED:
        with pytest.raises(bpfree.BpfreeError):
            gradients(build, way, options, plain, again=True)
        return
    expected = gradients(build, way, options, use, again=False)
    found = gradients(build, way, options, use, again=True)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-12, msg=name)


class Recomputed(torch.autograd.Function):
    """A sine that is run again in its backward pass, with a graph of its own."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, *grads):
        with torch.enable_grad():
            at = ctx.saved_tensors[0].detach().requires_grad_()
            return torch.autograd.grad(at.sin(), at, grads[0])[0]


class Sine(nn.Module):
    def forward(self, x):
        return Recomputed.apply(x)


class Masked(nn.Linear):
    """Served by its own forward function, which is run again with B."""

    def forward(self, x):
        return nn.functional.linear(x, self.weight * self.weight.new_tensor([1.0, 0, 1, 1, 1]))


class Sum(nn.Module):
    def __init__(self, *parts):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x):
        return sum(part(x) for part in self.parts)


GRAPHS_IN_BACKWARD = {
    "function": lambda again: Part(again, nn.Linear(5, 5), Sine(), nn.Tanh(), nn.Linear(5, 5)),
    "served layer": lambda again: Part(again, Masked(5, 5), nn.Tanh(), nn.Linear(5, 5)),
    "joined": lambda again: Part(again, Sum(Masked(5, 5), nn.Sequential(Sine(), nn.Linear(5, 5))), nn.Tanh()),
}


@pytest.mark.parametrize("part", GRAPHS_IN_BACKWARD)
@pytest.mark.parametrize("rule", [bpfree.DFA(), bpfree.DRTP()], ids=str)
@pytest.mark.parametrize("within", [None, bpfree.FA()], ids=str)
def test_a_segment_that_learns_in_the_middle_of_a_part_leaves_no_trace_there(part, rule, within):
    """Streaming runs its backward functions while the part runs; some make graphs, whose tensors are not the part's."""
    found = []
    for again in (False, True):
        torch.manual_seed(0)
        # What lies below the part: a segment that reaches into it has more to save.
        model = nn.Sequential(nn.Linear(4, 5), GRAPHS_IN_BACKWARD[part](again), nn.Linear(5, 3)).double()
        x, y = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3
        attachment = bpfree.attach(model, rule, taps=nn.Tanh, seed=0, streaming=True, within=within)
        for _ in range(3):
            model.zero_grad()
            attachment.targets(y)
            nn.functional.cross_entropy(model(x), y).backward()
        found.append({name: parameter.grad for name, parameter in model.named_parameters()})
    expected, found = found
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-12, msg=name)


# -- what torch says of a checkpoint -----------------------------------------------------------------------------------


def test_no_checkpoint_is_around_plain_code():
    assert checkpoints_around() == NOWHERE
    with torch.autograd.graph.save_on_cpu():
        assert checkpoints_around() == NOWHERE


def test_the_second_run_of_a_part_is_known_as_that_of_its_first():
    seen = []

    def part(x):
        seen.append(checkpoints_around())
        return x.sin().sin()

    x = torch.ones(3, requires_grad=True)
    output = checkpoint(part, x, use_reentrant=False).sum()
    output.backward(retain_graph=True)
    output.backward()
    first, second, third = seen
    assert len(first.first) == 1
    assert first.second is None
    assert second.second.part is third.second.part is first.first[0]
    assert second.second.backward != third.second.backward


def test_inner_parts_are_in_their_first_run_where_the_outer_one_runs_again():
    seen = []

    def inner(x):
        seen.append(checkpoints_around())
        return x.sin().sin()

    def outer(x):
        return checkpoint(inner, x, use_reentrant=False).sin()

    x = torch.ones(3, requires_grad=True)
    checkpoint(outer, x, use_reentrant=False).sum().backward()
    assert len(seen[0].first) == 2  # the inner part and the outer one
    assert [len(around.first) for around in seen[1:]] == [1, 0]  # the outer part again, then the inner one again
    assert seen[1].second.part is seen[0].first[1]
    assert seen[2].second.part is seen[0].first[0]


def test_looking_leaves_the_hooks_as_they_were():
    order = []

    def hooks(name):
        return torch.autograd.graph.saved_tensors_hooks(lambda t: order.append(name) or t, lambda t: t)

    x = torch.ones(3, requires_grad=True)
    with hooks("outer"), hooks("inner"):
        checkpoints_around()
        x.sin()
    assert order == ["inner"]


def interrupted_at(moment, call):
    """Call a function, and raise KeyboardInterrupt before one of its instructions; whether it came so far."""
    left = iter(range(moment))

    def trace(frame, event, _):
        if frame.f_globals.get("__name__") != checkpoints.__name__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and next(left, None) is None:
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_an_interrupt_between_any_two_instructions_leaves_the_hooks_as_they_were():
    graph, moment = torch._C._autograd, 0
    hooks = [(lambda tensor, name=name: tensor, lambda tensor: tensor) for name in ("outer", "inner")]
    came = True
    while came:
        for pack, unpack in hooks:
            graph._push_saved_tensors_default_hooks(pack, unpack)
        came = interrupted_at(moment, checkpoints_around)
        found = []
        while (top := graph._top_saved_tensors_default_hooks(True)) is not None:
            found.append(tuple(top))
            graph._pop_saved_tensors_default_hooks()
        assert found == hooks[::-1], moment
        moment += 1
    assert moment > 100


def test_a_graph_of_the_librarys_own_is_in_no_checkpoint():
    seen = []

    def part(x):
        with own_graphs():
            seen.append(checkpoints_around())
        return x.sin()

    checkpoint(part, torch.ones(3, requires_grad=True), use_reentrant=False)
    assert seen == [NOWHERE]


class Record:
    """Stands for torch's record of a part."""


def test_what_was_done_is_done_again_in_every_backward_pass():
    known, part, other = Repetition(), Record(), Record()
    for done in ("a", None, "b"):
        known.note([part], done)
    for backward in (7, 9):
        assert [known.next(SecondRun(part, backward)) for _ in range(4)] == ["a", None, "b", None]
    assert known.next(SecondRun(part, 10)) == "a"  # a run that stopped early
    assert known.next(SecondRun(part, 11)) == "a"
    assert known.next(SecondRun(other, 11)) is None
    assert copy.deepcopy(known).next(SecondRun(part, 12)) is None


def test_an_evaluation_before_the_second_run_of_the_model_makes_no_other_pass_of_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    attachment = bpfree.attach(model, bpfree.GrAPE(calibrate=2))
    for _ in range(2):
        output = checkpoint(model, torch.randn(2, 4), use_reentrant=False)
        with torch.no_grad():
            model(torch.randn(2, 4))
        output.square().sum().backward()
    assert attachment.mechanism.averages.numbers["passes"] == 2


def test_a_checkpoint_around_a_model_that_would_learn_in_its_forward_pass():
    """The second step learns in the forward pass where no checkpoint is around it."""
    found = []
    for around, streaming in ((False, False), (True, True)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
        attachment = bpfree.attach(model, bpfree.DRTP(), streaming=streaming)
        x, y = torch.randn(2, 4), torch.tensor([0, 2])
        for _ in range(2):
            attachment.targets(y)
            output = checkpoint(model, x, use_reentrant=False) if around else model(x)
            nn.functional.cross_entropy(output, y).backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain)
