"""Rows of the layout against the rows of the model, seen by the gradients of a plain pass."""

import pytest
import torch
from torch import nn

import bpfree
from bpfree.verification.rows import check_rows

N = 4


@pytest.fixture(autouse=True)
def _double(double):
    torch.manual_seed(0)


class Net(nn.Module):
    """``above`` of a tap of ``below``."""

    def __init__(self, below, above):
        super().__init__()
        self.below, self.above, self.tap = below, above, bpfree.Tap()
        self.a, self.o = nn.Linear(2, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.above(self, self.below(self, x))


def tapped(net, x):
    return net.tap(net.a(x).tanh())


def per_step(reverse):
    def run(net, x):
        h, outputs = 0, []
        for t in range(x.shape[1]):
            h = net.tap((net.a(x[:, t]) + h).tanh())
            outputs.append(net.o(h))
        return torch.stack(outputs[::-1] if reverse else outputs, 1)

    return run


def attention_over_samples(net, h):
    return net.o(torch.softmax(h @ h.T, 1) @ h)


def normalized(net, h):
    return net.o(nn.functional.batch_norm(h, None, None, training=True))


NETS = {
    "plain": (tapped, lambda net, h: net.o(h), (N, 2)),
    "tokens": (tapped, lambda net, h: net.o(h), (N, 5, 2)),
    "tokens that see each other": (tapped, lambda net, h: net.o(h + h.mean(1, keepdim=True)), (N, 5, 2)),
    "sequences": (tapped, lambda net, h: net.o(h.mean(1)), (N, N, 2)),
    "time first": (tapped, lambda net, h: net.o(h.mean(0)), (N, N, 2)),
    "time first, recurrent": (tapped, lambda net, h: net.o(h.cumsum(0)), (5, N, 2)),
    "a loop": (lambda net, x: x, per_step(reverse=False), (N, 5, 2)),
    "a loop backwards": (lambda net, x: x, per_step(reverse=True), (N, 5, 2)),
    "attention over samples": (tapped, attention_over_samples, (N, 2)),
    "batch statistics": (tapped, normalized, (N, 2)),
    "split features": (tapped, lambda net, h: net.o(h).unflatten(1, (1, 3)), (N, 2)),
    "tokens as one row": (tapped, lambda net, h: net.o(h), (N, 5, 2)),
}


def findings(name, **options):
    below, above, shape = NETS[name]
    model, x = Net(below, above), torch.randn(shape)
    attachment = bpfree.attach(model, bpfree.DFA(), example_inputs=x, verify=False, **options)
    outputs = []
    with attachment.paused():
        handle = model.tap.register_forward_hook(lambda module, args, output: outputs.append(output))
        error = model(x)
        handle.remove()
    return check_rows(outputs, error, attachment.mechanism.sites, asked="sample_axes" in options)


@pytest.mark.parametrize(
    "name", ["plain", "tokens", "tokens that see each other", "sequences", "a loop", "split features"]
)
def test_rows_that_are_the_models_are_no_finding(name):
    assert findings(name) == []


def test_as_many_steps_as_samples_with_time_first_is_wrong():
    (found,) = findings("time first")
    assert found.wrong
    assert "sample_axes={'tap': 1}" in found.remedy
    assert findings("time first", sample_axes={"tap": 1}) == []


def test_sequences_called_time_first_are_wrong_too():
    (found,) = findings("sequences", sample_axes={"*": 1})
    assert found.wrong
    assert "sample_axes={'tap': 0}" in found.remedy


def test_a_loop_that_runs_backwards_is_wrong():
    (found,) = findings("a loop backwards")
    assert found.wrong
    assert "sample_axes={'error': 0}" in found.remedy
    assert findings("a loop backwards", sample_axes={"error": 0}) == []


@pytest.mark.parametrize("options", [{"batch_dims": 1}, {"sample_axes": {"error": 0}}], ids=str)
def test_tokens_that_do_not_see_each_other_are_rows_unless_one_has_said_otherwise(options):
    if "batch_dims" in options:
        (found,) = findings("tokens as one row", **options)
        assert found.wrong
        assert "'error': (0, 1)" in found.remedy
        assert findings("tokens as one row", sample_axes={"error": (0, 1), "*": (0, 1)}) == []
    else:
        assert findings("tokens as one row", **options) == []


@pytest.mark.parametrize("name", ["attention over samples", "batch statistics"])
def test_samples_that_touch_each_other_are_a_remark(name):
    (found,) = findings(name)
    assert not found.wrong
    assert "reaches others" in found.found


def test_time_first_everywhere_is_a_remark_for_the_signals_are_right():
    (found,) = findings("time first, recurrent")
    assert not found.wrong
    assert "sample_axes=(1, 0)" in found.remedy
    assert findings("time first, recurrent", sample_axes=(1, 0)) == []


@pytest.mark.parametrize(("size", "expected"), [(1, 1), (3, 0)])
def test_pixels_that_do_not_see_each_other_are_a_remark(size, expected):
    model, x = (
        nn.Sequential(nn.Conv2d(2, 6, 3), bpfree.Tap(), nn.Conv2d(6, 3, size, padding=size // 2)),
        torch.randn(2, 2, 5, 6),
    )
    attachment = bpfree.attach(model, bpfree.DFA(), example_inputs=x)
    with attachment.paused():
        h = model[0](x)
        found = check_rows([h], model[2](h), attachment.mechanism.sites, asked=False)
    assert len(found) == expected
    for finding in found:
        assert not finding.wrong
        assert "'error': (0, 2, 3), '*': (0, 2, 3)" in finding.remedy


def test_what_no_gradient_reaches_is_no_finding():
    h = torch.randn(4, 6)
    model = nn.Sequential(bpfree.Tap(), nn.Linear(6, 3))
    attachment = bpfree.attach(model, bpfree.DFA(), example_inputs=h)
    assert check_rows([h], model(h), attachment.mechanism.sites, asked=False) == []


@pytest.mark.parametrize("rule", [bpfree.DFA(), bpfree.FDFA(), bpfree.DKP()], ids=str)
@pytest.mark.parametrize("options", [{}, {"window": 2}, {"streaming": True}], ids=["plain", "window", "streaming"])
def test_an_attachment_refuses_rows_that_are_not_the_models(rule, options):
    below, above, shape = NETS["time first"]
    model = Net(below, above)
    bpfree.attach(model, rule, **options)
    with pytest.raises(bpfree.errors.VerificationError, match=r"sample_axes={'tap': 1}"):
        model(torch.randn(shape))
    model = Net(below, above)
    bpfree.attach(model, rule, sample_axes={"tap": 1}, **options)
    model(torch.randn(shape)).sum().backward()
