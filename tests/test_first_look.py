"""The first look at a model: it leaves weights that the model writes to as they were, and takes little memory."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

import bpfree
from bpfree.lab.time_and_memory import peak_bytes
from bpfree.pipeline.versions import Versions
from bpfree.rerun.own_graphs import own_graphs
from bpfree.rerun.weights import weights_put_back

WRITES = {
    "in place": lambda layer: layer.weight.mul_(0.5),
    "by .data": lambda layer: layer.weight.data.clamp_(-0.01, 0.01),
    "into a view": lambda layer: layer.weight.view(-1)[:3].zero_(),
    "into a row of .data": lambda layer: layer.weight.data[0].fill_(7),
    "by an out= argument": lambda layer: torch.neg(layer.weight.detach(), out=layer.weight.data),
    "with others": lambda layer: torch._foreach_mul_([layer.weight.data, layer.bias.data], 2.0),
    "a new .data": lambda layer: setattr(layer.weight, "data", torch.zeros_like(layer.weight)),
    "a new parameter": lambda layer: setattr(layer, "weight", nn.Parameter(layer.weight * 0.5)),
}


class Writing(nn.Module):
    """A model that writes to a weight in its own forward pass."""

    def __init__(self, write) -> None:
        super().__init__()
        self.first, self.act, self.last, self.write = nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3), write

    def forward(self, x):
        with torch.no_grad():
            self.write(self.last)
        return self.last(self.act(self.first(x)))


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_weights_that_a_pass_writes_to_are_put_back(write):
    model = Writing(write)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with weights_put_back(model) as watched, watched:
        model(torch.randn(4, 6))
        assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("rule", [bpfree.DFA(), bpfree.ForwardGradient("weights")], ids=str)
def test_a_first_step_writes_as_often_as_the_model_does(rule, write):
    """With the checks a model's own writes are done once a pass, as without them."""
    found = []
    for verify in (True, False):
        torch.manual_seed(0)
        model = Writing(write)
        bpfree.attach(model, rule, seed=1, verify=verify)
        F.cross_entropy(model(torch.ones(4, 6)), torch.tensor([0, 1, 2, 0])).backward()
        found.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_weights_that_no_pass_writes_to_are_not_copied():
    model = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512))

    def run() -> None:
        with weights_put_back(model) as watched, watched, torch.no_grad():
            model(torch.randn(2, 512))

    assert peak_bytes(run) < model[0].weight.nbytes


@pytest.mark.parametrize("rule", [bpfree.DFA(), bpfree.GrAPE(), bpfree.FDFA()], ids=str)
@pytest.mark.parametrize(("width", "batch"), [(256, 64), (64, 512)])
def test_a_first_step_takes_little_more_memory_than_a_step(rule, width, batch):
    """Of wide layers the gradients take most of it, of large batches the activations."""
    torch.manual_seed(0)
    layers = [part for _ in range(8) for part in (nn.Linear(width, width), nn.ReLU())]
    model, x, y = nn.Sequential(*layers, nn.Linear(width, 10)), torch.randn(batch, width), torch.arange(batch) % 10
    bpfree.attach(model, rule)

    def step() -> None:
        F.cross_entropy(model(x), y).backward()

    peaks = []
    for _ in range(3):
        model.zero_grad(set_to_none=True)
        peaks.append(peak_bytes(step))
    assert peaks[0] <= 1.3 * peaks[-1]


def counted():
    """What a checkpoint around the model does: it counts what is saved. Without one, such graphs are as any other."""
    return saved_tensors_hooks(lambda saved: pytest.fail("saved within the checkpoint"), lambda saved: saved)


def test_graphs_of_the_librarys_own_are_dropped_where_no_gradient_comes():
    """An operation that saves its own output (tanh) must not hold itself."""
    x = torch.randn(100_000, requires_grad=True)

    def many() -> None:
        for _ in range(20):
            with counted(), own_graphs():
                x.tanh()

    assert peak_bytes(many) < 4 * x.nbytes


def test_graphs_of_the_librarys_own_have_second_derivatives():
    """A model that differentiates in its own forward pass asks for them there."""
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    with counted(), own_graphs():
        (slope,) = torch.autograd.grad((x.tanh() * x).exp().sum(), x, create_graph=True)
        (found,) = torch.autograd.grad(slope.square().sum(), x)
    (slope,) = torch.autograd.grad((x.tanh() * x).exp().sum(), x, create_graph=True)
    (expected,) = torch.autograd.grad(slope.square().sum(), x)
    assert torch.equal(found, expected)


def test_a_pipelines_pass_without_a_backward_pass_keeps_no_graph():
    stage, x = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), torch.randn(20_000, 4)
    versions = Versions(stage)

    def many() -> None:
        for _ in range(20):
            with versions.recorded():
                stage(x)

    assert peak_bytes(many) < 10 * x.nbytes


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("options", [{}, {"threads": 2}, {"streaming": True}], ids=str)
@pytest.mark.parametrize(
    ("between", "is_told"),
    [(nn.Identity(), True), (nn.Softmax(1), True), (nn.Linear(8, 8), False), (nn.PReLU(), False)],
)
def test_backward_hooks_on_a_tap_right_behind_another_tap_are_told(between, is_told, options):
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), copy.deepcopy(between), nn.Tanh(), nn.Linear(8, 3))
    heard = []
    for tap in (model[1], model[3]):
        tap.register_full_backward_hook(lambda module, inputs, outputs: heard.append(module))
    bpfree.attach(model, bpfree.DFA(), taps=["1", "3"], **options)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        output = model(torch.randn(5, 6))
    assert any("backward hooks on '3' do not see" in str(warning.message) for warning in told) == is_told
    output.square().mean().backward()
    assert sorted(heard, key=list(model).index) == ([model[1]] if is_told else [model[1], model[3]])
