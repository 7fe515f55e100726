"""What one matrix can reach at a tap, against networks whose Jacobians are known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import bpfree
from bpfree.feedback.spatial import cosine_modes
from bpfree.lab.models import CausalTransformer
from bpfree.lab.studies.alignment_limit import alignment_limits, table


class TwoLayers(nn.Module):
    """Two linear layers; ``flip`` gives each row of the first one's output a sign that only the input knows."""

    def __init__(self, flip: float) -> None:
        super().__init__()
        self.first, self.tap, self.second, self.flip = nn.Linear(6, 5), bpfree.Tap(), nn.Linear(5, 3), flip

    def forward(self, x: Tensor) -> Tensor:
        signs = torch.where(x[..., :1] > 0, 1.0, 1.0 - 2 * self.flip)
        return 1e-3 * self.second(signs * self.tap(self.first(x)))  # the error is that of the target alone, nearly


def loss(model: nn.Module, seed: int) -> Callable[[], Tensor]:
    x = torch.randn(40, 10, 6, generator=torch.Generator().manual_seed(seed))
    y = torch.randn(40, 10, 3, generator=torch.Generator().manual_seed(seed + 10))
    return lambda: (model(x) - y).square().mean()


def limits(flip: float, rule: bpfree.Rule, feedback: bool = False):
    torch.manual_seed(0)
    model = TwoLayers(flip)
    before = [weight.detach().clone() for weight in model.parameters()]
    with bpfree.attach(model, rule, taps=bpfree.Tap, example_inputs=torch.randn(2, 10, 6)) as attachment:
        if feedback:
            attachment.feedback["tap:5"].copy_(model.second.weight.detach())
        (found,) = alignment_limits(attachment, loss(model, 1), loss(model, 2))
    assert all(map(torch.equal, before, model.parameters()))
    assert all(weight.grad is None for weight in model.parameters())
    return found


SEPARATE = bpfree.DFA(feedback=bpfree.Feedback("none", shared=False))


def test_one_jacobian_for_all_rows_is_within_reach() -> None:
    """g = e W for every row: W itself reaches 1, a random B less."""
    assert limits(0, SEPARATE, feedback=True).learned == pytest.approx(1, abs=1e-5)
    random = limits(0, SEPARATE)
    assert random.name == "tap"
    assert random.limit == pytest.approx(1, abs=1e-5)
    assert abs(random.learned) < 0.9


def test_jacobians_that_cancel_out_are_not() -> None:
    """g = +- e W, half of each: whatever matrix is right for one half is wrong for the other."""
    found = limits(1, SEPARATE, feedback=True)
    assert abs(found.learned) < 0.2
    assert abs(found.limit) < 0.2


def test_between_them_the_majority_has_it() -> None:
    """g = e W or 0.5 e W have the same direction: nothing is lost."""
    assert limits(0.25, SEPARATE, feedback=True).limit == pytest.approx(1, abs=0.01)


class Neighbours(nn.Module):
    """o_t = (h_t + h_{t-1} / 4) W: a row's gradient is (e_t + e_{t+1} / 4) W^T."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.tap, self.second = nn.Linear(6, 5), bpfree.Tap(), nn.Linear(5, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.tap(self.first(x))
        return 1e-3 * self.second(h + nn.functional.pad(h, (0, 0, 1, 0))[..., :-1, :] / 4)


def test_rows_without_an_error_of_their_own_do_not_outweigh_the_others() -> None:
    """One row in five has an error of 1e-6: W is right in all others, and what is called the limit must be as good."""
    torch.manual_seed(0)
    model = Neighbours()
    counts = torch.where(torch.arange(10) % 5 == 2, 1e-6, 1.0)[:, None]

    def closure(seed: int) -> Callable[[], Tensor]:
        x, y = torch.randn(2, 40, 10, 6, generator=torch.Generator().manual_seed(seed)).split([1, 1])
        return lambda: (counts * (model(x[0]) - y[0, ..., :3]).square()).mean()

    with bpfree.attach(model, SEPARATE, taps=bpfree.Tap, example_inputs=torch.randn(2, 10, 6)) as attachment:
        attachment.feedback["tap:5"].copy_(model.second.weight.detach())
        (found,) = alignment_limits(attachment, closure(1), closure(2))
    assert 0.7 < found.learned < 0.9
    assert found.limit > found.learned - 0.01


def test_every_tap_below_the_error_has_a_limit() -> None:
    torch.manual_seed(0)
    arguments = {"blocks": 2, "width": 8, "heads": 2, "hidden": 12, "placement": "local", "attention": "dense"}
    model = CausalTransformer((6,), 20, **arguments)
    tokens = torch.randint(0, 20, (2, 30, 7))

    def closure(part: int) -> Callable[[], Tensor]:
        x, y = tokens[part][:, :-1], tokens[part][:, 1:]
        return lambda: nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())

    with bpfree.attach(model, bpfree.DFA(), taps=bpfree.Tap, error_at="below_head") as attachment:
        found = alignment_limits(attachment, closure(0), closure(1))
        assert {one.name for one in found} == set(attachment.taps)
    assert found[-1].limit == pytest.approx(1)  # it stands where the error is taken
    assert found[-1].learned == pytest.approx(1)
    assert all(one.limit > one.learned for one in found[:-1])
    assert len(table(found).splitlines()) == len(found) + 2


class Gated(nn.Module):
    """The Jacobian of a row is J_0 + z J_1, and z is the first number of the tap's output, the one that varies most."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.tap = nn.Linear(6, 5), bpfree.Tap()
        self.second, self.third = nn.Linear(5, 3), nn.Linear(5, 3)
        with torch.no_grad():
            self.first.weight[0].mul_(30)

    def forward(self, x: Tensor) -> Tensor:
        h = self.tap(self.first(x))
        return 1e-3 * (self.second(h) + h[..., :1].detach() * self.third(h))


def test_a_mixture_has_jacobians_that_the_taps_output_decides() -> None:
    torch.manual_seed(0)
    model = Gated()
    with bpfree.attach(model, SEPARATE, taps=bpfree.Tap, example_inputs=torch.randn(2, 10, 6)) as attachment:
        (found,) = alignment_limits(attachment, loss(model, 1), loss(model, 2), gates=[1, 3])
    assert found.limit < 0.6
    assert found.by_gates[1] > 0.99
    assert found.by_gates[3] > 0.99


class Summed(nn.Module):
    """Of a map of 4 x 4 positions the channels' means decide: the lowest mode holds the whole Jacobian."""

    def __init__(self, weighted: bool) -> None:
        super().__init__()
        self.first, self.tap, self.second = nn.Conv2d(1, 2, 3, padding=1), bpfree.Tap(), nn.Linear(2, 3)
        self.weights = torch.randn(16) if weighted else torch.ones(16)

    def forward(self, x: Tensor) -> Tensor:
        return 1e-3 * self.second((self.tap(self.first(x)).flatten(2) * self.weights).sum(2))


@pytest.mark.parametrize("weighted", [False, True])
def test_the_modes_that_a_jacobian_has(weighted: bool) -> None:
    """A mean over positions is the lowest mode; of weighted ones m modes hold the share of their projection."""
    torch.manual_seed(0)
    model = Summed(weighted)
    shares = {
        count: float((cosine_modes((4, 4), count).float() @ model.weights).norm() / model.weights.norm())
        for count in (1, 4, 16)
    }

    def closure(seed: int) -> Callable[[], Tensor]:
        x = torch.randn(60, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
        y = torch.randn(60, 3, generator=torch.Generator().manual_seed(seed + 10))
        return lambda: (model(x) - y).square().mean()

    with bpfree.attach(model, SEPARATE, taps=bpfree.Tap, example_inputs=torch.randn(2, 1, 4, 4)) as attachment:
        (found,) = alignment_limits(attachment, closure(1), closure(2), dims=1, modes=list(shares))
    assert found.by_modes == pytest.approx(shares, abs=1e-4)
    assert found.limit == pytest.approx(1, abs=1e-4)
    heads = table([found]).splitlines()[0].split()
    assert heads == ["tap", "learned", "limit", "share", "1", "modes", "4", "modes", "16", "modes"]
