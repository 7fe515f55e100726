"""NaN and infinity in errors, targets and inputs: told by name under every rule, before any weight learns from them."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bpfree
from bpfree import finite
from bpfree.errors import NonFiniteError

RULES = [
    bpfree.BP(),
    bpfree.Shallow(),
    bpfree.DFA(),
    bpfree.DFA(error="sign"),
    bpfree.DRTP(),
    bpfree.DKP(),
    bpfree.GrAPE(),
    bpfree.FDFA(),
    bpfree.LMS(),
    bpfree.FA(),
    bpfree.SignSymmetry("uniform"),
    bpfree.SignSymmetry("batch"),
    bpfree.KolenPollack(),
    bpfree.WeightMirror(),
    bpfree.PEPITA(),
    bpfree.ForwardGradient("weights"),
    bpfree.ForwardGradient("activations"),
]
LAYERWISE = [bpfree.BP(), bpfree.FA(), bpfree.KolenPollack()]
DIRECT = [bpfree.DFA(), bpfree.DRTP(), bpfree.DKP(), bpfree.LMS()]
OPTIONS = [{"streaming": True}, {"window": 2}, {"threads": 2}]
N, C = 5, 4


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, C))


def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, 6, generator=generator)
    return x, torch.randn(N, 6, generator=generator)[:, :C].softmax(1)


def cross_entropy(output, y):
    return F.cross_entropy(output, y)


def spoilt_input(x, y):
    x[1, 2] = math.nan
    return x, y, cross_entropy


def spoilt_target(x, y):
    y[3, 0] = math.inf
    return x, y, cross_entropy


def diverging_loss(x, y):
    return x, y, lambda output, y: cross_entropy(output, y) * math.inf


def masked_logarithm(x, y):
    """Of zero, which torch.where() hides: the loss is finite, and its gradient is 0 * infinity."""
    zero = torch.zeros(())
    return x, y, lambda output, y: cross_entropy(output, y) + torch.where(zero > 0, (output * zero).sum().log(), 0.0)


SPOILT = [spoilt_input, spoilt_target, diverging_loss, masked_logarithm]


def step(attachment, x, y, loss=cross_entropy):
    attachment.model.zero_grad()
    attachment.targets(y)
    loss(attachment.model(x), y).backward()


def assert_refused(attachment, spoil):
    """It is told, no parameter has a gradient, and what the rule keeps is as it was."""
    # Counters and the steps of a mirror do not look at the data.
    names = [] if isinstance(attachment.rule, bpfree.WeightMirror) else list(attachment.feedback.state_dict())
    kept = {name: copy.deepcopy(attachment.feedback.state_dict()[name]) for name in names if "passes" not in name}
    with pytest.raises(NonFiniteError, match="diverging learning rate"):
        step(attachment, *spoil(*data()))
    assert all(parameter.grad is None for parameter in attachment.model.parameters())
    assert all(parameter.grad is None for parameter in attachment.parameters())
    for name, before in kept.items():
        assert torch.equal(attachment.feedback.state_dict()[name], before)


@pytest.mark.parametrize("spoil", SPOILT)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_every_rule_tells_it_before_any_weight_learns(rule, spoil):
    attachment = bpfree.attach(mlp(), rule)
    for _ in range(2):
        step(attachment, *data())
    for parameter in attachment.parameters():
        parameter.grad = None
    assert_refused(attachment, spoil)
    step(attachment, *data())  # the next step is unharmed
    assert all(bool(p.grad.isfinite().all()) for p in attachment.model.parameters() if p.grad is not None)


WAYS = [
    (rule, options)
    for rule in DIRECT
    for options in OPTIONS
    if not (isinstance(rule, bpfree.DRTP) and "streaming" in options)
]
"""Without the one that learns in the forward pass: see the next test."""


@pytest.mark.parametrize("spoil", SPOILT)
@pytest.mark.parametrize(("rule", "options"), WAYS, ids=str)
def test_every_way_of_a_direct_rule_does(rule, options, spoil):
    attachment = bpfree.attach(mlp(), rule, **options)
    for _ in range(2):
        step(attachment, *data())
    for parameter in attachment.parameters():
        parameter.grad = None
    assert_refused(attachment, spoil)


@pytest.mark.parametrize("spoil", [spoilt_input, spoilt_target])
def test_a_rule_that_learns_in_its_forward_pass_does(spoil):
    attachment = bpfree.attach(mlp(), bpfree.DRTP(), streaming=True)
    for _ in range(2):
        step(attachment, *data())
    assert_refused(attachment, spoil)


@pytest.mark.parametrize("spoil", [diverging_loss, masked_logarithm])
def test_what_has_learned_in_the_forward_pass_has_learned_from_numbers(spoil):
    """The error comes last and concerns the head alone: it gets nothing, and the taps what their targets say."""
    attachment = bpfree.attach(mlp(), bpfree.DRTP(), streaming=True)
    for _ in range(2):
        step(attachment, *data())
    expected = [parameter.grad.clone() for parameter in attachment.model[:4].parameters()]
    with pytest.raises(NonFiniteError, match="the error dL/do"):
        step(attachment, *spoil(*data()))
    assert all(parameter.grad is None for parameter in attachment.model[4].parameters())
    for parameter, gradient in zip(attachment.model[:4].parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.parametrize("spoil", SPOILT)
@pytest.mark.parametrize("rule", [bpfree.BP(), bpfree.Shallow(), bpfree.DFA(), bpfree.FA()], ids=str)
def test_what_lies_above_the_error_is_no_exception(rule, spoil):
    attachment = bpfree.attach(mlp(), rule, error_at="2", taps=["1"])
    assert_refused(attachment, spoil)


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.heads = mlp()[:4], nn.ModuleList(nn.Linear(8, C) for _ in range(2))

    def forward(self, x):
        h = self.body(x)
        return {"first": self.heads[0](h), "further": (self.heads[1](h),)}


@pytest.mark.parametrize("spoilt", [0, 1])
@pytest.mark.parametrize("rule", [bpfree.DFA(), *LAYERWISE], ids=str)
def test_each_of_several_errors_is_looked_at(rule, spoilt):
    attachment, (x, y) = bpfree.attach(TwoHeads(), rule), data()
    weights = [1.0, 1.0]
    for weights[spoilt] in (1.0, math.inf):
        outputs = attachment.model(x)
        losses = [cross_entropy(output, y) for output in (outputs["first"], *outputs["further"])]
        loss = losses[0] * weights[0] + losses[1] * weights[1]
        if weights[spoilt] == 1.0:
            loss.backward()
        else:
            with pytest.raises(NonFiniteError):
                loss.backward()


@pytest.mark.parametrize("rule", [bpfree.DFA(), *LAYERWISE], ids=str)
def test_targets_that_no_rule_reads_and_no_loss_uses_may_be_anything(rule):
    """NaN often marks what is missing."""
    attachment, (x, y) = bpfree.attach(mlp(), rule), data()
    y[2] = math.nan
    there = torch.arange(N) != 2
    step(attachment, x, y, lambda output, y: cross_entropy(output[there], y[there]))
    assert all(bool(parameter.grad.isfinite().all()) for parameter in attachment.model.parameters())


@pytest.mark.parametrize("rule", [bpfree.DFA(), *LAYERWISE], ids=str)
def test_a_sum_that_overflows_is_no_infinity(rule):
    layer = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Tanh(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        layer[2].weight.zero_()
        layer[0].weight.zero_()
    bpfree.attach(layer, rule)
    layer(torch.zeros(1, 2)).backward(torch.full((1, 2), 3e38))
    assert torch.equal(layer[2].weight.grad, torch.zeros(2, 2))


@pytest.mark.parametrize("rule", [bpfree.DFA(), *LAYERWISE], ids=str)
def test_float16_overflows_by_design(rule):
    """GradScaler finds the infinity in the gradients, skips the step, and halves its scale."""
    model = mlp()
    bpfree.attach(model, rule)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = copy.deepcopy(model.state_dict())
    x, y = data()
    with torch.autocast("cpu", dtype=torch.float16):
        output = model(x)
    assert output.dtype == torch.float16
    scaler.scale(cross_entropy(output.float(), y)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**23
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.fixture
def accelerator(monkeypatch):
    """The way of numbers that a question would stall, on this machine."""
    monkeypatch.setattr(finite, "_is_at_hand", lambda numbers: False)


@pytest.mark.usefixtures("accelerator")
@pytest.mark.parametrize("spoil", SPOILT)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_on_an_accelerator_it_is_told_when_the_backward_pass_ends(rule, spoil):
    """Before it returns, and so before an optimizer's step."""
    attachment = bpfree.attach(mlp(), rule)
    for _ in range(2):
        step(attachment, *data())
    with pytest.raises(NonFiniteError, match=r"Gradients were made of it.*zero_grad"):
        step(attachment, *spoil(*data()))
    step(attachment, *data())


@pytest.mark.usefixtures("accelerator")
def test_on_an_accelerator_every_micro_batch_is_looked_at():
    attachment = bpfree.attach(mlp(), bpfree.BP())
    x, y, _ = spoilt_input(*data())
    losses = [cross_entropy(attachment.model(rows), targets) for rows, targets in zip(x, y, strict=True)]
    for number, loss in enumerate(losses):
        if number == 1:
            with pytest.raises(NonFiniteError):
                loss.backward()
        else:
            loss.backward()


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_paused_rule_is_plain_autograd(rule):
    attachment = bpfree.attach(mlp(), rule)
    with attachment.paused():
        step(attachment, *spoilt_input(*data()))
    assert all(bool(parameter.grad.isnan().any()) for parameter in attachment.model.parameters())


def test_backpropagation_keeps_what_torch_does_with_it():
    """Second derivatives and per-sample gradients, whose numbers have no single value to look at."""
    plain, model, (x, y) = mlp(), mlp(), data()
    bpfree.attach(model, bpfree.BP())

    def penalty(of):
        given = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(of(given).square().sum(), given, create_graph=True)
        slope.square().sum().backward()
        return [parameter.grad for parameter in of.parameters() if parameter.grad is not None]

    for ours, theirs in zip(penalty(model), penalty(plain), strict=True):
        assert torch.equal(ours, theirs)

    def loss(parameters, row, target):
        return cross_entropy(torch.func.functional_call(model, parameters, (row[None],)), target[None])

    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(weights, x, y)
    for number in range(N):
        plain.zero_grad()
        cross_entropy(plain(x[number : number + 1]), y[number : number + 1]).backward()
        torch.testing.assert_close(found["0.weight"][number], plain[0].weight.grad)


def test_the_hooks_go_with_the_rule():
    model = mlp()
    with bpfree.attach(model, bpfree.BP(), error_at="2"):
        pass
    x, y, loss = spoilt_input(*data())
    loss(model(x), y).backward()
    assert not any(module._forward_hooks for module in model.modules())
