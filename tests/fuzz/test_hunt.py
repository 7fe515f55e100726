"""The search itself: descriptions, and faults that are put in on purpose and must be found."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

import bpfree
from fuzz.build import make
from fuzz.descriptions import (
    Activation,
    Checkpoint,
    Dense,
    Extra,
    Model,
    Noise,
    Part,
    Residual,
    State,
    is_sound,
    read,
    walk,
)
from fuzz.hunt import features, judge, sample, shrink
from fuzz.laws import LAWS
from fuzz.passes import twin
from fuzz.variants import Exact, Variant

DEEP = Model(parts=(Dense(), Activation(), Dense(), Activation(), Dense(), Activation()))


def test_descriptions_print_as_what_makes_them():
    for model in sample(40, number=7):
        assert read(repr(model)) == model


def test_a_description_makes_the_same_model_and_batch_every_time():
    for model in sample(15, number=8):
        one, two = twin(model), twin(model)
        for number in range(2):
            found, expected = one.step(number), two.step(number)
            assert all(map(torch.equal, found.outputs, expected.outputs))


def test_a_checkpoint_holds_nothing_that_differs_when_it_runs_again():
    assert is_sound(Model(parts=(Checkpoint(parts=(Dense(), Noise())),)))
    assert not is_sound(Model(parts=(Residual(parts=(Checkpoint(parts=(State(),)),)),)))


def test_the_grammar_reaches_everything_it_names():
    seen = {type(part) for model in sample(150, number=9) for part in walk(model)}
    assert seen == set(Part.__subclasses__())


# -- planted faults ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Doubled(Exact):
    """B is 2 W."""

    def backward_weight(self, weight, kept, generator):
        return 2 * weight


@dataclass(frozen=True)
class Planted(bpfree.BP):
    """Backpropagation with a fault put into the model."""

    fault: str = ""

    def mechanism(self, plan):
        mechanism = super().mechanism(plan)
        if self.fault == "output":
            plan.model.register_forward_hook(lambda module, args, output: output * (1 + 1e-6))
        if self.fault == "state":
            plan.model.register_forward_hook(lambda module, args, output: setattr(module, "left_behind", 1))
        if self.fault == "random":
            plan.model.register_forward_hook(lambda module, args, output: torch.rand(()) and None)
        if self.fault == "untaught":
            plan.model.parts[1].register_forward_hook(lambda module, args, output: output.detach())
        if self.fault == "counts":
            counts = []
            plan.model.register_forward_pre_hook(lambda module, args: counts.append(1))
            plan.model.head.register_full_backward_hook(
                lambda module, inputs, outputs: tuple(g * len(counts) for g in inputs)
            )
        if self.fault == "crash":
            plan.model.register_forward_hook(lambda module, args, output: output.nonsense)
        return mechanism


def _planted(fault):
    return Variant(fault, Planted(fault))


def _leaking(error, sites):
    """Signals in which every sample has a share of the others."""
    return [error[:, :1].mean(0, keepdim=True).expand(len(error), s.width) for s in sites]


@pytest.mark.parametrize(
    ("law", "variant", "text"),
    [
        ("outputs", _planted("output"), "outputs: off by 1.0e-06"),
        ("outputs", _planted("state"), "left_behind"),
        ("outputs", _planted("random"), "torch's random numbers"),
        ("outputs", _planted("crash"), "raw AttributeError"),
        ("backpropagation", Variant("B = 2 W", Doubled()), "parts.0.weight is off by"),
        ("backpropagation", Variant("window", bpfree.DFA(), {"window": 2}), "parts.0.weight is off by"),
        ("detach", _planted("output"), "1 _forward_hooks on '', 0 before"),
        ("untaught", _planted("untaught"), "no gradient and not a word: parts.0.weight"),
        ("evaluation", _planted("counts"), "after an evaluation"),
        ("rows", Variant("leak", bpfree.DFA(feedback=_leaking)), "changed the signals of others at parts"),
    ],
    ids=lambda value: value.name if isinstance(value, Variant) else str(value),
)
def test_a_planted_fault_is_found(law, variant, text):
    verdict = judge(LAWS[law], DEEP, variant)
    assert verdict.kind == "violated"
    assert text in verdict.text


def test_a_refusal_by_name_is_none():
    verdict = judge(LAWS["outputs"], replace(DEEP, output="dict"), Variant("PEPITA", bpfree.PEPITA()))
    assert verdict.kind == "refused"
    assert "ErrorPlacementError" in verdict.text


def test_a_violation_is_made_as_small_as_it_goes():
    model = Model(
        parts=(Dense(kind="masked"), Residual(parts=(Dense(5), Activation("gelu"), Dense())), Activation(), Extra()),
        samples=3,
        loss="mse",
    )
    law, variant = LAWS["backpropagation"], Variant("B = 2 W", Doubled())
    family = judge(law, model, variant).family
    smallest = shrink(law, model, variant, family)
    assert len(list(walk(smallest))) <= 3
    assert judge(law, smallest, variant).kind == "violated"
    assert "samples" not in features(smallest)


def test_a_model_is_a_plain_module():
    assert isinstance(make(DEEP).net, nn.Module)
