"""The taps of the causal transformer: where they stand, what they see, and which weights carry signals down."""

from __future__ import annotations

import fnmatch
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import bpfree
from bpfree.lab.models import CausalTransformer
from bpfree.lab.settings.model import ModelSettings
from support.plain_transformer import Plain
from support.small_transformer import CLASSES, SMALL, small_transformer

CONTEXT = 6
KINDS = ("standard", "dense", "random", "fixed")
EVERY = [(placement, kind) for placement in ("macro", "micro", "local") for kind in KINDS]
every_form = pytest.mark.parametrize(("placement", "attention"), EVERY)
every_norm = pytest.mark.parametrize("norm", ["post", "pre"])

SEPARATE = bpfree.DFA(feedback=bpfree.Feedback(shared=False))
TOKENS = torch.randint(0, CLASSES, (2, CONTEXT + 1), generator=torch.Generator().manual_seed(1))


model = partial(small_transformer, CONTEXT)


def attach(made: CausalTransformer, rule: Any, arguments: dict[str, Any], **options: Any) -> bpfree.Attachment:
    taps = list(CausalTransformer.suggested_taps(**arguments))
    return bpfree.attach(made, rule, taps=taps, error_at=CausalTransformer.suggested_error_at, **options)


def loss(made: CausalTransformer) -> Tensor:
    return F.cross_entropy(made(TOKENS[:, :-1]).flatten(0, 1), TOKENS[:, 1:].flatten())


def gradients(made: CausalTransformer, *, below: bool = False) -> dict[str, Tensor]:
    """Gradients of one loss by name; only those below the head if asked for."""
    made.zero_grad()
    loss(made).backward()
    named = made.named_parameters()
    return {name: w.grad.clone() for name, w in named if not (below and name.startswith(("head.", "norm.")))}


# -- where they stand --------------------------------------------------------------------------------------------------

_FEED = ["feed_forward.hidden_tap", "feed_forward_tap"]
INSIDE = {
    ("macro", "post"): ["tap"],
    ("macro", "pre"): ["tap"],
    ("micro", "post"): ["norm1_tap", "feed_forward.hidden_tap", "tap"],
    ("micro", "pre"): ["middle_tap", "feed_forward.hidden_tap", "tap"],
    ("local", "post"): ["ATTENTION", "attention_tap", "norm1_tap", *_FEED, "tap"],
    ("local", "pre"): ["norm1_tap", "ATTENTION", "attention_tap", "norm2_tap", *_FEED],
}
IN_ATTENTION = {
    "standard": ["attention.mixing_tap"],
    "dense": ["attention.scores.hidden_tap", "attention.mixing_tap"],
    "random": ["attention.value_tap", "attention.mixing_tap"],
    "fixed": ["attention.mixing_tap"],
}


def expected(placement: str, attention: str, norm: str) -> list[str]:
    names = ["embedding_tap"] if placement == "local" else []
    for number in range(3):
        for name in INSIDE[placement, norm]:
            inner = IN_ATTENTION[attention] if name == "ATTENTION" else [name]
            names += [f"blocks.{number}.{one}" for one in inner]
    # Below the head of pre-norm the last sum takes the last branch as it is: its map learns from the error itself.
    return names[:-1] if (placement, norm) == ("local", "pre") else names


@every_norm
@every_form
def test_taps_stand_where_the_values_are(placement: str, attention: str, norm: str) -> None:
    """In this order, and each sees what the forward pass by hand has there."""
    arguments = SMALL | {"placement": placement, "attention": attention, "norm": norm}
    made, seen = model(**arguments), {}
    taps = {name: module for name, module in made.named_modules() if isinstance(module, bpfree.Tap)}
    for name, tap in taps.items():
        tap.register_forward_hook(lambda _, args, out, name=name: seen.update({name: out}))
    made(TOKENS[:, :-1])
    assert list(seen) == expected(placement, attention, norm)
    assert sorted(seen) == sorted(taps)
    by_hand = Plain(made.state_dict(), arguments)
    by_hand.logits(TOKENS[:, :-1])
    for name, value in seen.items():
        torch.testing.assert_close(value, by_hand.seen[name], atol=1e-6, rtol=0)


@every_norm
@every_form
@pytest.mark.parametrize("blocks", [1, 11])
def test_the_suggested_patterns_match_these_taps_alone(placement: str, attention: str, norm: str, blocks: int) -> None:
    arguments = SMALL | {"placement": placement, "attention": attention, "norm": norm, "blocks": blocks}
    modules = dict(model(**arguments).named_modules())
    patterns = ModelSettings("CausalTransformer", arguments).suggestion("taps")
    for pattern in patterns:
        matched = fnmatch.filter(modules, pattern)
        assert matched
        assert all(isinstance(modules[name], bpfree.Tap) for name in matched)
    found = {name for pattern in patterns for name in fnmatch.filter(modules, pattern)}
    assert found == {name for name, module in modules.items() if isinstance(module, bpfree.Tap)}


def test_earlier_runs_have_the_taps_they_had() -> None:
    assert ModelSettings("CausalTransformer").suggestion("taps") == ["blocks.*.tap"]
    assert ModelSettings("CausalTransformer").suggestion("error_at") == "below_head"


# -- what learns from what ---------------------------------------------------------------------------------------------


def matrix(attachment: bpfree.Attachment, tap: str) -> Tensor:
    """B of a tap: U / sqrt(width)."""
    width = SMALL["hidden"] if tap.endswith("feed_forward.hidden_tap") else SMALL["width"]
    return attachment.feedback[f"{tap}:{width}"] / width**0.5


def error_by_hand(made: CausalTransformer) -> Tensor:
    """dL/dh below the head of post-norm: (p - y) W / number of tokens."""
    p = made(TOKENS[:, :-1]).softmax(-1)
    return ((p - F.one_hot(TOKENS[:, 1:], CLASSES)) / TOKENS[:, 1:].numel() @ made.head.weight).detach()


@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize(("placement", "first"), [("macro", "blocks.0.tap"), ("micro", "blocks.0.norm1_tap")])
def test_the_embedding_learns_through_the_first_block(placement: str, first: str, attention: str) -> None:
    """By hand: the first tap's signal is e B, and the block below it is differentiated as a function of the tokens."""
    arguments = SMALL | {"placement": placement, "attention": attention}
    made = model(**arguments)
    with attach(made, SEPARATE, arguments) as attachment:
        found = gradients(made)["tokens.weight"]
        signal = error_by_hand(made) @ matrix(attachment, first)
    weights = {name: weight.detach() for name, weight in made.state_dict().items()}
    table = weights["tokens.weight"].clone().requires_grad_()
    by_hand = Plain(weights | {"tokens.weight": table}, arguments)
    by_hand.below_head(TOKENS[:, :-1])
    (expected_gradient,) = torch.autograd.grad(by_hand.seen[first], table, signal)
    torch.testing.assert_close(found, expected_gradient, atol=1e-9, rtol=1e-6)


@every_form
def test_every_weight_learns_from_the_tap_above_it(placement: str, attention: str) -> None:
    """By hand: each tap's value is a function of the values at the taps below it, which are constants."""
    arguments = SMALL | {"placement": placement, "attention": attention}
    made = model(**arguments)
    with attach(made, SEPARATE, arguments) as attachment:
        found = gradients(made, below=True)
        error = error_by_hand(made)
        taps = list(attachment.taps)
        signals = {tap: error if tap == "blocks.2.tap" else error @ matrix(attachment, tap) for tap in taps}
    weights = {name: weight.detach().requires_grad_() for name, weight in made.state_dict().items()}
    by_hand = Plain(weights, arguments, change=lambda name, h: h.detach() if name in taps else h)
    by_hand.below_head(TOKENS[:, :-1])
    torch.autograd.backward([by_hand.seen[tap] for tap in taps], list(signals.values()))
    assert found.keys() == {name for name, weight in weights.items() if weight.grad is not None}
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, weights[name].grad, atol=1e-9, rtol=1e-6, msg=name)


@every_norm
@every_form
def test_below_the_error_the_last_tap_is_exact(placement: str, attention: str, norm: str) -> None:
    arguments = SMALL | {"placement": placement, "attention": attention, "norm": norm}
    made = model(**arguments)
    exact = gradients(made)
    with attach(made, bpfree.DFA(), arguments):
        found = gradients(made)
    equal = {name for name in exact if torch.allclose(found[name], exact[name], atol=1e-12)}
    last = {
        "macro": ("blocks.2.",),
        "micro": ("blocks.2.feed_forward.2.", *(["blocks.2.norm2."] if norm == "post" else [])),
        "local": ("blocks.2.norm2." if norm == "post" else "blocks.2.feed_forward.2.",),
    }[placement]
    assert equal == {name for name in exact if name.startswith(("head.", "norm.", *last))}


# -- no weight is transported ------------------------------------------------------------------------------------------


def with_saved_weights_spoilt(made: CausalTransformer) -> dict[str, Tensor]:
    """Gradients below the head where every weight there that autograd has saved for the backward pass is NaN.

    A weight's own gradient needs what entered its layer; the weight itself serves to carry a signal down, and nothing
    else.
    """
    below = {
        weight.untyped_storage().data_ptr()
        for name, weight in made.named_parameters()
        if not name.startswith(("head.", "norm."))
    }

    def unpack(saved: Tensor) -> Tensor:
        return torch.full_like(saved, torch.nan) if saved.untyped_storage().data_ptr() in below else saved

    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpack):
        return gradients(made, below=True)


def needing_other_weights(placement: str, attention: str, norm: str, rule: Any) -> set[str]:
    """The parameters below the head whose gradients another weight there has had a part in."""
    arguments = SMALL | {"placement": placement, "attention": attention, "norm": norm}
    made = model(**arguments)
    with attach(made, rule, arguments, verify=False) as attachment, attachment.fixed():
        whole, spoilt = gradients(made, below=True), with_saved_weights_spoilt(made)
    return {name for name, gradient in whole.items() if not torch.equal(spoilt[name], gradient)}


@every_norm
@pytest.mark.parametrize("attention", KINDS)
def test_under_local_no_weight_carries_a_signal(attention: str, norm: str) -> None:
    assert needing_other_weights("local", attention, norm, bpfree.DFA()) == set()


@pytest.mark.parametrize("rule", [bpfree.FDFA(), bpfree.GrAPE(), bpfree.LMS(), bpfree.DKP()], ids=str)
def test_nor_where_feedback_learns(rule: Any) -> None:
    assert needing_other_weights("local", "random", "post", rule) == set()


@every_norm
def test_under_micro_and_macro_weights_do(norm: str) -> None:
    """So the test above would see it."""
    micro = needing_other_weights("micro", "fixed", norm, bpfree.DFA())
    assert {"tokens.weight", "blocks.0.attention.value.weight", "blocks.2.attention.value.weight"} <= micro
    macro = needing_other_weights("macro", "fixed", norm, bpfree.DFA())
    assert micro < macro
    assert "blocks.1.feed_forward.0.weight" in macro - micro
    assert needing_other_weights("local", "fixed", norm, bpfree.BP()) > macro


def test_a_tap_left_out_lets_weights_carry() -> None:
    """Every kind of tap of ``local`` is needed: without it some gradient comes through a weight."""
    arguments = SMALL | {"placement": "local", "attention": "dense"}
    made = model(**arguments)
    patterns = CausalTransformer.suggested_taps(**arguments)
    carried = {}
    for left_out in patterns:
        taps = [pattern for pattern in patterns if pattern != left_out]
        with bpfree.attach(made, bpfree.DFA(), taps=taps, error_at="below_head", verify=False):
            whole, spoilt = gradients(made, below=True), with_saved_weights_spoilt(made)
        carried[left_out] = [name for name, gradient in whole.items() if not torch.equal(spoilt[name], gradient)]
    assert all(carried.values())
