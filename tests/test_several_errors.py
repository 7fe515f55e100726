"""Several errors: every tap gets the sum of its signals from those above it, each by feedback of its own."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bpfree
from bpfree import errors


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Pair(NamedTuple):
    policy: torch.Tensor
    value: torch.Tensor


@dataclass
class Both:
    policy: torch.Tensor
    value: torch.Tensor


PACKED = {
    "tuple": lambda p, v: (p, v),
    "dictionary": lambda p, v: {"policy": p, "value": v},
    "named": Pair,
    "data": Both,
}


class ActorCritic(nn.Module):
    """A trunk with a tap; a policy head; a value head with a tap of its own."""

    def __init__(self, pack, value_first=False):
        super().__init__()
        self.pack, self.value_first = pack, value_first
        self.trunk = nn.Sequential(nn.Linear(6, 16), nn.Tanh())
        self.policy = nn.Linear(16, 3)
        self.value = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, x):
        h = self.trunk(x)
        if self.value_first:
            v = self.value(h)
            return self.pack(self.policy(h), v)
        return self.pack(self.policy(h), self.value(h))


def parts(output):
    if isinstance(output, dict):
        return output["policy"], output["value"]
    return (output.policy, output.value) if isinstance(output, Both) else tuple(output)


def setting(pack="tuple", value_first=False):
    torch.manual_seed(0)
    model = ActorCritic(PACKED[pack], value_first)
    return model, torch.randn(10, 6), torch.randint(0, 3, (10,)), torch.randn(10, 2)


def by_hand(model, x, actions, returns, weights, B):
    """The gradients of (trunk 0, policy, value 0, value 2), from the two errors and their matrices by tap."""
    with torch.no_grad():
        h = torch.tanh(model.trunk[0](x))
        k = torch.tanh(model.value[0](h))
        p, v = model.policy(h), model.value[2](k)
        e_p = weights[0] * (p.softmax(1) - F.one_hot(actions, 3)) / len(x)
        e_v = weights[1] * 2 * (v - returns) / v.numel()
        d_h = e_p @ B["policy"]["trunk.1"] + e_v @ B["value"]["trunk.1"]
        d_k = e_v @ B["value"]["value.1"]
        return [(d_h * (1 - h * h)).T @ x, e_p.T @ h, (d_k * (1 - k * k)).T @ h, e_v.T @ k]


def matrices(attachment, names):
    found = {}
    for name, sender in zip(names, (attachment.mechanism, *attachment.mechanism.further.values()), strict=True):
        assert attachment.feedbacks[name] is sender.feedback
        found[name] = {site.name: sender.feedback.matrix(site).clone() for site in sender.sites}
    return found


def gradients(model):
    return [layer.weight.grad for layer in (model.trunk[0], model.policy, model.value[0], model.value[2])]


@pytest.mark.parametrize("weights", [(1.0, 0.5), (0.0, 1.0), (2.0, 0.0)])
@pytest.mark.parametrize("value_first", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_signals_of_named_errors_add_up(weights, value_first, shared):
    model, x, actions, returns = setting(value_first=value_first)
    attachment = bpfree.attach(
        model, bpfree.DFA(feedback=bpfree.Feedback(shared=shared)), error_at=("policy", "value"), seed=2
    )
    p, v = model(x)
    (weights[0] * F.cross_entropy(p, actions) + weights[1] * F.mse_loss(v, returns)).backward()
    B = matrices(attachment, ("policy", "value"))
    assert set(B["policy"]) == {"trunk.1"}
    assert not torch.equal(B["policy"]["trunk.1"][:2], B["value"]["trunk.1"])
    for ours, expected in zip(gradients(model), by_hand(model, x, actions, returns, weights, B), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-14, rtol=1e-10)


@pytest.mark.parametrize("rule", [bpfree.FDFA(), bpfree.GrAPE(), bpfree.LMS()], ids=str)
def test_feedback_of_each_error_learns_in_whichever_order_they_are_computed(rule):
    found = []
    for value_first in (False, True):
        model, x, actions, returns = setting(value_first=value_first)
        attachment = bpfree.attach(model, rule, error_at=("policy", "value"), seed=2)
        for _ in range(3):
            model.zero_grad()
            p, v = model(x)
            (F.cross_entropy(p, actions) + F.mse_loss(v, returns)).backward()
        B = matrices(attachment, ("policy", "value"))
        assert all(B[name]["trunk.1"].any() for name in B)
        found.append([B["policy"]["trunk.1"], *B["value"].values(), *gradients(model)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-14, rtol=1e-10)


@pytest.mark.parametrize("pack", list(PACKED))
def test_every_tensor_that_the_model_returns_is_an_error(pack):
    model, x, actions, returns = setting(pack)
    names = ("0", "1") if pack == "tuple" else ("policy", "value")
    attachment = bpfree.attach(model, bpfree.DFA(feedback=bpfree.Feedback(shared=False)))
    output = model(x)
    assert type(output) is type(PACKED[pack](None, None))
    p, v = parts(output)
    (F.cross_entropy(p, actions) + F.mse_loss(v, returns)).backward()
    B = dict(zip(("policy", "value"), matrices(attachment, names).values(), strict=True))
    for ours, expected in zip(gradients(model), by_hand(model, x, actions, returns, (1, 1), B), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-14, rtol=1e-10)


class Hidden(nn.Module):
    """Returns logits, and what ``of`` makes of the last tap's output: no layer is between them."""

    def __init__(self, of):
        super().__init__()
        self.a, self.s, self.b, self.t = nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh()
        self.head, self.of = nn.Linear(8, 3), of

    def forward(self, x):
        h = self.t(self.b(self.s(self.a(x))))
        return self.head(h), self.of(h)


OF_TAP = {"the tap": lambda h: h, "twice the tap": lambda h: 2 * h}


@pytest.mark.parametrize(
    ("of", "verify"),
    # Without the first look nothing shows that what is made of a tap's output depends on the model.
    [("the tap", True), ("the tap", False), ("twice the tap", True)],
)
def test_an_error_at_a_named_taps_own_output(of, verify):
    """At the tap itself it is that tap's exact signal; behind it the tap gets it by feedback, as all others do."""
    torch.manual_seed(0)
    model, x, y = Hidden(OF_TAP[of]), torch.randn(10, 6), torch.randint(0, 3, (10,))
    attachment = bpfree.attach(model, bpfree.DFA(), taps=["s", "t"], verify=verify)
    logits, hidden = model(x)
    (F.cross_entropy(logits, y) + hidden.square().sum()).backward()
    B = matrices(attachment, ("0", "1"))
    with torch.no_grad():
        h = torch.tanh(model.a(x))
        k = torch.tanh(model.b(h))
        e, f = (model.head(k).softmax(1) - F.one_hot(y, 3)) / 10, 2 * OF_TAP[of](k)
        d = e @ B["0"]["t"] + (f if of == "the tap" else f @ B["1"]["t"])
        torch.testing.assert_close(model.b.weight.grad, (d * (1 - k * k)).T @ h)
        d = e @ B["0"]["s"] + f @ B["1"]["s"]
        torch.testing.assert_close(model.a.weight.grad, (d * (1 - h * h)).T @ x)
    assert ["1", "", "exact gradient", "b" if of == "the tap" else "nothing"] in attachment.mechanism.table()[1]


def test_an_output_that_is_a_tap_needs_no_loss():
    torch.manual_seed(0)
    model, x, y = Hidden(OF_TAP["the tap"]), torch.randn(10, 6), torch.randint(0, 3, (10,))
    attachment = bpfree.attach(model, bpfree.DFA(), taps=["s", "t"])
    F.cross_entropy(model(x)[0], y).backward()
    B = matrices(attachment, ("0", "1"))["0"]
    with torch.no_grad():
        h = torch.tanh(model.a(x))
        k = torch.tanh(model.b(h))
        e = (model.head(k).softmax(1) - F.one_hot(y, 3)) / 10
        torch.testing.assert_close(model.b.weight.grad, (e @ B["t"] * (1 - k * k)).T @ h)
        torch.testing.assert_close(model.a.weight.grad, (e @ B["s"] * (1 - h * h)).T @ x)


class Heads(nn.Module):
    """Two heads above the same taps, whose segments keep numbers for their backward pass."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8), nn.Tanh())
        self.policy, self.value = nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, x):
        h = self.trunk(x)
        return self.policy(h), self.value(h)


@pytest.mark.parametrize("options", [{}, {"error_at": ("policy", "value")}])
def test_threads_let_a_segment_wait_for_all_errors(options):
    found = []
    for threads in (1, 2):
        torch.manual_seed(0)
        model, x, y = Heads(), torch.randn(10, 6), torch.randint(0, 3, (10,))
        bpfree.attach(model, bpfree.DFA(), seed=0, threads=threads, **options)
        for _ in range(3):
            policy, value = model(x)
            (F.cross_entropy(policy, y) + value.square().mean()).backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("pack", PACKED)
def test_a_head_that_is_a_tap_itself_has_its_error(pack, frozen):
    # The policy head is a tap: what it hands on has no graph, and is returned beside a value that has one.
    model, x, actions, returns = setting(pack)
    model.trunk.requires_grad_(not frozen)
    attachment = bpfree.attach(model, bpfree.DFA(), taps=["trunk.1", "policy", "value.1"])
    p, v = parts(model(x))
    (F.cross_entropy(p, actions) + F.mse_loss(v, returns)).backward()
    names = ["0", "1"] if pack == "tuple" else ["policy", "value"]
    B = dict(zip(["policy", "value"], matrices(attachment, names).values(), strict=True))
    expected = by_hand(model, x, actions, returns, (1, 1), B)
    layers = model.trunk[0], model.policy, model.value[0], model.value[2]
    for layer, gradient in list(zip(layers, expected, strict=True))[frozen:]:
        torch.testing.assert_close(layer.weight.grad, gradient)


def test_losses_may_come_in_several_backward_calls():
    found = []
    for together in (True, False):
        model, x, actions, returns = setting()
        bpfree.attach(model, bpfree.DFA(), error_at=("policy", "value"))
        p, v = model(x)
        if together:
            (F.cross_entropy(p, actions) + F.mse_loss(v, returns)).backward()
        else:
            F.cross_entropy(p, actions).backward(retain_graph=True)
            F.mse_loss(v, returns).backward()
        found.append(gradients(model))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_targets_of_several_errors():
    model, x, actions, returns = setting()
    attachment = bpfree.attach(model, bpfree.DRTP(), error_at=("policy", "value"))
    attachment.targets({"policy": actions, "value": returns})
    p, v = model(x)
    (F.cross_entropy(p, actions) + F.mse_loss(v, returns)).backward()
    B = matrices(attachment, ("policy", "value"))
    with torch.no_grad():
        h = torch.tanh(model.trunk[0](x))
        y = F.one_hot(actions, 3).double()
        d = (y @ B["policy"]["trunk.1"] + returns @ B["value"]["trunk.1"]) / len(x)
        torch.testing.assert_close(model.trunk[0].weight.grad, (d * (1 - h * h)).T @ x)
    with pytest.raises(errors.TargetsError, match=r"no such error.*'value'"):
        attachment.targets({"valeu": returns})


def test_errors_at_several_depths():
    """An early exit: what lies between the two exits learns from the second alone."""

    class Exits(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.s, self.b, self.t = nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh()
            self.early, self.late = nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x):
            h = self.s(self.a(x))
            first = self.early(h)
            return first, self.late(self.t(self.b(h)))

    torch.manual_seed(0)
    model, x, y = Exits(), torch.randn(10, 6), torch.randint(0, 3, (10,))
    attachment = bpfree.attach(model, bpfree.DFA(), error_at=("early", "late"))
    early, late = model(x)
    (F.cross_entropy(early, y) + F.cross_entropy(late, y)).backward()
    B = matrices(attachment, ("early", "late"))
    assert (set(B["early"]), set(B["late"])) == ({"s"}, {"s", "t"})
    with torch.no_grad():
        h = torch.tanh(model.a(x))
        k = torch.tanh(model.b(h))
        e, f = ((head.softmax(1) - F.one_hot(y, 3)) / 10 for head in (early, late))
        torch.testing.assert_close(model.b.weight.grad, (f @ B["late"]["t"] * (1 - k * k)).T @ h)
        d = e @ B["early"]["s"] + f @ B["late"]["s"]
        torch.testing.assert_close(model.a.weight.grad, (d * (1 - h * h)).T @ x)


def test_a_state_with_several_errors_is_restored():
    model, x, actions, returns = setting()
    rule = bpfree.DKP()
    attachment = bpfree.attach(model, rule, error_at=("policy", "value"), example_inputs=x)
    optimizer = torch.optim.SGD(attachment.parameters(), lr=0.1)
    p, v = model(x)
    (F.cross_entropy(p, actions) + F.mse_loss(v, returns)).backward()
    optimizer.step()
    saved = attachment.state_dict()
    again = bpfree.attach(setting()[0], rule, error_at=("policy", "value"))
    again.load_state_dict(saved)
    for name in ("policy", "value"):
        assert torch.equal(again.feedbacks[name]["trunk.1"], attachment.feedbacks[name]["trunk.1"])
        assert attachment.feedbacks[name]["trunk.1"].any()


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("pack", [None, *PACKED])
@pytest.mark.parametrize(
    ("options", "says", "says_not"),
    [({"window": 2}, "window=2", "streaming"), ({"streaming": True}, "streaming=True", "window")],
    ids=["window", "streaming"],
)
def test_ways_that_serve_one_error_say_so(options, says, says_not, pack, verify):
    """The message names the option that was given, that one alone, and the errors."""
    model, x, *_ = setting(pack or "tuple")
    bpfree.attach(model, bpfree.DFA(), error_at=("policy", "value") if pack is None else None, verify=verify, **options)
    named = ("0", "1") if pack == "tuple" else ("policy", "value")
    with pytest.raises(errors.OptionError, match=f"{named[0]!r}, {named[1]!r}: these are several errors") as told:
        model(x)
    assert says in str(told.value)
    assert says_not not in str(told.value)


@dataclass
class Answer:
    """An output as transformers' models have it."""

    logits: torch.Tensor
    loss: torch.Tensor | None = None


ONE_IN = {
    "dict": lambda o: {"loss": None, "logits": o},
    "nested": lambda o: {"heads": [{"logits": o}]},
    "tuple": lambda o: (o.argmax(1), o),
    "dataclass": lambda o: Answer(o),
}
UNPACKED = {
    "dict": lambda o: o["logits"],
    "nested": lambda o: o["heads"][0]["logits"],
    "tuple": lambda o: o[1],
    "dataclass": lambda o: o.logits,
}


class Boxed(nn.Module):
    """Three segments; the output stands in a container, or is the output itself for None."""

    def __init__(self, pack):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
        self.pack = ONE_IN.get(pack, lambda o: o)

    def forward(self, x):
        return self.pack(self.body(x))


def gradients_of_two_steps(rule, pack, **options):
    torch.manual_seed(0)
    model, x, y = Boxed(pack), torch.randn(10, 6), torch.randint(0, 3, (10,))
    attachment = bpfree.attach(model, rule, seed=0, **options)
    for _ in range(2):
        if isinstance(rule, bpfree.DRTP):
            attachment.targets(y)
        F.cross_entropy(UNPACKED.get(pack, lambda o: o)(model(x)), y).backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("pack", ONE_IN)
@pytest.mark.parametrize("rule", [bpfree.DFA(), bpfree.FDFA(), bpfree.DKP(), bpfree.DRTP()], ids=str)
@pytest.mark.parametrize("options", [{}, {"window": 2}, {"streaming": True}, {"threads": 2}], ids=str)
def test_one_tensor_in_a_container_is_one_error(options, rule, pack, verify):
    """The model learns as one does that returns the tensor itself."""
    ours = gradients_of_two_steps(rule, pack, verify=verify, **options)
    expected = gradients_of_two_steps(rule, None, verify=verify, **options)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("pack", ONE_IN)
def test_a_window_over_all_segments_is_backpropagation_in_a_container_too(pack):
    ours = gradients_of_two_steps(bpfree.DFA(), pack, window=3)
    for one, other in zip(ours, gradients_of_two_steps(bpfree.BP(), pack), strict=True):
        torch.testing.assert_close(one, other)


def test_a_second_run_that_returns_something_else():
    class Forgetful(Boxed):
        def forward(self, x):
            output = self.body(x)
            return [output] if torch.is_grad_enabled() else {"logits": output}  # the first run has no graph

    model = Forgetful(None)
    bpfree.attach(model, bpfree.DFA(), streaming=True, verify=False)
    with pytest.raises(errors.StreamingError, match="the second run of the model returned nothing at 'logits'"):
        model(torch.randn(10, 6))


def test_a_loss_of_the_models_own_asks_for_the_place():
    class WithLoss(ActorCritic):
        def forward(self, x, actions):
            logits = self.policy(self.trunk(x))
            return {"loss": F.cross_entropy(logits, actions), "logits": logits}

    torch.manual_seed(0)
    model = WithLoss(None)
    bpfree.attach(model, bpfree.DFA())
    with pytest.raises(errors.ErrorPlacementError, match=r"returns a loss.*'logits'.*error_at"):
        model(torch.randn(10, 6), torch.randint(0, 3, (10,)))


@pytest.mark.parametrize("names", [(), ("policy", "policy"), ("policy", "valeu")])
def test_names_that_mean_nothing(names):
    with pytest.raises(errors.ErrorPlacementError, match="error_at"):
        bpfree.attach(setting()[0], bpfree.DFA(), error_at=names)
