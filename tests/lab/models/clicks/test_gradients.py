"""Gradients of the models of clicks: by DFA and learned feedback beside formulas by hand, by BP beside autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bpfree
from support import plain_clicks
from support.small_clicks import DEEP, NAMES, attach, clicks, feedback_row, identifiers, rows_of, small

every_model = pytest.mark.parametrize("name", NAMES)
every_deep_model = pytest.mark.parametrize("name", DEEP)
EXACT = {"atol": 1e-12, "rtol": 1e-9}


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def error_of(model: nn.Module) -> Tensor:
    """The error dL/dlogit of the mean of cross-entropies, by hand: (p - y) / N."""
    with torch.no_grad():
        p = plain_clicks.logits(type(model).__name__, weights_of(model), rows_of(identifiers())).sigmoid()
    return (p - clicks()) / len(p)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    F.binary_cross_entropy_with_logits(model(identifiers()), clicks()).backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@every_model
def test_logits_are_the_formulas(name: str) -> None:
    model = small(name)
    expected = plain_clicks.logits(name, weights_of(model), rows_of(identifiers()))
    torch.testing.assert_close(model(identifiers()), expected, **EXACT)
    assert expected.std() > 0.1


@every_deep_model
def test_gradients_by_dfa_are_the_formulas(name: str) -> None:
    model = small(name)
    with attach(model, name, bpfree.DFA()) as attachment:
        found = gradients(model)
        expected = plain_clicks.gradients(
            name, weights_of(model), rows_of(identifiers()), error_of(model), lambda tap: feedback_row(attachment, tap)
        )
    assert found.keys() == expected.keys() == weights_of(model).keys()
    for weight, gradient in expected.items():
        torch.testing.assert_close(
            found[weight], gradient, **EXACT, msg=lambda text, weight=weight: f"{weight}: {text}"
        )


@pytest.mark.parametrize("rule", [bpfree.FDFA(), bpfree.GrAPE()], ids=str)
@every_deep_model
def test_gradients_by_learned_feedback_are_the_formulas(name: str, rule: Any) -> None:
    """After several passes, each of which has moved every tap's matrix."""
    model = small(name)
    with attach(model, name, rule) as attachment:
        gradients(model)
        sites = attachment.mechanism.sites
        before = {site.name: attachment.feedback.matrix(site).reshape(-1).clone() for site in sites}
        for _ in range(3):
            found = gradients(model)
        matrices = {site.name: attachment.feedback.matrix(site).reshape(-1) for site in sites}
        expected = plain_clicks.gradients(
            name, weights_of(model), rows_of(identifiers()), error_of(model), matrices.__getitem__
        )
    assert not any(torch.equal(matrices[tap], matrix) for tap, matrix in before.items())
    for weight, gradient in expected.items():
        torch.testing.assert_close(
            found[weight], gradient, **EXACT, msg=lambda text, weight=weight: f"{weight}: {text}"
        )


@every_model
def test_gradients_by_backpropagation_are_those_of_the_formulas(name: str) -> None:
    """Embeddings learn through every path: cuts and taps are not there."""
    model = small(name)
    leaves = {weight: value.requires_grad_() for weight, value in weights_of(model).items()}
    logits = plain_clicks.logits(name, leaves, rows_of(identifiers()))
    F.binary_cross_entropy_with_logits(logits, clicks()).backward()
    with bpfree.attach(model, bpfree.BP()):
        found = gradients(model)
    for weight, leaf in leaves.items():
        torch.testing.assert_close(found[weight], leaf.grad, **EXACT)


def test_the_factorization_machine_learns_as_the_formulas_say() -> None:
    model = small("FM")
    expected = plain_clicks.gradients("FM", weights_of(model), rows_of(identifiers()), error_of(model), {}.__getitem__)
    found = gradients(model)
    assert found.keys() == expected.keys()
    for weight, gradient in expected.items():
        torch.testing.assert_close(found[weight], gradient, **EXACT)
