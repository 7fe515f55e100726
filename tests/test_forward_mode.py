"""Tangents against autograd: models that stop gradients, are compiled in parts, differentiate, have several errors."""

import threading
from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import bpfree
from bpfree.axes.sites import ErrorRows, Site
from bpfree.errors import ErrorPlacementError, ForwardDerivativeError
from bpfree.feedback.spatial import Form
from bpfree.forward_mode.estimate import Estimator
from bpfree.rerun.snapshot import RunSnapshot

CLASSES = 3


class Net(nn.Module):
    """A tap, and behind it what a test says."""

    def __init__(self, above):
        super().__init__()
        self.first, self.tap, self.head, self.above = nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, CLASSES), above

    def forward(self, x):
        return self.above(self, self.tap(self.first(x)))


def under_no_grad(net, h):
    with torch.no_grad():
        target = 2 * net.head(h)
    return net.head(h) - target


def under_set_grad_enabled(net, h):
    with torch.set_grad_enabled(False):
        scale = h.square().sum(1, keepdim=True).sqrt()
    return net.head(h) / scale


def switched_by_hand(net, h):
    torch.set_grad_enabled(False)
    gate = torch.sigmoid(net.head(h))
    torch.set_grad_enabled(True)
    return net.head(h) * gate


def enabled_within(net, h):
    with torch.no_grad():
        constant = net.head(h)
        with torch.enable_grad():
            moving = net.head(h).sin()
        constant = constant + net.head(moving @ torch.ones(CLASSES, 6))
    return moving * constant


@torch.no_grad()
def _decorated(net, h):
    return net.head(h).exp()


def decorated(net, h):
    return net.head(h) + _decorated(net, h)


def inference(net, h):
    with torch.inference_mode():
        frozen = net.head(h)
    return net.head(h) * (1 + frozen.clone())


def in_place_without_gradient(net, h):
    out = net.head(h).clone()
    with torch.no_grad():
        out.mul_(2).add_(1)
    return out * out


def raising_within(net, h):
    try:
        with torch.no_grad():
            net.head(h[:, :2])
    except RuntimeError:
        pass
    return net.head(h)


STOPS = [
    under_no_grad, under_set_grad_enabled, switched_by_hand, enabled_within, decorated, inference,
    in_place_without_gradient, raising_within,
]  # fmt: skip


def observed(model, x, taps=("tap",), errors=("",), seed=3):
    """An observation of one pass; ``errors`` are names of modules."""
    plan = bpfree.plan.Plan(
        model=model, taps={name: model.get_submodule(name) for name in taps}, explicit=True,
        errors={name: model.get_submodule(name) for name in errors}, seed=0, batch_dims=1,
    )  # fmt: skip
    estimator = Estimator(plan, "normal", lambda site: Form.of(site.features, None))
    widths = {}
    handles = [model.get_submodule(name).register_forward_hook(lambda m, a, o: widths.update({m: o})) for name in taps]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    sites = [
        Site(name, name, (len(x),), tuple(widths[model.get_submodule(name)].shape[1:]), ErrorRows((len(x),), (0,)))
        for name in taps
    ]
    passes = [estimator.run(((x,), {}), RunSnapshot.now(plan, ((x,), {})), sites, seed) for _ in range(3)]
    # A model is watched in its first pass; the later ones go the way that was chosen there.
    for other in passes[1:]:
        for found, first in zip(other.tangents, passes[0].tangents, strict=True):
            assert all(torch.equal(found[path], first[path]) for path in first)
    return passes[0]


def exact(model, x, v, pick=lambda output: output):
    """J v by autograd's own Jacobian of everything above the tap."""
    h = model.tap(model.first(x)).detach()

    def above(h):
        return pick(model.above(model, h))

    J = torch.autograd.functional.jacobian(above, h)
    return torch.einsum("...nf,nf->...", J, v)


@pytest.mark.parametrize("above", STOPS, ids=lambda stop: stop.__name__)
def test_what_stops_gradients_stops_tangents(double, above):
    model, x = Net(above), torch.randn(4, 5)
    seen = observed(model, x)
    torch.testing.assert_close(seen.tangents[0][""], exact(model, x, seen.perturbations[0]), rtol=1e-12, atol=1e-12)
    assert torch.is_grad_enabled()
    assert torch._C._is_fwd_grad_enabled()
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("above", STOPS, ids=lambda stop: stop.__name__)
def test_a_forward_gradient_of_weights_is_the_gradient_along_its_direction(double, above):
    """Every gradient is (g . V) V, with the gradients g as autograd has them: (g . V) is the mean of its factors."""
    model, x = Net(above), torch.randn(4, 5)
    weights = torch.randn(4, CLASSES)
    gradients = torch.autograd.grad((model(x) * weights).sum(), list(model.parameters()))
    with bpfree.attach(model, bpfree.ForwardGradient("weights", perturbations="rademacher")):
        for _ in range(3):
            model.zero_grad()
            (model(x) * weights).sum().backward()
            # Signs: V = sign(s V), up to the sign of s = g . V, and |s| is every entry's size.
            found = [parameter.grad for parameter in model.parameters()]
            slope = found[0].abs().flatten()[0]
            signs = [gradient / slope for gradient in found]
            assert all(torch.allclose(sign.abs(), torch.ones(())) for sign in signs)
            along = sum((g * sign).sum() for g, sign in zip(gradients, signs, strict=True))
            torch.testing.assert_close(along, slope, rtol=1e-10, atol=1e-12)


def test_a_model_from_which_no_tangent_comes_is_told():
    with pytest.raises(ForwardDerivativeError, match="no perturbation of the taps arrives at the model's output"):
        observed(Net(lambda net, h: net.head(h.detach())), torch.randn(4, 5))


def test_only_models_that_switch_gradients_stay_watched():
    for above, stays in ((lambda net, h: net.head(h), False), (under_no_grad, True), (decorated, True)):
        model, x = Net(above), torch.randn(4, 5)
        attachment = bpfree.attach(model, bpfree.FDFA(), taps="tap")
        model(x).sum().backward()
        mode = attachment.mechanism._estimator.dual_pass.mode
        assert list(mode._watched.values()) == [stays]
        # Other shapes and another mode are looked at anew.
        model(x[:2]).sum().backward()
        model.eval()
        model(x).sum().backward()
        assert len(mode._watched) == 3


def test_rules_within_segments_stay_out_of_a_watched_pass(double):
    """Feedback alignment inside segments joins layers in training passes alone, or tangents would be its own."""
    torch.manual_seed(0)
    plain, model = Net(under_no_grad), Net(under_no_grad)
    model.load_state_dict(plain.state_dict())
    x, feedback = torch.randn(4, 5), []
    for net, within in ((plain, None), (model, bpfree.FA())):
        attachment = bpfree.attach(net, bpfree.FDFA(), taps="tap", within=within, seed=1)
        net(x).sum().backward()
        feedback.append(attachment.feedback["tap:6"].clone())
    torch.testing.assert_close(*feedback, rtol=0, atol=0)


# -- compiled parts --------------------------------------------------------------------------------------------------


@torch.compile(backend="aot_eager")
def compiled_function(h):
    return torch.tanh(3 * h)


def _compile_module(model):
    model.head.compile(backend="aot_eager")


def _compile_forward(model):
    model.head.forward = torch.compile(model.head.forward, backend="aot_eager")


def _wrap(model):
    model.head = torch.compile(model.head, backend="aot_eager")


@pytest.mark.parametrize("compiling", [_compile_module, _compile_forward, _wrap], ids=lambda way: way.__name__)
def test_compiled_parts_carry_tangents(double, compiling):
    model, x = Net(lambda net, h: net.head(h) * h[:, :CLASSES]), torch.randn(4, 5)
    expected = observed(model, x).tangents[0][""]
    compiling(model)
    model(x)
    torch.testing.assert_close(observed(model, x).tangents[0][""], expected)


def test_compiled_functions_carry_tangents(double):
    model, x = Net(lambda net, h: net.head(compiled_function(h))), torch.randn(4, 5)
    model(x)
    seen = observed(model, x)
    slope = 3 * (1 - torch.tanh(3 * model.tap(model.first(x))).square())
    expected = (slope * seen.perturbations[0]) @ model.head.weight.T
    torch.testing.assert_close(seen.tangents[0][""], expected)


@pytest.mark.parametrize("way", ["model.compile()", "torch.compile(model)"])
def test_forward_gradients_of_weights_refuse_compiled_models_by_name(way):
    model, x = Net(lambda net, h: net.head(h)), torch.randn(4, 5)
    bpfree.attach(model, bpfree.ForwardGradient("weights"))
    run = model
    if way == "model.compile()":
        model.compile(backend="aot_eager")
    else:
        run = torch.compile(model, backend="aot_eager")
    with pytest.raises(ForwardDerivativeError, match=r"run by torch\.compile.*bpfree\.ForwardGradient\(\)"):
        run(x)
    torch.compiler.reset()


def test_where_torch_has_given_up_compiling_forward_gradients_of_weights_are_those_of_the_plain_model(double):
    x = torch.randn(4, 5)

    def model_with(rule):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, CLASSES))
        bpfree.attach(model, rule, seed=0)
        return model

    def gradients(model, run):
        run(x).square().sum().backward()
        return [parameter.grad for parameter in model.parameters()]

    plain = model_with(bpfree.ForwardGradient("weights"))
    expected = gradients(plain, plain)
    with torch._dynamo.config.patch(recompile_limit=1, accumulated_recompile_limit=1):
        for rule in (bpfree.BP(), bpfree.Shallow(), bpfree.BP()):
            torch.compile(model_with(rule), backend="aot_eager")(x)
        model = model_with(bpfree.ForwardGradient("weights"))
        found = gradients(model, torch.compile(model, backend="aot_eager"))
    torch.compiler.reset()
    torch.testing.assert_close(found, expected)


def test_threads_that_overlap_leave_compiling_as_it_was():
    from bpfree.forward_mode.tangents import eager

    first, second = threading.Event(), threading.Event()

    def short():
        with eager():
            first.set()
            second.wait()

    before = torch._dynamo.eval_frame._stance.stance
    thread = threading.Thread(target=short)
    thread.start()
    first.wait()
    with eager():
        second.set()
        thread.join()
        assert torch._dynamo.eval_frame._stance.stance == "force_eager"
    assert torch._dynamo.eval_frame._stance.stance == before


# -- models that differentiate ---------------------------------------------------------------------------------------


class Forces(nn.Module):
    """Minus the gradient of an energy by the positions."""

    def __init__(self, create_graph=True):
        super().__init__()
        self.first, self.act, self.second, self.create_graph = nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1), create_graph

    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = self.second(self.act(self.first(x))).sum()
            (slope,) = torch.autograd.grad(energy, x, create_graph=self.create_graph, retain_graph=True)
        return energy - slope.square()


class Functional(Forces):
    def forward(self, x):
        def energy(x):
            return self.second(self.act(self.first(x))).sum()

        return x - torch.func.grad(energy)(x)


@pytest.mark.parametrize(
    "model", [lambda: Forces(), lambda: Forces(create_graph=False), lambda: Functional()],
    ids=["create_graph", "no graph", "torch.func"],
)  # fmt: skip
def test_forward_gradients_of_weights_go_through_derivatives_that_the_model_takes(double, model):
    model, x = model(), torch.randn(4, 5)
    weights = torch.randn(4, 5)
    gradients = torch.autograd.grad((model(x) * weights).sum(), list(model.parameters()), materialize_grads=True)
    with bpfree.attach(model, bpfree.ForwardGradient("weights", perturbations="rademacher")):
        (model(x) * weights).sum().backward()
    found = [parameter.grad for parameter in model.parameters()]
    slope = found[0].abs().flatten()[0]
    along = sum((g * f).sum() / slope for g, f in zip(gradients, found, strict=True))
    torch.testing.assert_close(along, slope, rtol=1e-10, atol=1e-12)


class TwoHeads(nn.Module):
    """Forces, and two things that are read off them; in a checkpoint if need be."""

    def __init__(self, *, checkpointed, detached):
        super().__init__()
        self.forces, self.inner = Forces(), nn.Linear(5, 5)
        self.head, self.value = nn.Linear(5, CLASSES), nn.Linear(5, 1)
        self.checkpointed, self.detached = checkpointed, detached

    def forward(self, x):
        h = self.forces(x)
        h = checkpoint(self.inner, h, use_reentrant=False) if self.checkpointed else self.inner(h)
        return self.head(h), self.value(h.detach() if self.detached else h)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_loss_of_a_graph_that_the_model_left_below_the_error_is_refused(double, checkpointed):
    x = torch.randn(4, 5)
    model = TwoHeads(checkpointed=checkpointed, detached=False)
    bpfree.attach(model, bpfree.ForwardGradient("weights"), error_at="head")
    output, value = model(x)
    with pytest.raises(bpfree.errors.OptionError, match=r"from below 'head'.*detach\(\)"):
        (output.square().mean() + value.square().mean()).backward()


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_loss_above_the_error_is_exact_where_the_model_differentiates(double, checkpointed):
    x = torch.randn(4, 5)
    model = TwoHeads(checkpointed=checkpointed, detached=True)
    with bpfree.attach(model, bpfree.ForwardGradient("weights"), error_at="head"):
        output, value = model(x)
        (output.square().mean() + value.square().mean()).backward()
    found = model.value.weight.grad
    model.zero_grad()
    model(x)[1].square().mean().backward()
    torch.testing.assert_close(found, model.value.weight.grad)


# -- several errors --------------------------------------------------------------------------------------------------

Pair = namedtuple("Pair", ["policy", "value"])


class Heads(nn.Module):
    def __init__(self, pack):
        super().__init__()
        self.first, self.tap, self.pack = nn.Linear(5, 6), nn.Tanh(), pack
        self.policy, self.value, self.late = nn.Linear(6, 4), nn.Linear(6, 1), nn.Linear(4, 2)
        self.reached = []

    def forward(self, x):
        h = self.tap(self.first(x))
        policy, value = self.policy(h), self.value(h)
        self.reached.append("late")
        return self.pack(policy, value.squeeze(1), self.late(policy))


PACKS = {
    "tuple": (lambda policy, value, late: (policy, value), ("0", "1")),
    "named tuple": (lambda policy, value, late: Pair(policy, value), ("policy", "value")),
    "dictionary": (lambda policy, value, late: {"policy": policy, "n": 3, "value": [value]}, ("policy", "value.0")),
}


@pytest.mark.parametrize("pack", PACKS)
def test_every_error_in_an_output_has_its_tangent(double, pack):
    build, (policy, value) = PACKS[pack]
    model, x = Heads(build), torch.randn(4, 5)
    seen = observed(model, x)
    (found,) = seen.tangents
    (v,) = seen.perturbations
    assert list(found) == [policy, value]
    torch.testing.assert_close(found[policy], v @ model.policy.weight.T, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[value], v @ model.value.weight[0], rtol=1e-12, atol=1e-12)


def test_errors_of_several_modules_come_from_one_pass_that_ends_with_the_last(double):
    model, x = Heads(lambda policy, value, late: late), torch.randn(4, 5)
    seen = observed(model, x, errors=["value", "policy"])
    (v,) = seen.perturbations
    value, policy = (found[""] for found in seen.tangents)
    torch.testing.assert_close(value, v @ model.value.weight.T, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(policy, v @ model.policy.weight.T, rtol=1e-12, atol=1e-12)
    # The plain pass alone came so far.
    assert model.reached == ["late"]


def test_an_error_that_no_tap_moves_has_a_tangent_of_zero_and_one_not_reached_has_none(double):
    class Partly(Heads):
        def forward(self, x):
            h = self.tap(self.first(x))
            return self.policy(h), self.value(torch.ones(len(x), 6))

    seen = observed(Partly(None), torch.randn(4, 5), errors=["policy", "value", "late"])
    assert seen.tangents[0][""].any()
    assert not seen.tangents[1][""].any()
    assert seen.tangents[2] == {}


class Narrow(nn.Module):
    """One feature at each tap, so that with random signs (v v = 1) an estimate is the Jacobian itself."""

    def __init__(self):
        super().__init__()
        self.first, self.tap, self.second, self.behind = nn.Linear(5, 1), nn.Tanh(), nn.Linear(1, 1), nn.Tanh()
        self.policy, self.value = nn.Linear(1, 4), nn.Linear(1, 2)

    def forward(self, x):
        h = self.tap(self.first(x))
        return {"value": self.value(h), "policy": self.policy(self.behind(self.second(h)))}


def test_the_feedback_of_every_error_learns_its_own_jacobian(double):
    model, x = Narrow(), torch.randn(1, 5)
    attachment = bpfree.attach(model, bpfree.FDFA(beta=1.0, debiased=False), seed=0)
    for _ in range(3):
        output = model(x)
        (output["policy"].sum() + output["value"].sum()).backward()
        value, policy = attachment.mechanism.feedback, attachment.mechanism.further["policy"].feedback
        with torch.no_grad():
            h = model.tap(model.first(x))
            slope = (1 - torch.tanh(model.second(h)).square()) * model.second.weight
        # odot of one error is the sum over its taps; the part of another tap is that estimate's noise.
        J = {"tap": (model.policy.weight * slope).detach(), "behind": model.policy.weight.detach()}
        torch.testing.assert_close((policy["tap:1"] - J["tap"]).abs(), J["behind"].abs())
        torch.testing.assert_close((policy["behind:1"] - J["behind"]).abs(), J["tap"].abs())
        torch.testing.assert_close(value["tap:1"], model.value.weight.detach())


@pytest.mark.parametrize("pack", PACKS)
def test_forward_gradients_of_weights_name_the_error_s_place_where_there_are_several(pack):
    model = Heads(PACKS[pack][0])
    bpfree.attach(model, bpfree.ForwardGradient("weights"))
    with pytest.raises(ErrorPlacementError, match=r"the model's output, which is of type .*error_at="):
        model(torch.randn(4, 5))


def test_a_mode_of_the_model_s_own_around_the_error_s_place_outlives_the_pass(double):
    class Device(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Linear(5, 6), nn.Linear(6, CLASSES)

        def forward(self, x):
            with torch.no_grad():
                shift = self.first(x)
            with torch.device("cpu"):
                out = self.head(self.first(x) + shift)
                assert len(torch.overrides._get_current_function_mode_stack()) >= 1
            return F.relu(out)

    model = Device()
    bpfree.attach(model, bpfree.ForwardGradient("weights"), error_at="head")
    for _ in range(2):
        model(torch.randn(4, 5)).sum().backward()
        assert torch.overrides._get_current_function_mode_stack() == []
        assert all(parameter.grad is not None for parameter in model.parameters())
