"""Direct rules whose feedback learns, against their equations written out."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bpfree
from bpfree.lab.studies.feedback_update import AsPrinted
from support.by_hand import assert_same
from support.models import train
from support.rule_contract import Subject, assert_equal, assert_rule_serves

C = 4
RULES = [
    bpfree.GrAPE(),
    bpfree.GrAPE(estimate="batch", perturbations="rademacher"),
    bpfree.GrAPE(estimate="cumulative"),
    bpfree.FDFA(),
    bpfree.LMS(),
    bpfree.LMS(perturbations="hadamard"),
    bpfree.DKP(),
]


def mlp(width=8, activation=nn.Tanh):
    return nn.Sequential(nn.Linear(6, width), activation(), nn.Linear(width, width), activation(), nn.Linear(width, C))


def convnet():
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, C),
    )  # fmt: skip


class Tokens(nn.Module):
    """A recurrent tap: one layer reached twice, tokens as a second batch dimension."""

    def __init__(self):
        super().__init__()
        self.first, self.cell, self.head, self.act = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, C), nn.Tanh()

    def forward(self, x):
        h = self.act(self.first(x))
        return self.head(self.act(self.cell(h)))


MODELS = {"mlp": (mlp, (16, 6)), "convolution": (convnet, (16, 1, 8, 8)), "tokens": (Tokens, (4, 5, 6))}


def subject(name):
    build, shape = MODELS[name]

    def made():
        torch.manual_seed(0)
        return build()

    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    y = torch.randint(0, C, shape[:1], generator=torch.Generator().manual_seed(2))
    if name == "tokens":
        y = x[..., :C].argmax(-1)
    return Subject(made, lambda model: model(x), lambda model: F.cross_entropy(model(x).flatten(0, -2), y.flatten()), y)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_every_rule_serves(name, rule):
    assert_rule_serves(subject(name), rule)


def steps(model, attachment, x, y, count, lr=0.0, feedback_lr=0.0):
    groups = [{"params": list(model.parameters())}, {"params": list(attachment.parameters()), "lr": feedback_lr or lr}]
    train(model, torch.optim.SGD(groups, lr=lr), x, y, count)


def names(attachment):
    return [attachment.feedback.name(site) for site in attachment.mechanism.sites]


@pytest.fixture
def batch(double):
    return torch.randn(12, 6), torch.randint(0, C, (12,))


def pair():
    """Two models with the same weights."""
    model = mlp()
    return model, copy.deepcopy(model)


def estimate_of_first_pass(model, batch, **options):
    """G of the first training pass: FDFA with a weight of 1 keeps exactly that."""
    attachment = bpfree.attach(model, bpfree.FDFA(beta=1.0, **options), seed=7)
    steps(model, attachment, *batch, 1)
    attachment.detach()
    return {name: attachment.feedback[name] for name in names(attachment)}


def test_fdfa_is_the_average_written_out(batch):
    model, twin = pair()
    attachment = bpfree.attach(model, bpfree.FDFA(beta=0.2, debiased=False), seed=7)
    seen = bpfree.attach(twin, bpfree.FDFA(beta=1.0), seed=7)
    expected = [torch.zeros(C, 8), torch.zeros(C, 8)]
    for _ in range(3):
        steps(model, attachment, *batch, 1)
        steps(twin, seen, *batch, 1)
        expected = [0.8 * B + 0.2 * seen.feedback[name] for B, name in zip(expected, names(seen), strict=True)]
        assert_same([attachment.feedback[name] for name in names(attachment)], expected)


def test_debiased_fdfa_begins_as_the_plain_mean(batch):
    model, twin = pair()
    attachment = bpfree.attach(model, bpfree.FDFA(beta=0.01), seed=7)
    seen = bpfree.attach(twin, bpfree.FDFA(beta=1.0), seed=7)
    sums = {}
    for t in range(1, 6):
        steps(model, attachment, *batch, 1)
        steps(twin, seen, *batch, 1)
        for name in names(seen):
            sums[name] = sums.get(name, 0) + seen.feedback[name]
            torch.testing.assert_close(attachment.feedback[name], sums[name] / t, rtol=1e-12, atol=1e-14)


def test_grape_is_the_cosine_step_written_out(batch):
    model = mlp()
    G = estimate_of_first_pass(model, batch)
    attachment = bpfree.attach(model, bpfree.GrAPE(step=0.3, estimate="batch"), seed=7, example_inputs=batch[0])
    before = {name: attachment.feedback[name].clone() for name in names(attachment)}
    steps(model, attachment, *batch, 1)
    for name, B in before.items():
        g, b, norm = G[name] / G[name].norm(), B / B.norm(), B.norm()
        c = (g * b).sum()
        moved = B + 0.3 * (1 - c) * norm * (g - c * b)
        torch.testing.assert_close(attachment.feedback[name], moved * norm / moved.norm(), rtol=1e-12, atol=1e-14)


def linear_net(width=16):
    """J is the same for every sample, so the target of the feedback is a fixed matrix."""
    return nn.Sequential(
        nn.Linear(6, width), nn.Identity(), nn.Linear(width, width), nn.Identity(), nn.Linear(width, C)
    )


def targets_of(model):
    return [model[4].weight @ model[2].weight, model[4].weight]


def cosines(attachment):
    return [
        float(F.cosine_similarity(attachment.feedback[name].flatten(), J.flatten(), 0))
        for name, J in zip(names(attachment), targets_of(attachment.model), strict=True)
    ]


def test_grape_turns_to_a_fixed_matrix_and_keeps_its_norm(batch):
    model = linear_net()
    attachment = bpfree.attach(model, bpfree.GrAPE(), taps=nn.Identity, example_inputs=batch[0])
    norms = [float(attachment.feedback[name].norm()) for name in names(attachment)]
    assert max(cosines(attachment)) < 0.5
    steps(model, attachment, *batch, 500)
    assert min(cosines(attachment)) >= 0.9
    assert [float(attachment.feedback[name].norm()) for name in names(attachment)] == pytest.approx(norms, rel=1e-12)


def test_the_printed_equation_turns_nothing(batch):
    model = linear_net()
    attachment = bpfree.attach(model, AsPrinted(), taps=nn.Identity, example_inputs=batch[0])
    before = {name: attachment.feedback[name].clone() for name in names(attachment)}
    steps(model, attachment, *batch, 500)
    for name, B in before.items():
        torch.testing.assert_close(attachment.feedback[name], B, rtol=1e-6, atol=1e-6 * float(B.norm()))


def test_lms_has_no_noise_left_where_the_net_is_linear(batch):
    """The residual vanishes at B = J, so B arrives there; an average of the same estimates does not."""
    found = {}
    for rule, count in ((bpfree.LMS(scale=0.5), 800), (bpfree.FDFA(beta=0.05), 100)):  # five times FDFA's memory
        model = linear_net()
        attachment = bpfree.attach(model, rule, taps=nn.Identity)
        steps(model, attachment, *batch, count)
        matrices = [attachment.feedback[name] for name in names(attachment)]
        pairs = list(zip(matrices, targets_of(model), strict=True))
        found[type(rule)] = max(float((B - J).norm() / J.norm()) for B, J in pairs)
    assert found[bpfree.LMS] < 1e-6
    assert found[bpfree.FDFA] > 0.05


def test_lms_begins_with_the_estimate_times_its_normalised_step(batch):
    model = mlp()
    G = estimate_of_first_pass(model, batch)
    attachment = bpfree.attach(model, bpfree.LMS(scale=0.4), seed=7)
    steps(model, attachment, *batch, 1)
    mu = 0.4 * 12 / (8 + 8 + 12)
    for name in names(attachment):
        torch.testing.assert_close(attachment.feedback[name], mu * G[name], rtol=1e-12, atol=1e-14)


def test_dkp_is_its_gradient_written_out(batch):
    x, y = batch
    model = mlp()
    attachment = bpfree.attach(model, bpfree.DKP(decay=0.01))
    h1 = torch.tanh(model[0](x))
    h2 = torch.tanh(model[2](h1))
    e = (model[4](h2).softmax(1) - F.one_hot(y, C)) / len(x)
    B1, B2 = torch.zeros(C, 8), torch.zeros(C, 8)
    for _ in range(2):
        steps(model, attachment, x, y, 1, feedback_lr=0.3)
        B1, B2 = (B - 0.3 * (e.T @ h + 0.01 * B) for B, h in ((B1, h1), (B2, h2)))
    assert_same([attachment.feedback[name] for name in names(attachment)], [B1.detach(), B2.detach()])


def test_dkp_on_a_convolution(double):
    model, x, y = convnet(), torch.randn(5, 1, 8, 8), torch.randint(0, C, (5,))
    outputs = []
    attachment = bpfree.attach(model, bpfree.DKP(), taps=["3", "5"])
    for tap in (3, 5):
        model[tap].register_forward_hook(lambda module, args, output: outputs.append(output.detach()), prepend=True)
    steps(model, attachment, x, y, 1, feedback_lr=0.3)
    with torch.no_grad():
        e = (model[7](outputs[1].flatten(1)).softmax(1) - F.one_hot(y, C)) / 5
    for name, h in zip(names(attachment), outputs, strict=True):
        torch.testing.assert_close(attachment.feedback[name], -0.3 * e.T @ h.flatten(1), rtol=1e-12, atol=1e-14)


def test_every_fourth_pass_alone_is_learned_from(batch):
    model = mlp()
    attachment = bpfree.attach(model, bpfree.GrAPE(every=4), example_inputs=batch[0])
    changed = []
    for _ in range(9):
        before = attachment.feedback[names(attachment)[0]].clone()
        steps(model, attachment, *batch, 1)
        changed.append(not torch.equal(before, attachment.feedback[names(attachment)[0]]))
    assert changed == [True, False, False, False] * 2 + [True]


def test_an_optimizer_of_ones_own_takes_the_step(batch):
    """With SGD it is the rule's own step; any other optimizer and schedule will do as well."""
    model, twin = pair()
    options = {"beta": 0.1, "debiased": False}
    own = bpfree.attach(model, bpfree.FDFA(**options), seed=7)
    other = bpfree.attach(twin, bpfree.FDFA(stepped_by="optimizer"), seed=7)
    feedback = torch.optim.SGD(other.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(feedback, 100)
    for _ in range(5):
        steps(model, own, *batch, 1)
        train(twin, feedback, *batch, 1)
        schedule.step()
    assert [parameter.shape for parameter in other.parameters()] == [(C, 8), (C, 8)]
    for mine, theirs in zip(names(own), names(other), strict=True):
        torch.testing.assert_close(own.feedback[mine], other.feedback[theirs].detach(), rtol=1e-12, atol=1e-14)


def test_feedback_that_no_optimizer_has_is_warned_about(batch):
    model = mlp()
    bpfree.attach(model, bpfree.DKP())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(bpfree.BpfreeWarning, match="still zero: no optimizer has it"):
        train(model, optimizer, *batch, 6)


def test_channel_shared_and_low_rank_feedback_are_constant_and_smooth_in_space(double):
    x = torch.randn(6, 1, 8, 8)
    sizes = {}
    for modes in (1, 3, None):
        feedback = bpfree.Feedback(shared=False, modes=modes)
        attachment = bpfree.attach(convnet(), bpfree.FDFA(feedback=feedback), taps=["3"], example_inputs=x)
        steps(attachment.model, attachment, x, torch.randint(0, C, (6,)), 3)
        (site,) = attachment.mechanism.sites
        B = attachment.feedback.matrix(site).reshape(C, 3, 16)
        sizes[modes] = attachment.feedback[names(attachment)[0]].numel()
        assert int(torch.linalg.matrix_rank(B.reshape(-1, 16))) == (modes or 12)
        if modes == 1:
            torch.testing.assert_close(B, B[:, :, :1].expand_as(B))
    assert sizes == {1: C * 3, 3: C * 9, None: C * 48}


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_measuring_and_evaluating_teach_the_feedback_nothing(batch, rule):
    x, y = batch
    model = mlp()
    attachment = bpfree.attach(model, rule, example_inputs=x)
    steps(model, attachment, x, y, 3)
    before = copy.deepcopy(attachment.state_dict())
    bpfree.alignment(attachment, lambda: F.cross_entropy(model(x), y))
    with torch.no_grad():
        model(x)
    with attachment.paused():
        F.cross_entropy(model(x), y).backward()
    assert_equal(attachment.state_dict().values(), before.values())


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_resumed_run_continues_bit_for_bit(rule):
    x, y = torch.randn(8, 1, 8, 8), torch.randint(0, C, (8,))
    model = convnet()
    attachment = bpfree.attach(model, rule, seed=3)
    steps(model, attachment, x, y, 3, lr=0.1)
    saved = copy.deepcopy((model.state_dict(), attachment.state_dict()))
    steps(model, attachment, x, y, 3, lr=0.1)

    other = convnet()
    again = bpfree.attach(other, rule, seed=3)
    other.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    steps(other, again, x, y, 3, lr=0.1)
    assert_equal(other.state_dict().values(), model.state_dict().values())
    assert_equal(again.state_dict().values(), attachment.state_dict().values())


def test_a_calibrating_step_is_backpropagation(batch):
    x, y = batch
    model = mlp()
    attachment = bpfree.attach(model, bpfree.GrAPE(calibrate=3), example_inputs=x)
    exact = []
    for _ in range(6):
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        found = [parameter.grad.clone() for parameter in model.parameters()]
        with attachment.paused():
            model.zero_grad()
            F.cross_entropy(model(x), y).backward()
        pairs = zip(found, model.parameters(), strict=True)
        exact.append(all(torch.allclose(ours, p.grad, rtol=1e-12, atol=1e-14) for ours, p in pairs))
    assert exact == [False, False, True] * 2
    assert "Weight transport: one step in 3 (33.33%) is plain backpropagation." in str(attachment)


@pytest.mark.parametrize("rule", [bpfree.GrAPE(), bpfree.DKP()], ids=str)
def test_an_empty_batch_teaches_nothing(rule):
    model = mlp()
    attachment = bpfree.attach(model, rule, example_inputs=torch.randn(2, 6))
    before = [attachment.feedback[name].clone() for name in names(attachment)]
    model(torch.randn(0, 6)).sum().backward()
    assert_equal([attachment.feedback[name] for name in names(attachment)], before)


@pytest.mark.parametrize("rule", [bpfree.DFA, bpfree.FDFA, bpfree.DKP])
def test_an_empty_batch_passes_feedback_that_is_smooth_in_space(rule):
    model = convnet().eval()  # batch normalization refuses an empty batch in training
    bpfree.attach(model, rule(feedback=bpfree.Feedback(shared=False, modes=2)), taps=["3", "5"])
    model(torch.randn(0, 1, 8, 8)).sum().backward()
    assert not any(bool(parameter.grad.any()) for parameter in model.parameters())


@pytest.mark.parametrize("rule", [bpfree.FDFA(), bpfree.DKP()], ids=str)
def test_a_compiled_model_learns_the_same(batch, rule):
    model, twin = pair()
    for one, run in ((model, torch.compile(model, backend="eager")), (twin, twin)):
        attachment = bpfree.attach(one, rule, seed=7, example_inputs=batch[0])
        optimizer = torch.optim.SGD([*one.parameters(), *attachment.parameters()], lr=0.1)
        train(run, optimizer, *batch, 3)
    assert_same([p.detach() for p in model.parameters()], [p.detach() for p in twin.parameters()])


def test_a_batch_of_one_is_served(double):
    model = mlp()
    x, y = torch.randn(1, 6), torch.randint(0, C, (1,))
    for rule in RULES:
        with bpfree.attach(model, rule) as attachment:
            steps(model, attachment, x, y, 3, lr=0.1)
            assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
            assert all(bool(attachment.feedback[name].isfinite().all()) for name in names(attachment))


def test_feedback_that_diverges_is_reported_with_its_tap_before_the_weights_are_hurt(batch):
    model = mlp()
    bpfree.attach(model, bpfree.LMS(scale=40.0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with pytest.raises(bpfree.errors.FeedbackDivergedError, match=r"tap '1' diverges.*Lower the learning rate of LMS"):
        train(model, optimizer, *batch, 400)
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in list(model.parameters())[:4])


def test_a_diverging_optimizer_of_the_feedback_is_reported_too(batch):
    model = mlp()
    attachment = bpfree.attach(model, bpfree.FDFA(stepped_by="optimizer"))
    feedback = torch.optim.SGD(attachment.parameters(), lr=5.0)
    with pytest.raises(bpfree.errors.FeedbackDivergedError, match="tap '1' diverges"):
        train(model, feedback, *batch, 100)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: bpfree.GrAPE(step=0.0), "step=0.0 must be positive"),
        (lambda: bpfree.GrAPE(floor=2.0), "floor=2.0"),
        (lambda: bpfree.GrAPE(estimate="mean"), "estimate='mean'"),
        (lambda: bpfree.GrAPE(perturbations="cauchy"), "perturbations='cauchy'"),
        (lambda: bpfree.GrAPE(calibrate=-1), "calibrate=-1"),
        (lambda: bpfree.GrAPE(calibrate=1.5), "calibrate=1.5"),
        (lambda: bpfree.FDFA(beta=1.5), "beta=1.5"),
        (lambda: bpfree.FDFA(every=0), "every=0"),
        (lambda: bpfree.FDFA(every=1.5), "every=1.5"),
        (lambda: bpfree.FDFA(feedback=bpfree.Feedback()), "shared=False"),
        (lambda: bpfree.FDFA(feedback=None), "give a bpfree.Feedback"),
        (lambda: bpfree.LMS(scale=0.0), "scale=0.0"),
        (lambda: bpfree.DKP(decay=-1.0), "decay=-1.0"),
        (lambda: bpfree.FDFA(stepped_by="me"), "stepped_by='me'"),
        (lambda: bpfree.Feedback(modes=0), "modes=0"),
    ],
)
def test_options_that_mean_nothing_are_refused(build, said):
    with pytest.raises(bpfree.errors.OptionError, match=said):
        build()
