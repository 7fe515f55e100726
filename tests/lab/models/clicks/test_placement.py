"""Where feedback enters the models of clicks, and what learns from it."""

from __future__ import annotations

import copy
import fnmatch
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bpfree
from bpfree.lab.models import DeepCross
from bpfree.lab.settings.model import ModelSettings
from support import plain_clicks
from support.small_clicks import ARGUMENTS, DEEP, SHAPE, attach, clicks, feedback_row, identifiers, rows_of, small

PERCEPTRON = {"perceptron.0.tap": "perceptron.0", "perceptron.1.tap": "perceptron.1"}
LEARNS = {
    "DeepFM": {**PERCEPTRON, "(output)": "linear, embedding, out"},
    "DeepCross": {
        "embedding_tap": "embedding",
        "cross.taps.0": "cross.layers.0",
        "cross.taps.1": "cross.layers.1",
        **PERCEPTRON,
        "stack_tap": "cross.layers.2",
        "(output)": "out",
    },
    "AFN": {
        "behind_embedding": "embedding",
        "logarithmic_tap": "logarithmic",
        **PERCEPTRON,
        "(output)": "linear, out",
    },
    "AutoInt": {
        "embedding_tap": "embedding",
        "taps.0": "into_attention, attention.0",
        "taps.1": "attention.1",
        "attention_tap": "attention.2, residual",
        **PERCEPTRON,
        "(output)": "linear, attention_out, out",
    },
}
every_deep_model = pytest.mark.parametrize("name", DEEP)


def learn(model: nn.Module, ids: Tensor | None = None) -> dict[str, Tensor | None]:
    model.zero_grad()
    F.binary_cross_entropy_with_logits(model(identifiers() if ids is None else ids), clicks()).backward()
    return {name: weight.grad for name, weight in model.named_parameters()}


def table(attachment: bpfree.Attachment) -> dict[str, str]:
    """What learns from each tap, as ``print(attachment)`` says."""
    _, rows, _ = attachment.mechanism.table()
    return {row[0]: row[-1] for row in rows}


@every_deep_model
def test_what_learns_from_each_tap_is_said(name: str) -> None:
    model = small(name)
    with attach(model, name, bpfree.DFA()) as attachment:
        learn(model)
        assert table(attachment) == LEARNS[name]
        text = str(attachment)
        assert bpfree.verify(attachment, identifiers()).is_right
        model.eval()  # in training mode batch statistics put all rows into each other's signals, which is said
        assert not bpfree.verify(attachment, identifiers()).findings
    assert ("No signal passes below_perceptron: cut there." in text) == (name == "DeepFM")
    assert "add up" not in text


@every_deep_model
def test_the_suggested_patterns_match_all_taps_alone(name: str) -> None:
    modules = dict(small(name).named_modules())
    patterns = ModelSettings(name, ARGUMENTS[name]).suggestion("taps")
    found = {one for pattern in patterns for one in fnmatch.filter(modules, pattern)}
    assert found == {one for one, module in modules.items() if isinstance(module, bpfree.Tap)}
    assert ModelSettings(name, ARGUMENTS[name]).suggestion("error_at") is None  # the logit


@pytest.mark.parametrize("name", ["DeepCross", "AutoInt"])
def test_one_layer_has_no_tap_between_layers(name: str) -> None:
    model = small(name, layers=1)
    with attach(model, name, bpfree.DFA(), layers=1) as attachment:
        learn(model)
        assert not [tap for tap in table(attachment) if "taps." in tap]


def test_one_number_of_error_gives_all_rows_one_direction() -> None:
    """The error of a logit has one entry: a tap's signal is the outer product of e ``(N,)`` and a row ``(n,)``."""
    model = small("DeepCross")
    signals: dict[str, Tensor] = {}
    with attach(model, "DeepCross", bpfree.DFA()) as attachment:
        learn(model)
        e = (model(identifiers()).sigmoid() - clicks()).detach() / len(clicks())
        zeros = torch.zeros(len(e), 24, dtype=torch.float64, requires_grad=True)
        handle = model.cross.layers[0].register_forward_hook(lambda _, args, out: out + zeros)
        learn(model)
        handle.remove()
        signals["cross.taps.0"] = zeros.grad
        assert [tuple(matrix.shape) for matrix in attachment.feedback.buffers()] == [(1, 29)]  # as wide as the stack
        row = feedback_row(attachment, "cross.taps.0")
    torch.testing.assert_close(signals["cross.taps.0"], e.outer(row), atol=1e-15, rtol=1e-9)


# -- DeepFM: feedback on the perceptron alone --------------------------------------------------------------------------


def test_embeddings_of_deepfm_learn_as_those_of_a_factorization_machine() -> None:
    """Exactly, from DeepFM's error: the perceptron sends them nothing, under DFA and if it is frozen."""
    model = small("DeepFM")
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    p = plain_clicks.logits("DeepFM", weights, rows_of(identifiers())).sigmoid()
    expected = plain_clicks.gradients(
        "FM", weights, rows_of(identifiers()), (p - clicks()) / len(p), lambda tap: torch.empty(0)
    )
    for rule in (bpfree.DFA(), bpfree.Shallow(), bpfree.FDFA()):
        with attach(model, "DeepFM", rule):
            found = learn(model)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-12, rtol=1e-9)
    exact = learn(model)
    assert not torch.allclose(exact["embedding.weight"], expected["embedding.weight"], atol=1e-3)


def test_a_tap_below_the_perceptron_adds_its_signal_to_what_embeddings_of_deepfm_learn() -> None:
    """An embedding's gradient is the factorization machine's and, for each row, the error times a row of feedback."""
    alone, taught = small("DeepFM"), small("DeepFM", placement="embeddings")
    e = ((alone(identifiers()).sigmoid() - clicks()) / len(clicks())).detach()
    with attach(alone, "DeepFM", bpfree.DFA()):
        through_pairs = learn(alone)
    with attach(taught, "DeepFM", bpfree.DFA(), placement="embeddings") as attachment:
        found = learn(taught)
        assert table(attachment) == {"below_perceptron": "embedding", **LEARNS["DeepFM"]}
        row = feedback_row(attachment, "below_perceptron")
    weight = through_pairs["embedding.weight"]
    signal = plain_clicks.scattered(weight, rows_of(identifiers()), e.outer(row).reshape(len(e), len(SHAPE), -1))
    torch.testing.assert_close(found.pop("embedding.weight"), weight + signal, atol=1e-12, rtol=1e-9)
    for name, gradient in found.items():  # the perceptron's taps are taught as without it
        if name.startswith(("linear", "out")):
            torch.testing.assert_close(gradient, through_pairs[name], atol=1e-12, rtol=1e-9)


# -- AFN: two placements -------------------------------------------------------------------------------------------


def test_the_released_afn_never_moves_its_embeddings_and_backpropagation_does() -> None:
    model = small("AFN", placement="released")
    twin = small("AFN", placement="corrected")
    with attach(model, "AFN", bpfree.DFA(), placement="released") as attachment:
        released = learn(model)
        assert table(attachment) == {tap: what for tap, what in LEARNS["AFN"].items() if tap != "behind_embedding"}
        assert "No signal reaches embedding" in str(attachment)
    with attach(twin, "AFN", bpfree.DFA()):
        corrected = learn(twin)
    assert released["embedding.weight"] is None
    assert corrected["embedding.weight"].norm() > 0
    assert released["linear.weight"].norm() > 0
    exact, also_exact = learn(model), learn(twin)
    for name, gradient in exact.items():
        torch.testing.assert_close(gradient, also_exact[name], atol=0, rtol=0)
    assert exact["embedding.weight"].norm() > 0


@pytest.mark.parametrize("placement", ["released", "corrected"])
def test_both_placements_compute_and_save_the_same(placement: str) -> None:
    first, second = small("AFN"), small("AFN", placement=placement)
    assert first.state_dict().keys() == second.state_dict().keys()
    torch.testing.assert_close(first(identifiers()), second(identifiers()), atol=0, rtol=0)


# -- the frozen control ------------------------------------------------------------------------------------------------

SHALLOW = {
    "DeepFM": {"linear.weight", "linear.bias", "embedding.weight", "out.weight", "out.bias"},
    "DeepCross": {"out.weight", "out.bias"},
    "AFN": {"linear.weight", "linear.bias", "out.weight", "out.bias"},
    "AutoInt": {"linear.weight", "linear.bias", "attention_out.weight", "attention_out.bias", "out.weight", "out.bias"},
}


@every_deep_model
def test_the_frozen_control_learns_what_no_tap_lies_above(name: str) -> None:
    model = small(name)
    with attach(model, name, bpfree.Shallow()):
        found = learn(model)
    assert {weight for weight, gradient in found.items() if gradient is not None} == SHALLOW[name]


# -- learning ----------------------------------------------------------------------------------------------------------


def test_learned_feedback_nears_the_mean_jacobian() -> None:
    """Of weights that stay, behind cross layers too; in evaluation mode, so that each row has a Jacobian of its own."""
    model, ids, y = small("DeepCross").eval(), identifiers(256), clicks(256)

    def loss() -> Tensor:
        return F.binary_cross_entropy_with_logits(model(ids), y)

    with attach(model, "DeepCross", bpfree.GrAPE()) as attachment:
        loss().backward()
        before = bpfree.alignment(attachment, loss, jacobian=True)
        for _ in range(100):
            loss().backward()
        after = bpfree.alignment(attachment, loss, jacobian=True)
    assert max(tap.cosine_feedback for tap in before.taps) < 0.6
    assert min(tap.cosine_feedback for tap in after.taps) > 0.9


@pytest.mark.parametrize("kind", [torch.int32, torch.int64, torch.int16])
def test_identifiers_of_any_integers_are_taken(kind: torch.dtype) -> None:
    model = DeepCross(SHAPE, hidden=[4])
    torch.testing.assert_close(model(identifiers().to(kind)), model(identifiers()), atol=0, rtol=0)


@pytest.mark.parametrize("name", ["FM", *DEEP])
def test_sparse_gradients_are_the_dense_ones(name: str) -> None:
    rule: Any = bpfree.BP() if name == "FM" else bpfree.DFA()
    dense, sparse = small(name), small(name, sparse=True)
    with attach(dense, name, rule), attach(sparse, name, rule):
        expected, found = learn(dense), learn(sparse)
    assert found["embedding.weight"].is_sparse
    for weight, gradient in expected.items():
        torch.testing.assert_close(found[weight].to_dense(), gradient, atol=1e-14, rtol=1e-12)


def test_an_afn_can_be_copied_with_its_rule() -> None:
    """A copy of an attached model has hooks of its own, at its cut too."""
    model = small("AFN", placement="released")
    with attach(model, "AFN", bpfree.DFA(), placement="released"):
        twin = copy.deepcopy(model)
    assert learn(twin)["embedding.weight"] is None
    bpfree.detach_all(twin)
    assert learn(twin)["embedding.weight"].norm() > 0
