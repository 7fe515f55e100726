"""Re-entrant checkpoints (``use_reentrant=True``): a rule that cannot teach such a part refuses it by name.

The measure of the rules that can is the same model without a checkpoint.
"""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import CheckpointFunction, checkpoint

import bpfree
from bpfree import errors

REMEDY = "use_reentrant=True.*Say use_reentrant=False.*gradient_checkpointing_enable"

DIRECT = [
    bpfree.DFA(),
    bpfree.Shallow(),
    bpfree.DRTP(),
    bpfree.DKP(),
    bpfree.FDFA(),
    bpfree.GrAPE(),
    bpfree.ForwardGradient(),
]
SERVING = [
    bpfree.BP(),
    bpfree.FA(),
    bpfree.SignSymmetry(),
    bpfree.KolenPollack(),
    bpfree.WeightMirror(),
    bpfree.PEPITA(),
]
OPTIONS = [{}, {"window": 2}, {"threads": 2}, {"streaming": True}, {"within": bpfree.FA()}, {"alternate": 2}]


def block():
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh())


class Blocks(nn.Module):
    """Three blocks and a head; ``parts`` are the blocks behind a checkpoint."""

    def __init__(self, parts=(0, 1, 2), reentrant=True):
        super().__init__()
        self.blocks, self.head = nn.ModuleList([block() for _ in range(3)]), nn.Linear(4, 2)
        self.parts, self.reentrant = parts, reentrant

    def forward(self, x):
        if torch.is_grad_enabled():
            x = x.clone().requires_grad_()  # or torch itself would teach a first part nothing
        for number, part in enumerate(self.blocks):
            x = checkpoint(part, x, use_reentrant=self.reentrant) if number in self.parts else part(x)
        return self.head(x)


def setting(**options):
    torch.manual_seed(0)
    return Blocks(**options).double(), torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 2


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("rule", [*DIRECT, bpfree.ForwardGradient("weights")], ids=str)
def test_taps_inside_such_a_part_are_refused(rule, verify):
    model, x, y = setting()
    attachment = bpfree.attach(model, rule, verify=verify)
    attachment.targets(y)
    with pytest.raises(errors.SecondRunError, match=r"runs 'blocks\.0'.*" + REMEDY):
        model(x)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("rule", [bpfree.DFA(), bpfree.FDFA(), bpfree.DKP()], ids=str)
def test_a_part_behind_a_tap_is_refused_and_the_tap_named(rule, options, verify):
    """Its input needs no gradient: torch would never run it again, and its weights would learn nothing."""
    model, x, _ = setting(parts=(1,))
    bpfree.attach(model, rule, taps="blocks.0", verify=verify, **options)
    with pytest.raises(errors.SecondRunError, match=r"behind tap 'blocks\.0' the model runs 'blocks\.1'.*" + REMEDY):
        model(x)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("verify", [True, False])
def test_it_is_refused_where_it_is_turned_on_later(verify):
    model, x, _ = setting(parts=())
    bpfree.attach(model, bpfree.DFA(), verify=verify)
    model(x).sum().backward()
    model.parts = (2,)
    with pytest.raises(errors.SecondRunError, match=r"'blocks\.2'"):
        model(x)


@pytest.mark.parametrize("rule", [bpfree.DFA(), bpfree.FDFA()], ids=str)
def test_a_stream_refuses_it_where_no_further_dry_run_is_made(rule):
    """Turned on later: the second run says it, in the backward pass, or the estimating pass before."""
    model, x, _ = setting(parts=())
    bpfree.attach(model, rule, streaming=True, verify=False)
    model(x).sum().backward()
    model.parts = (1,)
    with pytest.raises(errors.SecondRunError, match=r"'blocks\.1'"):
        model(x).sum().backward()


CALLED = {
    "function": (lambda part: lambda x: part(x), "a part of itself"),
    "method": (lambda part: part.forward, r"'blocks\.1'"),
    "as transformers": (lambda part: partial(type(part).forward, part), r"'blocks\.1'"),
}


@pytest.mark.parametrize("way", CALLED)
def test_whatever_the_checkpoint_calls_is_refused(way):
    made, name = CALLED[way]

    class Called(Blocks):
        def forward(self, x):
            x = self.blocks[0](x)
            return self.head(checkpoint(made(self.blocks[1]), x, use_reentrant=True))

    model, x = Called(), torch.randn(6, 4)
    bpfree.attach(model, bpfree.DFA())
    with pytest.raises(errors.SecondRunError, match=f"runs {name}"):
        model(x)


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_a_copy_refuses_it_when_the_original_is_detached(way):
    model, x, _ = setting()
    attachment = bpfree.attach(model, bpfree.DFA(), verify=False)
    other = way(model)
    attachment.detach()
    with pytest.raises(errors.SecondRunError, match="use_reentrant=False"):
        other(x)


# -- what goes on working ----------------------------------------------------------------------------------------------


def learned(model, rule, x, y):
    attachment = bpfree.attach(model, rule, seed=0)
    for step in range(3):
        model.zero_grad()
        torch.manual_seed(step)
        attachment.targets(y)
        F.cross_entropy(model(x), y).backward()
    attachment.detach()
    return [parameter.grad for parameter in model.parameters()]


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("rule", SERVING, ids=str)
def test_rules_without_taps_teach_such_a_part_as_one_without_a_checkpoint(rule):
    (model, x, y), (plain, *_) = setting(), setting(parts=())
    assert_same(learned(model, rule, x, y), learned(plain, rule, x, y))


def test_a_pass_without_the_rule_is_torchs_own():
    (model, x, y), (plain, *_) = setting(), setting(parts=())
    attachment = bpfree.attach(model, bpfree.DFA())
    with attachment.paused():
        loss = F.cross_entropy(model(x), y)
    loss.backward()
    F.cross_entropy(plain(x), y).backward()
    assert_same(*([parameter.grad for parameter in one.parameters()] for one in (model, plain)))


@pytest.mark.filterwarnings("ignore:an argument of the model wants a gradient")
def test_a_checkpoint_around_the_model_is_served():
    found = []
    for reentrant in (True, False):
        model, x, y = setting(parts=())
        bpfree.attach(model, bpfree.DFA(), seed=0)
        F.cross_entropy(checkpoint(model, x.requires_grad_(), use_reentrant=reentrant), y).backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert_same(*found)


@pytest.mark.parametrize("options", [{}, {"streaming": True}], ids=str)
def test_a_part_that_the_model_runs_without_gradients_is_served(options):
    class Teacher(Blocks):
        def forward(self, x):
            with torch.no_grad():
                x = checkpoint(self.blocks[0], x, use_reentrant=True)
            return self.head(self.blocks[2](self.blocks[1](x)))

    model, x = Teacher(), torch.randn(6, 4)
    bpfree.attach(model, bpfree.DFA(), taps="blocks.1", **options)
    model(x).square().sum().backward()
    assert model.blocks[1][0].weight.grad.any()


def test_other_models_may_run_such_parts():
    (model, x, _), (other, *_) = setting(parts=()), setting()
    bpfree.attach(model, bpfree.DFA())
    model(x)
    other(x).sum().backward()
    assert other.blocks[0][0].weight.grad.any()


def test_other_models_may_run_such_parts_when_a_pass_was_interrupted():
    (model, x, _), (other, *_) = setting(parts=()), setting()

    def interrupt(*_):
        raise KeyboardInterrupt

    bpfree.attach(model, bpfree.DFA())
    model(x)
    model.head.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(x)
    other(x).sum().backward()
    assert other.blocks[0][0].weight.grad.any()


def test_torchs_function_is_as_it_was_when_the_last_rule_is_detached():
    for mechanism in list(bpfree.registry.MECHANISMS):
        mechanism.remove()  # of other tests
    before = dict(vars(CheckpointFunction))
    (model, x, _), (other, *_) = setting(parts=()), setting(parts=())
    first, second = bpfree.attach(model, bpfree.DFA()), bpfree.attach(other, bpfree.DFA())
    model(x)
    first.detach()
    assert dict(vars(CheckpointFunction)) != before
    second.detach()
    assert dict(vars(CheckpointFunction)) == before


def test_a_library_may_derive_from_torchs_function():
    class Derived(CheckpointFunction):
        @staticmethod
        def forward(ctx, function, preserve, *given):
            calls.append(given)
            return CheckpointFunction.forward(ctx, function, preserve, *given)

    calls = []
    (model, x, _), (other, *_) = setting(parts=()), setting()
    bpfree.attach(model, bpfree.DFA())
    model(x)
    Derived.apply(other.blocks[0], True, x.requires_grad_()).sum().backward()
    assert len(calls) == 1
    assert other.blocks[0][0].weight.grad.any()
