"""Tangents of autograd functions without a jvp: J v, for the J whose transpose their backward multiplies by."""

import threading

import pytest
import torch
import torch.autograd.forward_ad as dual
from torch import nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

import bpfree
from bpfree.errors import ForwardDerivativeError
from bpfree.forward_mode.surrogate_jvp import SurrogateJvps, function_without_jvp


class Atan(Function):
    """A step with the gradient of an arctangent; saves only where a gradient is wanted."""

    @staticmethod
    def forward(ctx, x, alpha):
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(x)
            ctx.alpha = alpha
        return (x > 0).to(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return (
            ctx.alpha / 2 / (1 + (torch.pi / 2 * ctx.alpha * x) ** 2) * g if ctx.needs_input_grad[0] else None
        ), None


class OnceAtan(Atan):
    backward = staticmethod(once_differentiable(Atan.backward))


class Clipped(Function):
    """Clips, and its backward works in the memory of the gradient that it is given."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.abs() > 1)
        return x.clamp(-1, 1)

    @staticmethod
    def backward(ctx, g):
        (outside,) = ctx.saved_tensors
        g[outside] = 0
        return g


class OnceClipped(Clipped):
    backward = staticmethod(once_differentiable(Clipped.backward))


class ThroughNumpy(Function):
    """Its backward leaves torch; it has no more gradients than it has to."""

    @staticmethod
    def forward(ctx, x):
        ctx.x = x.detach().numpy().copy()
        return x.sign()

    @staticmethod
    def backward(ctx, g):
        return torch.from_numpy(g.detach().numpy() * (abs(ctx.x) < 1))


class Straight(Function):
    """Straight through, with a context that is set up apart."""

    @staticmethod
    def forward(x):
        return x.round()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, g):
        return g


class Reversal(Function):
    """Returns a view of what it is given."""

    @staticmethod
    def forward(ctx, x, strength):
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return -ctx.strength * g, None


class InPlace(Function):
    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        return x.mul_(3)

    @staticmethod
    def backward(ctx, g):
        return 3 * g


class Softmax(Function):
    """Not number by number; its output is kept on the context."""

    @staticmethod
    def forward(ctx, x):
        ctx.y = x.softmax(-1)
        return ctx.y.clone()

    @staticmethod
    def backward(ctx, g):
        return ctx.y * (g - (g * ctx.y).sum(-1, keepdim=True))


class OnceSoftmax(Softmax):
    backward = staticmethod(once_differentiable(Softmax.backward))


class Product(Function):
    """Two inputs, two outputs of other shapes, and one that is no number to differentiate."""

    @staticmethod
    def forward(a, b):
        return a @ b, (a > 0).sum(), a.sum(1)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx, g, _, row):
        a, b = ctx.saved_tensors
        return g @ b.T + row[:, None].expand_as(a), a.T @ g


def tangents(function, *arguments):
    """What comes out of ``function`` for pairs (value, tangent or None): served as a pass does that."""
    served, found = SurrogateJvps(), None
    with torch.no_grad(), dual.dual_level():
        numbers = [dual.make_dual(a.clone(), t.clone()) if t is not None else a for a, t in arguments]
        try:
            function.apply(*numbers)
        except NotImplementedError as error:
            found = function_without_jvp(error)
        assert found is function
        served.serve(function)
        numbers = [dual.make_dual(a.clone(), t.clone()) if t is not None else a for a, t in arguments]
        with served.installed():
            output = function.apply(*numbers)
        outputs = output if isinstance(output, tuple) else (output,)
        found = [dual.unpack_dual(part).tangent for part in outputs]
    assert "jvp" not in vars(function)
    return found


def transposed_backward(function, arguments, v):
    """J v with every row of J^T from autograd's backward, one unit vector after the other: sum_k u_k (J^T u_k . v)."""
    inputs = [a.clone().requires_grad_() if t is not None else a for a, t in zip(arguments, v, strict=True)]
    output = function.apply(*(a * 1 if isinstance(a, torch.Tensor) and a.requires_grad else a for a in inputs))
    given = [a for a in inputs if isinstance(a, torch.Tensor) and a.requires_grad]
    moving = [t for t in v if t is not None]
    found = []
    for part in output if isinstance(output, tuple) else (output,):
        if not part.is_floating_point():
            found.append(None)
            continue
        units = torch.eye(part.numel()).reshape(-1, *part.shape)
        rows = [torch.autograd.grad(part, given, unit, retain_graph=True, allow_unused=True) for unit in units]
        values = [sum((g * t).sum() for g, t in zip(row, moving, strict=True) if g is not None) for row in rows]
        found.append(torch.stack([torch.as_tensor(value) for value in values]).reshape(part.shape))
    return found


X, V = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
SUBJECTS = {
    "surrogate gradient": (Atan, (X, 2.0), (V, None)),
    "once differentiable": (OnceAtan, (X, 2.0), (V, None)),
    "through numpy": (ThroughNumpy, (X,), (V,)),
    "straight through": (Straight, (X,), (V,)),
    "a view": (Reversal, (X, 0.3), (V, None)),
    "in place": (InPlace, (X,), (V,)),
    "a backward in place": (Clipped, (X,), (V,)),
    "a backward in place, once differentiable": (OnceClipped, (X,), (V,)),
    "not number by number": (Softmax, (X,), (V,)),
    "two inputs": (Product, (X, X.T.clone()), (V, V.T.clone())),
    "one of two inputs": (Product, (X, X.T.clone()), (None, V.T.clone())),
}


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_tangent_is_that_of_the_function_s_own_backward(double, name):
    function, arguments, v = SUBJECTS[name]
    found = tangents(function, *zip(arguments, v, strict=True))
    for got, expected in zip(found, transposed_backward(function, arguments, v), strict=True):
        assert (got is None) == (expected is None)
        if got is not None:
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


class Spiking(nn.Module):
    """Leaky units over four steps, whose spikes have a surrogate gradient kept under another name."""

    def __init__(self, function, *options):
        super().__init__()
        self.first, self.tap, self.second, self.head = nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 3)
        self.spike, self.options = function.apply, options

    def forward(self, x):
        h, membrane, total = self.tap(self.first(x)), 0, 0
        for _ in range(4):
            membrane = 0.8 * membrane + self.second(h)
            spikes = self.spike(membrane, *self.options)
            membrane = membrane - spikes
            total = total + spikes
        return self.head(total)


@pytest.mark.parametrize(
    ("function", "options"), [(Atan, (2.0,)), (OnceAtan, (2.0,)), (Straight, ()), (Softmax, ())],
    ids=["surrogate", "once differentiable", "straight through", "softmax"],
)  # fmt: skip
def test_forward_gradients_learn_what_backpropagation_through_the_surrogate_would(double, function, options):
    """G = odot (x) v has J, of the surrogate's backward, for its mean: with one sample 4000 draws come close."""
    torch.manual_seed(0)
    model, x = Spiking(function, *options), torch.randn(1, 5)
    h = model.tap(model.first(x)).detach().requires_grad_()
    handle = model.tap.register_forward_hook(lambda module, args, output: h)
    output = model(x)
    handle.remove()
    J = torch.stack([torch.autograd.grad(number, h, retain_graph=True)[0].flatten() for number in output.flatten()])
    attachment = bpfree.attach(model, bpfree.FDFA(debiased=False, beta=1.0), taps="tap", seed=0)
    found = []
    for _ in range(40):
        model(x).sum().backward()
        (v,) = [attachment.feedback["tap:6"].clone()]
        found.append(v)
    # Signs: odot = J v and G = odot v^T, so that G v / 6 is J v again, exactly, whatever v was.
    for G in found:
        v = G[G.norm(dim=1).argmax()].sign()
        torch.testing.assert_close((G @ v / 6).abs(), (J @ v).abs(), rtol=1e-10, atol=1e-12)
    assert "jvp" not in vars(function)
    assert "forward" in vars(function) or function is OnceAtan


def test_forward_gradients_of_weights_are_served_too(double):
    model, x = Spiking(Atan, 2.0), torch.randn(3, 5)
    gradients = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    with bpfree.attach(model, bpfree.ForwardGradient("weights", perturbations="rademacher")):
        model(x).sum().backward()
    found = [parameter.grad for parameter in model.parameters()]
    slope = found[0].abs().flatten()[0]
    along = sum((g * f).sum() / slope for g, f in zip(gradients, found, strict=True))
    torch.testing.assert_close(along, slope, rtol=1e-10, atol=1e-12)
    assert "jvp" not in vars(Atan)


def test_what_cannot_be_served_is_refused_by_name(double):
    with pytest.raises(ForwardDerivativeError, match=r"'OnceSoftmax' has no jvp.*Give it a jvp.*bpfree\.DKP"):
        tangents(OnceSoftmax, (X, V))


class Recomputes(Function):
    """A checkpoint: its backward is a backward pass."""

    @staticmethod
    def forward(ctx, x, layer):
        ctx.save_for_backward(x)
        ctx.layer = layer
        return layer(x)

    @staticmethod
    def backward(ctx, g):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            ctx.layer(x).backward(g)
        return x.grad, None


def test_a_backward_that_would_add_to_gradients_is_refused_and_adds_nothing(double):
    layer = nn.Linear(5, 5)
    with pytest.raises(ForwardDerivativeError, match="'Recomputes' runs a backward pass of its own"):
        tangents(Recomputes, (X, V), (layer, None))
    assert layer.weight.grad is None


@pytest.mark.parametrize("remedy", ["jvp", "taps behind it", "no estimating pass"])
def test_the_remedies_work(double, remedy):
    class WithJvp(OnceSoftmax):
        @staticmethod
        def jvp(ctx, t):
            return ctx.y * (t - (t * ctx.y).sum(-1, keepdim=True))

    class Net(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.first, self.below, self.function = nn.Linear(5, 6), nn.Tanh(), function
            self.second, self.behind, self.head = nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.behind(self.second(self.function.apply(self.below(self.first(x))))))

    x = torch.randn(4, 5)
    model = Net(OnceSoftmax)
    with pytest.raises(ForwardDerivativeError), bpfree.attach(model, bpfree.FDFA()):
        model(x)
    model = Net(WithJvp if remedy == "jvp" else OnceSoftmax)
    rule = bpfree.DKP() if remedy == "no estimating pass" else bpfree.FDFA()
    with bpfree.attach(model, rule, taps="behind" if remedy == "taps behind it" else None):
        model(x).sum().backward()
    assert model.head.weight.grad is not None


def test_torch_s_own_functions_are_not_served():
    """A checkpoint's backward accumulates gradients."""
    layer = nn.Linear(4, 4)
    with torch.no_grad(), dual.dual_level():
        x = dual.make_dual(torch.ones(2, 4), torch.ones(2, 4))
        with pytest.raises(NotImplementedError) as caught:
            torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=True)
    assert function_without_jvp(caught.value) is None
    assert function_without_jvp(NotImplementedError("something else")) is None


def test_a_function_is_as_it_was_once_the_last_of_several_threads_has_left():
    served = SurrogateJvps()
    served.serve(Atan)
    before = dict(vars(Atan))
    inside, go = threading.Event(), threading.Event()

    def stay():
        with served.installed():
            inside.set()
            go.wait()

    thread = threading.Thread(target=stay)
    thread.start()
    inside.wait()
    with served.installed():
        pass
    assert "jvp" in vars(Atan)
    go.set()
    thread.join()
    assert dict(vars(Atan)) == before
