"""Feedback of low rank for wide errors: B_l = R A_l."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bpfree
from support.by_hand import TanhMLP, assert_same, softmax_error

N, C, RANK = 9, 20, 4


def mlp(classes=C):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, classes))


def convnet():
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, C)
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def batch(*shape, classes=C):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(N, *(shape or (5,)), generator=generator), torch.randint(0, classes, (N,), generator=generator)


def step(model, x, y):
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def low(**options):
    return bpfree.Feedback(rank=RANK, **options)


@pytest.mark.parametrize(
    "options", [{}, {"shared": False}, {"normalization": "launay2019"}, {"stored": False}], ids=str
)
def test_signals_are_products_of_three(double, options):
    model, (x, y) = mlp(), batch()
    attachment = bpfree.attach(model, bpfree.DFA(feedback=low(**options)), seed=3)
    found = step(model, x, y)
    hand = TanhMLP(model)
    hidden, output = hand.forward(x)
    error = softmax_error(output, y)
    R = attachment.feedback.reduction["R"]
    assert R.shape == (C, RANK)
    signals = []
    for site in attachment.mechanism.sites:
        B = attachment.feedback.matrix(site)
        assert torch.linalg.matrix_rank(B) == RANK
        assert torch.linalg.matrix_rank(torch.cat([R, B], 1)) == RANK  # in the span of R
        signals.append(error @ B)
    assert_same(found, hand.gradients(hidden, error, signals))
    if options.get("stored", True):
        assert {len(attachment.feedback[name]) for name in attachment.feedback} == {RANK}


def test_images_that_have_their_channels_last(double):
    """The signal of a tap is e B_l in whatever memory format: the gradients are those of contiguous images."""
    x, y = batch(2, 8, 8)
    found = []
    for format in (torch.channels_last, torch.contiguous_format):
        model = convnet().to(memory_format=format)
        bpfree.attach(model, bpfree.DFA(feedback=low()), seed=3)
        found.append(step(model, x.contiguous(memory_format=format), y))
    assert_same(*found)


def test_a_reduced_error_is_the_error_on_average(double):
    found = torch.zeros(C, C)
    for seed in range(400):
        model, (x, _) = mlp(), batch()
        attachment = bpfree.attach(model, bpfree.DFA(feedback=low()), seed=seed, verify=False, example_inputs=x)
        R = attachment.feedback.reduction["R"]
        found += R @ R.T / 400
    # An entry has a variance of at most 2 / RANK in one draw.
    assert (found - torch.eye(C)).abs().max() < 5 * (2 / RANK / 400) ** 0.5


@pytest.mark.parametrize("rule", [bpfree.DFA, bpfree.FDFA, bpfree.DKP])
def test_an_error_that_is_not_wider_has_whole_matrices(rule):
    (x, y), found = batch(classes=RANK), []
    for feedback in (bpfree.Feedback(shared=False), low(shared=False)):
        model = mlp(RANK)
        attachment = bpfree.attach(model, rule(feedback=feedback), seed=3)
        found.append([*step(model, x, y), *(attachment.feedback[name] for name in attachment.feedback)])
        assert attachment.feedback.reduction is None or "R" not in attachment.feedback.reduction
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


class Reduced(nn.Module):
    """The same network whose output is o R: what learns of it with whole matrices learns A_l."""

    def __init__(self, inner, R):
        super().__init__()
        self.inner, self.R = inner, R

    def forward(self, x):
        return self.inner(x) @ self.R


@pytest.mark.parametrize("rule", [bpfree.FDFA, bpfree.GrAPE, bpfree.LMS])
def test_estimates_are_those_of_the_reduced_output(double, rule):
    model, (x, y) = mlp(), batch()
    attachment = bpfree.attach(model, rule(feedback=low(shared=False, normalization="none")), seed=3)
    for _ in range(3):
        step(model, x, y)
    R = attachment.feedback.reduction["R"]
    outer = Reduced(mlp(), R)
    taps = {"inner.1": "1", "inner.3": "3"}
    twin = bpfree.attach(outer, rule(feedback=bpfree.Feedback(shared=False, normalization="none")), seed=3)
    outer(x)
    # The perturbations and the first matrices are drawn by the taps' names, which differ: they are given.
    mine, theirs = attachment.mechanism, twin.mechanism
    drawn = mine._estimator.draw

    def by_name(site, like, seed, columns):
        return drawn(next(one for one in mine.sites if one.name == taps[site.name]), like, seed, columns)

    theirs._estimator.draw = by_name
    attachment.detach()
    fresh = bpfree.attach(mlp(), rule(feedback=low(shared=False, normalization="none")), seed=3, example_inputs=x)
    for site in theirs.sites:
        mine_too = next(one for one in mine.sites if one.name == taps[site.name])
        name = fresh.mechanism.feedback.name(mine_too)
        theirs.feedback[theirs.feedback.name(site)].copy_(fresh.feedback[name])
        theirs.norms[theirs.feedback.name(site)].copy_(fresh.feedback[name].norm())
    theirs.averages.numbers["passes"] = 0
    for _ in range(3):
        outer.zero_grad()
        outer(x).square().sum().backward()
    for site in theirs.sites:
        mine_too = next(one for one in mine.sites if one.name == taps[site.name])
        torch.testing.assert_close(
            mine.feedback[mine.feedback.name(mine_too)], theirs.feedback[theirs.feedback.name(site)]
        )


@pytest.mark.parametrize("streaming", [False, True])
def test_direct_kolen_pollack_learns_from_the_reduced_error(double, streaming):
    model, (x, y) = mlp(), batch()
    attachment = bpfree.attach(model, bpfree.DKP(feedback=low(shared=False), decay=0.0), streaming=streaming, seed=3)
    step(model, x, y)
    hidden, output = TanhMLP(model).forward(x)
    error = softmax_error(output, y) @ attachment.feedback.reduction["R"]
    for name, h in zip(("1", "3"), hidden[1:], strict=True):
        torch.testing.assert_close(attachment.feedback[name].grad, error.T @ h, rtol=1e-12, atol=1e-14)


def test_it_is_saved_shown_and_counted():
    model, (x, y) = mlp(), batch()
    attachment = bpfree.attach(model, bpfree.FDFA(feedback=low(shared=False)), seed=3)
    step(model, x, y)
    assert "of rank 4" in str(attachment)
    again = mlp()
    resumed = bpfree.attach(again, bpfree.FDFA(feedback=low(shared=False)), seed=8)
    resumed.load_state_dict(copy.deepcopy(attachment.state_dict()))
    for one, other in zip(step(again, x, y), step(model, x, y), strict=True):
        assert torch.equal(one, other)
    other = bpfree.attach(mlp(), bpfree.FDFA(feedback=bpfree.Feedback(shared=False)))
    with pytest.raises(bpfree.errors.StateError, match="rank=4"):
        other.load_state_dict(copy.deepcopy(attachment.state_dict()))
    narrow = mlp(C + 1)
    fewer = bpfree.attach(narrow, bpfree.FDFA(feedback=low(shared=False)))
    fewer.load_state_dict(copy.deepcopy(attachment.state_dict()))
    with pytest.raises(bpfree.errors.StateError, match=r"\(21, 4\)"):
        narrow(x)


@pytest.mark.parametrize("rank", [0, -1, 1.5])
def test_a_rank_that_means_nothing_is_refused(rank):
    with pytest.raises(bpfree.errors.OptionError, match="rank="):
        bpfree.Feedback(rank=rank)
