"""Finding attachments, taking them off, and what two models may have in common."""

import copy
import gc
import pickle
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import bpfree
from bpfree import errors

RULES = [bpfree.BP(), bpfree.DFA(), bpfree.FA(), bpfree.GrAPE(), bpfree.DKP(), bpfree.PEPITA()]
by_name = pytest.mark.parametrize("rule", RULES, ids=str)


def net():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def hooks(model):
    return [hook for part in model.modules() for hook in (*part._forward_hooks, *part._forward_pre_hooks)]


def gradients(model, x):
    for parameter in model.parameters():
        parameter.grad = None
    model(x).square().sum().backward()
    return [parameter.grad for parameter in model.parameters()]


# -- finding -----------------------------------------------------------------------------------------------------------


@by_name
def test_an_attachment_is_found_from_every_side(rule):
    body = net()
    holder = nn.ModuleDict({"body": body, "head": nn.Linear(3, 3)})
    assert bpfree.attachments(holder) == []
    attachment = bpfree.attach(body, rule)
    for model in (body, holder, body[0], body[1], attachment.model):
        (found,) = bpfree.attachments(model)
        assert found is attachment
    assert bpfree.attachments(holder["head"]) == bpfree.attachments(net()) == []
    attachment.detach()
    assert bpfree.attachments(holder) == []


def test_several_attachments_come_in_the_order_of_their_models():
    model = nn.Sequential(net(), nn.ReLU(), net(), net())
    last = bpfree.attach(model[3], bpfree.FA())
    first = bpfree.attach(model[0], bpfree.DFA())
    assert bpfree.attachments(model) == [first, last]
    assert bpfree.attachments(model[2]) == []
    bpfree.detach_all(model)
    assert hooks(model) == bpfree.attachments(model) == []
    bpfree.detach_all(model)  # a second time does nothing


@pytest.mark.parametrize(
    "options", [{}, {"within": bpfree.KolenPollack()}, {"streaming": True}, {"window": 2}], ids=str
)
def test_a_lost_attachment_is_found_with_all_it_has_learned(options):
    model, x = net(), torch.randn(5, 6)
    attachment = bpfree.attach(model, bpfree.DFA(), seed=4, **options)
    attachment.note = "mine"
    expected = [grad.clone() for grad in gradients(model, x)]
    state, text = attachment.state_dict(), str(attachment)
    del attachment
    gc.collect()
    for ours, theirs in zip(gradients(model, x), expected, strict=True):
        assert torch.equal(ours, theirs)
    (found,) = bpfree.attachments(model)
    assert found.note == "mine"
    assert str(found) == text
    assert all(torch.equal(found.state_dict()[name], value) for name, value in state.items())
    assert bpfree.attachments(model) == [found]  # one object as long as it is held
    found.detach()
    assert hooks(model) == []


@by_name
def test_a_model_and_its_attachment_are_collected_together(rule):
    model = net()
    attachment = bpfree.attach(model, rule)
    attachment.targets(torch.tensor([0, 1, 2, 0]))
    model(torch.randn(4, 6)).sum().backward()
    watched = [weakref.ref(thing) for thing in (model, attachment, attachment.mechanism, attachment.feedback)]
    del model
    gc.collect()
    assert watched[1]().model is not None  # an attachment holds its model
    del attachment
    gc.collect()
    assert [ref() for ref in watched] == [None] * 4


@pytest.mark.parametrize("rule", RULES[1:], ids=str)
@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_a_copied_model_has_an_attachment_that_is_found(rule, way):
    model = net()
    attachment = bpfree.attach(model, rule)
    twin = way(model)
    (found,) = bpfree.attachments(twin)
    assert found is not attachment
    assert found.model is twin
    found.detach()
    assert hooks(twin) == []
    assert hooks(model) != []
    assert bpfree.attachments(model) == [attachment]


def test_the_copy_of_model_and_attachment_is_what_is_found():
    model = net()
    for before in (True, False):
        twin, attached = copy.deepcopy((model, bpfree.attach(model, bpfree.DFA())))
        assert bpfree.attachments(twin) == [attached]
        loaded, loaded_attachment = pickle.loads(pickle.dumps((twin, attached)))
        assert bpfree.attachments(loaded) == [loaded_attachment]
        for each in (model, twin, loaded):
            bpfree.detach_all(each)
            assert hooks(each) == []
        assert (attached._attached, loaded_attachment._attached) == (False, False)
        if before:
            model(torch.randn(2, 6)).sum().backward()


# -- attaching again ---------------------------------------------------------------------------------------------------


def test_a_held_attachment_is_refused_and_both_ways_out_work():
    model = net()
    for way_out in (lambda: bpfree.detach_all(model), lambda: bpfree.attachments(model)[0].detach()):
        held = bpfree.attach(model, bpfree.DFA())
        with pytest.raises(errors.AlreadyAttachedError, match=r"the model has DFA\(\) already"):
            bpfree.attach(model, bpfree.FA())
        way_out()
        bpfree.attach(model, bpfree.FA()).detach()
        held.detach()


def test_a_lost_attachment_gives_way_and_it_is_told():
    model, x = net(), torch.randn(5, 6)
    bpfree.attach(model, bpfree.FA())
    with pytest.warns(bpfree.BpfreeWarning, match=r"the model had FA\(\) from an attachment that nobody holds") as told:
        again = bpfree.attach(model, bpfree.DFA(), seed=2)
    assert told[0].filename == __file__
    assert bpfree.attachments(model) == [again]
    fresh = copy.deepcopy(model)
    bpfree.detach_all(fresh)
    with bpfree.attach(fresh, bpfree.DFA(), seed=2):
        for ours, theirs in zip(gradients(model, x), gradients(fresh, x), strict=True):
            assert torch.equal(ours, theirs)


def test_an_attempt_that_fails_leaves_a_lost_attachment_where_it_is():
    model = net()
    bpfree.attach(model, bpfree.DFA())
    before = len(hooks(model))
    with pytest.raises(errors.TapSelectionError):
        bpfree.attach(model, bpfree.DFA(), taps="nowhere")
    assert len(hooks(model)) == before
    assert str(bpfree.attachments(model)[0].rule) == "DFA()"


# -- what models may share ---------------------------------------------------------------------------------------------


class Neuron(nn.Module):
    def __init__(self, surrogate):
        super().__init__()
        self.surrogate = surrogate

    def forward(self, x):
        return torch.tanh(x)


@by_name
def test_what_has_no_weights_and_is_no_tap_may_be_shared(rule):
    surrogate, dropout, flatten = nn.Sigmoid(), nn.Dropout(0.5), nn.Flatten()

    def shared():
        return nn.Sequential(flatten, nn.Linear(6, 8), Neuron(surrogate), dropout, nn.Linear(8, 3)).eval()

    first, second, x = shared(), shared(), torch.randn(4, 6)
    attachments = [bpfree.attach(model, rule, taps=Neuron) for model in (first, second)]
    for attachment, model in zip(attachments, (first, second), strict=True):
        attachment.targets(torch.tensor([0, 1, 2, 0]))
        if not isinstance(rule, bpfree.PEPITA):
            assert all(grad is not None for grad in gradients(model, x))
        assert bpfree.attachments(model) == [attachment]
    attachments[0].detach()
    assert bpfree.attachments(second) == [attachments[1]]


@pytest.mark.parametrize(
    ("shared", "taps", "name"),
    [
        (nn.Linear(6, 6), None, "'0'"),
        (nn.Tanh(), None, "'0'"),
        (nn.Sequential(nn.Linear(6, 6), nn.ReLU()), "1", "'0.0'"),
        (nn.BatchNorm1d(6), None, "'0'"),
        (nn.PReLU(), "1", "'0'"),
    ],
    ids=str,
)
def test_shared_layers_and_taps_are_refused_by_name(shared, taps, name):
    first, second = (nn.Sequential(shared, nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)) for _ in range(2))
    attachment = bpfree.attach(first, bpfree.DFA(), taps=taps)
    with pytest.raises(errors.AlreadyAttachedError, match=f"the model has {name} in common with one that has DFA"):
        bpfree.attach(second, bpfree.FA())
    assert hooks(second[1]) == hooks(second[3]) == []
    bpfree.detach_all(second)  # the remedy
    assert not attachment._attached
    bpfree.attach(second, bpfree.FA())


def test_a_shared_module_that_is_a_tap_of_the_new_model_alone_is_refused():
    act = nn.Tanh()
    first = nn.Sequential(nn.Linear(6, 6), act, nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    second = nn.Sequential(nn.Linear(6, 6), act, nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    attachment = bpfree.attach(first, bpfree.DFA(), taps="3")
    with pytest.raises(errors.AlreadyAttachedError, match=r"the tap '1' is also part of another model.*DFA\(\)"):
        bpfree.attach(second, bpfree.DFA())
    bpfree.attach(second, bpfree.DFA(), taps="3").detach()  # the remedies
    attachment.detach()
    bpfree.attach(second, bpfree.DFA())


@pytest.mark.parametrize("part", ["0", "1", "1.0"])
def test_parts_and_wholes_of_attached_models_are_refused(part):
    model = nn.Sequential(net(), nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)))
    for first, second in ((model, model.get_submodule(part)), (model.get_submodule(part), model)):
        attachment = bpfree.attach(first, bpfree.BP())
        with pytest.raises(errors.AlreadyAttachedError, match=r"in common with one that has BP\(\)"):
            bpfree.attach(second, bpfree.BP())
        attachment.detach()


def test_heads_that_came_later_are_found_too():
    model = net()
    attachment = bpfree.attach(model, bpfree.DFA())
    model[2] = nn.Linear(8, 5)
    assert bpfree.attachments(model[2]) == [attachment]
    with pytest.raises(errors.AlreadyAttachedError):
        bpfree.attach(nn.Sequential(model[2]), bpfree.BP())


def test_models_are_attached_in_several_threads():
    def work(_):
        for _ in range(150):
            model = net()
            attachment = bpfree.attach(model, bpfree.DFA())
            assert bpfree.attachments(model) == [attachment]
            attachment.detach()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # seconds: threads take turns in the middle of whatever they do
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
    finally:
        sys.setswitchinterval(interval)
