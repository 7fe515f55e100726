"""Feedback that learns, where passes are not all alike: other taps or resolutions, second runs, overflow, resuming."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import bpfree
from support.by_hand import assert_same

C = 4


class Growing(nn.Module):
    """A net whose second tap, wider than the first, is reached when ``deep`` says so."""

    def __init__(self):
        super().__init__()
        self.first, self.act = nn.Linear(6, 5), nn.Tanh()
        self.second, self.late = nn.Linear(5, 8), nn.Tanh()
        self.head, self.deep_head = nn.Linear(5, C), nn.Linear(8, C)

    def forward(self, x, deep):
        h = self.act(self.first(x))
        return self.deep_head(self.late(self.second(h))) if deep else self.head(h)


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, C))


def learn(run, x, y):
    loss = F.cross_entropy(run(x), y)
    loss.backward()
    return loss


def assert_checkpointed_alike(rule, x, y, steps, use_reentrant):
    """A net that is checkpointed as a whole gets the gradients and the feedback of one that is not."""
    torch.manual_seed(1)
    plain = mlp()
    checkpointed = copy.deepcopy(plain)
    attached = bpfree.attach(plain, rule, seed=2), bpfree.attach(checkpointed, rule, seed=2)
    for _ in range(steps):
        learn(plain, x, y)
        learn(lambda x: checkpoint(checkpointed, x, use_reentrant=use_reentrant), x, y)
    for ours, expected in zip(checkpointed.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad, rtol=1e-12, atol=1e-14)
    for name in attached[0].feedback:
        torch.testing.assert_close(attached[1].feedback[name], attached[0].feedback[name], rtol=1e-12, atol=1e-14)


@pytest.fixture
def batch(double):
    torch.manual_seed(0)
    return torch.randn(16, 6), torch.randint(0, C, (16,))


@pytest.mark.parametrize(
    "rule", [bpfree.GrAPE(), bpfree.GrAPE(estimate="cumulative"), bpfree.FDFA(), bpfree.LMS()], ids=str
)
def test_a_tap_that_is_reached_late_learns_as_one_that_is_reached_at_once(batch, rule):
    x, y = batch
    torch.manual_seed(1)
    early = Growing()
    late = copy.deepcopy(early)
    attached = bpfree.attach(early, rule), bpfree.attach(late, rule)
    learn(lambda x: early(x, deep=True), x, y)
    for _ in range(3):
        learn(lambda x: late(x, deep=False), x, y)
    learn(lambda x: late(x, deep=True), x, y)
    first, after = (attachment.feedback["late:8"] for attachment in attached)
    # Other perturbations were drawn, but the step is the first of both: no share of an average that was never taken.
    assert after.norm() == pytest.approx(float(first.norm()), rel=0.5)
    assert attached[1].mechanism.steps.numbers == {"act:5": 4, "late:8": 1}


def test_the_first_step_of_a_late_tap_is_the_whole_estimate(batch):
    x, y = batch
    model = Growing()
    attachment = bpfree.attach(model, bpfree.FDFA(beta=0.01))
    for _ in range(50):
        learn(lambda x: model(x, deep=False), x, y)
    learn(lambda x: model(x, deep=True), x, y)
    # B = G: of rank 4 at most, and of the size of the Jacobian, not a fiftieth of it.
    jacobian = model.deep_head.weight
    assert attachment.feedback["late:8"].norm() > 0.5 * jacobian.norm()


@pytest.mark.parametrize("rule", [bpfree.GrAPE, bpfree.FDFA])
def test_feedback_of_channels_serves_every_resolution(double, rule):
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, C))
    attachment = bpfree.attach(model, rule(feedback=bpfree.Feedback(shared=False, modes=1)))
    y = torch.randint(0, C, (8,))
    for size in (8, 12, 8):
        learn(model, torch.randn(8, 1, size, size), y)
    assert attachment.mechanism.steps.numbers == {"1:3x1": 3}
    assert attachment.feedback["1:3x1"].shape == (C, 3)


def test_a_later_wider_tap_is_refused_only_where_its_matrix_depends_on_the_widest(batch):
    x, _ = batch
    for feedback, refused in [
        (bpfree.Feedback(shared=False), False),
        (bpfree.Feedback(shared=False, normalization="launay2020-code"), True),
        (bpfree.Feedback(), True),
    ]:
        model = Growing()
        bpfree.attach(model, bpfree.DFA(feedback=feedback))
        model(x, deep=False)
        if refused:
            with pytest.raises(bpfree.errors.TapShapeError, match="at most 5 features; this forward pass has 4 and 8"):
                model(x, deep=True)
        else:
            model(x, deep=True)


@pytest.mark.parametrize("rule", [bpfree.FDFA(every=2), bpfree.DKP(every=2), bpfree.GrAPE(calibrate=2)], ids=str)
def test_the_second_run_of_a_checkpoint_is_no_pass_of_its_own(batch, rule):
    assert_checkpointed_alike(rule, *batch, steps=4, use_reentrant=False)


def wide_mlp():
    """More weights than activations: the first look at it then also runs it cut, and tries its tangents."""
    return nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, C))


class Gated(nn.Module):
    """Takes a factor out of the graph, so that gradients stay on in an estimating pass."""

    def __init__(self):
        super().__init__()
        self.layers = wide_mlp()

    def forward(self, x):
        with torch.no_grad():
            gate = x.sigmoid()
        return self.layers(x * gate)


@pytest.mark.parametrize("make", [wide_mlp, Gated])
@pytest.mark.parametrize("outside", [False, True], ids=["data", "output of another part"])
@pytest.mark.parametrize("rule", [bpfree.DFA(), bpfree.FDFA(), bpfree.GrAPE(), bpfree.ForwardGradient()], ids=str)
def test_a_whole_model_in_a_checkpoint_learns_as_outside(double, rule, outside, make):
    def gradients(run_by):
        torch.manual_seed(1)
        part, model = nn.Linear(32, 32), make()
        with bpfree.attach(model, rule, seed=2):
            for _ in range(2):
                model.zero_grad()
                x, y = torch.randn(3, 32), torch.randint(0, C, (3,))
                learn(lambda x, model=model: run_by(model, x), part(x) if outside else x, y)
        return [parameter.grad for parameter in model.parameters()]

    checkpointed = gradients(lambda model, x: checkpoint(model, x, use_reentrant=False))
    assert_same(checkpointed, gradients(lambda model, x: model(x)))


def test_measuring_shows_the_rule_and_no_calibrating_pass(batch):
    x, y = batch
    model = mlp()
    attachment = bpfree.attach(model, bpfree.GrAPE(calibrate=2))
    seen = set()
    for _ in range(3):
        report = bpfree.alignment(attachment, lambda: F.cross_entropy(model(x), y))
        seen |= {round(tap.cosine_mean, 6) for tap in report.taps}
        with attachment.fixed():
            model(x)
    assert 1.0 not in seen


def test_a_resumed_run_takes_its_own_size_for_no_divergence(batch):
    x, _ = batch
    model, other = (nn.Sequential(nn.Linear(6, 8), nn.Identity(), nn.Linear(8, C)) for _ in range(2))
    attachment = bpfree.attach(model, bpfree.LMS(scale=0.5), taps=["1"])
    for _ in range(400):
        learn(model, x, torch.randint(0, C, (16,)))
    torch.testing.assert_close(attachment.feedback["1:8"], model[2].weight, rtol=1e-3, atol=1e-3)
    # What it learns from is next to nothing now.
    other.load_state_dict(model.state_dict())
    bpfree.attach(other, bpfree.LMS(scale=0.5), taps=["1"]).load_state_dict(attachment.state_dict())
    learn(other, x, torch.randint(0, C, (16,)))


def test_a_loaded_state_has_the_steps_of_the_saved_one(batch):
    x, y = batch
    model = mlp()
    attachment = bpfree.attach(model, bpfree.FDFA())
    fresh = copy.deepcopy(attachment.state_dict())
    learn(model, x, y)
    learned = copy.deepcopy(attachment.state_dict())
    learn(model, x, y)
    attachment.load_state_dict(learned)
    assert attachment.mechanism.steps.numbers == {"1:8": 1, "3:8": 1}
    assert not any("steps" in key for key in fresh)


def test_an_overflow_in_half_precision_teaches_the_feedback_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, C))
    attachment = bpfree.attach(model, bpfree.FDFA())
    x, y = torch.randn(16, 6), torch.randint(0, C, (16,))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)

    def step(x):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    step(x)
    feedback, weight = attachment.feedback["1:8"].clone(), model[2].weight.detach().clone()
    with torch.no_grad():
        model[2].weight.mul_(1e6)  # beyond 65504, and so is what a perturbation makes of the output
    step(x)
    assert scaler.get_scale() == 8.0  # the step was skipped
    assert torch.equal(attachment.feedback["1:8"], feedback)
    assert attachment.mechanism.steps.numbers == {"1:8": 1}
    with torch.no_grad():
        model[2].weight.copy_(weight)
    step(x)
    assert not torch.equal(attachment.feedback["1:8"], feedback)
    assert bool(attachment.feedback["1:8"].isfinite().all())


def test_an_activation_that_is_overwritten_is_not_learned_from(batch):
    x, y = batch
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Dropout(0.5, inplace=True), nn.Linear(8, C))
    with (
        bpfree.attach(model, bpfree.DKP()),
        pytest.raises(bpfree.errors.TapOutputError, match="tap '1' was changed in"),
    ):
        learn(model, x, y)
    assert all(parameter.grad is None for parameter in model[0].parameters())
    with bpfree.attach(model, bpfree.DKP(decay=0.0), streaming=True) as attachment:
        errors = []
        output = model(x)
        output.register_hook(errors.append)
        F.cross_entropy(output, y).backward()
    with torch.no_grad():
        activation = model[1](model[0](x))
    torch.testing.assert_close(attachment.feedback["1"].grad, errors[0].T @ activation)


def test_a_compiled_net_overwrites_nothing(batch):
    x, y = batch
    model = nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, C)
    )
    attachment = bpfree.attach(model, bpfree.DKP())
    learn(torch.compile(model, backend="aot_eager"), x, y)
    compiled = {name: attachment.feedback[name].grad.clone() for name in attachment.feedback}
    for B in attachment.parameters():
        B.grad = None
    learn(model, x, y)
    for name, found in compiled.items():
        torch.testing.assert_close(found, attachment.feedback[name].grad)


@pytest.mark.filterwarnings("ignore:an argument of the model")
@pytest.mark.parametrize("rule", [bpfree.FDFA(), bpfree.DKP(), bpfree.GrAPE(calibrate=100)], ids=str)
def test_a_reentrant_checkpoint_counts_the_run_that_has_gradients(batch, rule):
    x, y = batch
    x.requires_grad_()  # or a reentrant checkpoint would not run again
    assert_checkpointed_alike(rule, x, y, steps=3, use_reentrant=True)


class Ending(nn.Module):
    """Ends in a way of its own, above the error."""

    def __init__(self, end):
        super().__init__()
        self.net, self.end = mlp(), end

    def forward(self, x):
        return self.end(self, self.net(x))


class EndError(Exception):
    pass


def _raise(model, output):
    raise EndError


def _keep(model, output):
    model.kept = output


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("rule", [bpfree.GrAPE(), bpfree.FDFA(), bpfree.LMS(), bpfree.ForwardGradient()], ids=str)
def test_an_exception_above_the_error_is_the_users_own(batch, rule, streaming):
    model = Ending(lambda model, output: output)
    bpfree.attach(model, rule, error_at="net", streaming=streaming)
    learn(model, *batch)
    model.end = _raise
    with pytest.raises(EndError):
        model(batch[0])
    model.end = lambda model, output: output
    learn(model, *batch)


@pytest.mark.parametrize("rule", [bpfree.GrAPE(), bpfree.FDFA()], ids=str)
def test_a_model_that_returns_nothing_learns_feedback(batch, rule):
    model, x, y = Ending(_keep), *batch
    attachment = bpfree.attach(model, rule, error_at="net")
    model(x)
    F.cross_entropy(model.kept, y).backward()
    assert all(attachment.feedback[name].any() for name in attachment.feedback)
