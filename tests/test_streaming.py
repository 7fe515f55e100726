"""Streaming: the numbers of the stored graph, and the memory of one segment."""

import copy
import itertools
import os
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import bpfree
from bpfree import errors
from bpfree.mechanisms.learned.rule import LearnedRule
from support.by_hand import assert_same
from support.rule_contract import Subject, assert_equal, assert_rule_serves, hooks
from support.scripts import Script

# Told once of the inputs' gradients, which are compared here.
pytestmark = pytest.mark.filterwarnings("ignore:an argument of the model wants a gradient, and will get")

N, C = 8, 4
OWN = bpfree.Feedback(shared=False)
RULES = [
    bpfree.DFA(),
    bpfree.DFA(feedback=OWN),
    bpfree.DFA(feedback=bpfree.Feedback(shared=False, stored=False)),
    bpfree.DFA(error="ternary"),
    bpfree.DRTP(),
    bpfree.Shallow(),
    bpfree.GrAPE(),
    bpfree.GrAPE(calibrate=2),
    bpfree.FDFA(every=2, perturbations="normal"),
    bpfree.FDFA(feedback=bpfree.Feedback(shared=False, modes=1)),
    bpfree.LMS(),
    bpfree.LMS(perturbations="hadamard"),
    bpfree.LMS(stepped_by="optimizer"),
    bpfree.DKP(),
    bpfree.ForwardGradient("activations"),
]


def mlp():
    return nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(16, 12), nn.Tanh(),
        nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, C),
    )  # fmt: skip


def convnet():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(3, 4, 3),
        nn.Tanh(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, C),
    )  # fmt: skip


class Tied(nn.Module):
    """One layer in two segments, reached through one tap module; the head has the first layer's weights."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.again = nn.Linear(6, 6)
        self.tanh = nn.Tanh()
        self.body = nn.Identity()
        self.head = nn.Linear(6, 6)
        self.head.weight = self.first.weight

    def forward(self, x, *, twice=True):
        h = self.tanh(self.first(x))
        for _ in range(2 if twice else 1):
            h = self.tanh(self.again(h))
        return self.head(self.body(self.again(h)))[:, :C]


class Checkpointed(nn.Module):
    """The second segment is checkpointed."""

    def __init__(self):
        super().__init__()
        self.below, self.above = nn.Linear(6, 12), nn.Linear(12, C)
        self.inside = nn.Sequential(nn.Linear(12, 12), nn.Dropout(0.3), nn.Sigmoid(), nn.Linear(12, 12))
        self.taps = nn.ModuleList([bpfree.Tap(), bpfree.Tap()])

    def forward(self, x):
        h = self.taps[0](self.below(x))
        return self.above(self.taps[1](checkpoint(self.inside, h, use_reentrant=False)))


class Statistics(nn.Module):
    """What a pass computes depends on buffers that move in it."""

    def __init__(self):
        super().__init__()
        self.below = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(6, 12)), nn.Tanh())
        self.above = nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, C))
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("passes", torch.zeros(()))
        self.register_buffer("last", None)

    def forward(self, x):
        if self.last is not None:
            x = x + self.last
        self.mean.lerp_(x.detach().mean(0), 0.1)
        self.passes = self.passes + 1
        self.last = x.detach()[:1]
        return self.above(self.below(x - self.mean) / self.passes.sqrt())


MODELS = {
    "mlp": (mlp, (6,), {}),
    "convolution": (convnet, (1, 8, 8), {}),
    "tied": (Tied, (6,), {"error_at": "body", "taps": "tanh"}),
    "checkpointed": (Checkpointed, (6,), {"taps": bpfree.Tap}),
    "statistics": (Statistics, (6,), {}),
    "ends in a tap": (
        lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, C), nn.Sigmoid()),
        (6,),
        {"error_at": ""},
    ),
}


def batch(shape):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(N, *shape, generator=generator), torch.randint(0, C, (N,), generator=generator)


def trained(name, rule, *, streaming, steps=3, before=False, autocast=False, **options):
    """What three steps leave: weights, statistics, feedback, gradients, those of the inputs, the next random number."""
    build, shape, placed = MODELS[name]
    torch.manual_seed(0)
    model, (x, y) = build(), batch(shape)
    attachment = bpfree.attach(model, rule, seed=3, streaming=streaming, **placed, **options)
    optimizer = torch.optim.SGD([*model.parameters(), *attachment.parameters()], lr=0.1)
    x.requires_grad_(not before)
    torch.manual_seed(5)
    for _ in range(steps):
        optimizer.zero_grad()
        if before:
            attachment.targets(y)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(model(x), y)
        attachment.targets(y)
        loss.backward()
        optimizer.step()
    gradients = [parameter.grad for parameter in model.parameters()]
    return [
        *model.state_dict().values(),
        *attachment.buffers(),
        *attachment.parameters(),
        *gradients,
        x.grad,
        torch.rand(1),
    ]


def assert_agrees(name, found, expected):
    """Bit for bit; a sum over the segments of a shared layer may be taken in another order."""
    if name != "tied":
        assert_equal(found, expected)
        return
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_streaming_is_the_stored_graph_bit_for_bit(double, name, rule):
    assert_agrees(name, trained(name, rule, streaming=True), trained(name, rule, streaming=False))


@pytest.mark.parametrize("rule", [bpfree.DFA(), bpfree.FDFA(), bpfree.DKP()], ids=str)
def test_autocast_is_that_of_the_first_run(rule):
    exact = trained("mlp", rule, streaming=False, autocast=True)
    assert_equal(trained("mlp", rule, streaming=True, autocast=True), exact)
    assert not torch.equal(exact[0], trained("mlp", rule, streaming=True)[0])  # autocast had an effect


@pytest.mark.parametrize("within", [bpfree.FA(), bpfree.KolenPollack(), bpfree.SignSymmetry("batch")], ids=str)
def test_layerwise_rules_inside_segments(double, within):
    exact = trained("checkpointed", bpfree.DFA(), streaming=False, within=within)
    assert_equal(trained("checkpointed", bpfree.DFA(), streaming=True, within=within), exact)


@pytest.mark.parametrize("name", MODELS)
def test_targets_given_before_the_pass_train_in_it(double, name):
    found, expected = (trained(name, bpfree.DRTP(), streaming=way, before=True) for way in (True, False))
    assert_agrees(name, found, expected)


def test_segments_learn_while_the_forward_pass_runs():
    model, (x, y) = mlp(), batch((6,))
    attachment = bpfree.attach(model, bpfree.DRTP(), streaming=True, example_inputs=x)
    seen = []
    model[6].register_forward_pre_hook(
        lambda *_: seen.append([layer.weight.grad is not None for layer in (model[0], model[4])])
    )
    attachment.targets(y)
    loss = F.cross_entropy(model(x), y)
    assert seen == [[True, True]]
    assert model[8].weight.grad is None
    loss.backward()
    assert model[8].weight.grad is not None


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_cleared_behind_the_forward_pass_are_told(set_to_none):
    model, (x, y) = mlp(), batch((6,))
    attachment = bpfree.attach(model, bpfree.DRTP(), streaming=True, example_inputs=x)
    attachment.targets(y)
    loss = F.cross_entropy(model(x), y)
    model.zero_grad(set_to_none=set_to_none)
    with pytest.raises(errors.StreamingError, match="zero_grad\\(\\) before the model"):
        loss.backward()


class Longer(nn.Module):
    """So many layers and taps that a number says how many of them a pass runs through."""

    def __init__(self, depth):
        super().__init__()
        self.depth = depth
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.taps = nn.ModuleList(nn.Tanh() for _ in range(3))
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        for layer, tap in list(zip(self.layers, self.taps, strict=True))[: self.depth]:
            x = tap(layer(x))
        return self.head(x)


class CheckpointedParts(nn.Module):
    """Parts with a tap inside each, which run again in the backward pass of the next one's segment."""

    def __init__(self, again):
        super().__init__()
        self.again = again
        self.parts = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)) for _ in range(3))
        self.act, self.head = nn.ReLU(), nn.Linear(6, 4)

    def forward(self, x):
        for part in self.parts:
            x = checkpoint(part, x, use_reentrant=False) if self.again else part(x)
        return self.head(self.act(x))


def test_checkpointed_parts_run_again_while_segments_learn_in_the_forward_pass(double):
    torch.manual_seed(0)
    plain, again = CheckpointedParts(again=False), CheckpointedParts(again=True)
    again.load_state_dict(plain.state_dict())
    x, y = torch.randn(8, 6), torch.randint(0, 4, (8,))
    for model, streaming in ((plain, False), (again, True)):
        attachment = bpfree.attach(model, bpfree.DRTP(), seed=0, streaming=streaming)
        for _ in range(2):  # the first pass does not know the ends of segments yet
            model.zero_grad()
            attachment.targets(y)
            F.cross_entropy(model(x), y).backward()
    for (name, expected), found in zip(plain.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-12, atol=1e-14, msg=name)


@pytest.mark.parametrize(("before", "then"), [(2, 3), (3, 2), (3, 1)])
def test_a_way_that_changes_cannot_learn_in_the_forward_pass(before, then):
    """A layer that no earlier pass knew would have no signal, and learn by backpropagation."""
    model, x, y = Longer(before), torch.randn(8, 6), torch.randint(0, 4, (8,))
    attachment = bpfree.attach(model, bpfree.DRTP(), streaming=True)
    for _ in range(2):
        attachment.targets(y)
        F.cross_entropy(model(x), y).backward()
    model.depth = then
    attachment.targets(y)
    with pytest.raises(errors.StreamingError, match="a model whose way changes cannot learn in its forward pass"):
        model(x)


def test_micro_batches_may_all_run_before_their_backward_passes(double):
    (x, y), model = batch((6,)), mlp().eval()
    whole = copy.deepcopy(model)
    attachment = bpfree.attach(model, bpfree.DRTP(reduction="sum"), seed=3, streaming=True, example_inputs=x)
    losses = []
    for part in (slice(0, 4), slice(4, 8)):
        attachment.targets(y[part])
        losses.append(F.cross_entropy(model(x[part]), y[part], reduction="sum"))
    for loss in losses:
        loss.backward()
    attachment = bpfree.attach(whole, bpfree.DRTP(reduction="sum"), seed=3)
    attachment.targets(y)
    F.cross_entropy(whole(x), y, reduction="sum").backward()
    for ours, theirs in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rule", [bpfree.DFA(), bpfree.DRTP(), bpfree.LMS()], ids=str)
def test_any_model_is_served(rule):
    x, y = batch((6,))
    subject = Subject(
        build=lambda: torch.manual_seed(0) and mlp(),
        output=lambda model: model(x),
        loss=lambda model: F.cross_entropy(model(x), y),
        targets=y,
        options={"streaming": True},
    )
    assert_rule_serves(subject, rule)


def test_every_parameter_accumulates_once():
    """Hooks that fire for partial gradients would let an optimizer in the backward pass take partial steps."""
    model, (x, y) = Tied(), batch((6,))
    fired = []
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: fired.append(name))
    bpfree.attach(model, bpfree.DFA(), taps="tanh", error_at="body", streaming=True)
    F.cross_entropy(model(x), y).backward()
    assert sorted(fired) == sorted(name for name, _ in model.named_parameters())


def test_the_way_may_depend_on_the_arguments(double):
    x, y = batch((6,))
    found = []
    for streaming in (True, False):
        torch.manual_seed(0)
        model = Tied()
        bpfree.attach(model, bpfree.DFA(), taps="tanh", error_at="body", streaming=streaming, seed=1)
        for twice in (True, False, True):
            F.cross_entropy(model(x, twice=twice), y).backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert_agrees("tied", *found)


def test_what_learns_may_change_between_passes(double):
    model, x = Tied(), batch((6,))[0]
    attachment = bpfree.attach(model, bpfree.DFA(), seed=3, streaming=True, taps="tanh", error_at="body")
    model(x).square().sum().backward()
    model.again.weight.requires_grad_(False)
    found = gradients_of(model, x)
    attachment.detach()
    bpfree.attach(model, bpfree.DFA(), seed=3, taps="tanh", error_at="body")
    # A layer that runs three times: its gradients are added up in another order.
    assert_same(found, gradients_of(model, x))


def gradients_of(model, x):
    model.zero_grad()
    model(x).square().sum().backward()
    return [parameter.grad for parameter in model.parameters() if parameter.requires_grad]


def test_a_second_backward_pass_needs_the_graph_to_be_retained(double):
    model, (x, y) = mlp().eval(), batch((6,))
    bpfree.attach(model, bpfree.DFA(), streaming=True)
    loss = (model(x) * F.one_hot(y, C)).sum()
    loss.backward(retain_graph=True)
    once = model[0].weight.grad.clone()
    loss.backward()
    torch.testing.assert_close(model[0].weight.grad, 2 * once)
    output = model(x)
    output.sum().backward()
    with pytest.raises(errors.UsedRecordError, match="Run the model again"):
        output.sum().backward()


def test_alignment_looks_into_a_streaming_pass(double):
    reports = []
    for streaming in (True, False):
        torch.manual_seed(0)
        model, (x, y) = mlp(), batch((6,))
        attachment = bpfree.attach(model, bpfree.DFA(feedback=OWN), seed=3, streaming=streaming)
        reports.append(str(bpfree.alignment(attachment, lambda m=model, x=x, y=y: F.cross_entropy(m(x), y))))
    assert reports[0] == reports[1]


def test_what_is_printed_is_what_a_stored_graph_shows():
    tables = []
    for streaming in (True, False):
        attachment = bpfree.attach(mlp(), bpfree.DFA(), streaming=streaming, example_inputs=batch((6,))[0])
        tables.append(str(attachment).splitlines())
    assert tables[0][0] == tables[1][0] + ", streaming"
    assert tables[0][1:] == tables[1][1:]


# -- bad input ---------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """A path leads around the taps."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(6, 6), nn.Linear(6, C)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2))

    def forward(self, x):
        h = self.first(x)
        for block in self.blocks:
            h = h + block(h)
        return self.head(h)


class Fickle(nn.Module):
    """Its way depends on how often it has run, as an iterator counts."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
        self.taps, self.head = nn.ModuleList([nn.Tanh(), nn.Tanh()]), nn.Linear(6, C)
        self.orders = itertools.cycle([(0, 1), (1, 0)])

    def forward(self, x):
        for i in next(self.orders):
            x = self.taps[i](self.layers[i](x))
        return self.head(x)


class Differentiates(nn.Module):
    """Its output holds a gradient of its own."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(6, 6), nn.Tanh()), nn.Linear(6, C)

    def forward(self, x):
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.body[0](y).square().sum(), y, create_graph=True)
        return self.head(self.body(x + slope))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Residual, "around the cut below 'blocks.1.1'"),
        (Fickle, r"reached tap 'taps\.[01]' where the first one had reached"),
        (Differentiates, "its own forward"),
    ],
)
def test_models_that_cannot_stream_are_told(model, message):
    model, (x, _) = model(), batch((6,))
    bpfree.attach(model, bpfree.DFA(), streaming=True)
    with pytest.raises(errors.StreamingError, match=message):
        model(x)
    assert torch.is_grad_enabled()


def test_a_refused_model_is_left_alone():
    model, (x, _) = Residual(), batch((6,))
    with pytest.raises(errors.StreamingError):
        bpfree.attach(model, bpfree.DFA(), streaming=True, example_inputs=x)
    assert hooks(model) == 0
    bpfree.attach(model, bpfree.DFA(), example_inputs=x)


def test_an_exception_in_the_model_leaves_graphs_on():
    model = mlp()
    bpfree.attach(model, bpfree.DFA(), streaming=True)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(torch.randn(3, 5))
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_sparse_embedding_tied_to_the_head(streaming):
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.words, self.body = nn.Embedding(7, 6, sparse=True), nn.Sequential(nn.Linear(6, 6), nn.Tanh())
            self.head = nn.Linear(6, 7, bias=False)
            self.head.weight = self.words.weight

        def forward(self, tokens):
            return self.head(self.body(self.words(tokens)))

    model, x = Words(), torch.arange(4)
    attachment = bpfree.attach(model, bpfree.DFA(), streaming=streaming)
    model(x).square().sum().backward()
    found = model.words.weight.grad.to_dense()
    with torch.no_grad():
        h = model.body(model.words(x))
        e = 2 * model.head(h)
        (site,) = attachment.mechanism.sites
        below = (e @ attachment.feedback.matrix(site)) * (1 - h**2) @ model.body[0].weight
    expected = e.T @ h
    expected[:4] += below
    torch.testing.assert_close(found, expected)


def test_arguments_overwritten_between_the_runs_are_told():
    model, (x, y) = mlp(), batch((6,))
    bpfree.attach(model, bpfree.DFA(), streaming=True)
    loss = F.cross_entropy(model(x), y)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        (bpfree.BP(), {}, "torch.utils.checkpoint"),
        (bpfree.FA(), {}, "for direct rules"),
        (bpfree.DFA(), {"window": 2}, "graphs of several segments"),
        (bpfree.ForwardGradient("weights"), {}, "for segments"),
        (bpfree.PEPITA(), {}, "for direct rules"),
    ],
    ids=str,
)
def test_what_cannot_stream_is_refused(rule, options, message):
    with pytest.raises(errors.OptionError, match=message):
        bpfree.attach(mlp(), rule, streaming=True, **options)


# -- memory ------------------------------------------------------------------------------------------------------------

WIDTH, ROWS = 64, 512


def deep(depth):
    torch.manual_seed(0)
    return nn.Sequential(
        *[part for _ in range(depth) for part in (nn.Linear(WIDTH, WIDTH), nn.Tanh())], nn.Linear(WIDTH, C)
    )


def peak(depth, rule, *, targets_first=False, in_backward=False):
    """The most bytes that one step holds at one time, beside weights and, if they stay, their gradients."""
    model = deep(depth)
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(ROWS, WIDTH, generator=generator), torch.randint(0, C, (ROWS,), generator=generator)
    attachment = bpfree.attach(model, rule, seed=3, streaming=True, example_inputs=x[:2])
    if in_backward:
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(_step_and_drop)

    def step():
        if targets_first:
            attachment.targets(y)
        loss = F.cross_entropy(model(x), y)
        attachment.targets(y)
        loss.backward()
        model.zero_grad()

    step()
    with torch.profiler.profile(profile_memory=True, record_shapes=False) as seen:
        step()
    held = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


def _step_and_drop(parameter):
    with torch.no_grad():
        parameter.sub_(parameter.grad, alpha=0.01)
    parameter.grad = None


@pytest.mark.parametrize(
    ("rule", "targets_first"),
    [
        (bpfree.DFA(), False),
        (bpfree.DRTP(), True),
        (bpfree.DRTP(), False),
        (bpfree.FDFA(), False),
        (bpfree.LMS(), False),
        (bpfree.DKP(), False),
    ],
    ids=str,
)
def test_memory_is_that_of_one_segment_at_any_depth(rule, targets_first):
    """With the optimizer in the backward pass neither activations nor gradients grow with the depth."""
    shallow, far = (peak(depth, rule, targets_first=targets_first, in_backward=True) for depth in (4, 32))
    learned = 28 * WIDTH * C * 4 * 3  # evidence, and what a step of it needs, of 28 more matrices B
    assert far <= 1.05 * shallow + (learned if isinstance(rule, LearnedRule) else 0)
    activation = ROWS * WIDTH * 4
    assert shallow < 9 * activation  # and it is small


LIMITED = """
import ctypes, resource, sys, torch, torch.nn.functional as F
from torch import nn
import bpfree

torch.set_num_threads(1)
# M_MMAP_THRESHOLD: blocks of this size come from the system one by one. The C library's own heap has holes.
assert ctypes.CDLL(None).mallopt(-3, 2**20)
streaming = sys.argv[1] == "streaming"
depth, width, rows = 24, 32, 32768  # 4 MiB an activation: tanh stores one a layer, linear none
blocks = [part for _ in range(depth) for part in (nn.Linear(width, width), nn.Tanh())]
model = nn.Sequential(*blocks, nn.Linear(width, 10))
x, y = torch.randn(rows, width), torch.randint(0, 10, (rows,))
rule = bpfree.DFA() if streaming else bpfree.BP()
attachment = bpfree.attach(model, rule, streaming=streaming)
optimizer = torch.optim.SGD(model.parameters(), lr=.1)
F.cross_entropy(model(x[:64]), y[:64]).backward()  # libraries are loaded, threads are started
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 48 * 2**20,) * 2)
losses = []
for _ in range(2):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
assert losses[-1] < losses[0], losses
print("trained")
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux's address space limits")
def test_a_model_that_does_not_fit_trains_by_streaming(tmp_path):
    """Backpropagation asks for 24 activations of 4 MiB where the operating system allows 48 MiB more."""
    (tmp_path / "limited.py").write_text(LIMITED)
    ways = ("streaming", "backpropagation")
    found = {way: Script(tmp_path / "limited.py", way, log=tmp_path / way) for way in ways}
    assert found["streaming"].output(300).strip() == "trained", found["streaming"].printed
    assert "memory" in found["backpropagation"].output(300)
    assert found["backpropagation"].returncode != 0


class HandsOnParameter(nn.Module):
    """A tap behind a parameter itself, and one behind the argument itself."""

    def __init__(self):
        super().__init__()
        self.start, self.one, self.two = nn.Parameter(torch.ones(6, 5)), nn.Identity(), nn.Identity()
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.one(x) + self.two(self.start))


@pytest.mark.parametrize("rule", [bpfree.DFA(), bpfree.DKP(), bpfree.GrAPE()], ids=str)
@pytest.mark.parametrize("taps", [["one"], ["two"], ["one", "two"]], ids=str)
def test_a_tap_that_hands_on_a_leaf_as_it_is_teaches_it_as_without_streaming(rule, taps):
    found = []
    for streaming in (False, True):
        torch.manual_seed(0)
        model, x = HandsOnParameter().double(), torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
        bpfree.attach(model, rule, taps=taps, streaming=streaming)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", bpfree.BpfreeWarning)
            F.cross_entropy(model(x), torch.arange(6) % 3).backward()
        found.append([x.grad, *(parameter.grad for parameter in model.parameters())])
    for plain, streamed in zip(*found, strict=True):
        assert (plain is None) == (streamed is None)
        if plain is not None:
            torch.testing.assert_close(streamed, plain)
