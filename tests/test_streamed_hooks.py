"""What gradients move on a model stays under streaming, and they find what the forward pass has left."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bpfree

PASSES = 3


class Measured(torch.autograd.Function):
    """The identity, whose backward pass keeps the largest gradient on a module."""

    @staticmethod
    def forward(ctx, x, owner):
        ctx.owner = owner
        return x.view_as(x)

    @staticmethod
    def backward(ctx, *grads):
        ctx.owner.largest = max(ctx.owner.largest, float(grads[0].detach().abs().max()))
        return grads[0], None


class Block(nn.Module):
    """A layer whose forward pass and gradients both move something."""

    def __init__(self):
        super().__init__()
        self.layer, self.act, self.drop = nn.Linear(5, 5), nn.Tanh(), nn.Dropout(0.4)
        self.calls, self.largest, self.seen = 0, 0.0, []
        self.register_buffer("mean", torch.zeros(()))
        self.looks = {}

    def forward(self, x):
        self.calls += 1
        h = self.drop(self.layer(x)) * (1 + 0.1 * self.calls)
        for look in self.looks.values():
            h = look(self, h)
        return self.act(h)


def by_a_tensor_hook(block, h):
    if h.requires_grad:
        h.register_hook(lambda gradient: block.mean.add_(gradient.mean()) and None)
    return h


def by_a_function(block, h):
    return Measured.apply(h, block)


def by_what_the_forward_pass_left(block, h):
    if h.requires_grad:
        h.register_hook(lambda gradient: block.seen.append(block.calls))
    return h


def net(*looks):
    torch.manual_seed(0)
    found = nn.Sequential(Block(), Block(), Block(), nn.Linear(5, 3)).double().train()
    for block in found[:3]:
        block.looks = {look.__name__: look for look in looks}
    return found


def train(model, rule=None, **options):
    """Everything that passes leave, and the gradients of the last one."""
    if rule is not None:
        bpfree.attach(model, rule, seed=1, **options)
    torch.manual_seed(5)
    x, y = torch.randn(4, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 1])
    for _ in range(PASSES):
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
    return {
        **{f"{i}.{key}": getattr(block, key) for i, block in enumerate(model[:3]) for key in KEPT},
        **{name: parameter.grad for name, parameter in model.named_parameters()},
        "random": torch.get_rng_state(),
    }


KEPT = ("calls", "largest", "seen", "mean")


def assert_same(found, expected):
    for name, value in expected.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(found[name], value, rtol=0, atol=0)
        else:
            assert found[name] == value, name


RULES = [bpfree.DFA(), bpfree.GrAPE(), bpfree.LMS()]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("look", [by_a_tensor_hook, by_a_function, by_what_the_forward_pass_left])
def test_what_gradients_of_a_pass_move_is_what_they_move_with_a_stored_graph(look, rule):
    expected = train(net(look), rule)
    assert any(value for name, value in expected.items() if name.endswith(("largest", "seen", "mean")))
    assert_same(train(net(look), rule, streaming=True), expected)


def hook_a_module(block):
    block.layer.register_full_backward_hook(lambda module, inputs, outputs: block.seen.append(block.calls))


def hook_a_weight(block):
    block.layer.weight.register_hook(lambda gradient: block.mean.add_(gradient.mean()) and None)


def hook_behind_a_weight(block):
    block.layer.weight.register_post_accumulate_grad_hook(lambda weight: block.seen.append(block.calls))


TORCH_TELLS = "ignore:Full backward hook is firing"
"""A layer that a tap's cut lies before has an input without a gradient."""


@pytest.mark.filterwarnings(TORCH_TELLS, "ignore:full backward hooks on:bpfree.BpfreeWarning")
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("hook", [hook_a_module, hook_a_weight, hook_behind_a_weight])
def test_what_hooks_on_gradients_move_stays(hook, rule):
    results = []
    for options in ({}, {"streaming": True}):
        model = net()
        for block in model[:3]:
            hook(block)
        results.append(train(model, rule, **options))
    expected, found = results
    assert any(value for name, value in expected.items() if name.endswith(("seen", "mean")))
    assert_same(found, expected)


@pytest.mark.filterwarnings(TORCH_TELLS, "ignore:full backward hooks on:bpfree.BpfreeWarning")
def test_a_hook_on_a_module_that_moves_something_later_on_is_heard():
    model = net()

    def note_from_the_third_call_on(module, inputs, outputs):
        if model[0].calls == PASSES:
            model[0].seen.append("late")

    model[0].layer.register_full_backward_hook(note_from_the_third_call_on)
    assert train(model, bpfree.DFA(), streaming=True)["0.seen"] == ["late"]


def test_random_numbers_of_gradients_leave_those_of_the_second_run_alone():
    def with_noise(block, h):
        if h.requires_grad:
            h.register_hook(lambda gradient: gradient + 0 * torch.randn_like(gradient))
        return h

    expected = train(net(with_noise), bpfree.DFA())
    assert_same(train(net(with_noise), bpfree.DFA(), streaming=True), expected)
