"""Which modules are taps: by default, by pattern, and inside outputs of several tensors."""

import ast
import copy
import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bpfree
from bpfree import errors
from bpfree.nonlinearities import is_nonlinearity
from bpfree.taps import select_taps


def made(name, *, weights=(), parts=None, base=nn.Module):
    """An instance of a class of this name, with parameters of these shapes and these submodules."""
    module = type(name, (base,), {"forward": lambda self, x: x})()
    for number, shape in enumerate(weights):
        module.register_parameter(f"w{number}", nn.Parameter(torch.ones(shape)))
    for part, submodule in (parts or {}).items():
        module.add_module(part, submodule)
    return module


# Of transformers, timm, diffusers; audio and coordinate networks; snntorch, norse, spikingjelly, sinabs.
LIKE_ONE = """
    NewGELUActivation GELUActivation QuickGELUActivation ClippedGELUActivation SiLUActivation MishActivation
    LaplaceActivation ReLUSquaredActivation SqrtSoftplusActivation PytorchGELUTanh GELUTanh BloomGelu
    QuickGELU SquaredReLU HardSwishJit SwishMe HardMish FP32SiLU Swish ReLUSquared GatedLinearUnit Softplus1 Act
    AntiAliasedActivation1d Sine SineLayer ComplexActivation CReLU ATan
    Leaky RLeaky Lapicque Synaptic Alpha LIF LIFCell LIFBoxCell CubaLIFCell IFNode LIFNode QIFNode ParametricLIFNode
    IzhikevichCell IAF IAFSqueeze ALIF SpikingNeuron
"""
UNLIKE = """
    Softmax LogSoftmax SoftmaxActivation GumbelSoftmax Dropout AlphaDropout FeatureAlphaDropout DropPath ActNorm
    LinearActivation Identity SigmoidFocalLoss TanhTransform SigmoidFlow ReLUAttention SuperGlueFusion Contract
    Compact LeakyIntegrator Flatten Upsample MaxPool2d CosineSimilarity SinusoidalPositionEmbedding SwiGLUFFN
    ReLUBlock Life Shift GIFDecoder Residual Mask Block
"""


@pytest.mark.parametrize("name", LIKE_ONE.split())
def test_named_and_built_like_a_non_linearity(name):
    assert is_nonlinearity(made(name))


@pytest.mark.parametrize(
    ("name", "weights"),
    [("XIELUActivation", [(1,), (1,)]), ("SnakeBeta", [(8,), (8,)]), ("StarReLU", [(), ()]), ("AconC", [(1, 4, 1, 1)])],
)
def test_vectors_of_parameters_are_no_weights(name, weights):
    assert is_nonlinearity(made(name, weights=weights))
    assert not is_nonlinearity(made(name, weights=[*weights, (4, 4)]))


@pytest.mark.parametrize("name", UNLIKE.split())
def test_named_like_something_else(name):
    assert not is_nonlinearity(made(name))


def test_blocks_with_weights_are_none_and_a_projection_in_front_is_allowed():
    assert not is_nonlinearity(made("ConvActivation", parts={"conv": nn.Conv2d(1, 1, 1), "act": nn.ReLU()}))
    assert not is_nonlinearity(made("SigmoidGate", parts={"gate": nn.Linear(8, 1)}))
    assert not is_nonlinearity(made("SwiGLU", parts={"fc1": nn.Linear(4, 8), "fc2": nn.Linear(4, 4)}))
    assert is_nonlinearity(made("GEGLU", parts={"proj": nn.Linear(4, 8)}))
    assert not is_nonlinearity(nn.ModuleDict())
    assert not is_nonlinearity(made("Activations", base=nn.ModuleList))
    assert not is_nonlinearity(made("GELU", parts={"proj": nn.LazyLinear(8)}, base=nn.ModuleDict))


def test_transformers_models_have_default_taps():
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 17, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 8}
    model = transformers.GPT2Model(transformers.GPT2Config(**sizes))
    assert list(select_taps(model, None)) == ["h.0.mlp.act", "h.1.mlp.act"]


def test_what_is_inside_a_non_linearity_is_no_tap_of_its_own():
    cell = made("Neuron", parts={"surrogate": nn.Sigmoid()})
    model = nn.Sequential(nn.Linear(4, 4), cell, nn.Linear(4, 4), nn.Tanh(), made("Block", parts={"act": nn.ReLU()}))
    assert list(select_taps(model, None)) == ["1", "3", "4.act"]
    assert list(select_taps(model, nn.Sigmoid)) == ["1.surrogate"]


# -- nothing to tap ----------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.fc, self.norm = nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, x):
        return x + F.gelu(self.fc(self.norm(x)))


class Stack(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.stem, self.head = nn.Linear(4, 6), nn.Linear(6, 3)
        self.h = nn.ModuleList(Block() for _ in range(depth))

    def forward(self, x):
        x = self.stem(x)
        for block in self.h:
            x = block(x)
        return self.head(x)


@pytest.mark.parametrize("rule", [bpfree.DFA(), bpfree.GrAPE(), bpfree.PEPITA()], ids=str)
@pytest.mark.parametrize("depth", [2, 10, 12, 101])
def test_a_model_without_non_linearities_is_told_what_it_has_and_what_to_do(depth, rule):
    model = Stack(depth)
    with pytest.raises(errors.TapSelectionError, match=r"It has stem \(Linear\), head \(Linear\), h \(") as caught:
        bpfree.attach(model, rule)
    taps = ast.literal_eval(re.search(r"taps=(\[[^]]*\]|'[^']*')\.", str(caught.value))[1])
    # The remedy, tried: the blocks and nothing else.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(select_taps(model, taps)) == [f"h.{i}" for i in range(depth)]
        bpfree.attach(model, bpfree.DFA(), taps=taps, example_inputs=torch.randn(2, 4))


def test_models_without_blocks_are_told_of_taps_for_functions():
    for model, says in (
        (nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), r"It has 0-1|It has 0 \(Linear\), 1 \(Linear\)"),
        (nn.Linear(4, 4), "It has no submodules at all"),
        (nn.Sequential(*(nn.Linear(4, 4) for _ in range(40))), r"It has 0-39 \(Linear\)\. Non-"),
    ):
        with pytest.raises(errors.TapSelectionError, match=f"(?s){says}.*bpfree.Tap"):
            bpfree.attach(model, bpfree.DFA())


def test_recurrent_layers_are_named_as_places():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.GRU(4, 5, batch_first=True), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(self.rnn(x)[0])

    model = Last()
    with pytest.raises(errors.TapSelectionError, match=r"It has rnn \(GRU\), head \(Linear\)\. .* taps='rnn'\."):
        bpfree.attach(model, bpfree.DFA())
    bpfree.attach(model, bpfree.DFA(), taps="rnn", example_inputs=torch.randn(2, 3, 4))


# -- patterns ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("taps", "left_out", "everything"),
    [
        ("h.?", "h.10-12", "taps=['h.?', 'h.??']"),
        (["h.[0-9]", "h.1[01]"], "h.12", "taps=['h.?', 'h.??']"),
        ("h.?.norm", "h.10-12.norm", "taps='h.*.norm'"),
    ],
    ids=str,
)
def test_a_pattern_that_ends_at_ten_blocks_is_told(taps, left_out, everything):
    model = Stack(13)
    with pytest.warns(bpfree.BpfreeWarning) as told:
        bpfree.attach(model, bpfree.DFA(), taps=taps)
    (said,) = [warning for warning in told if warning.category is bpfree.BpfreeWarning]
    assert said.filename == __file__
    assert f"it leaves out {left_out}. All are matched by {everything}." in str(said.message)
    kind = "norm" if "norm" in str(taps) else ""
    every = ast.literal_eval(everything.removeprefix("taps="))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(select_taps(model, every)) == [f"h.{i}.{kind}".rstrip(".") for i in range(13)]


@pytest.mark.parametrize(
    "taps",
    ["h.*.norm", ["h.?", "h.??"], "h.[0-5]", "h.1?", "h.12", "h.[02468].fc", Block, [f"h.{i}" for i in range(10)]],
    ids=str,
)
def test_a_part_that_is_meant_is_no_matter(taps):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        select_taps(Stack(13), taps)


def test_numbers_inside_names_count_too():
    model = nn.Sequential()
    for number in range(1, 12):
        model.add_module(f"act{number}", nn.Tanh())
    with pytest.warns(bpfree.BpfreeWarning, match=r"'act\?' matches only a part of act1-11: .* act10, act11.*'act\*'"):
        select_taps(model, "act?")


# -- outputs of several tensors ----------------------------------------------------------------------------------------


class Pair(nn.Module):
    """Two layers' outputs at once; which of them the head sees is up to the model."""

    def __init__(self, kind):
        super().__init__()
        self.one, self.two, self.kind = nn.Linear(5, 6), nn.Linear(5, 6), kind

    def forward(self, x):
        a, b = torch.tanh(self.one(x)), torch.tanh(self.two(x))
        return {"first": a, "second": b} if self.kind is dict else self.kind((torch.tensor([3]), [a, b]))


class Network(nn.Module):
    def __init__(self, kind=tuple, tap=None):
        super().__init__()
        self.stem, self.pair, self.head = nn.Linear(4, 5), Pair(kind), nn.Linear(6, 3)
        self.tap = tap or nn.Identity()

    def forward(self, x):
        out = self.tap(self.pair(self.stem(x)))
        a, b = out.values() if isinstance(out, dict) else out[1]
        return self.head(a * b)


@pytest.mark.parametrize(
    ("kind", "taps", "tap", "branch"),
    [
        (tuple, "pair", None, "one"),
        (list, {"pair": (1, 1)}, None, "two"),
        (dict, {Pair: "second"}, None, "two"),
        (dict, ["pair"], None, "one"),
        (tuple, None, {}, "one"),
        (dict, None, {"output": "second"}, "two"),
        (tuple, {"t*": (1, 1)}, {}, "two"),
    ],
    ids=str,
)
def test_the_named_tensor_gets_the_signal_and_the_others_their_gradients(kind, taps, tap, branch, double):
    model, x, y = Network(kind, None if tap is None else bpfree.Tap(**tap)), torch.randn(8, 4), torch.arange(8) % 3
    expected = model(x).detach()
    attachment = bpfree.attach(model, bpfree.DFA(), taps=taps, seed=3)
    output = model(x)
    assert torch.equal(output, expected)
    F.cross_entropy(output, y).backward()
    with torch.no_grad():
        e = (expected.softmax(1) - F.one_hot(y, 3)) / 8
        s = model.stem(x)
        a, b = model.pair.one(s).tanh(), model.pair.two(s).tanh()
        tapped, other = (a, b) if branch == "one" else (b, a)
        one, two = (model.pair.one, model.pair.two) if branch == "one" else (model.pair.two, model.pair.one)
        (site,) = attachment.mechanism.sites
        delta = (e @ attachment.feedback.matrix(site)) * (1 - tapped**2)
        # What the model made of the other tensor goes past the tap: the exact gradient into the same segment.
        ordinary = (e @ model.head.weight) * tapped * (1 - other**2)
    torch.testing.assert_close(model.head.weight.grad, e.T @ (a * b))
    torch.testing.assert_close(one.weight.grad, delta.T @ s)
    torch.testing.assert_close(two.weight.grad, ordinary.T @ s)
    torch.testing.assert_close(model.stem.weight.grad, (delta @ one.weight + ordinary @ two.weight).T @ x)


def test_feedback_that_learns_from_activations_learns_from_that_tensor(double):
    model, x, error = Network(dict), torch.randn(8, 4), torch.randn(8, 3)
    attachment = bpfree.attach(model, bpfree.DKP(decay=0.0), taps={"pair": "second"})
    model(x).backward(error)
    h = model.pair.two(model.stem(x)).tanh()
    torch.testing.assert_close(attachment.feedback["pair"].grad, error.T @ h)


PLACES = [(tuple, "pair", "one"), (list, {"pair": (1, 1)}, "two"), (dict, {"pair": "second"}, "two")]
"""How outputs of several tensors are tapped, and the layer that the tapped one comes from."""


@pytest.mark.parametrize(("kind", "taps", "branch"), PLACES, ids=str)
def test_feedback_that_learns_from_forward_passes_perturbs_that_tensor(kind, taps, branch, double):
    """With one sample and signs v the estimate is G = (J v) v^T, so that G v / 6 is J v."""
    model, x = Network(kind), torch.randn(1, 4)
    rule = bpfree.FDFA(debiased=False, beta=1.0, perturbations="rademacher")
    attachment = bpfree.attach(model, rule, taps=taps)
    model(x).sum().backward()
    G = attachment.feedback["pair:6"]
    v = G[G.norm(dim=1).argmax()].sign()
    other = model.pair.two if branch == "one" else model.pair.one
    with torch.no_grad():
        J = model.head.weight * other(model.stem(x)).tanh()
    torch.testing.assert_close((G @ v / 6).abs(), (J @ v).abs())


@pytest.mark.parametrize("rule", [bpfree.BP(), bpfree.DFA(), bpfree.FDFA()], ids=str)
@pytest.mark.parametrize(("kind", "taps", "branch"), PLACES, ids=str)
def test_alignment_is_that_of_the_signals_of_that_tensor(kind, taps, branch, rule, double):
    model, x, y = Network(kind), torch.randn(8, 4), torch.arange(8) % 3
    attachment = bpfree.attach(model, rule, taps=taps, example_inputs=x)
    F.cross_entropy(model(x), y).backward()
    (found,) = bpfree.alignment(attachment, lambda: F.cross_entropy(model(x), y)).taps
    with torch.no_grad():
        e = (model(x).softmax(1) - F.one_hot(y, 3)) / 8
        s = model.stem(x)
        a, b = model.pair.one(s).tanh(), model.pair.two(s).tanh()
        tapped, other = (a, b) if branch == "one" else (b, a)
        exact = (e @ model.head.weight) * other
        signal = exact
        if not isinstance(rule, bpfree.BP):
            (site,) = attachment.mechanism.sites
            signal = e @ attachment.feedback.matrix(site)
    assert found.norm_activation == pytest.approx(tapped.norm(dim=1).mean().item())
    assert found.norm_bp == pytest.approx(exact.norm(dim=1).mean().item())
    assert found.norm_signal == pytest.approx(signal.norm(dim=1).mean().item())
    assert found.cosine_mean == pytest.approx(F.cosine_similarity(signal, exact, dim=1).mean().item())


def test_an_lstm_is_tapped_at_its_output(double):
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(self.rnn(x)[0])

    model, x = Last(), torch.randn(6, 7, 4)
    attachment = bpfree.attach(model, bpfree.DFA(), taps="rnn")
    error = torch.randn(6, 7, 3)
    model(x).backward(error)
    found = [parameter.grad.clone() for parameter in model.rnn.parameters()]
    (site,) = attachment.mechanism.sites
    signal = error @ attachment.feedback.matrix(site)
    attachment.detach()
    expected = torch.autograd.grad(model.rnn(x)[0], list(model.rnn.parameters()), signal)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("taps", "says"),
    [
        ({"pair": 5}, "tap 'pair' has nothing at 5.*tensors at: .1, 0."),
        ({"pair": 0}, "tap 'pair' has a tensor of torch.int64 at 0"),
        ({"pair": "hidden"}, "tap 'pair' has nothing at 'hidden'"),
        ({"stem": 0}, "tap 'stem' has nothing at 0.*Leave the key out"),
    ],
    ids=str,
)
def test_a_place_that_is_not_there_is_named_and_leaves_nothing(taps, says):
    model = Network()
    with pytest.raises(errors.TapOutputError, match=says):
        bpfree.attach(model, bpfree.DFA(), taps=taps, example_inputs=torch.randn(2, 4))
    bpfree.attach(model, bpfree.DFA(), taps="pair", example_inputs=torch.randn(2, 4))


def test_a_place_that_means_nothing_is_refused():
    for key in (1.5, [1], (0, None), nn.Tanh):
        with pytest.raises(errors.TapSelectionError, match="nowhere in the output of 'pair'"):
            bpfree.attach(Network(), bpfree.DFA(), taps={"pair": key})
    with pytest.raises(errors.TapSelectionError, match=r"nothing in the model matches 'par'.*'pair'"):
        bpfree.attach(Network(), bpfree.DFA(), taps={"par": 0})


class Distilled(nn.Module):
    """As vit_pytorch's Dino: a net that is registered by itself too, and so has two names, and a copy of it."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        self.student, self.teacher = nn.ModuleDict({"net": self.net}), nn.ModuleDict({"net": copy.deepcopy(self.net)})

    def forward(self, x):
        return self.student["net"](x)


@pytest.mark.parametrize(
    ("taps", "named"),
    [
        ("student.net.1", ["net.1"]),
        (["student.net.1", "net.0"], ["net.0", "net.1"]),
        ("student.net.?", ["net.0", "net.1", "net.2"]),
        ({"student.net.1": None}, ["net.1"]),
        ("*.net.1", ["teacher.net.1"]),  # a pattern that matches first names means these alone
    ],
    ids=str,
)
def test_a_tap_may_go_by_any_of_its_names(taps, named):
    model = Distilled()
    attachment = bpfree.attach(model, bpfree.DFA(), taps=taps)
    assert list(attachment.taps) == named
    assert all(model.get_submodule(name) is module for name, module in attachment.taps.items())


def test_a_model_learns_the_same_by_any_of_its_modules_names():
    found = []
    for prefix in ("net", "student.net"):
        torch.manual_seed(0)
        model = Distilled()
        bpfree.attach(model, bpfree.DFA(), taps=f"{prefix}.1", error_at=f"{prefix}.2")
        model(torch.ones(4, 6)).square().sum().backward()
        found.append([parameter.grad for parameter in model.net.parameters()])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_the_tensor_of_a_tap_is_named_by_a_second_name():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 3)
            self.parts = nn.ModuleDict({"rnn": self.rnn})

        def forward(self, x):
            return self.head(self.rnn(x)[1][0][0])

    model = Recurrent()
    attachment = bpfree.attach(model, bpfree.DFA(), taps={"parts.rnn": (1, 0)}, sample_axes={"*": 1})
    model(torch.randn(4, 5, 6)).sum().backward()
    assert {site.name: site.features for site in attachment.mechanism.sites} == {"rnn": (1, 8)}


def test_one_module_under_two_names_is_one_error():
    with pytest.raises(errors.ErrorPlacementError, match="several different ones"):
        bpfree.attach(Distilled(), bpfree.DFA(), error_at=("net", "student.net"))
