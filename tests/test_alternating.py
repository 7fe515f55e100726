"""Alternating cuts: a step cuts one tap in p, and the next step cuts others."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import bpfree
from support.by_hand import TanhMLP, assert_same, softmax_error
from support.cut_models import DEPTH, C, Residual, convnet, mlp
from support.rule_contract import Subject, assert_rule_serves
from support.two_ranks import run_on_two_ranks

pytestmark = pytest.mark.long


class Checkpointed(nn.Module):
    """Parts with taps run again in the backward pass."""

    def __init__(self):
        super().__init__()
        self.layers = mlp()

    def forward(self, x):
        for first in range(0, 2 * DEPTH, 4):
            x = checkpoint(self.layers[first : first + 4], x, use_reentrant=False)
        return self.layers[-1](x)


class TwoHeads(nn.Module):
    """Two errors, and loss terms made of hidden states."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(4))
        self.policy, self.value = nn.Linear(6, C), nn.Linear(6, 1)

    def forward(self, x):
        terms = []
        for layer in self.body:
            x = layer(x)
            terms.append(x.square().mean())
        return self.policy(x), self.value(x), terms[1] + terms[2]


MODELS = {
    "mlp": (mlp, (8, 6)),
    "convolution": (convnet, (8, 1, 8, 8)),
    "residual": (Residual, (8, 6)),
    "checkpointed": (Checkpointed, (8, 6)),
    "two heads": (TwoHeads, (8, 6)),
}
OWN = bpfree.Feedback(shared=False)


def batch(name="mlp"):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(MODELS[name][1], generator=generator), torch.randint(0, C, (8,), generator=generator)


def loss_of(output, y):
    if isinstance(output, tuple):
        policy, value, term = output
        return F.cross_entropy(policy, y) + value.square().mean() + term
    return F.cross_entropy(output, y)


def backward(model, attachment, x, y):
    """The gradients of one pass, from none."""
    model.zero_grad()
    attachment.targets(y)
    loss_of(model(x), y).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def steps(model, attachment, x, y, count, rate=0.0, of_feedback=0.0):
    """The gradients of ``count`` steps; they change no weight and no feedback unless there is a rate."""
    groups = [
        {"params": list(model.parameters()), "lr": rate},
        {"params": list(attachment.parameters()), "lr": of_feedback},
    ]
    optimizer, found = torch.optim.SGD(groups), []
    for _ in range(count):
        found.append(backward(model, attachment, x, y))
        optimizer.step()
    return found


def cut_in(attachment):
    """The taps that the last pass has cut, as the table shows them."""
    rows = [line for line in str(attachment).splitlines() if line.partition(" ")[0] in attachment.taps]
    return [row.partition(" ")[0] for row in rows if "not cut" not in row]


# -- exactness ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("period", [2, 3])
def test_every_phase_is_the_form_written_out(double, period):
    """Between cuts the error, or the signal of the next cut tap above, goes down by the transposed weights."""
    x, y = batch()
    model = mlp()
    attachment = bpfree.attach(model, bpfree.DFA(feedback=OWN), alternate=period, seed=3)
    found = steps(model, attachment, x, y, 2 * period)
    hand = TanhMLP(model)
    hidden, output = hand.forward(x)
    error = softmax_error(output, y)
    B = [attachment.feedback.matrix(site) for site in attachment.mechanism.sites]
    for t, gradients in enumerate(found):
        signals, delta = [], error
        for i in reversed(range(DEPTH)):
            carried = delta @ hand.weights[i + 1]
            signals.insert(0, error @ B[i] if (i + t) % period == 0 else carried)
            delta = signals[0] * (1 - hidden[i + 1] ** 2)
        assert_same(gradients, hand.gradients(hidden, error, signals))


@pytest.mark.parametrize(
    "rule", [bpfree.DFA(), bpfree.DRTP(), bpfree.GrAPE(calibrate=0), bpfree.FDFA(), bpfree.DKP()], ids=str
)
@pytest.mark.parametrize("options", [{}, {"streaming": True}, {"threads": 2}], ids=str)
def test_a_step_without_cuts_is_backpropagation(double, rule, options):
    x, y = batch()
    exact = backward(model := mlp(), bpfree.attach(model, bpfree.BP()), x, y)
    model = mlp()
    attachment = bpfree.attach(model, rule, alternate=DEPTH + 2, seed=3, **options)
    found = steps(model, attachment, x, y, DEPTH + 2, of_feedback=0.1)
    is_exact = [all(torch.allclose(a, b, rtol=1e-12, atol=0) for a, b in zip(one, exact, strict=True)) for one in found]
    # Of 6 phases, those that would cut the taps 0 to 3 are not exact: (i + t) mod 6 = 0.
    assert is_exact == [False, True, True, False, False, False]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("options", [{}, {"streaming": True}, {"threads": 2}], ids=str)
@pytest.mark.parametrize("rule", [bpfree.DFA(feedback=OWN), bpfree.DRTP(feedback=OWN)], ids=["DFA", "DRTP"])
def test_a_phase_is_the_rule_attached_to_its_taps_alone(double, name, rule, options):
    if options.get("streaming") and name in ("residual", "two heads"):
        pytest.skip("a stream has one error, and no path around its taps")
    if name == "two heads":
        if isinstance(rule, bpfree.DRTP):
            pytest.skip("it has targets for one head only")
        options = {**options, "error_at": ("policy", "value")}
    x, y = batch(name)
    model = MODELS[name][0]()
    attachment = bpfree.attach(model, rule, alternate=2, seed=3, **options)
    found = steps(model, attachment, x, y, 5)
    for t, gradients in enumerate(found):
        taps = [tap for i, tap in enumerate(attachment.taps) if (i + t) % 2 == 0]
        model = MODELS[name][0]()
        alone = bpfree.attach(model, rule, taps=taps, seed=3, **options)
        assert_same(gradients, backward(model, alone, x, y))


@pytest.mark.parametrize("rule", [bpfree.FDFA(), bpfree.GrAPE(), bpfree.LMS(), bpfree.DKP()], ids=str)
@pytest.mark.parametrize("options", [{}, {"streaming": True}], ids=str)
def test_feedback_learns_at_every_tap_as_by_the_plain_rule(double, rule, options):
    x, y = batch()
    learned = []
    for period in (1, 2, DEPTH + 2):
        model = mlp()
        attachment = bpfree.attach(model, rule, alternate=period, seed=3, **options)
        steps(model, attachment, x, y, DEPTH + 2, of_feedback=0.1)
        learned.append([attachment.feedback[name].detach() for name in attachment.feedback])
        assert len(learned[-1]) == DEPTH
    assert_same(learned[1], learned[0])
    assert_same(learned[2], learned[0])


@pytest.mark.parametrize("rule", [bpfree.FDFA(), bpfree.GrAPE(), bpfree.LMS(), bpfree.DKP()], ids=str)
@pytest.mark.parametrize("period", [2, 3])
def test_a_stream_learns_what_the_stored_graph_learns(double, rule, period):
    x, y = batch()
    learned = []
    for options in ({}, {"streaming": True}):
        model = mlp()
        attachment = bpfree.attach(model, rule, alternate=period, seed=3, **options)
        steps(model, attachment, x, y, 2 * period, rate=0.1, of_feedback=0.1)
        feedback = [attachment.feedback[name] for name in attachment.feedback]
        learned.append([tensor.detach() for tensor in (*model.parameters(), *feedback)])
    assert_same(learned[1], learned[0])


@pytest.mark.parametrize("within", [bpfree.FA(), bpfree.KolenPollack()], ids=str)
def test_other_backward_weights_inside_a_step_without_cuts_are_their_own_rule(double, within):
    x, y = batch()
    model, twin = mlp(), mlp()
    inside = bpfree.attach(model, bpfree.DFA(), alternate=DEPTH + 2, within=within, seed=3)
    alone = bpfree.attach(twin, within, seed=3)
    assert_same(steps(model, inside, x, y, 2)[1], backward(twin, alone, x, y))


@pytest.mark.parametrize("name", ["mlp", "convolution", "residual"])
def test_alternating_cuts_serve(name):
    build, (x, y) = MODELS[name][0], batch(name)
    subject = Subject(build, lambda model: model(x), lambda model: F.cross_entropy(model(x), y), y, {"alternate": 2})
    assert_rule_serves(subject, bpfree.FDFA())


def test_a_cut_saves_the_input_gradients_of_the_layer_above():
    """Products of a step in units of one layer's: forward 1, weights 1, input gradients 1 above each tap not cut."""
    x, y = torch.randn(64, 6), torch.randint(0, C, (64,))
    layer = 2 * 64 * 6 * 6
    for period in (1, 2, 3, 8):
        model = nn.Sequential(*[part for _ in range(6) for part in (nn.Linear(6, 6), nn.Tanh())], nn.Linear(6, 6))
        attachment = bpfree.attach(model, bpfree.DFA(), alternate=period, example_inputs=x)
        optimizer, works = torch.optim.SGD(model.parameters(), 0.0), []
        for _ in range(period):
            with FlopCounterMode(display=False) as counter:
                F.cross_entropy(model(x), y).backward()
            works.append(counter.get_total_flops() / layer)
            optimizer.step()
        cut = [sum((i + t) % period == 0 for i in range(6)) for t in range(period)]
        assert works == [7 + 7 + 6 - count + (count > 0) for count in cut]
        attachment.detach()


# -- what a step is ----------------------------------------------------------------------------------------------------


def by_hand(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.01 * parameter.grad


def past_the_version(model):
    """As fastai's optimizers write."""
    for parameter in model.parameters():
        before = parameter._version
        parameter.data.add_(parameter.grad, alpha=-0.01)
        assert parameter._version == before


def by(kind, **options):
    def make(model):
        optimizer = kind(model.parameters(), 0.01, **options)
        return lambda model: optimizer.step()

    return make


@pytest.mark.parametrize(
    "make",
    [
        by(torch.optim.SGD),
        by(torch.optim.Adam, fused=True),
        by(torch.optim.Adam, foreach=True),
        lambda model: by_hand,
        lambda model: past_the_version,
    ],
    ids=["SGD", "fused", "foreach", "by hand", "past the version"],
)
def test_micro_batches_of_one_step_cut_the_same_taps(double, make):
    x, y = batch()
    model = mlp()
    attachment = bpfree.attach(model, bpfree.DFA(), alternate=2, seed=3)
    step, cut = make(model), []
    for _ in range(3):
        # The gradients of the step before are dropped late, as many loops do.
        outputs = [model(x[:4])]
        cut.append(cut_in(attachment))
        model.zero_grad()
        F.cross_entropy(outputs[0], y[:4]).backward()
        F.cross_entropy(model(x[4:]), y[4:]).backward()
        cut.append(cut_in(attachment))
        step(model)
    assert cut == [["1", "5"]] * 2 + [["3", "7"]] * 2 + [["1", "5"]] * 2


class Sharpness(torch.optim.Optimizer):
    """Sharpness-aware minimization: a gradient, a step up along it, and the gradient there for the step down."""

    def __init__(self, parameters, rate):
        super().__init__(parameters, {"lr": rate})
        self.base = torch.optim.SGD(self.param_groups, rate)

    def up(self):
        self.before = [weight.detach().clone() for weight in self.param_groups[0]["params"]]
        with torch.no_grad():
            for weight in self.param_groups[0]["params"]:
                weight.add_(weight.grad, alpha=0.1)
        self.zero_grad()

    def down(self):
        with torch.no_grad():
            for weight, before in zip(self.param_groups[0]["params"], self.before, strict=True):
                weight.copy_(before)
        self.base.step()

    def step(self, closure):
        with torch.enable_grad():
            closure()
            self.up()
            closure()
        self.down()


CLOSURES = {
    "LBFGS": (lambda weights: torch.optim.LBFGS(weights, lr=0.3, max_iter=3), 3),
    "line search": (lambda weights: torch.optim.LBFGS(weights, lr=0.3, line_search_fn="strong_wolfe"), None),
    "sharpness": (lambda weights: Sharpness(weights, 0.1), 2),
}


@pytest.mark.parametrize("name", CLOSURES)
def test_all_passes_of_a_closure_cut_the_same_taps(double, name):
    """A closure's optimizer moves the weights between two passes, and compares their losses and gradients."""
    x, y = batch()
    model = mlp()
    attachment = bpfree.attach(model, bpfree.DFA(), alternate=2, seed=3)
    make, passes = CLOSURES[name]
    optimizer, steps = make(model.parameters()), []

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        steps[-1].append(cut_in(attachment))
        return loss

    for _ in range(3):
        steps.append([])
        optimizer.step(closure)
    for number, cut in enumerate(steps):
        assert len(cut) == passes if passes else len(cut) > 1
        assert all(taps == (["3", "7"] if number % 2 else ["1", "5"]) for taps in cut)


def test_two_passes_of_a_step_without_a_closure_cut_the_same_taps_from_the_second_step_on():
    """Nobody can know in the first step that an optimizer will come: a change of weights ends it."""
    x, y = batch()
    model = mlp()
    attachment = bpfree.attach(model, bpfree.DFA(), alternate=2, seed=3)
    optimizer, cut = Sharpness(model.parameters(), 0.1), []

    def step(model, attachment, optimizer):
        for move in (optimizer.up, optimizer.down):
            F.cross_entropy(model(x), y).backward()
            cut.append(cut_in(attachment))
            move()

    for _ in range(3):
        step(model, attachment, optimizer)
    assert cut == [["1", "5"], ["3", "7"], ["1", "5"], ["1", "5"], ["3", "7"], ["3", "7"]]
    # A run that goes on from a file, or as a copy, knows of the optimizer from its first step on.
    twin, of_twin = copy.deepcopy((model, attachment))
    resumed = mlp()
    of_resumed = bpfree.attach(resumed, bpfree.DFA(), alternate=2, seed=3)
    resumed.load_state_dict(model.state_dict())
    of_resumed.load_state_dict(attachment.state_dict())
    cut.clear()
    step(twin, of_twin, Sharpness(twin.parameters(), 0.1))
    step(resumed, of_resumed, Sharpness(resumed.parameters(), 0.1))
    assert cut == [["1", "5"]] * 4


def test_weights_that_are_exchanged_for_their_averages_end_no_step():
    x, y = batch()
    model = mlp()
    attachment = bpfree.attach(model, bpfree.DFA(), alternate=2, seed=3)
    optimizer, cut = torch.optim.SGD(model.parameters(), 0.1), []
    for _ in range(3):
        for part in (slice(0, 4), slice(4, 8)):
            F.cross_entropy(model(x[part]), y[part]).backward()
            cut.append(cut_in(attachment))
            own = copy.deepcopy(model.state_dict())
            model.load_state_dict({name: 0.9 * value for name, value in own.items()})
            with torch.no_grad():
                model(x)
            model.load_state_dict(own)
        optimizer.step()
    # In the first step no optimizer is known yet.
    assert cut[2:] == [["1", "5"]] * 2 + [["3", "7"]] * 2


def test_an_optimizer_in_the_backward_pass_ends_a_step_once():
    x, y = batch()
    model = mlp()
    attachment = bpfree.attach(model, bpfree.DFA(), alternate=3, seed=3)
    for parameter in model.parameters():
        optimizer = torch.optim.SGD([parameter], 0.01)
        parameter.register_post_accumulate_grad_hook(lambda _, optimizer=optimizer: optimizer.step())
    cut = []
    for _ in range(4):
        F.cross_entropy(model(x), y).backward()
        cut.append(cut_in(attachment))
    assert cut == [["1", "7"], ["5"], ["3"], ["1", "7"]]


def test_what_is_no_training_step_moves_nothing_on():
    x, y = batch()
    model = mlp()
    attachment = bpfree.attach(model, bpfree.DFA(), alternate=2, seed=3, example_inputs=x)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    other = nn.Linear(2, 2)
    elsewhere = torch.optim.SGD(other.parameters(), 0.01)
    backward(model, attachment, x, y)
    assert cut_in(attachment) == ["1", "5"]
    elsewhere.step()
    with torch.no_grad():
        model(x)
    with attachment.paused():
        F.cross_entropy(model(x), y).backward()
    bpfree.alignment(attachment, lambda: F.cross_entropy(model(x), y))
    backward(model, attachment, x, y)
    assert cut_in(attachment) == ["1", "5"]
    by_hand(model)
    bpfree.alignment(attachment, lambda: F.cross_entropy(model(x), y))
    attachment.state_dict()
    backward(model, attachment, x, y)
    assert cut_in(attachment) == ["3", "7"]
    optimizer.step()
    optimizer.step()  # without a pass between them
    backward(model, attachment, x, y)
    assert cut_in(attachment) == ["1", "5"]


@pytest.mark.parametrize("order", ["cyclic", "random"])
@pytest.mark.parametrize("by_optimizer", [True, False])
@pytest.mark.parametrize("between", [True, False], ids=["between micro-batches", "behind a step"])
def test_a_resumed_run_goes_on_bit_for_bit(order, by_optimizer, between):
    x, y = batch()
    options = {"alternate": 3, "alternate_order": order, "seed": 3}

    def train(model, attachment, until, begin=0, saved=None):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for micro in range(begin, until):
            F.cross_entropy(model(x[micro % 2 :: 2]), y[micro % 2 :: 2]).backward()
            if micro % 2:
                optimizer.step() if by_optimizer else by_hand(model)
                model.zero_grad()

    model = mlp()
    attachment = bpfree.attach(model, bpfree.FDFA(), **options)
    at = 7 if between else 8
    train(model, attachment, at)
    state = copy.deepcopy((attachment.state_dict(), model.state_dict()))
    gradients = [parameter.grad for parameter in model.parameters()]
    again = mlp()
    resumed = bpfree.attach(again, bpfree.FDFA(), **options)
    resumed.load_state_dict(state[0])
    again.load_state_dict(state[1])
    for parameter, gradient in zip(again.parameters(), gradients, strict=True):
        parameter.grad = None if gradient is None else gradient.clone()
    train(model, attachment, 20, at)
    train(again, resumed, 20, at)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("between", [True, False], ids=["between micro-batches", "behind a step"])
def test_a_copy_goes_on_as_the_first(between):
    x, y = batch()
    model = mlp()
    attachment = bpfree.attach(model, bpfree.DFA(), alternate=2, seed=3)
    for _ in range(3):
        backward(model, attachment, x, y)
        by_hand(model)
    if between:
        backward(model, attachment, x, y)
    twin, of_twin = copy.deepcopy((model, attachment))
    for _ in range(3):
        assert_same(backward(twin, of_twin, x, y), backward(model, attachment, x, y))
        by_hand(model)
        by_hand(twin)


def test_random_steps_follow_the_seed_and_cut_every_tap():
    x, y = batch()

    def cuts(seed):
        model = mlp()
        attachment = bpfree.attach(model, bpfree.DFA(), alternate=3, alternate_order="random", seed=seed)
        found = []
        for _ in range(30):
            steps(model, attachment, x, y, 1)
            found.append(tuple(cut_in(attachment)))
        return found

    first = cuts(3)
    assert set(first) == {("1", "7"), ("5",), ("3",)}
    assert first == cuts(3)
    assert first != cuts(4)


# -- compiled, on several processes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("period", [2, 3])
@pytest.mark.parametrize("rule", [bpfree.DFA(), bpfree.FDFA()], ids=str)
def test_a_compiled_model_has_a_graph_for_each_phase_and_no_more(double, period, rule):
    torch.compiler.reset()
    x, y = batch()
    model, twin = mlp(), mlp()
    attachment = bpfree.attach(model, rule, alternate=period, seed=3, example_inputs=x)
    eager = bpfree.attach(twin, rule, alternate=period, seed=3, example_inputs=x)
    run = torch.compile(model, backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step():
        model.zero_grad()
        F.cross_entropy(run(x), y).backward()
        found = [parameter.grad.clone() for parameter in model.parameters()]
        optimizer.step()
        return found

    found = [step() for _ in range(period)]
    with torch._dynamo.config.patch(error_on_recompile=True):
        found += [step() for _ in range(2 * period)]
    for one, other in zip(found, steps(twin, eager, x, y, 3 * period, 0.1), strict=True):
        assert_same(one, other, 1e-9)
    attachment.detach()
    torch.compiler.reset()


def test_a_compiled_optimizer_ends_a_step_too():
    torch.compiler.reset()
    x, y = batch()
    attachment = bpfree.attach(model := mlp(), bpfree.DFA(), alternate=2, seed=3, example_inputs=x)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    step = torch.compile(lambda: optimizer.step(), backend="eager")
    cut = []
    for _ in range(3):
        backward(model, attachment, x, y)
        cut.append(cut_in(attachment))
        step()
    assert cut == [["1", "5"], ["3", "7"], ["1", "5"]]
    torch.compiler.reset()


def _train_on(rank, x, y):
    torch.set_default_dtype(torch.float64)
    model = mlp()
    attachment = bpfree.attach(model, bpfree.DFA(), alternate=3, alternate_order="random", seed=3)
    run = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    cut = []
    for _ in range(6):
        optimizer.zero_grad()
        F.cross_entropy(run(x[rank::2]), y[rank::2]).backward()
        cut.append(cut_in(attachment))
        optimizer.step()
    return cut, [parameter.detach().numpy() for parameter in model.parameters()]


def test_processes_agree(double):
    x, y = batch()
    (cut, first), (cut_too, second) = run_on_two_ranks(_train_on, x, y)
    assert cut == cut_too
    model = mlp()
    attachment = bpfree.attach(model, bpfree.DFA(), alternate=3, alternate_order="random", seed=3)
    steps(model, attachment, x, y, 6, 0.1)
    assert_same(map(torch.from_numpy, first), [parameter.detach() for parameter in model.parameters()])
    assert_same(map(torch.from_numpy, second), map(torch.from_numpy, first))


# -- what it shows, and what is refused --------------------------------------------------------------------------------


def test_alignment_is_that_of_all_phases(double):
    x, y = batch()
    model = mlp()
    attachment = bpfree.attach(model, bpfree.DFA(feedback=OWN), alternate=2, seed=3)
    found = {tap.name: tap for tap in bpfree.alignment(attachment, lambda: F.cross_entropy(model(x), y)).taps}
    attachment.detach()
    means = {}
    for taps in (["1", "5"], ["3", "7"]):
        others = [name for name in found if name not in taps]
        with bpfree.attach(model, bpfree.DFA(feedback=OWN), taps=taps, seed=3) as alone:
            for tap in bpfree.alignment(alone, lambda: F.cross_entropy(model(x), y), layers=others).taps:
                means.setdefault(tap.name, []).append(tap.cosine_mean)
    assert {name: sum(two) / 2 for name, two in means.items()} == pytest.approx(
        {name: tap.cosine_mean for name, tap in found.items()}, abs=1e-12
    )
    assert {tap.n_valid for tap in found.values()} == {16}


def test_every_phase_is_verified():
    x, _ = batch()
    assert bpfree.verify(bpfree.attach(mlp(), bpfree.FDFA(), alternate=2), x).is_right


def test_it_is_shown_and_saved_by_name():
    x, y = batch()
    attachment = bpfree.attach(model := mlp(), bpfree.FDFA(), alternate=2)
    backward(model, attachment, x, y)
    assert "alternate 2" in str(attachment)
    assert "one tap in 2" in str(attachment)
    plain = bpfree.attach(mlp(), bpfree.FDFA())
    with pytest.raises(bpfree.errors.StateError, match="alternate=2"):
        plain.load_state_dict(attachment.state_dict())


@pytest.mark.parametrize(
    ("rule", "options", "said"),
    [
        (bpfree.DFA(), {"alternate": 0}, "alternate=0: a whole number"),
        (bpfree.DFA(), {"alternate": 1.5}, "alternate=1.5: a whole number"),
        (bpfree.DFA(), {"alternate": 2, "alternate_order": "cylcic"}, "cyclic"),
        (bpfree.DFA(), {"alternate": 2, "window": 2}, "alternate=2 and window=2"),
        (bpfree.FA(), {"alternate": 2}, "for direct rules"),
        (bpfree.Shallow(), {"alternate": 2}, "sends no signal"),
        (bpfree.ForwardGradient("weights"), {"alternate": 2}, "cuts no graph"),
    ],
)
def test_alternating_cuts_that_mean_nothing_are_refused(rule, options, said):
    with pytest.raises(bpfree.errors.OptionError, match=said):
        bpfree.attach(mlp(), rule, **options)
