"""Rows for training: in blocks that are shuffled, the same from the same seed, each once, whatever the process."""

from __future__ import annotations

import itertools
import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bpfree.lab.data.batches import batches
from bpfree.lab.data.clicks import Rows, ShuffledBlocks, rows
from bpfree.lab.data.clicks.cache import Cache
from bpfree.lab.data.clicks.columns import write_numbers
from bpfree.lab.errors import SettingsError
from support import plain_log
from support.plain_log import SCHEMA
from support.small_log import content, loaded


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "BLOCK", 8)
    monkeypatch.setattr(rows, "MIXED", 4)
    monkeypatch.setattr(rows, "_SLOTS", 5)


def passed(order: ShuffledBlocks, number: int = 0) -> list[int]:
    return torch.cat(list(order.batches(number))).tolist()


@pytest.mark.parametrize("n", [1, 7, 8, 32, 33, 1000, 1003])
@pytest.mark.parametrize("size", [1, 5, 32, 100])
def test_a_pass_has_every_row_once(n: int, size: int, small_blocks: None) -> None:
    order = ShuffledBlocks(n, size, seed=3)
    sizes = [len(batch) for batch in order]
    single = n % size == 1 < n  # a single row that is left over is left out
    assert sizes == [size] * (n // size) + [n % size] * (n % size > 0 and not single)
    assert len(order) == len(sizes)
    assert len(set(passed(order))) == len(passed(order)) == n - single
    assert set(passed(order)) <= set(range(n))
    assert passed(order) == passed(ShuffledBlocks(n, size, seed=3))
    if n > 30:
        assert passed(order) != passed(order, 1) != passed(ShuffledBlocks(n, size, seed=4), 1)
        assert passed(order) != list(range(n))


def test_few_blocks_are_mixed_at_a_time_and_they_come_in_any_order(small_blocks: None) -> None:
    order = ShuffledBlocks(960, 10, seed=0)
    first = np.zeros(120)
    for number in range(200):
        blocks = np.array(passed(order, number)) // 8
        groups = blocks.reshape(-1, 32)
        assert all(len(set(group)) == 4 for group in groups)
        first[groups[0]] += 1
        assert all(len(set(np.abs(np.diff(group)))) > 1 for group in groups)
    assert (first > 0).sum() > 110  # any block can be among the first ones


def test_where_all_rows_are_mixed_every_place_is_as_likely(small_blocks: None) -> None:
    order = ShuffledBlocks(32, 5, seed=1)
    places = np.zeros((32, 32))
    for number in range(2000):
        places[np.arange(32), passed(order, number)] += 1
    expected = 2000 / 32
    chi = ((places - expected) ** 2 / expected).sum()
    assert abs(chi - 31 * 31) < 5 * np.sqrt(2 * 31 * 31)


@pytest.mark.parametrize("processes", [2, 3, 7])
@pytest.mark.parametrize("n", [7, 100, 1000])
def test_processes_share_the_rows(n: int, processes: int, small_blocks: None) -> None:
    orders = [ShuffledBlocks(n, 6, seed=5, rank=rank, processes=processes) for rank in range(processes)]
    left_out = set[int]()
    for number in range(4):
        parts = [passed(order, number) for order in orders]
        assert {len(part) for part in parts} == {n // processes}
        assert len({len(list(order.batches(number))) for order in orders} | {len(order) for order in orders}) == 1
        found = list(itertools.chain.from_iterable(parts))
        assert len(set(found)) == len(found) == n // processes * processes
        left_out |= set(range(n)) - set(found)
    assert (len(left_out) > n % processes) == (n % processes > 0 and n > 10)


def test_more_processes_than_rows() -> None:
    with pytest.raises(SettingsError, match=r"3 rows cannot be dealt to 4 processes"):
        ShuffledBlocks(3, 2, seed=0, processes=4)


@pytest.mark.parametrize("steps", [None, 7])
def test_an_epoch_is_taken_up_in_its_middle(steps: int | None, tmp_path: Path, small_blocks: None) -> None:
    made = plain_log.made_up(150, 0)
    found = loaded(plain_log.write(tmp_path / "log", {"train": made, "valid": made, "test": made}), SCHEMA)

    def loader() -> Any:
        return batches(found.train, ShuffledBlocks(150, 16, seed=2, steps=steps))

    def epochs(one: Any, numbers: range) -> list[Any]:
        given = []
        for number in numbers:
            one._rest.set_epoch(number)
            given += [(x.tolist(), y.tolist()) for x, y in one]
        return given

    whole = epochs(loader(), range(3))
    length = steps or 10
    assert len(whole) == 3 * length
    first = loader()
    first._rest.set_epoch(1)
    interrupted = iter(first)
    for _ in range(4):
        next(interrupted)
    state = first.state_dict()
    assert state == {"batches": 4}
    again = loader()
    again.load_state_dict(state)
    assert epochs(again, range(1, 3)) == whole[length + 4 :]


@pytest.mark.parametrize("small", [False, True])
def test_batches_are_the_rows_asked_for(small: bool, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if small:
        request.getfixturevalue("small_blocks")
    made = {name: plain_log.made_up(n, n) for name, n in (("train", 90), ("valid", 30), ("test", 20))}
    found = loaded(plain_log.write(tmp_path / "log", made), SCHEMA)
    for part in (found.train, found.validation, found.test):
        ids, labels = content(part)
        index = torch.tensor([5, 0, 5, 19])
        x, y = part.batch(index)
        assert (x.dtype, y.dtype, x.is_contiguous()) == (torch.int64, torch.float32, True)
        assert x.tolist() == [ids[row] for row in index]
        assert y.tolist() == [labels[row] for row in index]
        taken = part.take(torch.tensor([3, 4, 9]))
        assert content(taken) == ([ids[row] for row in (3, 4, 9)], [labels[row] for row in (3, 4, 9)])
        assert content(taken.take(torch.tensor([2, 0])))[0] == [ids[9], ids[3]]
        assert content(part.first(7))[0] == ids[:7]
        assert content(taken.first(2))[0] == [ids[3], ids[4]]
        assert len(part.first(10**9)) == len(part)
        for wrong in ([-1], [len(part)], [0, len(part)]):
            with pytest.raises(IndexError, match=r"rows .* of"):
                part.batch(torch.tensor(wrong))
        with pytest.raises(IndexError, match=r"rows 7 to 7 of 7"):
            part.first(7).batch(torch.tensor([7]))
        assert [tensor.shape for tensor in part.batch(torch.empty(0, dtype=torch.int64))] == [(0, 4), (0,)]
    few = found.first(10)
    assert (len(few.train), few.describe()["n_train"], few.describe()["n_eval"]) == (10, 10, 30)


def large_cache(folder: Path, n: int, fields: int) -> Cache:
    """A cache of many rows that hold nothing but their number modulo something."""
    folder.mkdir()
    counts: dict[Any, int] = {"train": n, "validation": 0, "test": 0}
    piece, names = 10**6, [f"f{number}" for number in range(fields)]

    def rows_of(modulus: int) -> Any:
        return ((start, np.arange(start, start + piece) % modulus) for start in range(0, n, piece))

    moduli = [200 if number % 3 else 50_000 for number in range(fields)]
    for number, modulus in enumerate(moduli):
        dtype = np.dtype("u1" if modulus == 200 else "<u2")
        path = folder / f"{number:04d}.bin"
        write_numbers(path, dtype, rows_of(modulus), lambda _: {"train": slice(None)}, counts)
    write_numbers(folder / "labels.bin", np.dtype("u1"), rows_of(2), lambda _: {"train": slice(None)}, counts)
    entries = [
        {"name": name, "size": modulus, "dtype": "u1" if modulus == 200 else "<u2"}
        for name, modulus in zip(names, moduli, strict=True)
    ]
    return Cache(folder, {"fields": entries, "rows": counts, "clicks": counts})


def test_memory_stays_flat_over_an_epoch(tmp_path: Path) -> None:
    """8 million rows of 20 columns are 208 MB in files: an epoch of them takes 60 MB more than none."""
    n, fields = 8_000_000, 20
    found = Rows.of(large_cache(tmp_path / "cache", n, fields))["train"]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seen, total = 0, 0
    for x, y in batches(found, ShuffledBlocks(n, 20_000, seed=0)):
        seen += len(x)
        total += int(y.sum())
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert (seen, total) == (n, n // 2)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 90 * 1024  # KiB
    assert resident < before * 1024 + 90 * 2**20


@pytest.mark.parametrize(
    ("n", "size", "expected"), [(9, 4, [4, 4]), (10, 4, [4, 4, 2]), (1, 4, [1]), (3, 1, [1, 1, 1])]
)
def test_a_single_row_that_is_left_over_is_left_out(n: int, size: int, expected: list[int]) -> None:
    order = ShuffledBlocks(n, size, 0)
    left_out = set()
    for number in range(30):
        order.set_epoch(number)
        found = list(order)
        assert [len(batch) for batch in found] == expected
        assert len(order) == len(expected)
        rows = torch.cat(found).tolist()
        assert len(set(rows)) == len(rows)
        left_out |= set(range(n)) - set(rows)
    assert len(left_out) == (0 if sum(expected) == n else n)  # each row is left out sometimes
