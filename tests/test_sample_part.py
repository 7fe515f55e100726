"""Estimating passes on a part of the batch: rows=."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bpfree
from bpfree.mechanisms.learned.observing import ObservingMechanism
from support.by_hand import assert_same

N, C = 8, 3
OWN = bpfree.Feedback(shared=False)


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, C))


def convnet():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Dropout(0.3), nn.Flatten(),
        nn.Linear(36, 6), nn.Tanh(), nn.Linear(6, C),
    )  # fmt: skip


class Tokens(nn.Module):
    """Attention over the tokens of a sequence; the samples are the first axis, or the second one."""

    def __init__(self, axis=0):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.mix, self.head = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, C)
        self.tap1, self.tap2, self.axis = bpfree.Tap(), bpfree.Tap(), axis

    def forward(self, x, scale=None):
        x = x.movedim(self.axis, 0)
        h = self.tap1(torch.tanh(self.first(x)))
        weights = (h @ h.mT).softmax(-1)
        h = self.tap2(torch.tanh(self.mix(weights @ h)))
        if scale is not None:
            h = h * scale[:, None, None]
        return self.head(h)


class Mixing(nn.Module):
    """Nodes of one graph: every row sees the others."""

    def __init__(self):
        super().__init__()
        self.first, self.tap, self.head = nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, C)

    def forward(self, x, edges=None):
        h = self.tap(self.first(x))
        return self.head(h + (h.mean(0) if edges is None else h[edges]))


class Rays(nn.Module):
    """Two nets, each asked at points on rays that it gets as rows: (N, 5) to (N, C) by means over a ray's points."""

    def __init__(self, points=(2, 5), by_ray=True):
        super().__init__()
        torch.manual_seed(0)
        self.coarse, self.fine = mlp(), mlp()
        self.points, self.by_ray = points, by_ray

    def forward(self, x):
        found = 0
        for net, count in zip((self.coarse, self.fine), self.points, strict=True):
            places = torch.linspace(0.5, 1.5, count)
            points = x[:, None] * places[:, None] if self.by_ray else x * places[:, None, None]
            found = found + net(points.reshape(-1, 5)).view(*points.shape[:2], C).mean(1 if self.by_ray else 0)
        return found


def inputs(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def targets(*shape):
    return torch.randint(0, C, shape, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def seen(monkeypatch):
    """The observations of all estimating passes."""
    found, kinds = [], [ObservingMechanism]
    for kind in kinds:
        kinds += kind.__subclasses__()
        if "_seen" in vars(kind):
            own = vars(kind)["_seen"]
            monkeypatch.setattr(
                kind, "_seen", lambda mechanism, memory, one, own=own: (found.append(one), own(mechanism, memory, one))
            )
    return found


def step(model, *arguments):
    """Forward and backward; the loss has a target for every row."""
    model.zero_grad()
    output = model(*arguments)
    F.cross_entropy(output.flatten(0, -2), targets(*output.shape[:-1]).flatten()).backward()
    return output


def jacobians(model, x, names, numbers):
    """d output / d tap of the given samples, (samples, output numbers, samples, tap numbers), nothing cut."""
    modules, outputs = dict(model.named_modules()), []
    handles = [modules[name].register_forward_hook(lambda *given: outputs.append(given[2])) for name in names]
    output = model(x[numbers])
    for handle in handles:
        handle.remove()
    rows = [torch.autograd.grad(number, outputs, retain_graph=True) for number in output.flatten()]
    return [torch.stack([row[tap].flatten() for row in rows]) for tap in range(len(outputs))]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["normal", "rademacher"])
@pytest.mark.parametrize(("build", "shape"), [(mlp, (N, 5)), (Tokens, (N, 4, 5))], ids=["rows", "sequences"])
def test_the_change_is_that_of_the_drawn_samples(double, seen, build, shape, kind, streaming):
    model, x = build(), inputs(*shape)
    rule = bpfree.FDFA(perturbations=kind, rows=3)
    with bpfree.attach(model, rule, streaming=streaming, seed=3) as attachment:
        for _ in range(3):
            step(model, x)
    drawn = [tuple(one.part.numbers.tolist()) for one in seen]
    assert len(set(drawn)) > 1
    assert all(len(numbers) == 3 and list(numbers) == sorted(set(numbers)) for numbers in drawn)
    for one in seen:
        found = jacobians(model, x, list(attachment.taps), one.part.numbers)
        expected = sum(J @ v.flatten() for J, v in zip(found, one.perturbations, strict=True))
        torch.testing.assert_close(one.change.flatten(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("axis", [0, 1])
def test_samples_are_found_along_another_axis_and_among_keywords(double, seen, axis):
    model, x, scale = Tokens(axis), inputs(N, 4, 5).movedim(0, axis), inputs(N)
    bpfree.attach(model, bpfree.FDFA(rows=0.5), seed=3)
    output = model(x, scale=scale)
    F.cross_entropy(output.flatten(0, 1), targets(N, 4).flatten()).backward()
    (one,) = seen
    assert len(one.change) == 4 * 4
    assert [site.batch for site in one.sites] == [(4, 4)] * 2


@pytest.mark.parametrize(
    ("places", "streaming"),
    [(("coarse",), False), (("coarse",), True), (("coarse", "fine"), False)],  # several errors are not streamed
    ids=["one net", "one net, streamed", "two nets"],
)
def test_points_of_a_sample_are_drawn_together(double, seen, places, streaming):
    """The rows of an error may be several of each sample, and as many as each net is asked for."""
    model, x = Rays(), inputs(N, 5)
    with bpfree.attach(model, bpfree.FDFA(rows=3), error_at=places, streaming=streaming, seed=3):
        for _ in range(2):
            step(model, x)
    assert len(seen) == 2 * len(places)
    for one, place in zip(seen, places * 2, strict=True):
        net, count = getattr(model, place), model.points[places.index(place)]
        assert len(one.part.numbers) == 3
        assert one.part.of == N
        points = (x[one.part.numbers][:, None] * torch.linspace(0.5, 1.5, count)[:, None]).reshape(-1, 5)
        found = jacobians(net, points, ["1", "3"], range(3 * count))
        expected = sum(J @ v.flatten() for J, v in zip(found, one.perturbations, strict=True))
        torch.testing.assert_close(one.change.flatten(), expected, rtol=1e-12, atol=1e-12)


def test_points_that_do_not_lie_together_are_refused():
    """All rays' first points before all second ones: the rows of a sample are not one after the other."""
    bpfree.attach(model := Rays(by_ray=False), bpfree.FDFA(rows=3), error_at="coarse", seed=3)
    with pytest.raises(bpfree.errors.VerificationError, match=r"part of the batch at 'coarse'.*other outputs"):
        step(model, inputs(N, 5))


@pytest.mark.parametrize(
    "rule", [bpfree.FDFA(), bpfree.GrAPE(), bpfree.LMS(), bpfree.LMS(perturbations="hadamard")], ids=str
)
def test_all_rows_are_the_rule_as_it_was(rule):
    """Three ways to take all: without rows=, as a fraction, as a number that is not below N."""
    x, learned = inputs(N, 5), []
    for options in ({}, {"rows": 1.0}, {"rows": N}, {"rows": 99}):
        model = mlp()
        attachment = bpfree.attach(model, type(rule)(**options), seed=3)
        for _ in range(3):
            step(model, x)
        learned.append(
            [attachment.feedback[name] for name in attachment.feedback] + [p.grad for p in model.parameters()]
        )
    for other in learned[1:]:
        assert all(torch.equal(one, two) for one, two in zip(learned[0], other, strict=True))


def test_the_evidence_is_the_mean_over_the_drawn_samples(double, seen):
    model, x = mlp(), inputs(N, 5)
    attachment = bpfree.attach(model, bpfree.FDFA(rows=0.4), seed=3)
    step(model, x)
    (one,) = seen
    assert len(one.part.numbers) == 3  # .4 of 8
    for v, site in zip(one.perturbations, one.sites, strict=True):
        expected = sum(torch.outer(o, p) for o, p in zip(one.change, v, strict=True)) / 3
        torch.testing.assert_close(attachment.feedback.matrix(site), expected, rtol=1e-12, atol=1e-12)


def test_the_noise_follows_the_law_of_the_drawn_rows(double):
    """E|G - J|^2 = n sum_k |J_k|^2 / k for k rows, where all rows have one Jacobian: a linear network."""
    torch.manual_seed(0)
    width, count = 12, 4
    model = nn.Sequential(nn.Linear(5, width), bpfree.Tap(), nn.Linear(width, width), bpfree.Tap(), nn.Linear(width, C))
    x = inputs(16, 5)
    upper = model[4].weight.detach()
    exact = {"1": upper @ model[2].weight.detach(), "3": upper}
    size = sum(J.square().sum() for J in exact.values())
    rule = bpfree.FDFA(beta=1.0, debiased=False, perturbations="normal", rows=count / 16)
    attachment, noise = bpfree.attach(model, rule), dict.fromkeys(exact, 0.0)
    for _ in range(700):
        step(model, x)
        for site in attachment.mechanism.sites:
            noise[site.name] += float((attachment.feedback.matrix(site) - exact[site.name]).square().sum()) / 700
    assert noise == pytest.approx({name: float(width * size / count) for name in exact}, rel=0.15)


def test_the_step_of_least_mean_squares_counts_the_drawn_rows(double, seen):
    model, x = mlp(), inputs(N, 5)
    attachment = bpfree.attach(model, bpfree.LMS(scale=0.1, rows=2), seed=3)
    step(model, x)
    (one,) = seen
    rate = 0.1 * 2 / (6 + 7 + 2)
    for v, site in zip(one.perturbations, one.sites, strict=True):
        torch.testing.assert_close(
            attachment.feedback.matrix(site), rate * one.change.T @ v / 2, rtol=1e-12, atol=1e-12
        )


def test_a_resumed_run_draws_on_bit_for_bit():
    x = inputs(N, 5)

    def steps(model, attachment, count):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(count):
            step(model, x)
            optimizer.step()

    model, again = mlp(), mlp()
    attachment = bpfree.attach(model, bpfree.GrAPE(rows=0.25), seed=3)
    steps(model, attachment, 3)
    resumed = bpfree.attach(again, bpfree.GrAPE(rows=0.25), seed=8)
    resumed.load_state_dict(copy.deepcopy(attachment.state_dict()))
    again.load_state_dict(copy.deepcopy(model.state_dict()))
    steps(model, attachment, 3)
    steps(again, resumed, 3)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore:the model ends in a softmax")
def test_a_softmax_at_the_end_changes_no_estimate(double, seen):
    x = inputs(N, 5)
    for end in ((), (nn.Softmax(1),)):
        model = nn.Sequential(*mlp(), nn.Dropout(0.2), *end)
        torch.manual_seed(5)
        attachment = bpfree.attach(model, bpfree.FDFA(rows=3), seed=3)
        output = model(x)
        (F.nll_loss(output.log(), targets(N)) if end else F.cross_entropy(output, targets(N))).backward()
        attachment.detach()
    plain, behind = (one.change - one.change.mean(1, keepdim=True) for one in seen)
    torch.testing.assert_close(behind, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("per", ["sample", "row"])
def test_forward_gradients_of_drawn_samples_are_unbiased(double, per):
    model = mlp()
    # The same batch several times over: as many draws in one pass, and one gradient of the mean.
    x, y = inputs(N, 5).repeat(20, 1), targets(N).repeat(20)
    F.cross_entropy(model(x), y).backward()
    exact = [p.grad.clone() for p in model.parameters()]
    bpfree.attach(model, bpfree.ForwardGradient(per=per, rows=0.5), seed=3)
    draws = []
    for _ in range(100):
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        draws.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    found = torch.stack(draws)
    error = found.std(0) / math.sqrt(len(found))
    expected = torch.cat([gradient.flatten() for gradient in exact])
    assert ((found.mean(0) - expected).abs() <= 5 * error + 1e-12).all()
    assert error.norm() < 0.3 * expected.norm()


def test_samples_that_are_not_drawn_get_no_forward_gradient(double, seen):
    model, x = mlp(), inputs(N, 5)
    with bpfree.attach(model, bpfree.ForwardGradient(rows=2), seed=3):
        step(model, x)
    numbers = seen[0].part.numbers
    found = model[0].weight.grad
    # The signal of a sample is v times one number, N / k times what it is by itself.
    error = ((model(x).softmax(1) - F.one_hot(targets(N), C)) / N).detach()
    slopes = (error[numbers] * seen[0].change).sum(1)
    signal = seen[0].perturbations[0] * slopes[:, None] * N / 2
    h = torch.tanh(model[0](x[numbers])).detach()
    assert_same([found], [(signal * (1 - h**2)).T @ x[numbers]])


def test_all_points_of_a_drawn_sample_get_forward_gradients(double, seen):
    model, x = Rays(), inputs(N, 5)
    with bpfree.attach(model, bpfree.ForwardGradient(rows=2), error_at="coarse", seed=3):
        step(model, x)
    (one,) = seen
    found, points = model.coarse[0].weight.grad, model.points[0]
    # A ray's output is a mean over its points, so that each has the ray's error divided by their number.
    error = ((model(x).softmax(1) - F.one_hot(targets(N), C)) / N / points).detach()
    slopes = (error[one.part.numbers].repeat_interleave(points, 0) * one.change).sum(1)
    signal = one.perturbations[0] * slopes[:, None] * N / 2
    asked = (x[one.part.numbers][:, None] * torch.linspace(0.5, 1.5, points)[:, None]).reshape(-1, 5)
    h = torch.tanh(model.coarse[0](asked)).detach()
    assert_same([found], [(signal * (1 - h**2)).T @ asked])


def test_batch_normalization_and_dropout_serve_estimates_but_no_forward_gradient(double):
    model, x = convnet(), inputs(N, 2, 8, 8)
    attachment = bpfree.attach(model, bpfree.FDFA(rows=0.5))
    step(model, x)
    assert bpfree.verify(attachment, x).is_right
    attachment.detach()
    bpfree.attach(model, bpfree.ForwardGradient(rows=0.5))
    with pytest.raises(bpfree.errors.VerificationError, match="part of the batch"):
        model(x)


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        (Mixing(), (inputs(N, 5),)),
        (Mixing(), (inputs(N, 5), torch.arange(N).flip(0))),
        (Mixing(), (inputs(N, 5), torch.arange(2 * N) // 2)),
    ],
    ids=["a mean over all", "other outputs", "an error"],
)
def test_models_whose_samples_see_each_other_are_refused(model, arguments):
    model = copy.deepcopy(model)
    if len(arguments) > 1 and len(arguments[1]) != N:
        arguments = (arguments[0], arguments[1][:N] + N // 2)
    attachment = bpfree.attach(model, bpfree.FDFA(rows=0.5))
    with pytest.raises(bpfree.errors.VerificationError, match="rows="):
        model(*arguments)
    attachment.detach()


@pytest.mark.parametrize("rows", [0, 0.0, 1.5, -3, True, "half"])
def test_rows_that_mean_nothing_are_refused(rows):
    with pytest.raises(bpfree.errors.OptionError, match="rows="):
        bpfree.FDFA(rows=rows)


def test_one_sample_is_told_from_all_samples():
    assert str(bpfree.FDFA(rows=1)) == "FDFA(rows=1)"
    one, every = (bpfree.attach(mlp(), bpfree.FDFA(rows=rows)) for rows in (1, 1.0))
    with pytest.raises(bpfree.errors.StateError, match="rows=1"):
        every.load_state_dict(one.state_dict())


@pytest.mark.parametrize("rows", [1, 0.5])
def test_forward_gradients_of_weights_have_no_rows(rows):
    with pytest.raises(bpfree.errors.OptionError, match="no estimating pass"):
        bpfree.ForwardGradient("weights", rows=rows)
