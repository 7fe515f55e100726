"""Which rows of the error a tap gets, and through which matrix: d = e B by hand, one layout after the other."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bpfree
from bpfree.axes.channels import channel_axis
from bpfree.errors import OptionError, TapShapeError
from bpfree.feedback.projection import Projection
from support.by_hand import assert_same

OWN = bpfree.Feedback(shared=False, normalization="none")
N, T, C = 4, 5, 3


@pytest.fixture(autouse=True)
def _double(double):
    torch.manual_seed(0)


class Watched(nn.Module):
    """Adds zeros that want a gradient: that gradient is the signal at the tap behind it."""

    def __init__(self):
        super().__init__()
        self.tap, self.zeros = bpfree.Tap(), []

    def forward(self, h):
        if not torch.is_grad_enabled():
            return self.tap(h)
        self.zeros.append(torch.zeros_like(h, requires_grad=True))
        return self.tap(h + self.zeros[-1])

    @property
    def signals(self):
        # What the rule runs before a pass, to look at it, leaves none.
        return [zero.grad for zero in self.zeros if zero.grad is not None]


class Pooled(nn.Module):
    """Tokens (N, T, d), or (T, N, d), averaged over ``over``."""

    def __init__(self, over=1, d=6):
        super().__init__()
        self.a, self.w, self.o, self.over = nn.Linear(2, d), Watched(), nn.Linear(d, C), over

    def forward(self, x):
        return self.o(self.w(self.a(x)).mean(self.over))


class Tokens(nn.Module):
    """Tokens, each with an output, and beside them a vector (N, D) that conditions all."""

    def __init__(self, D):
        super().__init__()
        self.t, self.condition, self.out = nn.Linear(1, D), Watched(), nn.Linear(D, 6)
        self.a, self.w, self.o = nn.Linear(2, 6), Watched(), nn.Linear(6, C)

    def forward(self, x, t):
        return self.o(self.w(self.a(x) + self.out(self.condition(self.t(t)))[:, None]))


class Translator(nn.Module):
    """An encoder and a decoder of tokens, each with a length of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.encoder, self.b, self.decoder = nn.Linear(2, 6), Watched(), nn.Linear(2, 6), Watched()
        self.mix, self.o = nn.Linear(6, 6), nn.Linear(6, C)

    def forward(self, x, y):
        context = self.mix(self.encoder(self.a(x)).mean(1))
        return self.o(self.decoder(self.b(y) + context[:, None]))


class Loop(nn.Module):
    """A recurrent cell, run step by step, with an output for each step."""

    def __init__(self, dim=1):
        super().__init__()
        self.i, self.r, self.w, self.o, self.dim = nn.Linear(2, 6), nn.Linear(6, 6), Watched(), nn.Linear(6, C), dim

    def forward(self, x):
        h, outputs = x.new_zeros(len(x), 6), []
        for t in range(x.shape[1]):
            h = self.w(self.i(x[:, t]) + self.r(h).tanh())
            outputs.append(self.o(h))
        return torch.stack(outputs, self.dim)


def learn(model, *inputs, rule=None, **options):
    """The attachment and a random error, once it has been sent."""
    attachment = bpfree.attach(model, bpfree.DFA(feedback=OWN) if rule is None else rule, **options)
    output = model(*inputs)
    error = torch.randn_like(output)
    output.backward(error)
    return attachment, error


# -- sequences -----------------------------------------------------------------------------------------------------


def test_tokens_under_one_error_share_a_matrix_whatever_their_number():
    model = Pooled()
    attachment = bpfree.attach(model, bpfree.DFA(feedback=OWN))
    for length in (5, 1, 4, 9):
        model.w.zeros.clear()
        output = model(torch.randn(N, length, 2))
        error = torch.randn_like(output)
        output.backward(error)
        assert list(attachment.feedback) == ["w.tap:6"]
        B = attachment.feedback["w.tap:6"]
        expected = (error @ B / length**0.5)[:, None].expand(-1, length, -1)
        assert_same(model.w.signals, [expected])


@pytest.mark.parametrize(
    "rule",
    [
        bpfree.DFA(),
        bpfree.DFA(feedback=bpfree.Feedback(stored=False)),
        bpfree.DFA(feedback=bpfree.Feedback(shared=False, modes=3)),
        bpfree.DRTP(),
        bpfree.GrAPE(),
        bpfree.FDFA(),
        bpfree.LMS(),
        bpfree.DKP(),
        bpfree.ForwardGradient(),
    ],
    ids=str,
)
@pytest.mark.parametrize("options", [{}, {"streaming": True}, {"window": 2}], ids=["plain", "streaming", "window"])
def test_every_rule_takes_sequences_of_changing_length(rule, options):
    model = nn.Sequential(
        nn.Embedding(9, 6), nn.Linear(6, 8), nn.Tanh(), Pool(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, C)
    )
    attachment = bpfree.attach(model, rule, **options)
    for length in (2, 5, 1, 3):
        model.zero_grad()
        y = torch.randint(0, C, (N,))
        attachment.targets(y)
        F.cross_entropy(model(torch.randint(0, 9, (N, length))), y).backward()
    assert len(list(attachment.feedback)) <= 2 if isinstance(attachment.feedback, Projection) else True
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


class Pool(nn.Module):
    def forward(self, h):
        return h.mean(1)


def test_what_tokens_learn_of_themselves_is_in_their_own_tokens_shape():
    # DKP: its evidence is e^T of the constant mode of h, sum_t h_t / sqrt(T).
    model, x = Pooled(), torch.randn(N, T, 2)
    attachment, error = learn(model, x, rule=bpfree.DKP(decay=0.0))
    h = model.a(x).detach()
    assert_same([attachment.feedback["w.tap"].grad], [error.T @ h.sum(1) / T**0.5])


# -- positions by name of axis -------------------------------------------------------------------------------------


@pytest.mark.parametrize("modes", [1, 2])
@pytest.mark.parametrize("kind", ["tokens", "maps with channels last", "maps with channels first"])
def test_modes_are_of_positions_wherever_the_channels_lie(kind, modes):
    positions = (5,) if kind == "tokens" else (2, 3)
    over = tuple(range(1, 1 + len(positions)))
    if kind == "maps with channels first":
        model = nn.Sequential(nn.Conv2d(2, 6, 1), Watched(), nn.Flatten(), nn.Linear(36, C))
        watched, x = model[1], torch.randn(N, 2, *positions)
    else:
        model = Pooled(over)
        watched, x = model.w, torch.randn(N, *positions, 2)
    feedback = bpfree.Feedback(shared=False, normalization="none", modes=modes)
    attachment, error = learn(model, x, rule=bpfree.DFA(feedback=feedback))
    (name,) = attachment.feedback
    assert name.endswith(f":6x{modes}")
    basis = bpfree.feedback.spatial.cosine_modes(positions, modes)
    signal = torch.einsum("nc,ckm,mp->npk", error, attachment.feedback[name].view(C, 6, modes), basis)
    signal = signal.unflatten(1, positions)
    (found,) = watched.signals
    assert_same([found], [signal.movedim(-1, 1) if kind == "maps with channels first" else signal])


CHANNELS = {
    "linear": (lambda x: nn.Linear(4, 6)(x), -1),
    "linear without a bias": (lambda x: nn.Linear(4, 6, bias=False)(x).tanh(), -1),
    "transposed": (lambda x: nn.Linear(4, 6)(x).transpose(1, 2).relu(), 1),
    "permuted twice": (lambda x: nn.Linear(4, 6)(x).permute(1, 2, 0).permute(2, 0, 1), -1),
    "convolution": (lambda x: nn.Conv1d(5, 6, 1)(x).relu() + 1, 1),
    "patches": (lambda x: nn.Conv2d(5, 6, 1)(x[..., None]).flatten(2).transpose(1, 2), -1),
    "pooled convolution": (lambda x: nn.MaxPool1d(2)(nn.Conv1d(5, 6, 1)(x)), 1),
    "batch normalization": (lambda x: nn.BatchNorm1d(5)(x), 1),
    "layer normalization": (lambda x: nn.LayerNorm(4)(x), -1),
    "embedding": (lambda x: nn.Embedding(3, 6)(x[..., 0].long() * 0), -1),
    "stacked steps": (lambda x: torch.stack([nn.Linear(4, 6)(x[:, t]) for t in range(5)], 1), -1),
    "residual": (lambda x: nn.Parameter(torch.randn(5, 6)) + nn.Linear(4, 6)(x), -1),
    "a graph convolution": (lambda x: torch.randn(5, 5) @ nn.Linear(4, 6)(x), -1),
    "a product with weights from the left": (lambda x: nn.Parameter(torch.randn(6, 5)) @ x, 1),
    "recurrent": (lambda x: nn.GRU(4, 6, batch_first=True)(x)[0], -1),
    "split into pictures": (lambda x: nn.Linear(4, 16)(x[:, 0]).view(-1, 4, 4), None),
    "without a graph": (lambda x: x, None),
}


@pytest.mark.parametrize("name", CHANNELS)
def test_channels_are_where_what_made_them_has_them(name):
    make, expected = CHANNELS[name]
    assert channel_axis(make(torch.randn(2, 5, 4))) == expected


# -- rows tap by tap -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("D", [T, 7], ids=["as wide as there are tokens", "of another width"])
def test_what_conditions_all_tokens_gets_the_sum_of_their_errors(D):
    model = Tokens(D)
    attachment, error = learn(model, torch.randn(N, T, 2), torch.randn(N, 1))
    assert_same(model.condition.signals, [error.sum(1) @ attachment.feedback[f"condition.tap:{D}"]])
    assert_same(model.w.signals, [error @ attachment.feedback["w.tap:6"]])


def test_tokens_of_an_encoder_get_the_sum_of_all_errors_whatever_the_lengths():
    model = Translator()
    attachment = bpfree.attach(model, bpfree.DFA(feedback=OWN))
    for long, short in ((7, 5), (3, 5), (5, 5), (4, 6)):
        model.encoder.zeros.clear()
        model.decoder.zeros.clear()
        output = model(torch.randn(N, long, 2), torch.randn(N, short, 2))
        error = torch.randn_like(output)
        output.backward(error)
        B = attachment.feedback["encoder.tap:6"]
        expected = (error.sum(1) @ B / long**0.5)[:, None].expand(-1, long, -1)
        assert_same(model.encoder.signals, [expected])
        assert_same(model.decoder.signals, [error @ attachment.feedback["decoder.tap:6"]])
    assert sorted(attachment.feedback) == ["decoder.tap:6", "encoder.tap:6"]


@pytest.mark.parametrize("channels", [8, 9], ids=["the error's channels", "others"])
def test_images_are_rows_of_their_first_axis_alone(channels):
    model = nn.Sequential(nn.Conv2d(2, channels, 1), Watched(), nn.Conv2d(channels, 8, 3, padding=1))
    attachment, error = learn(model, torch.randn(2, 2, 3, 3))
    B = attachment.feedback[f"1.tap:{channels * 9}"]
    assert_same(model[1].signals, [(error.flatten(1) @ B).view(2, channels, 3, 3)])


def test_an_output_that_is_a_picture_has_no_rows_but_its_samples():
    model = nn.Sequential(nn.Linear(2, 6), Watched(), nn.Linear(6, 12), nn.Unflatten(1, (1, 3, 4)))
    attachment, error = learn(model, torch.randn(N, 2))
    assert_same(model[1].signals, [error.flatten(1) @ attachment.feedback["1.tap:6"]])


# -- loops over time -----------------------------------------------------------------------------------------------


def test_each_step_of_a_loop_gets_the_error_of_that_step():
    model = Loop()
    attachment, error = learn(model, torch.randn(N, T, 2))
    B = attachment.feedback["w.tap:6"]
    assert_same(model.w.signals, [error[:, t] @ B for t in range(T)])
    assert len(list(attachment.feedback)) == 1


def test_a_loop_with_time_first_is_told_by_its_axes():
    model = Loop(dim=0)
    attachment, error = learn(model, torch.randn(N, T, 2), sample_axes={"error": (1, 0)})
    B = attachment.feedback["w.tap:6"]
    assert_same(model.w.signals, [error[t] @ B for t in range(T)])


def test_a_convolutional_loop():
    class Spiking(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.w, self.o = nn.Conv2d(1, 2, 1), Watched(), nn.Linear(8, C)

        def forward(self, x):
            return torch.stack([self.o(self.w(self.c(x[:, t])).flatten(1)) for t in range(x.shape[1])], 1)

    model = Spiking()
    attachment, error = learn(model, torch.randn(N, T, 1, 2, 2))
    B = attachment.feedback["w.tap:8"]
    assert_same(model.w.signals, [(error[:, t] @ B).view(N, 2, 2, 2) for t in range(T)])


def test_a_loop_whose_output_is_its_last_step_gets_that_error_at_every_step():
    class Last(Loop):
        def forward(self, x):
            return super().forward(x)[:, -1]

    model = Last()
    attachment, error = learn(model, torch.randn(N, T, 2))
    assert_same(model.w.signals, [error @ attachment.feedback["w.tap:6"]] * T)


def test_what_a_loop_learns_from_errors_is_of_the_same_step():
    model, x = Loop(), torch.randn(N, T, 2)
    attachment, error = learn(model, x, rule=bpfree.DKP(decay=0.0))
    h, expected = torch.zeros(N, 6), 0
    for t in range(T):
        h = (model.i(x[:, t]) + model.r(h).tanh()).detach()
        expected = expected + error[:, t].T @ h / T  # calls of one module learn from their mean
    assert_same([attachment.feedback["w.tap"].grad], [expected])


# -- estimates -----------------------------------------------------------------------------------------------------

SEEN = []
"""What the rules below have seen in their estimating passes."""


class NotingFDFA(bpfree.FDFA):
    def evidence(self, seen, matrices):
        SEEN.append(seen)
        return super().evidence(seen, matrices)


class NotingLMS(bpfree.LMS):
    def evidence(self, seen, matrices):
        SEEN.append(seen)
        return super().evidence(seen, matrices)


class NotingGradient(bpfree.ForwardGradient):
    def signals(self, delivery):
        SEEN.append(delivery.observation)
        return super().signals(delivery)


def observed(model, *inputs, rule):
    """The attachment, the error, and the perturbations by tap, once the first error has been sent."""
    SEEN.clear()
    attachment, error = learn(model, *inputs, rule=rule)
    *_, seen = SEEN
    return attachment, error, {site.name: v for site, v in zip(seen.sites, seen.perturbations, strict=True)}


def mean_outer(change, v):
    """The mean over rows of change (x) v."""
    return (change.flatten(0, -2).T @ v.flatten(0, -2)) / change.flatten(0, -2).shape[0]


def test_the_estimate_of_tokens_under_one_error_is_of_their_constant_mode():
    # Head W on the mean, v_t = v / sqrt(T) at every token: odot = W v / sqrt(T).
    model = Pooled()
    attachment, _, v = observed(model, torch.randn(N, T, 2), rule=NotingFDFA(beta=1.0))
    change = v["w.tap"] @ model.o.weight.T / T**0.5
    assert_same([attachment.feedback["w.tap:6"]], [mean_outer(change, v["w.tap"])])


def changes_of_tokens(model, v):
    """odot (N, T, c) from what is added to the condition (N, D) and to the tokens (N, T, d)."""
    return (v["w.tap"].view(N, T, 6) + (v["condition.tap"] @ model.out.weight.T)[:, None]) @ model.o.weight.T


def test_the_estimate_pairs_what_conditions_all_tokens_with_each_of_them():
    model = Tokens(7)
    attachment, _, v = observed(model, torch.randn(N, T, 2), torch.randn(N, 1), rule=NotingFDFA(beta=1.0))
    change = changes_of_tokens(model, v)
    expected = mean_outer(change, v["condition.tap"][:, None].expand(-1, T, -1))
    assert_same([attachment.feedback["condition.tap:7"]], [expected])


def test_the_residual_of_tokens_leaves_out_what_all_taps_explain():
    model, inputs = Tokens(7), (torch.randn(N, T, 2), torch.randn(N, 1))
    attachment = bpfree.attach(model, NotingLMS(scale=1.0), example_inputs=inputs)
    B, D = (torch.randn_like(attachment.feedback[name]) for name in ("w.tap:6", "condition.tap:7"))
    attachment.feedback["w.tap:6"].copy_(B)
    attachment.feedback["condition.tap:7"].copy_(D)
    SEEN.clear()
    model(*inputs).sum().backward()
    *_, seen = SEEN
    v = {site.name: v for site, v in zip(seen.sites, seen.perturbations, strict=True)}
    own, shared = v["w.tap"].view(N, T, 6), v["condition.tap"][:, None].expand(-1, T, -1)
    residual = changes_of_tokens(model, v) - own @ B.T - shared @ D.T
    rate = N * T / (6 + 7 + N * T)
    expected = [B + rate * mean_outer(residual, own), D + rate * mean_outer(residual, shared)]
    assert_same([attachment.feedback["w.tap:6"], attachment.feedback["condition.tap:7"]], expected)


@pytest.mark.parametrize("per", ["sample", "row", "batch"])
def test_forward_gradients_of_what_conditions_all_tokens(per):
    model = Tokens(7)
    _, error, v = observed(model, torch.randn(N, T, 2), torch.randn(N, 1), rule=NotingGradient(per=per))
    slopes = (error * changes_of_tokens(model, v)).sum(2)
    of_sample = slopes.sum().expand(N) if per == "batch" else slopes.sum(1)
    of_token = slopes if per == "row" else of_sample[:, None].expand(-1, T)
    assert_same(model.condition.signals, [of_sample[:, None] * v["condition.tap"]])
    assert_same(model.w.signals, [of_token[..., None] * v["w.tap"].view(N, T, 6)])


def test_the_estimate_of_a_loop_pairs_each_step_with_its_own_output():
    model, x = Loop(), torch.randn(N, T, 2)
    attachment, _, v = observed(model, x, rule=NotingFDFA(beta=1.0))
    h, change, expected = torch.zeros(N, 6), torch.zeros(N, 6), 0
    with torch.no_grad():
        for t in range(T):
            recurrent = model.r(h).tanh()
            added = v["w.tap" if t == 0 else f"w.tap#{t + 1}"]
            change = (1 - recurrent**2) * (change @ model.r.weight.T) + added
            h = model.i(x[:, t]) + recurrent
            expected = expected + mean_outer(change @ model.o.weight.T, added) / T
    assert_same([attachment.feedback["w.tap:6"]], [expected])


# -- axes by name --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [N, T], ids=["as many steps as samples", "another number"])
@pytest.mark.parametrize("axes", [{"*": 1}, {"w.tap": 1}, {"w.*": -2}], ids=str)
def test_time_first_is_told_by_its_axis(length, axes):
    model = Pooled(over=0)
    attachment, error = learn(model, torch.randn(length, N, 2), sample_axes=axes)
    expected = (error @ attachment.feedback["w.tap:6"] / length**0.5).expand(length, -1, -1)
    assert_same(model.w.signals, [expected])


def test_time_first_everywhere():
    model = nn.Sequential(nn.Linear(2, 6), Watched(), nn.Linear(6, C))
    attachment, error = learn(model, torch.randn(T, N, 2), sample_axes=(1, 0))
    assert attachment.mechanism.sites[0].batch == (N, T)
    assert_same(model[1].signals, [error @ attachment.feedback["1.tap:6"]])


@pytest.mark.parametrize("classes", [T, 3], ids=["as many classes as tokens", "another number"])
def test_classes_in_the_middle_are_told_by_the_axes_of_the_error(classes):
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.w, self.o = nn.Linear(2, 6), Watched(), nn.Linear(6, classes)

        def forward(self, x):
            return self.o(self.w(self.a(x))).transpose(1, 2)

    x = torch.randn(N, T, 2)
    with pytest.raises(TapShapeError, match=r"sample_axes=\{'error': \(0, 2\)\}"):
        learn(Tagger(), x)
    model = Tagger()
    attachment, error = learn(model, x, sample_axes={"error": (0, 2)})
    assert_same(model.w.signals, [error.mT @ attachment.feedback["w.tap:6"]])
    whole = Tagger()
    attachment, error = learn(whole, x, sample_axes={"error": 0})
    B = attachment.feedback["w.tap:6"]
    assert_same(whole.w.signals, [(error.flatten(1) @ B / T**0.5)[:, None].expand(-1, T, -1)])


@pytest.mark.parametrize(
    ("model", "shape", "advice"),
    [
        (lambda: Pooled(over=0), (T, N, 2), {"w.tap": 1}),
        (lambda: Pooled(over=0), (T, N, 2), {"*": 1}),
        (lambda: Loop(dim=0), (N, T, 2), {"error": (1, 0)}),
    ],
    ids=["a tap", "all taps", "the error"],
)
def test_axes_that_differ_are_asked_about_and_the_advice_serves(model, shape, advice):
    said = repr(advice).strip("{}")
    with pytest.raises(TapShapeError) as caught:
        learn(model(), torch.randn(shape))
    assert said in str(caught.value)
    learn(model(), torch.randn(shape), sample_axes=advice)


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        ({"nothing": 1}, "which is no tap"),
        ({"*": "1"}, "an axis"),
        ((), "an axis"),
        (1.5, "an axis"),
        ({"*": (0, True)}, "an axis"),
    ],
    ids=str,
)
def test_axes_that_mean_nothing_are_refused(axes, says):
    with pytest.raises(OptionError, match=says):
        bpfree.attach(Pooled(), bpfree.DFA(), sample_axes=axes)
    with pytest.raises(OptionError, match="leave one of them out"):
        bpfree.attach(Pooled(), bpfree.DFA(), sample_axes=0, batch_dims=1)


@pytest.mark.parametrize("axes", [{"*": 3}, {"*": (0, 0)}, {"*": 1}, {"*": (0, 1)}, {"error": 2}], ids=str)
def test_axes_that_the_tensors_do_not_have_are_refused(axes):
    with pytest.raises(TapShapeError, match="sample_axes="):
        learn(Pooled(), torch.randn(N, T, 2), sample_axes=axes)


# -- no leaks ------------------------------------------------------------------------------------------------------

LATER = (slice(None), slice(1, None))
LEAKS = {
    "tokens": (lambda: Tokens(7), (N, T, 2), LATER, lambda o: o[:, 0], {}),
    "samples of sequences": (Pooled, (N, T, 2), (slice(1, None),), lambda o: o[0], {}),
    "samples with time first": (
        lambda: Pooled(over=0),
        (T, N, 2),
        (slice(None), slice(1, None)),
        lambda o: o[0],
        {"*": 1},
    ),
    "as many steps as samples": (
        lambda: Pooled(over=0),
        (N, N, 2),
        (slice(None), slice(1, None)),
        lambda o: o[0],
        {"*": 1},
    ),
    "later steps": (Loop, (N, T, 2), LATER, lambda o: o[:, 0], {}),
}


@pytest.mark.parametrize("name", LEAKS)
@pytest.mark.parametrize("rule", [bpfree.DFA(), bpfree.DFA(error="sign"), bpfree.DKP()], ids=str)
def test_what_a_loss_does_not_see_changes_no_gradient(name, rule):
    build, shape, others, pick, axes = LEAKS[name]

    def gradients(change):
        torch.manual_seed(3)
        model, x = build(), torch.randn(shape)
        x[others] += change
        bpfree.attach(model, rule, sample_axes=axes or None)
        output = model(x, torch.randn(N, 1)) if isinstance(model, Tokens) else model(x)
        pick(output).square().sum().backward()
        return [parameter.grad for parameter in model.parameters()]

    assert_same(gradients(5.0), gradients(0.0), tolerance=1e-9)
