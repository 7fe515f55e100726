"""The models of clicks beside torchfm's, with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bpfree.lab.models as models
from support.small_clicks import ARGUMENTS, NAMES, SHAPE, clicks, identifiers

pytest.importorskip("torchfm", reason="needs torchfm: pip install torchfm==0.7.0")

from support.torchfm_models import converted, theirs

every_model = pytest.mark.parametrize("name", NAMES)
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
IDS, TARGETS = identifiers(64), clicks(64).float()


def pair(name: str, **arguments: Any) -> tuple[nn.Module, nn.Module]:
    """Make our model and torchfm's, its weights of some size and ours a copy of them."""
    arguments = ARGUMENTS[name] | arguments
    other = theirs(name, SHAPE, **arguments)
    for weight in other.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    ours = getattr(models, name)(SHAPE, **arguments)
    ours.load_state_dict(converted(other, other.state_dict()))
    return ours, other


def outputs(ours: nn.Module, other: nn.Module) -> tuple[Tensor, Tensor]:
    """Probabilities, under the same random numbers."""
    torch.manual_seed(1)
    first = ours(IDS).sigmoid()
    torch.manual_seed(1)
    return first, other(IDS)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@every_model
def test_probabilities_are_torchfms(name: str, training: bool) -> None:
    """In evaluation mode with the statistics that batch normalization has kept in training."""
    ours, other = pair(name)
    for _ in range(3):
        found, expected = outputs(ours, other)
    if not training:
        found, expected = outputs(ours.eval(), other.eval())
    torch.testing.assert_close(found, expected, **CLOSE)
    assert found.std() > 0.01


@pytest.mark.parametrize("name", NAMES[1:])
def test_dropout_drops_the_same(name: str) -> None:
    dropouts = {"dropout": 0.4} | ({"attention_dropout": 0.3} if name == "AutoInt" else {})
    ours, other = pair(name, **dropouts)
    found, expected = outputs(ours, other)
    torch.testing.assert_close(found, expected, **CLOSE)
    assert not torch.allclose(found, outputs(ours.eval(), other)[0], atol=1e-3)


@every_model
def test_gradients_are_torchfms(name: str) -> None:
    ours, other = (model.double() for model in pair(name))
    F.binary_cross_entropy_with_logits(ours(IDS), TARGETS.double()).backward()
    F.binary_cross_entropy(other(IDS), TARGETS.double()).backward()
    expected = converted(other, {key: weight.grad for key, weight in other.named_parameters()})
    found = {key: weight.grad for key, weight in ours.named_parameters()}
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, atol=1e-10, rtol=1e-6)


@every_model
def test_tables_start_as_torchfms(name: str) -> None:
    """Deviations and bounds of tables of some thousand numbers; ``initialization="torchfm"``."""
    shape = (2000, 3000, 1000)
    arguments = ARGUMENTS[name]
    other = theirs(name, shape, **arguments)
    ours = getattr(models, name)(shape, **arguments, initialization="torchfm")
    drawn = dict(ours.named_parameters())
    for key, weight in converted(other, dict(other.named_parameters())).items():
        assert drawn[key].shape == weight.shape
        if weight.numel() > 1000:
            torch.testing.assert_close(drawn[key].std(), weight.std(), atol=0, rtol=0.05)
        if key == "embedding.weight":
            torch.testing.assert_close(drawn[key].abs().max(), weight.abs().max(), atol=0, rtol=1e-3)


def test_layers_start_as_torchfms() -> None:
    """Bounds of uniform weights, whose number is large enough for the largest to be near the bound."""
    wide = {
        "DeepCross": {"width": 40, "hidden": [50, 50], "layers": 2},
        "AFN": {"width": 4, "neurons": 400, "hidden": [50]},
        "AutoInt": {"width": 40, "attention_width": 40, "heads": 2, "layers": 2, "hidden": [50]},
    }
    for name, arguments in wide.items():
        other = theirs(name, SHAPE, **arguments)
        drawn = dict(getattr(models, name)(SHAPE, **arguments, initialization="torchfm").named_parameters())
        for key, weight in converted(other, dict(other.named_parameters())).items():
            if key.split(".")[0] in ("linear", "embedding") or weight.numel() < 40:
                continue
            rtol = 0.02 if weight.numel() > 1000 else 0.3
            torch.testing.assert_close(drawn[key].abs().max(), weight.abs().max(), atol=1e-9, rtol=rtol)
