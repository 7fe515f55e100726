"""Kolen-Pollack learning: B takes W's steps, so that W - B shrinks by the weight decay alone."""

import copy
import io
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations, prune

import bpfree
from support.by_hand import TanhMLP, assert_same, softmax_error
from support.models import CLASSES, MODELS, batch, mlp, train
from support.rule_contract import Subject, assert_equal, assert_rule_serves, hooks
from support.two_ranks import run_on_two_ranks

by_model = pytest.mark.parametrize("name", MODELS)


def gaps(attachment):
    weights, feedback = attachment.model.get_submodule, (attachment.within or attachment.mechanism).feedback
    return {name: (weights(name).weight - feedback[name]).detach().clone() for name in feedback}


def both(attachment):
    return [*attachment.model.parameters(), *attachment.parameters()]


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.2, momentum=0.5),
    "plain SGD": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.2),
    "fused SGD": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.2, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.2),
}


@by_model
@pytest.mark.parametrize("kind", ["plain SGD", "fused SGD", "AdamW"])
def test_the_gap_shrinks_by_the_decay_alone(double, name, kind):
    """Both take the same gradient step, and AdamW's moments follow the gradients alone: (1 - lr wd)^t is left."""
    x, y = batch(name)
    attachment = bpfree.attach(MODELS[name][0](), bpfree.KolenPollack(), seed=3)
    optimizer = OPTIMIZERS[kind](both(attachment))  # before the first forward pass, as a user would
    attachment.model(x)
    start = gaps(attachment)
    assert list(start) == MODELS[name][2]
    train(attachment.model, optimizer, x, y, 30)
    for layer, gap in gaps(attachment).items():
        assert start[layer].abs().min() > 0
        assert_same([gap], [start[layer] * (1 - 0.1 * 0.2) ** 30], 1e-12)


@by_model
@pytest.mark.parametrize(
    "options",
    [
        {"alternate": 2},
        {"alternate": 3, "alternate_order": "random"},
        {"alternate": 2, "streaming": True},
        {"window": 2},
    ],
    ids=str,
)
def test_inside_segments_it_shrinks_in_every_step(double, name, options):
    """Also in the steps that cut the tap right below a layer, where no signal passes through it."""
    x, y = batch(name)
    attachment = bpfree.attach(MODELS[name][0](), bpfree.DFA(), within=bpfree.KolenPollack(), seed=3, **options)
    optimizer = OPTIMIZERS["plain SGD"](both(attachment))
    train(attachment.model, optimizer, x, y, 9)  # every layer has had a signal pass through it
    start = gaps(attachment)
    assert start
    train(attachment.model, optimizer, x, y, 6)
    for layer, gap in gaps(attachment).items():
        assert start[layer].abs().min() > 0
        assert_same([gap], [start[layer] * (1 - 0.1 * 0.2) ** 6], 1e-12)


@pytest.mark.parametrize("kind", ["plain SGD", "AdamW"])
def test_it_shrinks_while_the_layers_below_are_frozen(double, kind):
    x, y = batch("mlp")
    attachment = bpfree.attach(mlp(), bpfree.KolenPollack(), seed=3)
    model, optimizer = attachment.model, OPTIMIZERS[kind](both(attachment))
    train(model, optimizer, x, y, 1)
    start = gaps(attachment)["2"]
    for step in range(6):
        model[0].requires_grad_(step % 3 == 0)
        train(model, optimizer, x, y, 1)
    assert_same([gaps(attachment)["2"]], [start * (1 - 0.1 * 0.2) ** 6], 1e-12)


def test_without_decay_the_gap_stays(double):
    x, y = batch("mlp")
    attachment = bpfree.attach(mlp(), bpfree.KolenPollack(), example_inputs=x)
    start, first = gaps(attachment), [p.detach().clone() for p in attachment.parameters()]
    train(attachment.model, torch.optim.Adam(both(attachment), lr=0.01), x, y, 10)
    assert_same(gaps(attachment).values(), start.values())
    assert not any(torch.equal(*pair) for pair in zip(first[1:], list(attachment.parameters())[1:], strict=True))


@by_model
def test_with_decay_the_gradients_become_backpropagations(double, name):
    x, y = batch(name)
    attachment = bpfree.attach(MODELS[name][0](), bpfree.KolenPollack(), example_inputs=x)
    optimizer = torch.optim.SGD(both(attachment), lr=0.5, weight_decay=0.04)

    def apart():
        found = gradients(attachment.model, x, y)
        with attachment.paused():
            exact = gradients(attachment.model, x, y)
        return float((found[0] - exact[0]).norm() / exact[0].norm())

    before = apart()
    assert before > 0.1
    train(attachment.model, optimizer, x, y, 400)  # .98^400 = 3.1e-4 of the gap is left
    assert apart() < 1e-2 * before


def gradients(model, x, y):
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def test_gradients_are_feedback_alignments_with_this_b_written_out_by_hand(double):
    x, y = batch("mlp")
    attachment = bpfree.attach(mlp(), bpfree.KolenPollack("normal"))
    optimizer = torch.optim.SGD(both(attachment), lr=0.3, weight_decay=0.01)
    train(attachment.model, optimizer, x, y, 4)
    B = {name: attachment.feedback[name].detach().clone() for name in attachment.feedback}
    hand = TanhMLP(attachment.model)
    found = gradients(attachment.model, x, y)
    hidden, output = hand.forward(x)
    e = softmax_error(output, y)
    expected = hand.gradients(hidden, e, hand.layerwise_signals(hidden, e, [None, B["2"], B["4"]]))
    assert_same(found, expected)
    # dW of layers 2 and 4, which is also what B gets.
    assert_same([attachment.feedback[name].grad for name in ("2", "4")], [expected[2], expected[4]])


def test_the_first_b_is_feedback_alignments():
    x, _ = batch("mlp")
    torch.manual_seed(1)
    model = mlp()
    twin = copy.deepcopy(model)
    ours = bpfree.attach(model, bpfree.KolenPollack(), seed=9, example_inputs=x)
    theirs = bpfree.attach(twin, bpfree.FA(), seed=9, example_inputs=x)
    assert list(ours.feedback) == list(theirs.feedback)
    assert_equal([ours.feedback[name] for name in ours.feedback], [theirs.feedback[name] for name in theirs.feedback])


def test_b_holds_a_copy_of_the_accumulated_gradient(double):
    x, y = batch("mlp")
    attachment = bpfree.attach(mlp(), bpfree.KolenPollack())
    model = attachment.model
    whole = gradients(model, x, y)
    model.zero_grad()
    for part in (slice(0, 5), slice(5, 10)):
        (F.cross_entropy(model(x[part]), y[part]) / 2).backward()
    B, W = attachment.feedback["2"], model[2].weight
    assert_same([B.grad], [whole[2]])
    assert torch.equal(B.grad, W.grad)
    assert B.grad.data_ptr() != W.grad.data_ptr()
    # The first layer has a place in the list and neither numbers nor a gradient.
    first = next(iter(attachment.parameters()))
    assert first.numel() == 0
    assert first.grad is None
    assert "none: its input needs no gradient" in str(attachment)


def test_two_passes_before_one_backward_and_a_retained_graph(double):
    x, y = batch("mlp")
    attachment = bpfree.attach(mlp(), bpfree.KolenPollack())
    model = attachment.model
    once = gradients(model, x, y)[2]
    model.zero_grad()
    losses = [F.cross_entropy(model(x), y) for _ in range(2)]
    sum(losses).backward(retain_graph=True)
    assert_same([attachment.feedback["2"].grad], [2 * once])
    losses[0].backward()
    assert_same([attachment.feedback["2"].grad], [3 * once])


def test_clipping_both_lists_acts_once_on_each(double):
    x, y = batch("mlp")
    attachment = bpfree.attach(mlp(), bpfree.KolenPollack())
    gradients(attachment.model, x, y)
    nn.utils.clip_grad_norm_(both(attachment), 1e-3)
    for name in attachment.feedback:
        assert torch.equal(attachment.feedback[name].grad, attachment.model.get_submodule(name).weight.grad)


def test_a_paused_pass_gives_b_nothing(double):
    x, y = batch("mlp")
    attachment = bpfree.attach(mlp(), bpfree.KolenPollack(), example_inputs=x)
    with attachment.paused():
        gradients(attachment.model, x, y)
        # Measuring sends signals down without accumulating anything.
        bpfree.alignment(attachment, lambda: F.cross_entropy(attachment.model(x), y))
        gradients(attachment.model, x, y)
    assert all(B.grad is None for B in attachment.parameters())
    bpfree.alignment(attachment, lambda: F.cross_entropy(attachment.model(x), y))
    loss = F.cross_entropy(attachment.model(x), y)
    torch.autograd.grad(loss, list(attachment.model.parameters()))
    with attachment.paused():
        gradients(attachment.model, x, y)
    assert all(B.grad is None for B in attachment.parameters())
    # A pass of the rule whose backward comes after a paused one is still the rule's.
    loss = F.cross_entropy(attachment.model(x), y)
    with attachment.paused():
        attachment.model(x)
    loss.backward()
    assert attachment.feedback["2"].grad is not None


def test_detaching_leaves_nothing_behind():
    x, y = batch("mlp")
    model = mlp()
    before = hooks(model)
    attachment = bpfree.attach(model, bpfree.KolenPollack())
    gradients(model, x, y)
    pending = F.cross_entropy(model(x), y)
    kept = attachment.feedback["2"].grad.clone()
    attachment.detach()
    assert hooks(model) == before
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())
    pending.backward()
    assert torch.equal(attachment.feedback["2"].grad, kept)


def test_a_forgotten_model_is_freed():
    import gc
    import weakref

    x, y = batch("mlp")
    model = mlp()
    attachment = bpfree.attach(model, bpfree.KolenPollack())
    gradients(model, x, y)
    alive = weakref.ref(model[2])
    del model, attachment
    gc.collect()
    assert alive() is None


def test_frozen_and_thawed_weights(double):
    x, y = batch("mlp")
    model = mlp()
    model[2].weight.requires_grad_(False)
    attachment = bpfree.attach(model, bpfree.KolenPollack())
    F.cross_entropy(model(x), y).backward()
    assert attachment.feedback["2"].grad is None
    assert torch.equal(attachment.feedback["4"].grad, model[4].weight.grad)
    model[2].weight.requires_grad_(True)
    F.cross_entropy(model(x), y).backward()
    assert torch.equal(attachment.feedback["2"].grad, model[2].weight.grad)
    model[2].weight = nn.Parameter(torch.randn(9, 7))
    F.cross_entropy(model(x), y).backward()
    assert torch.equal(attachment.feedback["2"].grad, model[2].weight.grad)


def test_a_weight_that_is_frozen_behind_the_forward_pass(double):
    x, y = batch("mlp")
    model = mlp()
    attachment = bpfree.attach(model, bpfree.KolenPollack())
    loss = F.cross_entropy(model(x), y)
    model[2].weight.requires_grad_(False)
    loss.backward()
    assert model[2].weight.grad is attachment.feedback["2"].grad is None
    assert torch.equal(attachment.feedback["4"].grad, model[4].weight.grad)


def test_a_copy_learns_for_itself(double):
    x, y = batch("mlp")
    model = mlp()
    attachment = bpfree.attach(model, bpfree.KolenPollack())
    gradients(model, x, y)
    host = nn.ModuleList([model, attachment])
    twin, other = copy.deepcopy(host)
    kept = attachment.feedback["2"].grad.clone()
    # Its steps are those that the original takes.
    x, y = x + 1, y.flip(0)
    train(other.model, torch.optim.SGD([*twin.parameters(), *other.parameters()], lr=0.1, weight_decay=0.1), x, y, 5)
    assert torch.equal(attachment.feedback["2"].grad, kept)
    train(attachment.model, torch.optim.SGD(both(attachment), lr=0.1, weight_decay=0.1), x, y, 5)
    assert_equal(host.parameters(), [*twin.parameters(), *other.parameters()])


@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
@pytest.mark.parametrize("saved_after", [0, 3])
def test_a_restored_run_continues_bit_for_bit(example, kind, saved_after):
    x, y = batch("mlp")

    def start(seed):
        torch.manual_seed(seed)
        inputs = x if example else None
        attachment = bpfree.attach(mlp(), bpfree.KolenPollack(), seed=seed, example_inputs=inputs)
        return attachment, OPTIMIZERS[kind](both(attachment))

    attachment, optimizer = start(1)
    train(attachment.model, optimizer, x, y, saved_after)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in (attachment.model, attachment, optimizer)], file)
    train(attachment.model, optimizer, x, y, 3)

    again, other = start(2)
    file.seek(0)
    for part, state in zip((again.model, again, other), torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    train(again.model, other, x, y, 3)
    assert_equal(both(again), both(attachment))


def test_a_state_of_another_shape_is_refused():
    x, _ = batch("mlp")
    attachment = bpfree.attach(mlp(), bpfree.KolenPollack(), example_inputs=x)
    state = attachment.state_dict()
    key = next(key for key in state if key.endswith("feedback.2"))
    state[key] = state[key][:, :3]
    with pytest.raises(bpfree.errors.StateError, match=r"feedback\.2"):
        attachment.load_state_dict(state)


def test_it_moves_with_the_module_that_trains():
    x, y = batch("mlp")
    host = nn.ModuleList([model := mlp(), attachment := bpfree.attach(model, bpfree.KolenPollack())])
    host.double()
    train(attachment.model, torch.optim.SGD(host.parameters(), lr=0.1), x.double(), y, 2)
    assert attachment.feedback["2"].dtype == torch.float64
    host.to(torch.float32)
    train(attachment.model, torch.optim.SGD(host.parameters(), lr=0.1), x, y, 2)
    assert attachment.feedback["2"].grad.dtype == torch.float32


def test_without_an_optimizer_for_b_one_is_told_once():
    x, y = batch("mlp")
    attachment = bpfree.attach(mlp(), bpfree.KolenPollack())
    optimizer = torch.optim.SGD(attachment.model.parameters(), lr=0.1)
    train(attachment.model, optimizer, x, y, 1)
    with pytest.warns(bpfree.BpfreeWarning, match=r"\*attachment\.parameters\(\)"):
        train(attachment.model, optimizer, x, y, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(attachment.model, optimizer, x, y, 2)


FUSED = {
    "fused SGD": lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
    "fused AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    "by .data": lambda p: _ByData(p),
}


class _ByData(torch.optim.SGD):
    """Gives every parameter other numbers, and counts nothing."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.1)

    @torch.no_grad()
    def step(self):
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                parameter.data = parameter.data - 0.1 * parameter.grad


@pytest.mark.parametrize("rule", [bpfree.KolenPollack(), bpfree.DKP()], ids=str)
def test_a_filter_that_leaves_feedback_out_is_named(rule):
    """Usual code gives an optimizer the parameters that require gradients: the rule's own do not."""
    x, y = batch("mlp")
    attachment = bpfree.attach(mlp(), rule)
    given = [parameter for parameter in both(attachment) if parameter.requires_grad]
    assert not set(given).intersection(attachment.parameters())
    optimizer = torch.optim.SGD(given, lr=0.1)
    with pytest.warns(bpfree.BpfreeWarning, match=r"no optimizer has it.*requires_grad is False.*leaves it out"):
        train(attachment.model, optimizer, x, y, 6)


@pytest.mark.parametrize("kind", FUSED)
def test_an_optimizer_that_counts_no_writes_is_told_as_well(kind):
    x, y = batch("mlp")
    attachment = bpfree.attach(mlp(), bpfree.KolenPollack())
    with pytest.warns(bpfree.BpfreeWarning, match="so B does not learn"):
        train(attachment.model, FUSED[kind](list(attachment.model.parameters())), x, y, 3)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", FUSED)
def test_with_b_in_it_nothing_is_said(kind):
    x, y = batch("mlp")
    attachment = bpfree.attach(mlp(), bpfree.KolenPollack())
    train(attachment.model, FUSED[kind](both(attachment)), x, y, 8)


def test_a_b_that_is_dropped_later_is_told():
    x, y = batch("mlp")
    attachment = bpfree.attach(mlp(), bpfree.KolenPollack())
    train(attachment.model, FUSED["fused SGD"](both(attachment)), x, y, 10)
    optimizer = FUSED["fused SGD"](list(attachment.model.parameters()))
    with pytest.warns(bpfree.BpfreeWarning, match="so B does not learn"):
        train(attachment.model, optimizer, x, y, 140)


def test_a_rate_of_zero_for_b_is_told():
    x, y = batch("mlp")
    attachment = bpfree.attach(mlp(), bpfree.KolenPollack())
    groups = [{"params": attachment.model.parameters()}, {"params": attachment.parameters(), "lr": 0.0}]
    with pytest.warns(bpfree.BpfreeWarning, match="so B does not learn"):
        train(attachment.model, torch.optim.SGD(groups, lr=0.1, fused=True), x, y, 3)


def test_an_optimizer_in_the_backward_pass_is_told():
    x, y = batch("mlp")
    model = mlp()
    bpfree.attach(model, bpfree.KolenPollack())
    for weight in model.parameters():
        weight.register_post_accumulate_grad_hook(lambda weight: setattr(weight, "grad", None))
    with pytest.warns(bpfree.BpfreeWarning, match="no gradient when the backward pass ends"):
        F.cross_entropy(model(x), y).backward()


@pytest.mark.filterwarnings("error")
def test_accumulation_evaluation_and_skipped_steps_warn_of_nothing():
    x, y = batch("mlp")
    attachment = bpfree.attach(mlp(), bpfree.KolenPollack())
    optimizer = torch.optim.AdamW(both(attachment), lr=0.1)
    for _ in range(3):
        for _ in range(2):
            F.cross_entropy(attachment.model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            attachment.model(x)
    copied = copy.deepcopy(attachment)
    train(copied.model, torch.optim.SGD(both(copied), lr=0.1), x, y, 3)


def test_a_computed_weight_is_refused_at_once():
    model = nn.Sequential(nn.Linear(6, 6), nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)))
    with pytest.raises(bpfree.errors.UnsupportedLayerError, match=r"layer '1'.*bpfree\.WeightMirror"):
        bpfree.attach(model, bpfree.KolenPollack())
    bpfree.attach(model, bpfree.FA())  # nothing half-attached was left


def test_lazy_layers_and_a_layer_called_twice(double):
    class Unrolled(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.layer, self.head = nn.LazyLinear(5), nn.Linear(5, 5), nn.Linear(5, CLASSES)

        def forward(self, x):
            h = self.stem(x).tanh()
            return self.head(self.layer(self.layer(h).tanh()).tanh())

    x, y = batch("mlp")
    attachment = bpfree.attach(Unrolled(), bpfree.KolenPollack())
    optimizer = OPTIMIZERS["plain SGD"](both(attachment))
    attachment.model(x)
    start = gaps(attachment)
    assert list(start) == ["layer", "head"]
    train(attachment.model, optimizer, x, y, 5)
    assert_same(gaps(attachment).values(), [gap * 0.98**5 for gap in start.values()])


def test_a_checkpointed_segment(double):
    from torch.utils.checkpoint import checkpoint

    x, y = batch("mlp")
    attachment = bpfree.attach(mlp(), bpfree.KolenPollack())
    model = attachment.model
    expected = gradients(model, x, y)
    found = {name: attachment.feedback[name].grad.clone() for name in attachment.feedback}
    for part, rest in ((model[:4], model[4:]), (model, nn.Identity())):
        model.zero_grad()
        for B in attachment.parameters():
            B.grad = None
        F.cross_entropy(rest(checkpoint(part, x, use_reentrant=False)), y).backward()
        assert_same([parameter.grad for parameter in model.parameters()], expected)
        assert_equal([attachment.feedback[name].grad for name in found], found.values())


@pytest.mark.parametrize("rule", [bpfree.DFA(), bpfree.GrAPE()], ids=str)
@pytest.mark.parametrize("window", [1, 2, 6])
def test_inside_the_windows_of_a_direct_rule(double, rule, window):
    """Its gradients are formed by several calls of autograd, and accumulated by the outer one; B gets them too."""
    x, y = batch("mlp")
    attachment = bpfree.attach(
        mlp(), rule, taps=["1"], window=window, within=bpfree.KolenPollack(), seed=2, example_inputs=x
    )
    inner = attachment.within
    optimizer = torch.optim.SGD(both(attachment), lr=0.1, weight_decay=0.2)

    def differences():
        return [(attachment.model.get_submodule(n).weight - inner.feedback[n]).detach().clone() for n in inner.feedback]

    start = differences()
    assert len(start) == (1 if window == 1 else 2)
    for _ in range(10):
        optimizer.zero_grad()
        (F.cross_entropy(attachment.model(x), y) / 2).backward()
        (F.cross_entropy(attachment.model(x), y) / 2).backward()
        for name in inner.feedback:
            assert torch.equal(inner.feedback[name].grad, attachment.model.get_submodule(name).weight.grad)
        optimizer.step()
    assert_same(differences(), [gap * 0.98**10 for gap in start])


@pytest.mark.parametrize("name", MODELS)
def test_the_contract(name):
    x, y = batch(name)
    subject = Subject(MODELS[name][0], lambda model: model(x), lambda model: F.cross_entropy(model(x), y), y)
    assert_rule_serves(subject, bpfree.KolenPollack())


def distributed(rank, static):
    """Three steps in each of two ways: every rank takes half of the batch; rank None takes all of it."""
    torch.set_default_dtype(torch.float64)
    found = []
    for micro in (1, 2):
        # Ranks begin with weights of their own: DDP sends round those of rank 0.
        torch.manual_seed(rank or 0)
        model = mlp()
        attachment = bpfree.attach(model, bpfree.KolenPollack(), seed=4)
        x, y = (tensor.double() if tensor.is_floating_point() else tensor for tensor in batch("mlp", 8))
        run = model
        if rank is not None:
            x, y = x[4 * rank : 4 * rank + 4], y[4 * rank : 4 * rank + 4]
            run = DistributedDataParallel(model, static_graph=static)
        optimizer = torch.optim.SGD(both(attachment), lr=0.5, weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            for part in range(micro):
                last = part == micro - 1
                loss = F.cross_entropy(run(x[part::micro]), y[part::micro]) / micro
                if rank is None or last or static:
                    loss.backward()
                else:
                    with run.no_sync():
                        loss.backward()
            optimizer.step()
        found.append([tensor.detach().numpy() for tensor in both(attachment)])
    return found


def both_kinds(rank):
    return [distributed(rank, static) for static in (False, True)]


def test_two_processes_equal_one_on_the_joined_batch():
    expected = distributed(None, False)
    torch.set_default_dtype(torch.float32)
    for rank in run_on_two_ranks(both_kinds):
        for found in rank:
            for ours, theirs in zip(found, expected, strict=True):
                for a, b in zip(ours, theirs, strict=True):
                    assert a.shape == b.shape
                    assert not a.size or abs(a - b).max() < 1e-12


@pytest.mark.parametrize(
    "compute", [parametrizations.weight_norm, lambda layer: prune.l1_unstructured(layer, "weight", 0.5)]
)
def test_a_weight_that_is_computed_from_others_after_attach_is_refused_by_name(compute):
    model = mlp()
    bpfree.attach(model, bpfree.KolenPollack())
    compute(model[2])
    with pytest.raises(bpfree.errors.UnsupportedLayerError, match="the weight of layer '2' is no parameter"):
        model(batch("mlp")[0])
