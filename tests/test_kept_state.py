"""State that a model, its hooks or its arguments keep: rules that run the model again move it once.

What is expected comes from running the same model without a rule, or from one that keeps no state.
"""

import copy
import itertools
import pickle
import random
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bpfree
from bpfree import errors
from bpfree.rerun import module_state
from bpfree.rerun.module_state import State
from bpfree.verification.second_run import check_second_run

AGAIN = [
    (bpfree.GrAPE(), {}),
    (bpfree.FDFA(), {}),
    (bpfree.LMS(), {}),
    (bpfree.LMS(perturbations="hadamard"), {}),
    (bpfree.ForwardGradient("activations"), {}),
    (bpfree.ForwardGradient("weights"), {}),
    (bpfree.PEPITA(), {}),
    (bpfree.DFA(), {"streaming": True}),
    (bpfree.FDFA(), {"streaming": True}),
]
again = pytest.mark.parametrize(("rule", "options"), AGAIN, ids=str)


@pytest.fixture(autouse=True)
def _double(double):
    pass


class Net(nn.Module):
    """Multiplies what its first tap gives by what a subclass remembers of earlier passes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.below, self.tap, self.above, self.top = nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 7), nn.Tanh()
        self.head = nn.Linear(7, 3)

    def forward(self, x, **more):
        h = self.tap(self.below(x))
        return self.head(self.top(self.above(h * self.factor(h.detach(), **more))))

    def factor(self, h):
        return 1.0


class Attribute(Net):
    """A tensor that is replaced, and a number."""

    passes, level = 0, 0.0

    def factor(self, h):
        self.passes += 1
        self.level = 0.7 * self.level + h.mean(0)
        return 1 + self.level / self.passes

    def seen(self):
        return self.passes, self.level


class InPlace(Net):
    """A tensor in a plain attribute that is written to."""

    def __init__(self):
        super().__init__()
        self.level = torch.zeros(7)

    def factor(self, h):
        return 1 + self.level.mul_(0.7).add_(h.mean(0)).clone()

    def seen(self):
        return (self.level,)


class Slotted:
    __slots__ = ("later", "total")

    def __init__(self):
        self.total = 0.0


class Objects(Net):
    """Objects with attributes and slots, and a tuple of tensors that are written to."""

    def __init__(self):
        super().__init__()
        self.slotted, self.pair = Slotted(), (torch.zeros(7), torch.ones(7))

    def factor(self, h):
        self.slotted.total += 1
        self.slotted.later = h.mean()
        self.pair[0].add_(h.mean(0))
        return self.slotted.total + self.pair[0].clone()

    def seen(self):
        return self.slotted.total, self.slotted.later, *self.pair


class Containers(Net):
    """A list, a delay line, a dictionary of lists, and a set."""

    def __init__(self):
        super().__init__()
        self.history, self.delay, self.sizes = [], deque([1.0, 2.0, 3.0], maxlen=3), set()
        self.by_name = OrderedDict(mean=[0.0])

    def factor(self, h):
        self.history.append(h.mean(0))
        self.delay.append(self.delay[0] + 1)
        self.by_name["mean"].append(self.by_name["mean"][-1] + 1)
        self.by_name[len(self.by_name)] = 0
        self.sizes.add(len(self.history))
        return torch.stack(self.history).sum(0) + self.delay[-1] + sum(self.by_name["mean"]) + len(self.by_name)

    def seen(self):
        return len(self.history), *self.history, *self.delay, *self.by_name["mean"], len(self.by_name), *self.sizes


class NewContainer(Net):
    """A list that every pass makes anew, inside a dictionary that it knows from before."""

    def __init__(self):
        super().__init__()
        self.store = {"lists": [[1.0]]}

    def factor(self, h):
        self.store["lists"].append([self.store["lists"][-1][0] + 1])
        self.store["lists"][-2].append(0.0)
        return self.store["lists"][-1][0] + len(self.store["lists"][0])

    def seen(self):
        return tuple(itertools.chain(*self.store["lists"]))


class Generators(Net):
    """Generators of its own: torch's, numpy's two, and Python's."""

    def __init__(self):
        super().__init__()
        self.drawn = [torch.Generator().manual_seed(1), np.random.default_rng(2), random.Random(3)]
        self.old = np.random.RandomState(4)

    def factor(self, h):
        ours, numpys, pythons = self.drawn
        numbers = torch.rand(7, generator=ours) + torch.from_numpy(numpys.standard_normal(7))
        return numbers + pythons.gauss(0, 1) + self.old.randn()

    def seen(self):
        ours, numpys, pythons = self.drawn
        copied = copy.deepcopy((numpys, pythons, self.old))
        return ours.get_state(), copied[0].random(), copied[1].gauss(0, 1), copied[2].randn()


class GlobalRandom(Net):
    """Python's and numpy's global generators; odd numbers of normal ones, which are drawn in pairs."""

    def __init__(self):
        super().__init__()
        random.seed(1)
        np.random.seed(1)

    def factor(self, h):
        return 1 + random.random() + random.gauss(0, 1) + np.random.randn() + float(np.random.rand())

    def seen(self):
        states = random.getstate(), np.random.get_state()
        numbers = random.random(), random.gauss(0, 1), np.random.randn(), np.random.rand()
        random.setstate(states[0])
        np.random.set_state(states[1])
        return numbers


COUNT, LOG = 0, []


def count_in_the_module(module, args, output):
    global COUNT
    COUNT += 1
    LOG.append(COUNT)
    return output * (1 + COUNT)


class Hooked(Net):
    """Hooks that change the output by what they keep: in closures, globals, an object and a partial's dictionary."""

    def __init__(self):
        super().__init__()
        global COUNT
        COUNT = 0
        LOG.clear()
        kept, calls = [], 0

        def remember(module, args, output):
            nonlocal calls
            calls += 1
            kept.append(output.detach().mean())
            return output + sum(kept) / calls

        def read(store, module, args):
            store["n"] = store.get("n", 0) + 1
            return (args[0] * store["n"],)

        self.read = lambda: (calls, *kept)
        self.store, self.counter = {}, Counter()
        self.tap.register_forward_hook(remember)
        self.above.register_forward_pre_hook(partial(read, self.store))
        self.below.register_forward_hook(count_in_the_module)
        self.below.register_forward_hook(self.counter.hook)

    def seen(self):
        return *self.read(), self.store["n"], self.counter.n, COUNT, *LOG


class Counter:
    total = 0

    def __init__(self):
        self.n = 0
        type(self).total = 0

    def hook(self, module, args, output):
        self.n += 1
        type(self).total += 1
        return output + self.n + Counter.total


class Functions(Net):
    """Tensors and lists in the defaults of functions, in arguments given beforehand, and behind a bound method."""

    def __init__(self):
        super().__init__()

        def written(h, pair=(torch.zeros(7), [0.0]), *, by=torch.ones(7)):  # noqa: B008
            pair[0].add_(h.mean(0))
            pair[1].append(pair[1][-1] + 1)
            return pair[0] * by.mul_(1.1) + pair[1][-1]

        def given(level, h, *, scale):
            return level.add_(h.mean(0)) * scale.mul_(0.9)

        self.written, self.given = written, partial(given, torch.zeros(7), scale=torch.ones(7))
        self.bound = torch.full((7,), 2.0).__rsub__

    def factor(self, h):
        return self.bound(self.written(h) + self.given(h)).clone()

    def seen(self):
        (pair,), options = self.written.__defaults__, self.written.__kwdefaults__
        return pair[0], *pair[1], options["by"], self.given.args[0], self.given.keywords["scale"]


class OnTensors(Net):
    """Attributes of parameters, buffers and plain tensors, as libraries of per-sample gradients keep them."""

    def __init__(self):
        super().__init__()
        self.register_buffer("level", torch.ones(7))
        self.plain = torch.ones(7)
        self.level.gain = 2.0
        self.plain.log = []

    def factor(self, h):
        weight = self.below.weight
        weight.calls = getattr(weight, "calls", 0) + 1
        self.plain.log.append(weight.calls)
        return self.level * self.level.gain + self.plain.log[-1] * weight.calls

    def seen(self):
        return self.below.weight.calls, *self.plain.log, self.level.gain


MODELS = [
    Attribute,
    InPlace,
    Objects,
    Containers,
    NewContainer,
    Generators,
    GlobalRandom,
    Hooked,
    Functions,
    OnTensors,
]


def batches(count=4):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(6, 5, generator=generator) for _ in range(count)], torch.arange(6) % 3


def assert_same(found, expected):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(theirs), rtol=1e-12, atol=1e-14)


@again
@pytest.mark.parametrize("build", MODELS)
def test_state_moves_as_without_a_rule(build, rule, options):
    xs, y = batches()
    plain = build()
    with torch.no_grad():
        expected = [plain(x) for x in xs]
    state = plain.seen()
    model = build()
    bpfree.attach(model, rule, **options)
    outputs = []
    for x in xs:
        outputs.append(model(x))
        F.cross_entropy(outputs[-1], y).backward()
    assert_same([output.detach() for output in outputs], expected)
    assert_same(model.seen(), state)


@pytest.mark.parametrize("build", MODELS)
def test_streaming_gives_the_stored_graphs_gradients(build):
    xs, y = batches()
    found = []
    for options in ({}, {"streaming": True}):
        model = build()
        bpfree.attach(model, bpfree.DFA(), seed=1, **options)
        # All passes before any backward pass: each second run begins from a state that is long gone.
        sum(F.cross_entropy(model(x), y) for x in xs).backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert_same(*found)


@pytest.mark.parametrize("rule", [bpfree.FDFA(), bpfree.GrAPE(), bpfree.LMS()], ids=str)
def test_an_estimating_pass_sees_the_state_of_the_pass_that_it_looks_at(rule):
    """The same network, told from outside by how much to multiply, keeps nothing: its feedback must be the same."""

    class Counting(Net):
        passes = 0

        def factor(self, h):
            self.passes += 1
            return self.passes

    class Told(Net):
        def factor(self, h, by):
            return by

    (xs, y), found = batches(), []
    for model in (Counting(), Told()):
        attachment = bpfree.attach(model, rule, seed=1)
        for number, x in enumerate(xs):
            told = {"by": number + 1} if isinstance(model, Told) else {}
            F.cross_entropy(model(x, **told), y).backward()
        found.append([*attachment.buffers(), *(parameter.grad for parameter in model.parameters())])
    assert_same(*found)


@pytest.mark.parametrize("build", MODELS)
def test_example_inputs_and_alignment_leave_no_trace(build):
    (xs, y), model, plain = batches(), build(), build()
    attachment = bpfree.attach(model, bpfree.FDFA(), example_inputs=xs[0])
    bpfree.alignment(attachment, lambda: F.cross_entropy(model(xs[1]), y))
    if build in (GlobalRandom, Hooked):  # what all models share has moved by nobody but `plain`, which is built last
        plain = build()
        with torch.no_grad():
            expected = plain(xs[2])
        build()
        model = build()
        attachment = bpfree.attach(model, bpfree.FDFA(), example_inputs=xs[0])
        bpfree.alignment(attachment, lambda: F.cross_entropy(model(xs[1]), y))
    else:
        with torch.no_grad():
            expected = plain(xs[2])
    with torch.no_grad():
        torch.testing.assert_close(model(xs[2]), expected, rtol=1e-12, atol=1e-14)


# -- what is kept with its graph ---------------------------------------------------------------------------------------


class Losses(Net):
    """Keeps loss terms of the last layers: in an attribute, a dictionary, a list and, by a hook, a closure's list."""

    def __init__(self):
        super().__init__()
        self.energy, self.terms, self.each = None, {}, []
        heard = self.heard = []
        self.head.register_forward_hook(lambda module, args, output: heard.append(output.square().mean()))

    def forward(self, x):
        h = self.top(self.above(self.tap(self.below(x))))
        output = self.head(h)
        self.energy = output.square().sum()
        self.terms["kl"] = -output.log_softmax(1).mean()
        self.each[:] = [self.head.weight.abs().sum()]
        return output

    def loss(self):
        return self.energy + 2 * self.terms["kl"] + 3 * self.each[0] + 4 * self.heard[-1]


@pytest.mark.parametrize("rule", [bpfree.GrAPE(), bpfree.FDFA(), bpfree.LMS(), bpfree.ForwardGradient("activations")])
def test_loss_terms_that_a_model_keeps_keep_their_graph(rule):
    x, found = batches()[0][0], []
    for one in (bpfree.BP(), rule):
        model = Losses()
        bpfree.attach(model, one)
        for _ in range(2):
            model.zero_grad()
            model(x)
            model.loss().backward()
        assert len(model.heard) == 2
        found.append([model.head.weight.grad, model.head.bias.grad])
    assert_same(*found)


def keeps(where):
    def forward(self, x):
        h = self.tap(self.below(x))
        if where == "an attribute":
            self.penalty = h.abs().sum()
        elif where == "a dictionary":
            self.terms["l1"] = [h.abs().sum()]
        elif where == "a buffer":
            self.mean = h.mean(0)
        elif where == "between taps":
            self.between = self.above(h.detach()).mean()
        return self.head(self.top(self.above(h)))

    return forward


@pytest.mark.filterwarnings("ignore:the model returns, or keeps on itself")
@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("an attribute", "penalty"),
        ("a dictionary", r"terms\['l1'\]\[0\]"),
        ("a buffer", "mean"),
        ("between taps", "between"),
    ],
)
def test_streaming_refuses_graphs_that_are_kept_below_the_error(where, name):
    kind = type("Keeping", (Net,), {"forward": keeps(where)})
    model, (xs, _) = kind(), batches()
    model.terms = {}
    model.register_buffer("mean", None)
    bpfree.attach(model, bpfree.DFA(), streaming=True)
    with pytest.raises(errors.StreamingError, match=f"keeps tensors with a graph.*{name}"):
        model(xs[0])
    assert torch.is_grad_enabled()


@pytest.mark.filterwarnings("ignore:the model returns, or keeps on itself")
def test_streaming_refuses_graphs_that_a_hook_keeps():
    model, kept = Net(), []
    model.tap.register_forward_hook(lambda module, args, output: kept.append(output))
    bpfree.attach(model, bpfree.DFA(), streaming=True)
    with pytest.raises(errors.StreamingError, match=r"hook <lambda> of 'tap'.*kept"):
        model(batches()[0][0])


def test_streaming_takes_what_is_kept_without_a_graph_or_above_the_error_and_weight_norm():
    (xs, y), kept, above, found = batches(), [], [], []
    for options in ({"streaming": True}, {}):
        one = Net()
        one.tap.register_forward_hook(lambda module, args, output: kept.append(output.detach()))
        one.above = nn.utils.weight_norm(one.above)
        one.head.register_forward_hook(lambda module, args, output: above.append(output.square().mean()))
        bpfree.attach(one, bpfree.DFA(), error_at="top", taps=["tap"], **options)
        F.cross_entropy(one(xs[0]), y).backward()
        found.append([parameter.grad for parameter in one.parameters()])
    assert_same(*found)
    assert len(kept) == len(above) == 2  # once for each model


# -- arguments ---------------------------------------------------------------------------------------------------------


@dataclass
class Graph:
    """As the data objects of graph libraries: tensors out of pytree's sight."""

    x: torch.Tensor
    calls: int = 0
    seen: list = field(default_factory=list)
    cache: torch.Tensor | None = None


class OfGraph(Net):
    def forward(self, graph):
        graph.calls += 1
        graph.seen.append(graph.calls)
        graph.cache = graph.x.detach() if graph.cache is None else torch.cat([graph.cache, graph.x.detach()])
        return super().forward(graph.x * graph.calls + graph.cache.mean(0) + len(graph.seen))


@again
def test_objects_among_the_arguments_change_once(rule, options):
    if isinstance(rule, bpfree.PEPITA):
        pytest.skip("PEPITA adds to its first argument, which must be a tensor")
    (xs, y), expected, found = batches(), [], []
    plain, model = OfGraph(), OfGraph()
    bpfree.attach(model, rule, **options)
    given = [Graph(xs[0]), Graph(xs[0])]
    for _ in range(3):
        with torch.no_grad():
            expected.append(plain(given[0]))
        found.append(model(given[1]))
        F.cross_entropy(found[-1], y).backward()
    assert_same([output.detach() for output in found], expected)
    assert_same([given[1].calls, *given[1].seen, given[1].cache], [given[0].calls, *given[0].seen, given[0].cache])


class OfTuple(Net):
    def forward(self, given):
        x, (gain, counts) = given
        counts.append(gain * len(counts))
        return super().forward(x * sum(counts))


@again
def test_tuples_among_the_arguments(rule, options):
    if isinstance(rule, bpfree.PEPITA):
        pytest.skip("PEPITA adds to its first argument, which must be a tensor")
    (xs, y), expected, found = batches(), [], []
    plain, model = OfTuple(), OfTuple()
    bpfree.attach(model, rule, **options)
    gain, counts = torch.tensor(2.0), ([1.0], [1.0])
    for x in xs:
        with torch.no_grad():
            expected.append(plain((x, (gain, counts[0]))))
        found.append(model((x, (gain, counts[1]))))
        F.cross_entropy(found[-1], y).backward()
    assert_same([output.detach() for output in found], expected)
    assert_same(counts[1], counts[0])


@pytest.mark.parametrize("options", [{}, {"streaming": True}, {"window": 2}, {"threads": 2}], ids=str)
@pytest.mark.parametrize("wrap", [Graph, lambda x: Graph([x]), lambda x: {"g": Graph((x, 1))}])
def test_tensors_that_argument_objects_hold_get_their_gradient(options, wrap):
    """An encoder before the model, whose output also has a loss of its own."""

    class Unwrapping(Net):
        def forward(self, given):
            held = given["g"].x if isinstance(given, dict) else given.x
            return super().forward(held if isinstance(held, torch.Tensor) else held[0])

    (xs, y), found = batches(), []
    for hidden in (False, True):
        torch.manual_seed(3)
        encoder, model = nn.Linear(5, 5), Unwrapping() if hidden else Net()
        bpfree.attach(model, bpfree.DFA(), seed=2, **options)
        z = encoder(xs[0]).tanh()
        given = wrap(z) if hidden else z
        loss = F.cross_entropy(model(given), y) + z.square().sum()
        loss.backward()
        found.append([encoder.weight.grad, *(parameter.grad for parameter in model.parameters())])
    assert_same(*found)
    held = given["g"].x if isinstance(given, dict) else given.x
    assert (held if isinstance(held, torch.Tensor) else held[0]) is z


@pytest.mark.parametrize("rule", [bpfree.DFA(), bpfree.FDFA()], ids=str)
@pytest.mark.parametrize("collect", [dict, Graph], ids=["dictionary", "object"])
def test_loss_terms_that_a_model_leaves_in_its_arguments_are_exact(rule, collect):
    """A penalty on the first tap: the layer below gets the rule's gradient and, exact, the penalty's."""

    class Collecting(Net):
        def forward(self, x, losses):
            h = self.tap(self.below(x))
            if isinstance(losses, dict):
                losses["penalty"] = h.square().sum()
            else:
                losses.cache = h.square().sum()
            return self.head(self.top(self.above(h)))

    (xs, y), found = batches(), []
    for terms in ("error", "penalty", "both"):
        model, losses = Collecting(), collect() if collect is dict else Graph(xs[0])
        bpfree.attach(model, rule, seed=1)
        error = F.cross_entropy(model(xs[0], losses), y)
        penalty = losses["penalty"] if collect is dict else losses.cache
        ({"error": error, "penalty": penalty, "both": error + penalty}[terms]).backward()
        found.append(model.below.weight.grad)
    plain = Net()
    h = plain.tap(plain.below(xs[0]))
    (exact,) = torch.autograd.grad(h.square().sum(), plain.below.weight)
    assert_same([found[1], found[2] - found[0]], [exact, exact])


@pytest.mark.filterwarnings("ignore:the model returns, or keeps on itself")
def test_streaming_refuses_a_cache_that_keeps_a_graph():
    class Caching(Net):
        def forward(self, x, cache):
            cache.x = self.tap(self.below(x))
            return self.head(self.top(self.above(cache.x)))

    model = Caching()
    bpfree.attach(model, bpfree.DFA(), streaming=True)
    with pytest.raises(errors.StreamingError, match=r"argument 'cache'\.x"):
        model(batches()[0][0], cache=Graph(torch.zeros(1)))


# -- what cannot be put right ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"streaming": True}], ids=str)
def test_a_large_tensor_that_is_written_to_late_is_named(monkeypatch, options):
    class Late(Net):
        passes = 0

        def __init__(self):
            super().__init__()
            self.memory = torch.zeros(7)

        def factor(self, h):
            self.passes += 1
            if self.passes > 3:
                self.memory.add_(1)
            return 1 + self.memory.clone()

    monkeypatch.setattr(module_state, "_SMALL", 3)
    model, (xs, y) = Late(), batches(6)
    bpfree.attach(model, bpfree.FDFA() if not options else bpfree.DFA(), **options)
    for x in xs[:3]:
        F.cross_entropy(model(x), y).backward()
    with pytest.raises(errors.SecondRunError, match=r"'memory', a tensor \(7,\).*register_buffer"):
        F.cross_entropy(model(xs[3]), y).backward()
    # The remedy.
    model = Late()
    del model.memory
    model.register_buffer("memory", torch.zeros(7), persistent=False)
    bpfree.attach(model, bpfree.FDFA() if not options else bpfree.DFA(), **options)
    for x in xs:
        F.cross_entropy(model(x), y).backward()
    assert torch.equal(model.memory, torch.full((7,), 3.0))


class Iterating(Net):
    """Counts by an iterator, which nobody can put back."""

    def __init__(self):
        super().__init__()
        self.numbers = itertools.count(1)

    def factor(self, h):
        return next(self.numbers)


def test_streaming_names_the_tap_where_the_second_run_differs():
    model = Iterating()
    bpfree.attach(model, bpfree.DFA(), streaming=True)
    with pytest.raises(errors.StreamingError, match=r"at tap 'top' the second run.*other numbers"):
        model(batches()[0][0])
    bpfree.attach(unchecked := Iterating(), bpfree.DFA(), streaming=True, taps=["tap"])
    with pytest.raises(errors.StreamingError, match="where the error is taken the second run"):
        unchecked(batches()[0][0])


def test_the_check_names_the_first_module_that_differs():
    (x, *_), _ = batches()
    (found,) = check_second_run(bpfree.attach(Iterating(), bpfree.DFA()).mechanism.plan, ((x,), {}))
    assert (found.check, found.where) == ("second run", "above")
    assert "differs between two runs" in str(found)


def test_verify_names_a_second_run_that_differs_where_it_explains_another_finding():
    (x, *_), _ = batches()
    report = bpfree.verify(bpfree.attach(Iterating(), bpfree.DFA()), x)
    assert {finding.check for finding in report.findings} == {"taught", "second run"}
    assert bpfree.verify(bpfree.attach(Iterating(), bpfree.FA()), x).is_right


@pytest.mark.parametrize("build", MODELS)
def test_the_check_finds_nothing_where_state_can_be_put_back(build):
    (x, *_), _ = batches()
    model, plain = build(), build()
    model = build()
    assert check_second_run(bpfree.attach(model, bpfree.DFA()).mechanism.plan, ((x,), {})) == []
    with torch.no_grad():
        seen = model(x)
        plain = build()
        assert torch.equal(seen, plain(x))


# -- interruptions -----------------------------------------------------------------------------------------------------


class Interrupted(Net):
    at = None

    def factor(self, h):
        if self.at == "now":
            raise KeyboardInterrupt
        return 1.0


@pytest.mark.parametrize("then", ["call", "paused", "detach"])
def test_an_interrupted_stream_does_not_leave_gradients_off(then):
    (xs, y), model = batches(), Interrupted()
    attachment = bpfree.attach(model, bpfree.DFA(), streaming=True)
    model.at = "now"
    with pytest.raises(KeyboardInterrupt):
        model(xs[0])
    model.at = None
    if then == "call":
        F.cross_entropy(model(xs[0]), y).backward()
        whole = Interrupted()
        bpfree.attach(whole, bpfree.DFA())
        F.cross_entropy(whole(xs[0]), y).backward()
        assert_same([p.grad for p in model.parameters()], [p.grad for p in whole.parameters()])
    elif then == "paused":
        with attachment.paused():
            assert torch.is_grad_enabled()
    else:
        attachment.detach()
    assert torch.is_grad_enabled()


# -- the interface -----------------------------------------------------------------------------------------------------


def test_a_stream_stays_a_stream_when_its_model_calls_itself():
    """In a hook below the error: what comes behind still has no graph, and the gradients are the stored graph's."""
    (xs, y), found, graphs = batches(), [], []
    for options in ({"streaming": True}, {}):
        model, inside = Net(), []

        def look(module, args, output, model=model, inside=inside):
            if not inside:
                inside.append(1)
                with torch.no_grad():
                    model(xs[1])
                inside.pop()
            graphs.append(torch.is_grad_enabled())

        attachment = bpfree.attach(model, bpfree.DFA(), seed=1, example_inputs=xs[0], **options)
        model.below.register_forward_hook(look)
        if options:
            F.cross_entropy(model(xs[0]), y).backward()  # the first pass looks at the model with its whole graph
            graphs.clear()
            model.zero_grad()
            output = model(xs[0])
            assert not any(graphs)
        else:
            output = model(xs[0])
        F.cross_entropy(output, y).backward()
        found.append([parameter.grad for parameter in model.parameters()])
        attachment.detach()
    assert_same(*found)


def test_holders_name_and_replace_what_they_hold():
    model = Losses()
    model(batches()[0][0])
    named = {
        holder.name(key): (holder, key, value) for holder in State(model).holders for key, value in holder.entries()
    }
    assert {"energy", "terms['kl']", "each[0]", "heard[0]", "head.in_features"} <= named.keys()
    for name in ("energy", "terms['kl']", "each[0]"):
        holder, key, value = named[name]
        holder.replace(key, value * 0 + 7)
    assert [float(value) for value in (model.energy, model.terms["kl"], model.each[0])] == [7, 7, 7]
    model.pair = (torch.zeros(1), torch.ones(1))
    (pair,) = [holder for holder in State(model).holders if holder.label == "pair"]
    pair.replace(0, torch.ones(2))
    pair.replace(1, torch.ones(3))
    assert [len(entry) for entry in model.pair] == [2, 3]


def test_a_copy_of_an_attached_model_keeps_state_of_its_own():
    (xs, y), model = batches(), Containers()
    bpfree.attach(model, bpfree.FDFA())
    F.cross_entropy(model(xs[0]), y).backward()
    twin = copy.deepcopy(model)
    F.cross_entropy(twin(xs[1]), y).backward()
    assert len(model.history) == 1
    assert len(twin.history) == 2


class Stopping(Containers):
    """Raises in the middle of a pass."""

    def forward(self, x):
        super().forward(x)
        raise KeyError("the user's own")


@again
def test_an_attached_model_can_be_copied_behind_a_pass_that_was_not_finished(rule, options):
    (xs, _), model = batches(), Stopping()
    bpfree.attach(model, rule, verify=False, **options)
    with pytest.raises(KeyError):
        model(xs[0])
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with pytest.raises(KeyError):
            twin(xs[0])


class Recorder(nn.Module):
    """Puts hooks on its parts in its first call and notes that it has, as libraries that collect hidden states do."""

    def __init__(self):
        super().__init__()
        self.a, self.t, self.b = nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)
        self.installed, self.seen = False, []

    def forward(self, x):
        if not self.installed:
            self.t.register_forward_hook(lambda module, args, output: self.seen.append(output))
            self.installed = True
        self.seen.clear()
        return self.b(self.t(self.a(x)))


@pytest.mark.filterwarnings("ignore:the model keeps tensors on itself")
@pytest.mark.parametrize("rule", [bpfree.DFA(), bpfree.FDFA(), bpfree.PEPITA()], ids=str)
def test_hooks_that_a_model_puts_in_itself_are_there_once(rule):
    model = Recorder()
    with bpfree.attach(model, rule):
        for _ in range(2):
            model(torch.randn(4, 6)).sum().backward()
            assert len(model.seen) == 1
    assert model.installed
    assert len(model.t._forward_hooks) == 1
