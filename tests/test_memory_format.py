"""A signal lies in memory as the tap's output does, whichever way it goes: so do the gradients of autograd itself."""

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bpfree

WAYS = {
    "one matrix a tap": {"rule": bpfree.DFA(feedback=bpfree.Feedback(shared=False))},
    "streaming": {"streaming": True},
    "threads": {"threads": 2},
    "window": {"window": 2},
    "modes": {"rule": bpfree.DFA(feedback=bpfree.Feedback(modes=1))},
    "through backward weights": {"rule": bpfree.FA(), "taps": None},
}
IMAGES = {2: torch.channels_last, 3: torch.channels_last_3d}


class _Seen(torch.autograd.Function):
    @staticmethod
    def forward(ctx, seen, output):
        ctx.seen, ctx.stride = seen, output.stride()
        return output.view_as(output)

    @staticmethod
    def backward(ctx, grad):
        ctx.seen.append((grad.stride(), ctx.stride))
        return None, grad


class Strides(list):
    """Pairs of strides, of a signal and of an output."""


class Watched(nn.Module):
    """An identity that keeps the strides of what it returns, and of the gradient that comes back."""

    def __init__(self, seen):
        super().__init__()
        # Not to be put back behind a second run, as what a module keeps is.
        self.seen = weakref.ref(seen)

    def forward(self, x):
        return _Seen.apply(self.seen(), x)


_KEPT = []  # the lists that no module holds


def net(dims, seen):
    seen = seen if isinstance(seen, Strides) else Strides(seen)
    _KEPT.append(seen)
    torch.manual_seed(0)
    conv, pool = (nn.Conv2d, nn.MaxPool2d) if dims == 2 else (nn.Conv3d, nn.MaxPool3d)
    stages = [[conv(a, 4, 3, padding=1), nn.Tanh(), Watched(seen)] for a in (3, 4)]
    return nn.Sequential(*stages[0], *stages[1], pool(2), nn.Flatten(), nn.Linear(4 * 2**dims, 5))


def strides(dims, format, **options):
    seen = Strides()
    model = net(dims, seen).to(memory_format=format)
    options = {"rule": bpfree.DFA(), "taps": Watched} | options
    bpfree.attach(model, **options)
    x, y = torch.randn(6, 3, *[4] * dims).to(memory_format=format), torch.arange(6) % 5
    for _ in range(2):  # threads look at the first pass in another way
        seen.clear()
        F.cross_entropy(model(x), y).backward()
    return seen


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("way", ["plain", *WAYS])
def test_signals_lie_as_the_outputs_do(dims, way):
    options = WAYS.get(way, {})
    for format in (IMAGES[dims], torch.contiguous_format):
        seen = strides(dims, format, **options)
        assert len(seen) >= 2
        assert all(signal == output for signal, output in seen)
        last = seen[0][1][1] == 1  # neighbours in memory are channels
        assert last == (format is IMAGES[dims])


def test_signals_without_an_error_lie_as_the_outputs_do():
    """DRTP in the forward pass itself."""
    seen = Strides()
    model = net(2, seen).to(memory_format=torch.channels_last)
    attachment = bpfree.attach(model, bpfree.DRTP(), taps=Watched, streaming=True)
    x, y = torch.randn(6, 3, 4, 4).to(memory_format=torch.channels_last), torch.arange(6) % 5
    for _ in range(2):  # the first pass finds out where the taps are
        seen.clear()
        attachment.targets(y)
        out = model(x)
        arrived = list(seen)
        F.cross_entropy(out, y).backward()
    assert len(arrived) == 2
    assert all(signal == output and output[1] == 1 for signal, output in arrived)


FEEDBACK = {
    "stored": bpfree.Feedback(),
    "one a tap": bpfree.Feedback(shared=False),
    "drawn again": bpfree.Feedback(stored=False),
    "one mode": bpfree.Feedback(modes=1),
    "three modes": bpfree.Feedback(modes=3),
}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("samples", [3, 6])  # fewer than the 5 classes, and more
@pytest.mark.parametrize("feedback", FEEDBACK.values(), ids=FEEDBACK)
def test_the_layout_changes_no_gradient(double, feedback, samples, dims):
    x, y = torch.randn(samples, 3, *[4] * dims), torch.arange(samples) % 5
    found = []
    for format in (torch.contiguous_format, IMAGES[dims]):
        model = net(dims, []).to(memory_format=format)
        bpfree.attach(model, bpfree.DFA(feedback=feedback), taps=Watched, seed=1)
        F.cross_entropy(model(x.to(memory_format=format)), y).backward()
        found.append([p.grad for p in model.parameters()])
    for plain, last in zip(*found, strict=True):
        torch.testing.assert_close(last, plain, rtol=1e-12, atol=1e-14)
        assert plain.abs().max() > 0


def test_taps_of_one_signal_share_its_copy():
    """As many copies as taps would be the memory that one shared signal saves."""
    given = []
    model = net(2, []).to(memory_format=torch.channels_last)
    bpfree.attach(model, bpfree.DFA(), taps=Watched)
    for module in model:
        if isinstance(module, Watched):
            module.register_forward_pre_hook(
                lambda _, args: args[0].register_hook(lambda grad: given.append(grad)) and None
            )
    x, y = torch.randn(6, 3, 4, 4).to(memory_format=torch.channels_last), torch.arange(6) % 5
    F.cross_entropy(model(x), y).backward()
    first, second = given
    assert first.data_ptr() == second.data_ptr()
