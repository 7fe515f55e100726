"""Which rows are trained on: by files, by chance, as written, or by a column such as a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bpfree.lab.data.clicks import Clicks, parts
from bpfree.lab.data.clicks.vocabulary import Vocabulary
from bpfree.lab.errors import DataError
from support import plain_log
from support.small_log import content, loaded

N = 500
SCHEMA: dict[str, Any] = {"label": "click", "numeric": ["age"], "categorical": ["row", "site"], "min_count": 1}


def log(folder: Path, times: list[str] | None = None) -> list[plain_log.Row]:
    """A log in two files, whose column ``row`` says which row it is."""
    made = [row | {"row": f"r{number}"} for number, row in enumerate(plain_log.made_up(N, 3))]
    if times is not None:
        made = [row | {"time": time} for row, time in zip(made, times, strict=True)]
    plain_log.write(folder, {"a": made[:200], "b": made[200:]})
    return made


def trained_rows(found: Clicks) -> list[int]:
    """The numbers of the rows for training: every other one is unseen."""
    values = Vocabulary.load(found.cache.vocabulary_file(1)).values.to_list()
    return [int(values[ids[1] - 2][1:]) for ids in content(found.train)[0]]


def check(found: Clicks, made: list[plain_log.Row], train: list[int]) -> None:
    """Every other row is in one of the other parts, in the order of the log, and no vocabulary knows it."""
    rows = [made[number] for number in train]
    ids, labels = content(found.train)
    assert ids == plain_log.ids(rows, rows, ["age"], ["row", "site"], 1)
    assert labels == [int(row["click"]) for row in rows]
    others = [made[number] for number in range(N) if number not in train]
    held = plain_log.ids(rows, others, ["age"], ["row", "site"], 1)
    valid, test = content(found.validation), content(found.test)
    assert all(row[1] == 0 for row in valid[0] + test[0])
    assert sorted(valid[0] + test[0]) == sorted(held)
    assert sum(valid[1] + test[1]) == sum(int(row["click"]) for row in others)


@pytest.mark.parametrize("fractions", [[0.8, 0.1, 0.1], [0.5, 0.5, 0.0]])
def test_by_chance(fractions: list[float], tmp_path: Path, small_pieces: None) -> None:
    made = log(tmp_path / "log")
    found = loaded(tmp_path / "log", SCHEMA | {"split": {"fractions": fractions}})
    train = trained_rows(found)
    assert train == sorted(set(train))
    check(found, made, train)
    sizes = [len(part) for part in (found.train, found.validation, found.test)]
    assert sum(sizes) == N
    assert np.allclose(sizes, np.array(fractions) * N, atol=25)  # half a row a piece
    other = loaded(tmp_path / "log", SCHEMA | {"split": {"fractions": fractions, "seed": 1}})
    assert trained_rows(other) != train
    again = loaded(tmp_path / "log", SCHEMA | {"split": {"fractions": fractions, "seed": 0}})
    assert again.cache.folder == found.cache.folder


def test_by_chance_a_whole_piece_has_exact_fractions(tmp_path: Path) -> None:
    log(tmp_path / "log")
    found = loaded(tmp_path / "log", SCHEMA)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [400, 50, 50]
    halves = np.array(trained_rows(found)) < 200
    assert halves.sum() == 160  # 200 rows are a file, and so a piece, of their own


def test_as_written(tmp_path: Path, small_pieces: None) -> None:
    made = log(tmp_path / "log")
    found = loaded(tmp_path / "log", SCHEMA | {"split": {"order": "as written", "fractions": [0.7, 0.2, 0.1]}})
    assert trained_rows(found) == list(range(350))
    check(found, made, list(range(350)))
    assert content(found.validation)[1] == [int(row["click"]) for row in made[350:450]]


TIMES = {
    "whole": lambda draw: [str(value) for value in draw.integers(-50, 50, N)],
    "fractions": lambda draw: [f"{value:.4f}" for value in draw.normal(0, 1e-3, N)],
    "large": lambda draw: [f"{value:.6e}" for value in draw.normal(0, 1e200, N)],
    "few": lambda draw: [str(value) for value in draw.integers(0, 4, N)],
}


@pytest.mark.parametrize("kind", TIMES)
def test_by_a_time(kind: str, tmp_path: Path, small_pieces: None) -> None:
    times = TIMES[kind](np.random.default_rng(0))
    made = log(tmp_path / "log", times)
    split = {"order": "time", "fractions": [0.6, 0.2, 0.2]}
    found = loaded(tmp_path / "log", SCHEMA | {"split": split})
    numbers = [float(time) for time in times]
    first, second = (sorted(numbers)[place - 1] for place in (300, 400))
    train = [row for row in range(N) if numbers[row] <= first]
    assert trained_rows(found) == train
    assert len(train) >= 300
    check(found, made, train)
    assert len(found.test) == sum(number > max(first, second) for number in numbers)


def test_a_time_may_be_a_field_too_and_must_be_there(tmp_path: Path, small_pieces: None) -> None:
    made = log(tmp_path / "log", [f"{n % 7:02}" for n in range(N)])
    schema = SCHEMA | {"categorical": ["row", "site", "time"], "split": {"order": "time"}}
    found = loaded(tmp_path / "log", schema)
    train = [made[row] for row in trained_rows(found)]
    assert content(found.train)[0] == plain_log.ids(train, train, ["age"], ["row", "site", "time"], 1)
    with (tmp_path / "log" / "b.csv").open("a") as stream:
        stream.write("1,2,3,a,b,r9,\n")
    with pytest.raises(DataError, match=r"b\.csv, line 302: time: None has no place in the order of split"):
        loaded(tmp_path / "log", schema)


def test_numbers_have_their_order_as_ranks() -> None:
    values = [-np.inf, -1e300, -1.5, -5e-324, 0.0, 5e-324, 1.0, 1e300, np.inf]
    ranks = [parts._rank(value) for value in values]
    assert ranks == sorted(set(ranks))
    assert [parts._unranked(rank) for rank in ranks] == values
