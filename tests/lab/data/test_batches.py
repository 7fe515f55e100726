"""The order of the data: a function of seed and epoch, and every image once."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils.data import DataLoader

from bpfree.lab.data import Images
from bpfree.lab.data.batches import InOrder, Shuffled, Streams, TrainingOrder, batches
from bpfree.lab.errors import SettingsError


def epochs(sampler: TrainingOrder, n: int) -> list[list[int]]:
    found = []
    for epoch in range(n):
        sampler.set_epoch(epoch)
        found += [index.tolist() for index in sampler]
    return found


def order(seed: int, epoch: int) -> list[int]:
    sampler = Shuffled(10, 4, seed)
    sampler.set_epoch(epoch)
    return torch.cat(list(sampler)).tolist()


def test_every_image_comes_once_and_the_last_batch_is_what_is_left() -> None:
    sampler = Shuffled(10, 4, seed=0)
    assert [len(index) for index in sampler] == [4, 4, 2]
    assert len(sampler) == 3
    assert sorted(order(0, 0)) == list(range(10))


def test_the_order_depends_on_seed_and_epoch_and_nothing_else() -> None:
    torch.manual_seed(1)
    first = order(3, 5)
    torch.manual_seed(2)
    assert order(3, 5) == first
    assert len({tuple(order(seed, epoch)) for seed in range(5) for epoch in range(5)}) == 25


def test_a_batch_is_the_images_at_its_indices_and_draws_nothing() -> None:
    images = Images(torch.arange(10.0).reshape(10, 1, 1, 1), torch.arange(10))
    loader = batches(images, Shuffled(10, 4, seed=0))
    assert isinstance(loader, DataLoader)
    before = torch.get_rng_state()
    found = list(loader)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.cat([y for _, y in found]).tolist() == order(0, 0)
    assert all(torch.equal(x.flatten(), y.float()) for x, y in found)


def test_evaluation_is_in_order() -> None:
    assert [index.tolist() for index in InOrder(5, 2)] == [[0, 1], [2, 3], [4]]
    assert len(InOrder(5, 2)) == 3


def test_epochs_of_so_many_steps_follow_each_other_through_the_passes() -> None:
    passes = [order(3, number) for number in range(4)]
    sampler = Shuffled(10, 4, seed=3, steps=5)
    found = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        assert len(list(sampler)) == len(sampler) == 5
        found += [index.tolist() for index in sampler]
    # Ten batches of 4, 4, 2, 4, 4, 2, ...: three passes and the first batch of the fourth.
    assert list(itertools.chain.from_iterable(found)) == [*passes[0], *passes[1], *passes[2], *passes[3][:4]]


def test_streams_are_read_side_by_side_from_their_beginnings() -> None:
    assert epochs(Streams(14, 4), 1) == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]  # 12 and 13 are left over
    assert len(Streams(14, 4)) == 3
    assert epochs(Streams(14, 4), 2) == 2 * epochs(Streams(14, 4), 1)
    with pytest.raises(SettingsError, match=r"--batch-size 4 streams need .* has 3: lower --batch-size"):
        Streams(3, 4)


@pytest.mark.parametrize("make", [lambda steps: Shuffled(14, 4, 3, steps), lambda steps: Streams(14, 4, steps)])
def test_epochs_of_any_length_see_the_same_batches(make) -> None:
    assert epochs(make(2), 6) == epochs(make(3), 4) == epochs(make(12), 1)
