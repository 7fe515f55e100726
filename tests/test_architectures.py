"""Rules on architectures with residual connections, normalization, dropout and in-place activations."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import bpfree
from support.by_hand import assert_same
from support.rule_contract import (
    FALL,
    Subject,
    assert_equal,
    assert_rule_serves,
    matrices,
    project,
    softmax_error,
    train,
)

pytestmark = pytest.mark.long

CLASSES = 5
RULES = [bpfree.DFA(), bpfree.FA(), bpfree.Shallow(), bpfree.DRTP()]
by_rule = pytest.mark.parametrize("rule", RULES, ids=str)


class Transformer(nn.Module):
    """Linear - TransformerEncoder (with a last normalization where it is pre-norm) - mean over tokens - Linear."""

    def __init__(self, pre_norm, dropout=0.1):
        super().__init__()
        self.embed, self.head = nn.Linear(6, 16), nn.Linear(16, CLASSES)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout, batch_first=True, norm_first=pre_norm)
        final = nn.LayerNorm(16) if pre_norm else None
        self.encoder = nn.TransformerEncoder(layer, 3, final, enable_nested_tensor=False)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x)).mean(1))


class BasicBlock(nn.Module):
    """Two convolutions, a shortcut, and one in-place activation module that serves twice."""

    def __init__(self, inside, outside, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside)
        self.conv2, self.bn2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Sequential()
        if stride > 1:
            self.down = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.down(x)
        return self.relu(out)


class Top(nn.Module):
    """Global pooling, dropout and the classifier."""

    def __init__(self, dropout):
        super().__init__()
        self.dropout, self.linear = nn.Dropout(dropout), nn.Linear(12, CLASSES)

    def forward(self, x):
        return self.linear(self.dropout(x.mean((2, 3))))


class ResNet(nn.Module):
    """Stem, two residual blocks and a top; parts named in ``again`` run again in the backward pass, or the "model"."""

    def __init__(self, dropout=0.2, again=()):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.block1, self.block2 = BasicBlock(8, 8, 1), BasicBlock(8, 12, 2)
        self.top = Top(dropout)
        self.again = again

    def forward(self, x):
        return checkpoint(self.parts, x, use_reentrant=False) if "model" in self.again else self.parts(x)

    def parts(self, x):
        for name, part in self.named_children():
            x = checkpoint(part, x, use_reentrant=False) if name in self.again else part(x)
        return x


def subject(build, shape, pattern, **options):
    """A model on noisy copies of one pattern a class, so that a linear top alone can learn something."""
    generator = torch.Generator().manual_seed(5)
    y = torch.arange(shape[0]) % CLASSES
    patterns = torch.randn(CLASSES, *pattern, generator=generator)
    x = patterns[y] + 0.3 * torch.randn(*shape, generator=generator)

    def seeded():
        torch.manual_seed(2)
        return build()

    def output(model):
        return model(x.to(next(model.parameters()).dtype))

    return Subject(seeded, output, lambda model: F.cross_entropy(output(model), y), y, options)


def transformer(pre_norm, **options):
    options.setdefault("taps", nn.TransformerEncoderLayer)
    return subject(lambda: Transformer(pre_norm), (16, 7, 6), (7, 6), **options)


def resnet(**options):
    return subject(lambda: ResNet(**options), (15, 3, 8, 8), (3, 1, 1))


SUBJECTS = {"post-norm": transformer(False), "pre-norm": transformer(True), "resnet": resnet()}
by_subject = pytest.mark.parametrize("case", SUBJECTS.values(), ids=SUBJECTS)


# Not DRTP on the pre-norm encoder: its signal does not fade as the error does, and pushes the sum of the residual
# branches, which nothing normalizes or saturates, on and on.
SERVED = [
    pytest.param(case, rule, id=f"{name}-{rule}")
    for name, case in SUBJECTS.items()
    for rule in RULES
    if not (name == "pre-norm" and isinstance(rule, bpfree.DRTP))
]


@pytest.mark.parametrize(("case", "rule"), SERVED)
def test_a_rule_trains_it_and_leaves_no_trace(case, rule):
    assert_rule_serves(case, rule)


@by_subject
def test_above_the_last_tap_gradients_are_backpropagations(case):
    model = case.build()
    names = [name for name, _ in model.named_parameters()]
    exact = dict(zip(names, case.gradients(copy.deepcopy(model)), strict=True))
    found = dict(zip(names, case.gradients(model, case.attach(model, bpfree.DFA())), strict=True))
    above = [name for name in names if name.startswith(("head", "top", "encoder.norm"))]
    below = [name for name in names if name not in above]
    assert_equal([found[name] for name in above], [exact[name] for name in above])
    assert above
    assert not any(torch.allclose(found[name], exact[name]) for name in below if exact[name].abs().max() > 1e-4)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_transformer_gradients_are_those_of_separate_layers(double, pre_norm):
    case = transformer(pre_norm)
    twin, model = case.build(), case.build()
    attachment = case.attach(model, bpfree.DFA())
    found = case.gradients(model, attachment)

    # The layers one by one, each on the detached output of the one below, under the same dropout masks.
    x = _input_of(case, twin)
    torch.manual_seed(11)
    x = twin.embed(x)
    hidden = []
    for layer in twin.encoder.layers:
        hidden.append(layer(x))
        x = hidden[-1].detach()
    output = twin.head((twin.encoder.norm or nn.Identity())(x).mean(1))
    error = softmax_error(output, case.targets)
    signals = [project(error, B, h) for B, h in zip(matrices(attachment), hidden, strict=True)]
    assert attachment.mechanism.sites[0].features == (7, 16)
    assert_same(found, torch.autograd.grad([output, *hidden], list(twin.parameters()), [error, *signals]))


def _input_of(case, model):
    """The fixed batch, as it reaches the model."""
    seen = []
    handle = model.register_forward_pre_hook(lambda module, args: seen.extend(args))
    with torch.no_grad():
        case.output(model)
    handle.remove()
    return seen[0]


def _convolve(x, conv, bn):
    y = F.conv2d(x, conv.weight, None, conv.stride, conv.padding)
    return F.batch_norm(y, None, None, bn.weight, bn.bias, training=True)


def _functional_resnet(net, x):
    """The taps' activations, each from detached ones below, and the output: by functions, out of place."""
    hidden = [F.relu(_convolve(x, net.stem[0], net.stem[1]))]
    for block in (net.block1, net.block2):
        x = hidden[-1].detach()
        hidden.append(F.relu(_convolve(x, block.conv1, block.bn1)))
        branch = _convolve(hidden[-1].detach(), block.conv2, block.bn2)
        hidden.append(F.relu(branch + (_convolve(x, *block.down) if len(block.down) else x)))
    pooled = F.dropout(hidden[-1].detach().mean((2, 3)), net.top.dropout.p)
    return hidden, net.top.linear(pooled)


def test_resnet_gradients_are_those_of_a_functional_twin(double):
    case = resnet()
    twin, model = case.build(), case.build()
    attachment = case.attach(model, bpfree.DFA())
    found = case.gradients(model, attachment)

    x = _input_of(case, twin.eval())
    torch.manual_seed(11)
    hidden, output = _functional_resnet(twin, x)
    error = softmax_error(output, case.targets)
    sites = [site.name for site in attachment.mechanism.sites]
    assert sites == ["stem.2", "block1.relu", "block1.relu#2", "block2.relu", "block2.relu#2"]
    signals = [project(error, B, h) for B, h in zip(matrices(attachment), hidden, strict=True)]
    assert_same(found, torch.autograd.grad([output, *hidden], list(twin.parameters()), [error, *signals]), 1e-10)


@by_rule
@pytest.mark.parametrize("known", [True, False])
def test_running_statistics_move_once_a_training_step(rule, known):
    case = resnet()
    model, twin = case.build(), case.build()
    x = _input_of(case, case.build())
    attachment = case.attach(model, rule, example_inputs=x if known else None)
    assert [int(bn.num_batches_tracked) for bn in model.modules() if isinstance(bn, nn.BatchNorm2d)] == [0] * 6
    for _ in range(3):
        case.gradients(model, attachment)
        case.gradients(twin)
    assert_equal(model.buffers(), twin.buffers())
    assert int(model.stem[1].num_batches_tracked) == 3


@pytest.mark.parametrize(("case", "rule"), SERVED)
def test_bf16_autocast(case, rule):
    model = case.build()
    attachment = case.attach(model, rule)

    def loss(net):
        with torch.autocast("cpu", torch.bfloat16):
            return case.loss(net)

    mixed = Subject(case.build, case.output, loss, case.targets)
    losses = train(mixed, model, attachment)
    assert losses[-1] < FALL * losses[0]
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    assert {buffer.dtype for buffer in attachment.buffers() if buffer.is_floating_point()} <= {torch.float32}


AGAIN = {
    "a block with two taps inside": ("block1",),
    "every part": ("stem", "block1", "block2", "top"),
    "the whole forward pass": ("model",),
}
by_region = pytest.mark.parametrize("again", AGAIN.values(), ids=AGAIN)


@pytest.mark.parametrize("rule", [*RULES, bpfree.SignSymmetry("batch")], ids=str)
@by_region
def test_checkpointing_changes_no_gradient(rule, again):
    results = []
    for case in (resnet(), resnet(again=again)):
        model = case.build()
        attachment = case.attach(model, rule)
        case.gradients(model, attachment)
        results.append(case.gradients(model, attachment))
    assert_equal(*results)


@pytest.mark.parametrize("rule", [*RULES, bpfree.SignSymmetry("batch")], ids=str)
@pytest.mark.parametrize("late", [False, True], ids=["targets first", "targets after the forward pass"])
def test_checkpointing_from_outside_changes_no_gradient(rule, late):
    # The caller checkpoints the model itself, so the backward pass calls it with all its hooks once more.
    case, results = resnet(), []
    for call in (lambda net, x: net(x), lambda net, x: checkpoint(net, x, use_reentrant=False)):
        model = case.build()
        x, attachment = _input_of(case, case.build()), case.attach(model, rule)
        for _ in range(2):
            torch.manual_seed(11)
            model.zero_grad()
            if not late:
                attachment.targets(case.targets)
            output = call(model, x)
            if late:
                attachment.targets(case.targets)
            F.cross_entropy(output, case.targets).backward()
        results.append([parameter.grad for parameter in model.parameters()])
    assert_equal(*results)


@pytest.fixture
def one_graph():
    """The compiler of a function; every step must run in the graph of the first one."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield lambda run: torch.compile(run, fullgraph=True, backend="aot_eager")
    torch._dynamo.reset()


def _steps(case, rule, transform, count=3):
    """The gradients of several steps, each with a batch and targets of its own."""
    model = case.build()
    shape = _input_of(case, case.build()).shape
    generator = torch.Generator().manual_seed(8)
    attachment = case.attach(model, rule, example_inputs=torch.zeros(shape))
    run, found = transform(model), []
    for _ in range(count):
        x, y = torch.randn(shape, generator=generator), torch.randint(0, CLASSES, shape[:1], generator=generator)
        attachment.targets(y)
        model.zero_grad()
        F.cross_entropy(run(x), y).backward()
        found += [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return found


@pytest.mark.parametrize("rule", [bpfree.DFA(), bpfree.FA(), bpfree.DRTP()], ids=str)
def test_a_compiled_model_learns_as_the_eager_one(double, one_graph, rule):
    case = resnet(dropout=0.0)
    assert_same(_steps(case, rule, one_graph), _steps(case, rule, lambda model: model), 1e-9)


@by_rule
def test_a_compiled_function_takes_the_hooks_into_its_graph(double, one_graph, rule):
    # torch.compile(model) leaves the hooks of the model itself outside; a function that calls the model does not.
    case = resnet(dropout=0.0)
    compiled = _steps(case, rule, lambda model: one_graph(lambda x: model(x)))
    assert_same(compiled, _steps(case, rule, lambda model: model), 1e-9)


@by_rule
def test_clipping_bounds_the_norm_and_keeps_the_direction(rule):
    case = resnet()
    model = case.build()
    found = [g for g in case.gradients(model, case.attach(model, rule)) if g is not None]
    before = [gradient.clone() for gradient in found]
    norm = sum(float(gradient.double().square().sum()) for gradient in before) ** 0.5
    bound = norm / 7
    assert float(nn.utils.clip_grad_norm_(model.parameters(), bound)) == pytest.approx(norm, rel=1e-5)
    for gradient, unclipped in zip(found, before, strict=True):
        torch.testing.assert_close(gradient, unclipped / 7, rtol=1e-4, atol=1e-9)


class Positions(nn.Module):
    """Parameters of the taps' own shape (as embeddings of nodes are): their gradients are the signals themselves."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(6, 4))
        self.below, self.above, self.head = bpfree.Tap(), bpfree.Tap(), nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.head(self.above(self.below(x + self.first) + self.second))


def test_signals_that_are_gradients_share_no_memory():
    model = Positions()
    bpfree.attach(model, bpfree.DFA())
    x, y = torch.randn(6, 4), torch.randint(0, CLASSES, (6,))
    F.cross_entropy(model(x), y).backward()
    once = model.first.grad.clone()
    F.cross_entropy(model(x), y).backward()
    assert model.first.grad.data_ptr() != model.second.grad.data_ptr()
    torch.testing.assert_close(model.first.grad, 2 * once)
    torch.testing.assert_close(model.second.grad, 2 * once)
