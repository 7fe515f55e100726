"""Perturbations from the rows of a Hadamard matrix: what they are, and what they do to estimates."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bpfree
from bpfree.forward_mode.hadamard import Turn

WIDTHS = {"a": 13, "b": 30, "c": 8}
"""They take 16 + 32 + 8 columns, so the order of the matrix is 64."""
ORDER = 64


def passes(count, rows, seed=5, **place):
    """The perturbations of all taps in so many passes, shape ``(count * rows, 13 + 30 + 8)``."""
    found = []
    for number in range(count):
        columns = Turn(seed, number, **place).columns(WIDTHS)
        draws = [columns.draw(name, (rows, width), torch.empty(0).double()) for name, width in WIDTHS.items()]
        found.append(torch.cat([draw.make() for draw in draws], 1))
    return torch.cat(found)


@pytest.mark.parametrize("rows", [1, 4, 6, 64, 100])
def test_columns_are_orthogonal_over_every_round_of_the_matrix(rows):
    v = passes(-(-3 * ORDER // rows), rows)
    assert set(v.unique().tolist()) == {-1.0, 1.0}
    for start in range(0, 3 * ORDER, ORDER):
        rows_of_round = v[start : start + ORDER]
        assert torch.equal(rows_of_round.T @ rows_of_round, ORDER * torch.eye(51).double())
    assert not torch.equal(v[:ORDER], v[ORDER : 2 * ORDER])


def test_another_seed_gives_other_signs_and_the_same_seed_the_same():
    assert torch.equal(passes(4, 4), passes(4, 4))
    assert not torch.equal(passes(4, 4), passes(4, 4, seed=6))


def test_a_row_by_itself_is_random_signs():
    # Over 2,000 seeds the mean of v v^T of one row is the identity, within 5 standard deviations.
    rows = torch.stack([passes(1, 1, seed=seed)[0] for seed in range(2000)])
    products = rows.T @ rows / 2000
    off = products - torch.eye(51)
    assert float(off.abs().max()) < 5 / 2000**0.5
    assert float(rows.mean(0).abs().max()) < 5 / 2000**0.5


def test_what_is_kept_is_what_is_made_again():
    draw = Turn(3, 7).columns(WIDTHS).draw("b", (6, 30), torch.empty(0))
    made_again, numbers = draw.keep()
    assert torch.equal(numbers, draw.make())
    assert torch.equal(made_again(), numbers)
    numbers.zero_()  # as an operation in place behind the tap does
    assert torch.equal(made_again(), draw.make())


def test_stages_have_the_columns_that_one_process_gives_their_taps():
    whole = Turn(5, 2).columns(WIDTHS)
    first, second = Turn(5, 2, behind=40).columns({"a": 13}), Turn(5, 2, before=16).columns({"b": 30, "c": 8})
    for name, part in (("a", first), ("b", second), ("c", second)):
        shape, like = (4, WIDTHS[name]), torch.empty(0)
        assert torch.equal(part.draw(name, shape, like).make(), whole.draw(name, shape, like).make())


def linear_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 13, bias=False), bpfree.Tap(), nn.Linear(13, 30, bias=False), bpfree.Tap(),
        nn.Linear(30, 8, bias=False), bpfree.Tap(), nn.Linear(8, 3, bias=False),
    ).double()  # fmt: skip


@pytest.mark.parametrize("every", [1, 3])
def test_an_average_over_one_round_is_the_jacobian_where_it_stands_still(every):
    """B is the plain mean of 16 estimates from 4 rows each. Random signs leave an error of 1 / sqrt(64) at least."""

    def error(perturbations):
        model, x, y = linear_net(), torch.randn(4, 5).double(), torch.randint(3, (4,))
        rule = bpfree.FDFA(beta=1e-9, perturbations=perturbations, every=every)
        with bpfree.attach(model, rule, taps=bpfree.Tap) as attachment:
            for _ in range(16 * every):
                F.cross_entropy(model(x), y).backward()
            first, second, third = (model[i].weight.detach() for i in (2, 4, 6))
            J = third, third @ second, third @ second @ first
            found = [attachment.feedback[name] for name in ("5:8", "3:30", "1:13")]
            return max(float((B - one).abs().max() / one.abs().max()) for B, one in zip(found, J, strict=True))

    assert error("hadamard") < 1e-12
    assert error("rademacher") > 0.1


def test_least_mean_squares_arrives_within_three_rounds_with_the_whole_step():
    """mu = N / (sum m + N), a little below the step that projects onto what N orthogonal rows have shown."""
    model, x, y = linear_net(), torch.randn(1, 5).double(), torch.randint(3, (1,))
    attachment = bpfree.attach(model, bpfree.LMS(scale=1.0, perturbations="hadamard"), taps=bpfree.Tap)
    for _ in range(3 * ORDER):
        F.cross_entropy(model(x), y).backward()
    J = (model[6].weight @ model[4].weight @ model[2].weight).detach()
    assert float((attachment.feedback["1:13"] - J).norm() / J.norm()) < 0.01


def test_one_module_that_runs_three_times_has_columns_for_every_run():
    torch.manual_seed(0)
    cell, tap, head = nn.Linear(5, 5), bpfree.Tap(), nn.Linear(5, 3)
    model, x, y = (
        nn.Sequential(cell, tap, cell, tap, cell, tap, head).double(),
        torch.randn(4, 5).double(),
        torch.randint(3, (4,)),
    )
    attachment = bpfree.attach(model, bpfree.FDFA(beta=1e-9, perturbations="hadamard"), taps=bpfree.Tap)
    for _ in range(8):  # 3 x 8 columns: the order is 32
        F.cross_entropy(model(x), y).backward()
    W, H = cell.weight, head.weight
    torch.testing.assert_close(attachment.feedback["1:5"], (H + H @ W + H @ W @ W) / 3, rtol=1e-10, atol=1e-10)


def test_an_empty_batch_is_a_step_like_others():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    bpfree.attach(model, bpfree.LMS(perturbations="hadamard"))
    for rows in (2, 0, 2):
        model(torch.randn(rows, 4)).sum().backward()
