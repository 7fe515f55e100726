"""Attached models are saved, copied, averaged, exported and sent elsewhere, before and after their first pass."""

import copy
import io
import pickle
import warnings
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import bpfree
from bpfree.feedback.lazy_buffers import LazyBuffers

RULES = [
    bpfree.BP(),
    bpfree.Shallow(),
    bpfree.DFA(),
    bpfree.DFA(feedback=bpfree.Feedback(shared=False)),
    bpfree.DRTP(),
    bpfree.FA(),
    bpfree.SignSymmetry("batch"),
    bpfree.GrAPE(),
    bpfree.FDFA(every=2),
    bpfree.LMS(),
    bpfree.LMS(perturbations="hadamard"),
    bpfree.DKP(),
    bpfree.KolenPollack(),
    bpfree.WeightMirror(),
    bpfree.PEPITA(),
    bpfree.ForwardGradient("activations"),
    bpfree.ForwardGradient("weights"),
]
WAYS = [
    {"streaming": True},
    {"threads": 2},
    {"window": 2},
    {"alternate": 2},
    {"within": bpfree.KolenPollack(), "verify": False},
]
EACH = [(rule, {}) for rule in RULES] + [(bpfree.DFA(), way) for way in WAYS]
each = pytest.mark.parametrize(("rule", "options"), EACH, ids=str)


def network():
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3))


def batch(number=0):
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(number))


def step(model, attachment, number=0):
    """One step of plain descent with each of the rule's own updates."""
    attachment.targets(torch.tensor([0, 1, 2, 0]))
    parameters = [*model.parameters(), *attachment.parameters()]
    for parameter in parameters:
        parameter.grad = None
    model(batch(number)).square().sum().backward()
    with torch.no_grad():
        for parameter in parameters:
            if parameter.grad is not None:
                parameter -= 0.01 * parameter.grad


def tensors(model, attachment):
    return {**model.state_dict(prefix="model."), **attachment.state_dict(prefix="attachment.")}


def saved(thing):
    """Through ``torch.save``, which uses the oldest protocol of pickle."""
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@each
@pytest.mark.parametrize(
    ("way", "when"),
    [(saved, "before"), (saved, "after"), (copy.deepcopy, "between forward and backward")],
    ids=["saved before", "saved after", "copied between"],
)
def test_a_saved_or_copied_model_trains_on_as_the_first(rule, options, way, when):
    model = network()
    attachment = bpfree.attach(model, rule, seed=3, **options)
    if when != "before":
        step(model, attachment)
    loss = None
    if when == "between forward and backward":
        attachment.targets(torch.tensor([0, 1, 2, 0]))
        loss = model(batch(1)).square().sum()
    twin, twin_attachment = way((model, attachment))
    if loss is not None:  # the pass under way is the original's alone
        numbers = {name: value.clone() for name, value in tensors(twin, twin_attachment).items()}
        loss.backward()
        for name, value in tensors(twin, twin_attachment).items():
            assert torch.equal(value, numbers[name])
        return
    for number in range(2):
        torch.manual_seed(number)
        step(model, attachment, number)
        torch.manual_seed(number)
        step(twin, twin_attachment, number)
    ours, theirs = tensors(model, attachment), tensors(twin, twin_attachment)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


@each
@pytest.mark.parametrize(("use_buffers", "attachment_first"), [(False, False), (True, True)])
def test_averages_begun_before_the_first_pass(rule, options, use_buffers, attachment_first):
    model = network()
    attachment = bpfree.attach(model, rule, **options)
    both = nn.ModuleList([attachment, model] if attachment_first else [model, attachment])
    average = AveragedModel(both, use_buffers=use_buffers)
    parameters = []
    for number in range(3):
        step(model, attachment, number)
        average.update_parameters(both)
        parameters.append([p.detach().clone() for p in both.parameters()])
    for found, *seen in zip(average.module.parameters(), *parameters, strict=True):
        torch.testing.assert_close(found.detach(), sum(seen) / 3)
    ours, theirs = both.state_dict(), average.module.state_dict()
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        assert value.shape == theirs[name].shape, name
    if not use_buffers:
        for found, wanted in zip(average.module.buffers(), both.buffers(), strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("rule", [bpfree.DFA(), bpfree.GrAPE(), bpfree.LMS(), bpfree.KolenPollack()], ids=str)
def test_averages_by_loops_of_ones_own(rule):
    model = network()
    attachment = bpfree.attach(model, rule)
    both = nn.ModuleList([model, attachment])
    ema, wanted = copy.deepcopy(both), None
    for number in range(3):
        step(model, attachment, number)
        now = {name: value.clone() for name, value in both.state_dict().items() if value.is_floating_point()}
        for name, value in ema.state_dict().items():
            if value.is_floating_point():
                value.copy_(0.9 * value + 0.1 * now[name] if number else now[name])
        wanted = now if wanted is None else {name: 0.9 * wanted[name] + 0.1 * value for name, value in now.items()}
    found = {name: value for name, value in ema.state_dict().items() if value.is_floating_point()}
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)


def test_an_exponential_average_goes_on_after_the_copy_was_loaded():
    model = network()
    attachment = bpfree.attach(model, bpfree.DKP())
    both = nn.ModuleList([model, attachment])
    average = AveragedModel(both, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=False)
    step(model, attachment)
    average.update_parameters(both)
    state = copy.deepcopy(average.state_dict())
    fresh = network()
    fresh_both = nn.ModuleList([fresh, bpfree.attach(fresh, bpfree.DKP())])
    other = AveragedModel(fresh_both, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=False)
    other.load_state_dict(state)
    for name, value in other.state_dict().items():
        assert torch.equal(value, state[name])


def test_a_copy_that_has_grown_draws_for_itself_when_its_shapes_are_others():
    model = network()
    attachment = bpfree.attach(model, bpfree.DFA(), seed=3)
    twin, twin_attachment = copy.deepcopy((model, attachment))
    twin[3] = nn.Linear(16, 5)
    step(model, attachment)
    twin(batch()).square().sum().backward()
    alone = network()
    alone[3] = nn.Linear(16, 5)
    expected = bpfree.attach(alone, bpfree.DFA(), seed=3, example_inputs=batch())
    assert torch.equal(twin_attachment.feedback["shared"], expected.feedback["shared"])
    assert attachment.feedback["shared"].shape == (3, 16)


def test_late_buffers_grow_with_what_they_are_a_copy_of():
    first = LazyBuffers(seed=1)
    second = copy.deepcopy(first)
    third = copy.deepcopy(second)
    loaded = pickle.loads(pickle.dumps(first))
    first["a.b"] = torch.ones(2)
    first.reserve("p", torch.empty(0), 2)
    assert first.count("steps") == 1
    for twin in (second, third):
        assert torch.equal(dict(twin.named_buffers())["a/b"], torch.ones(2))
        assert "a.b" not in twin  # it has not drawn this itself
        assert twin.numbers == {"seed": 1, "steps": 0}
    assert loaded.state_dict().keys() == {"seed"}
    second["a.b"] = torch.zeros(2)
    assert torch.equal(second["a.b"], torch.ones(2))
    third["a.b"] = torch.zeros(3)
    assert torch.equal(third["a.b"], torch.zeros(3))
    assert torch.equal(first["a.b"], torch.ones(2))
    first["a.b"] = torch.full((2,), 5.0)
    assert torch.equal(second["a.b"], torch.ones(2))


@each
def test_export_gives_the_plain_model(rule, options):
    model, x = network().eval(), batch()
    expected = model(x).detach()
    attachment = bpfree.attach(model, rule, example_inputs=x, **options)
    before = {name: value.clone() for name, value in attachment.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        program = torch.export.export(model, (x,))
        traced = torch.jit.trace(model, x)
    for exported in (program.module(), traced):
        torch.testing.assert_close(exported(x), expected)
    assert all(torch.equal(value, before[name]) for name, value in attachment.state_dict().items())
    # The exported model trains by backpropagation, the attached one by its rule.
    exact = torch.autograd.grad(traced(x).square().sum(), traced.parameters())
    with attachment.paused():
        wanted = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    for ours, theirs in zip(exact, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("rule", [bpfree.GrAPE(), bpfree.WeightMirror(), bpfree.DRTP()], ids=str)
def test_strict_export_gives_the_plain_model(rule):
    model, x = network().eval(), batch()
    expected = model(x).detach()
    bpfree.attach(model, rule, example_inputs=x)
    program = torch.export.export(model, (x,), strict=True)
    torch.testing.assert_close(program.module()(x), expected)


@pytest.mark.parametrize("rule", [bpfree.GrAPE(), bpfree.KolenPollack(), bpfree.PEPITA()], ids=str)
def test_another_process_is_sent_what_trains_there(rule):
    model = network()
    attachment = bpfree.attach(model, rule, seed=2)
    step(model, attachment)
    # What a process that is spawned reads; its tensors are in memory that both share.
    twin, twin_attachment = copy.deepcopy(pickle.loads(ForkingPickler.dumps((model, attachment))))
    step(model, attachment)
    step(twin, twin_attachment)
    ours, theirs = tensors(model, attachment), tensors(twin, twin_attachment)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value)
