"""An attached model may be evaluated while it trains: by another thread, in a hook of its own, after an interrupt."""

import copy
import threading

import pytest
import torch
import torch.autograd.forward_ad as forward_mode
import torch.nn.functional as F
from torch import nn

import bpfree
from bpfree.forward_mode.dual_level import dual_level
from bpfree.passes import Passes
from support.models import batch
from support.rule_contract import assert_equal

WEIGHTS = bpfree.ForwardGradient("weights")
RULES = [bpfree.FA(), bpfree.KolenPollack(), bpfree.SignSymmetry("batch"), bpfree.PEPITA(), WEIGHTS]
by_rule = pytest.mark.parametrize("rule", RULES, ids=str)


class Between(nn.Module):
    """Does something in the middle of a forward pass."""

    def __init__(self):
        super().__init__()
        self.act = None

    def forward(self, x):
        if self.act is not None:
            act, self.act = self.act, None
            act()
        return x


def net(recurrent=False):
    torch.manual_seed(2)
    middle = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), Between(), nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 4))
    if not recurrent:
        return middle
    return Recurrent(middle)


class Recurrent(nn.Module):
    def __init__(self, rest):
        super().__init__()
        self.cell, self.rest = nn.GRU(6, 6, batch_first=True), rest

    def forward(self, x):
        return self.rest(self.cell(x[:, None])[0][:, 0])


def between(model):
    return next(module for module in model.modules() if isinstance(module, Between))


def gradients(model, x, y):
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


def two_passes(model, rule, during=None):
    """The gradients of the second training pass, with ``during`` done in the middle of it."""
    x, y = batch("mlp")
    bpfree.attach(model, rule, seed=3)
    gradients(model, x, y)
    if during is not None:
        between(model).act = lambda: during(model)
    return gradients(model, x, y)


def in_a_thread(work):
    failed = []

    def guarded():
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    thread.join(300)
    assert not thread.is_alive()
    assert not failed, failed


@by_rule
@pytest.mark.parametrize("how", ["thread", "itself", "paused"])
def test_an_evaluation_in_the_middle_of_a_training_pass_changes_nothing(rule, how):
    x, _ = batch("mlp", 4)
    with torch.no_grad():
        expected = net()(x)

    def evaluate(model):
        with torch.no_grad():
            assert torch.equal(model(x), expected)

    def paused(model):
        with bpfree_attachments[0].paused(), torch.enable_grad():
            assert torch.equal(model(x).detach(), expected)

    plain = two_passes(net(), rule)
    during = {"thread": lambda model: in_a_thread(lambda: evaluate(model)), "itself": evaluate, "paused": paused}[how]
    model, (x_, y) = net(), batch("mlp")
    bpfree_attachments = [bpfree.attach(model, rule, seed=3)]
    gradients(model, x_, y)
    between(model).act = lambda: during(model)
    assert_equal(gradients(model, x_, y), plain)
    # The pass behind it is as it would have been.
    other = net()
    bpfree.attach(other, rule, seed=3)
    for _ in range(2):
        gradients(other, x_, y)
    assert_equal(gradients(model, x_, y), gradients(other, x_, y))


class CallingItself(nn.Module):
    """Runs through its layers as often as it is told, each time by a call of itself."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 6))

    def forward(self, x, times=3):
        return self.layers(self(x, times - 1) if times > 1 else x)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("every", [1, 2])
def test_every_call_of_a_model_that_calls_itself_has_an_estimating_pass_of_its_own(streaming, every):
    model = CallingItself()
    attachment = bpfree.attach(model, bpfree.FDFA(every=every), streaming=streaming)
    model(torch.randn(4, 6)).square().sum().backward()
    assert attachment.mechanism.steps.numbers == {"layers.1:5": 3 if every == 1 else 2}
    assert all(bool(parameter.grad.any()) for parameter in model.parameters())


def test_another_thread_sees_no_dual_numbers_in_a_recurrent_layer():
    x, _ = batch("mlp", 4)
    with torch.no_grad():
        expected = net(recurrent=True)(x)

    def evaluate(model):
        with torch.no_grad():
            output = model(x)
            assert forward_mode.unpack_dual(output).tangent is None
            assert torch.equal(output, expected)
            assert all(forward_mode.unpack_dual(p).tangent is None for p in model.cell._flat_weights)

    plain = two_passes(net(recurrent=True), WEIGHTS)
    model = net(recurrent=True)
    weights = list(model.cell._flat_weights)
    assert_equal(two_passes(model, WEIGHTS, lambda model: in_a_thread(lambda: evaluate(model))), plain)
    assert all(now is before for now, before in zip(model.cell._flat_weights, weights, strict=True))
    assert type(model.cell._parameters) is dict


def passes_in_threads(models, x, y):
    """The gradients of one pass of each model, all under way at once, each in a thread of its own."""
    found = [None] * len(models)

    def work(number):
        found[number] = gradients(models[number], x, y)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(models))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    return found


def test_two_models_with_dual_numbers_in_two_threads():
    def two():
        models = [net(), net(recurrent=True)]
        for model in models:
            bpfree.attach(model, WEIGHTS, seed=3)
            gradients(model, x, y)  # the first pass looks for layers without a derivative
        return models

    x, y = batch("mlp")
    # Each alone, and in a new thread too: torch.set_num_threads() does not hold there, and a GRU rounds otherwise.
    alone = [passes_in_threads([model], x, y)[0] for model in two()]
    inside, models = threading.Barrier(2, timeout=300), two()
    for model in models:
        between(model).act = inside.wait  # both are in the middle of a pass at once
    for ours, theirs in zip(passes_in_threads(models, x, y), alone, strict=True):
        assert_equal(ours, theirs)
    assert forward_mode._current_level == -1


def test_the_level_is_closed_by_the_last_to_leave():
    with dual_level():
        x = forward_mode.make_dual(torch.ones(2), torch.full((2,), 3.0))

        def other():
            with dual_level():
                y = forward_mode.make_dual(torch.ones(2), torch.ones(2))
                assert float(forward_mode.unpack_dual(y * 2).tangent.sum()) == 4

        in_a_thread(other)
        assert float(forward_mode.unpack_dual(x * x).tangent.sum()) == 12
    assert forward_mode._current_level == -1


# -- interrupts --------------------------------------------------------------------------------------------------------


def interrupt():
    raise KeyboardInterrupt


def interrupted(model, x):
    """Run the model and interrupt it. The exception is kept, and so are the frames that it has passed."""
    between(model).act = interrupt
    with pytest.raises(KeyboardInterrupt) as kept:
        model(x)
    return kept


def assert_nothing_is_left(model):
    assert torch.is_grad_enabled()
    assert forward_mode._current_level == -1
    assert all(type(module._parameters) is dict for module in model.modules())
    assert torch._C._len_torch_function_stack() == 0


@by_rule
def test_an_interrupted_pass_is_put_right_at_once(rule):
    plain, model, (x, y) = two_passes(net(), rule), net(), batch("mlp")
    bpfree.attach(model, rule, seed=3)
    gradients(model, x, y)
    kept = interrupted(model, x)
    assert_nothing_is_left(model)
    del kept
    if rule != WEIGHTS and rule != bpfree.SignSymmetry("batch"):  # these draw anew in every pass that begins
        assert_equal(gradients(model, x, y), plain)


@pytest.mark.parametrize("rule", [bpfree.PEPITA(), WEIGHTS], ids=str)
def test_another_models_pass_around_it_stays_open(rule):
    """An interrupt that the outer pass catches is the inner pass's alone."""
    outer, inner, (x, y) = net(), net(), batch("mlp")
    plain = two_passes(net(), rule)
    for model in (outer, inner):
        bpfree.attach(model, rule, seed=3)
        gradients(model, x, y)
    assert torch.is_grad_enabled()
    between(outer).act = lambda: interrupted(inner, x)
    assert_equal(gradients(outer, x, y), plain)
    assert_nothing_is_left(outer)


def test_passes_know_who_runs_them():
    passes = Passes()

    def _begin(name):
        return passes.begin(name)

    def runs(name, inside=lambda: None):
        dropped = _begin(name)
        inside()
        return dropped

    runs("lost")  # never ended
    seen = []

    def nested():
        seen.append(runs("inner"))
        seen.append(passes.now())
        passes.end()
        seen.append(passes.now())

    assert runs("outer", nested) == ["lost"]
    assert seen == [[], "inner", "outer"]
    copied = copy.deepcopy(passes)
    assert copied.now() is None


@pytest.mark.parametrize(
    "rule", [bpfree.DFA(), bpfree.GrAPE(), bpfree.FA(), bpfree.KolenPollack(), bpfree.PEPITA(), WEIGHTS], ids=str
)
def test_an_interrupt_while_a_rule_is_attached_leaves_nothing_behind(rule, monkeypatch):
    """At whatever hook it comes, right behind that hook's registration."""

    def left(model):
        return [hook for part in model.modules() for hook in (*part._forward_hooks, *part._forward_pre_hooks)]

    for kind in ("register_forward_hook", "register_forward_pre_hook"):
        register, number, attached = getattr(nn.Module, kind), 0, False
        while not attached:
            model, calls = net(), iter(range(1000))

            def interrupting(self, *args, _register=register, _calls=calls, _last=number, **kwargs):
                handle = _register(self, *args, **kwargs)
                if next(_calls) == _last:
                    raise KeyboardInterrupt
                return handle

            monkeypatch.setattr(nn.Module, kind, interrupting)
            try:
                bpfree.attach(model, rule)
                attached = True
            except KeyboardInterrupt:
                assert left(model) == []
                assert "_call_impl" not in vars(model)
            monkeypatch.setattr(nn.Module, kind, register)
            number += 1
        assert number > 1 or kind == "register_forward_pre_hook"
