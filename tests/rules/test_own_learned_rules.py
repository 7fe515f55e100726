"""The worked examples of docs/own-rule.md whose feedback learns: B is what their mathematics says."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bpfree
from bpfree.errors import TapShapeError
from support.by_hand import softmax_error

PAGE = Path(__file__).parents[2] / "docs" / "own-rule.md"
N, STEPS = 16, 3


@pytest.fixture(scope="module")
def page():
    """What the page's code defines."""
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL))
    found = {"__name__": "own_rule"}
    exec(compile(code, PAGE.name, "exec"), found)
    return found


def small():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 7), nn.Sigmoid(), nn.Linear(7, 4)).double()
    return model, torch.randn(N, 6, dtype=torch.float64), torch.arange(N) % 4


def test_one_that_learns_from_errors_takes_steps_of_one_size(page):
    model, x, y = small()
    attachment = bpfree.attach(model, page["SignKP"](level=0.25))
    expected = {"1": torch.zeros(4, 9, dtype=torch.float64), "3": torch.zeros(4, 7, dtype=torch.float64)}
    for _ in range(STEPS):
        with attachment.paused():
            h = {name: model[: int(name) + 1](x).detach() for name in expected}
        output = model(x)
        F.cross_entropy(output, y).backward()
        error = softmax_error(output.detach(), y)
        for name, B in expected.items():
            B -= 0.25 * (error.T @ h[name]).sign()
            torch.testing.assert_close(attachment.feedback[f"{name}:{B.shape[1]}"], B)
        # B has moved before it projects: the first layer's gradient, written out.
        signal = error @ expected["1"] * (1 - h["1"] ** 2)
        torch.testing.assert_close(model[0].weight.grad, signal.T @ x)
        with torch.no_grad():
            for weight in model.parameters():
                weight -= 0.1 * weight.grad
                weight.grad = None


def test_one_that_learns_from_forward_passes_finds_the_jacobian(page):
    # Nothing above the tap bends: do/dh is W for every sample, and the mean of n estimates is off by O(1/sqrt(n)).
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4)).double()
    attachment = bpfree.attach(model, page["MeanJacobian"](), seed=0)
    x, y = torch.randn(N, 6, dtype=torch.float64), torch.arange(N) % 4
    W, off = model[2].weight.detach(), []
    for passes in range(1, 257):
        F.cross_entropy(model(x), y).backward()
        if passes in (16, 256):
            off.append(float((attachment.feedback["1:9"] - W).norm() / W.norm()))
    assert off[0] < 1
    assert off[1] < off[0] / 2  # 4 on average, over 16 times as many passes


@dataclass(frozen=True)
class Turned(bpfree.ErrorLearnedRule):
    """A rule whose direction is what a function makes of the evidence ``(c, m)``."""

    made: Callable[[Any], Any]

    def direction(self, matrix, evidence):
        return self.made(evidence)


@pytest.mark.parametrize("stepped_by", ["rule", "optimizer"])
@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda G: G.T, r"a tensor of shape \(9, 4\)|a tensor of shape \(7, 4\)"),
        (lambda G: G.mean(0), r"a tensor of shape \(9,\)|a tensor of shape \(7,\)"),  # it would fit, row by row
        (lambda G: G.norm(), r"a tensor of shape \(\)"),
        (lambda G: None, "of type NoneType"),
    ],
)
def test_a_direction_of_another_shape_is_told(made, says, stepped_by):
    model, x, y = small()
    attachment = bpfree.attach(model, Turned(made, stepped_by=stepped_by))
    with pytest.raises(TapShapeError, match=rf"(?:{says}); direction\(\) must return a tensor of the feedback's shape"):
        F.cross_entropy(model(x), y).backward()
    assert not any(bool(B.any()) for B in attachment.mechanism.feedback.state_dict().values() if B.dim() == 2)


def test_an_optimizer_takes_the_step_of_both(page):
    for name in ("SignKP", "MeanJacobian"):
        model, x, y = small()
        attachment = bpfree.attach(model, page[name](stepped_by="optimizer"))
        F.cross_entropy(model(x), y).backward()
        assert [tuple(B.shape) for B in attachment.parameters()] == [(4, 9), (4, 7)]
        assert all(bool(B.grad.any()) for B in attachment.parameters())
