"""Derivatives by hand are torch's own, or differences of values where torch has none."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bpfree.forward_mode.by_hand import ByHand, derivatives_by_hand
from bpfree.forward_mode.dual_level import dual_level
from bpfree.forward_mode.dual_numbers import join, split

pytestmark = pytest.mark.usefixtures("double")


def numbers(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


X, T = numbers(3, 4), numbers(4, 3).T
ROW, MATRIX, LARGER = numbers(4), numbers(4, 5), numbers(2, 3, 4)

OPERATIONS = {
    "x * 2": lambda x: x * 2,
    "2 * x": lambda x: 2 * x,
    "x * row": lambda x: x * ROW,
    "larger * x": lambda x: LARGER * x,
    "x * x": lambda x: x * x,
    "torch.mul": lambda x: torch.mul(x, 0.3),
    "mul by name": lambda x: torch.mul(input=x, other=ROW),
    "mul, out": lambda x: torch.mul(x.detach(), ROW, out=torch.empty(3, 4)) + x,
    "x / row": lambda x: x / ROW,
    "row / x": lambda x: ROW / x,
    "div, rounded": lambda x: x + torch.div(x, 0.3, rounding_mode="floor"),
    "x + 1": lambda x: x + 1,
    "1 - x": lambda x: 1 - x,
    "larger - x": lambda x: LARGER - x,
    "x - row": lambda x: x - ROW,
    "x + larger": lambda x: x + LARGER,
    "add, alpha": lambda x: torch.add(x, ROW, alpha=3),
    "add, in place behind it": lambda x: (x + 1).mul_(5) + x,
    "mul, in place behind it": lambda x: (x * 1).add_(x) + x,
    "linear": lambda x: F.linear(x, MATRIX.T, numbers(5)),
    "linear, no bias": lambda x: F.linear(x, MATRIX.T),
    "linear, its weight": lambda x: F.linear(ROW, x, numbers(3)),
    "linear, both": lambda x: F.linear(x, x),
    "addmm": lambda x: torch.addmm(numbers(5), x, MATRIX),
    "addmm, alpha": lambda x: torch.addmm(numbers(5), x, MATRIX, alpha=2),
    "addmm, its bias": lambda x: torch.addmm(x, numbers(3, 2), numbers(2, 4)),
    "layer norm": lambda x: F.layer_norm(x, [4]),
    "layer norm, both dimensions": lambda x: F.layer_norm(x, (3, 4), numbers(3, 4), None, 0.1),
    "layer norm, weight and bias": lambda x: F.layer_norm(x, (4,), ROW, numbers(4)),
    "layer norm, its weight": lambda x: F.layer_norm(x, [4], x[0]),
    "LayerNorm": lambda x: nn.LayerNorm(4)(x),
    "dropout": lambda x: F.dropout(x, 0.5),
    "dropout, evaluated": lambda x: F.dropout(x, 0.5, False),
    "dropout of nothing": lambda x: F.dropout(x, 0.0),
    "dropout in place": lambda x: F.dropout(x * x, 0.5, inplace=True),
    "GELU of a language model": lambda x: 0.5 * x * (1.0 + torch.tanh(0.8 * (x + 0.04 * torch.pow(x, 3.0)))),
}


def tangent_of(operation, x, t):
    """An operation's value and its tangent; dropout draws the same masks each time."""
    torch.manual_seed(1)
    with torch.no_grad(), dual_level():
        value, tangent = split(operation(join(x, t)))
        return value.clone(), tangent.clone()


@pytest.mark.parametrize("name", OPERATIONS)
def test_derivatives_are_those_of_torch(name):
    expected = tangent_of(OPERATIONS[name], X, T)
    with ByHand():
        found = tangent_of(OPERATIONS[name], X, T)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.manual_seed(1)
    torch.testing.assert_close(found[0], OPERATIONS[name](X), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["x * row", "x - row", "layer norm, weight and bias", "addmm", "dropout"])
def test_they_have_a_graph_where_gradients_are_on(name):
    """A model may differentiate within its forward pass."""
    x = X.clone().requires_grad_()

    def gradient():
        torch.manual_seed(1)
        with dual_level():
            return torch.autograd.grad(split(OPERATIONS[name](join(x, T)).square())[1].sum(), x)[0]

    expected = gradient()
    with ByHand():
        torch.testing.assert_close(gradient(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["layer norm, weight and bias", "x * row", "x + 1", "addmm"])
def test_in_bfloat16_they_are_as_close_as_torch(name, monkeypatch):
    exact = tangent_of(OPERATIONS[name], X.bfloat16().double(), T.bfloat16().double())
    x, t = X.bfloat16(), T.bfloat16()
    for constant in ("ROW", "MATRIX"):
        monkeypatch.setitem(globals(), constant, globals()[constant].bfloat16())
    monkeypatch.setitem(globals(), "numbers", lambda *shape, made=numbers: made(*shape).bfloat16())
    expected = tangent_of(OPERATIONS[name], x, t)
    with ByHand():
        found = tangent_of(OPERATIONS[name], x, t)
    for one, other, number in zip(found, expected, exact, strict=True):
        assert one.dtype == other.dtype == torch.bfloat16
        assert (one - number).abs().max() <= 1.5 * (other - number).abs().max() + 0.01


def python_calls(work):
    """The Python functions that ``work`` calls."""
    found = []
    sys.setprofile(lambda frame, event, _: found.append(frame.f_code.co_name) if event == "call" else None)
    try:
        work()
    finally:
        sys.setprofile(None)
    return len(found)


@pytest.mark.parametrize("name", ["x * 2", "x / row", "x + 1", "linear", "addmm", "layer norm, weight and bias"])
def test_they_spare_what_torch_does_in_python(name):
    with torch.no_grad(), dual_level():
        x = join(X, T)
        OPERATIONS[name](x)
        without = python_calls(lambda: OPERATIONS[name](x))
        with ByHand():
            assert python_calls(lambda: OPERATIONS[name](x)) < without / 3


MASK = torch.tensor([[True, False, True], [True, True, False], [True, True, True]])
OPTIONS = [
    {},
    {"is_causal": True},
    {"scale": 0.3},
    {"attn_mask": MASK},
    {"attn_mask": MASK & torch.tensor([[False], [True], [True]])},  # a token that may look at nothing
    {"attn_mask": torch.arange(9.0, dtype=torch.float64).view(3, 3)},
    {"enable_gqa": True},
    {"dropout_p": 0.4},
]


@pytest.mark.parametrize("moves", ["query", "key", "value", "all"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_attention_is_attention_and_its_tangents_are_differences(options, moves):
    generator = torch.Generator().manual_seed(0)
    inputs = {name: torch.randn(2, 4, 3, 5, generator=generator) for name in ("query", "key", "value")}
    changes = {name: torch.randn(2, 4, 3, 5, generator=generator) for name in inputs if moves in (name, "all")}
    if options.get("enable_gqa"):
        kept = {"key": 2, "value": 2}
        inputs, changes = ({name: x[:, : kept.get(name)] for name, x in given.items()} for given in (inputs, changes))

    def attend(by, combine=lambda x, change: x + change):
        torch.manual_seed(1)
        given = {name: combine(x, by * changes[name]) if name in changes else x for name, x in inputs.items()}
        return F.scaled_dot_product_attention(**given, **options)

    expected = attend(0), (attend(1e-6) - attend(-1e-6)) / 2e-6
    with torch.no_grad(), dual_level(), ByHand():
        found = split(attend(1, join))
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("autocast", [False, True])
def test_attention_in_bfloat16_is_computed_in_single_precision(autocast):
    q, k, v, t = ((numbers(2, 3, 4)[None] * size).bfloat16().float() for size in (1, 2, 3, 4))
    with torch.no_grad(), dual_level(), ByHand():
        _, exact = split(F.scaled_dot_product_attention(join(q, t), k, v))
        half = [x if autocast else x.bfloat16() for x in (q, k, v, t)]
        with torch.autocast("cpu", enabled=autocast):
            value, tangent = split(F.scaled_dot_product_attention(join(half[0], half[3]), half[1], half[2]))
    assert value.dtype == half[0].dtype
    torch.testing.assert_close(tangent.float(), exact, rtol=0.004, atol=1e-3)  # half of the last bit of bfloat16


def test_a_learned_bias_of_attention_has_a_tangent_too():
    q, k, v, bias, t = (numbers(size, 3, 3) for size in range(2, 7))
    q, k, v, bias, t = (x[:2] for x in (q, k, v, bias, t))
    differences = F.scaled_dot_product_attention(q, k, v, bias + 1e-6 * t) - F.scaled_dot_product_attention(
        q, k, v, bias - 1e-6 * t
    )
    with torch.no_grad(), dual_level(), ByHand():
        _, tangent = split(F.scaled_dot_product_attention(q, k, v, join(bias, t)))
    torch.testing.assert_close(tangent, differences / 2e-6, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize(
    "options",
    [{}, {"need_weights": False}, {"need_weights": False, "attn_mask": ~MASK}, {"average_attn_weights": False}],
    ids=str,
)
def test_multi_head_attention_is_the_same_and_has_tangents(options, dropout):
    torch.manual_seed(0)
    layer, x, t = nn.MultiheadAttention(6, 2, batch_first=True, dropout=dropout), numbers(2, 3, 6), numbers(3, 3, 6)[:2]

    def attend(x):
        torch.manual_seed(1)
        return layer(x, x, x, **options)

    with torch.no_grad():
        output, weights = attend(x)
        change = (attend(x + 1e-6 * t)[0] - attend(x - 1e-6 * t)[0]) / 2e-6
        with dual_level(), ByHand():
            found, of_found = attend(join(x, t))
            value, tangent = split(found)
            torch.testing.assert_close(value, output)
            torch.testing.assert_close(tangent, change, atol=1e-8, rtol=1e-6)
            assert (weights is None) == (of_found is None)
            if weights is not None:
                torch.testing.assert_close(split(of_found)[0], weights)


def test_what_has_no_tangent_is_left_to_torch():
    x = numbers(2, 3, 4)
    with torch.no_grad(), dual_level():
        expected = F.scaled_dot_product_attention(x, x, x), F.layer_norm(x, [4]), x * 2
        with derivatives_by_hand([nn.LayerNorm(4)], attention=False):
            found = F.scaled_dot_product_attention(x, x, x), F.layer_norm(x, [4]), x * 2
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
        assert split(one)[1] is None


def test_a_model_without_attention_or_normalization_pays_nothing():
    with derivatives_by_hand([nn.Linear(2, 2), nn.Tanh()], attention=False):
        assert torch._C._len_torch_function_stack() == 0
