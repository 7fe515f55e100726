"""The rows of a log are those that plain Python makes of it, whatever the format and wherever it is cut."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from bpfree.lab.data.clicks import encoding
from bpfree.lab.data.clicks.vocabulary import Vocabulary
from support import plain_log
from support.plain_log import SCHEMA, Row
from support.small_log import content, loaded

NUMERIC, CATEGORICAL = SCHEMA["numeric"], SCHEMA["categorical"]
AWKWARD = ("a,b", 'with "quotes"', "two\nlines", " blank ", "tab\there")


def parts(seed: int, words: tuple[str, ...] = ()) -> dict[str, list[Row]]:
    return {
        name: plain_log.made_up(size, 10 * seed + number, words)
        for number, (name, size) in enumerate({"train": 200, "valid": 60, "test": 40}.items())
    }


def check(found: Any, made: dict[str, list[Row]], min_count: int = 2) -> None:
    for rows, part in ((found.train, "train"), (found.validation, "valid"), (found.test, "test")):
        ids, labels = content(rows)
        assert labels == [int(row["click"]) for row in made[part]]
        assert ids == plain_log.ids(made["train"], made[part], NUMERIC, CATEGORICAL, min_count)


@pytest.mark.parametrize("seed", range(6))
def test_csv_with_quotes(seed: int, tmp_path: Path, small_pieces: None) -> None:
    made = parts(seed, AWKWARD if seed % 2 else ())
    found = loaded(plain_log.write(tmp_path / "log", made), SCHEMA)
    check(found, made)
    assert found.names == ("age", "price", "site", "user")
    assert found.shape == found.sizes
    assert found.classes == 1
    ids = [number for part in (found.train, found.validation, found.test) for row in content(part)[0] for number in row]
    assert min(ids) == 0
    for number, size in enumerate(found.sizes):
        column = [row[number] for row in content(found.train)[0]]
        assert size == max(*column, 1) + 1


@pytest.mark.parametrize("ending", [".tsv", ".tsv.gz"])
def test_tabs_without_names_and_packed(ending: str, tmp_path: Path, small_pieces: None) -> None:
    made = parts(7, ('a "b', "'", "#"))
    for name, rows in made.items():
        text = "\n".join("\t".join(row.values()) for row in rows)  # the last line without its end
        data = text.encode()
        (tmp_path / f"{name}{ending}").write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
    files = {part: f"{name}.tsv" for part, name in (("train", "train"), ("validation", "valid"), ("test", "test"))}
    schema = SCHEMA | {"format": "tsv", "columns": list(made["train"][0]), "files": files}
    check(loaded(tmp_path, schema), made)


def test_parquet_of_several_kinds(tmp_path: Path, small_pieces: None) -> None:
    made = parts(3)
    for name, rows in made.items():
        table = pl.DataFrame(rows).with_columns(
            pl.col("click").cast(pl.Int8) == 1,
            pl.col("age").cast(pl.Float64, strict=False),
            pl.col("user").str.slice(1).cast(pl.Int64),
        )
        folder = tmp_path / name
        folder.mkdir()
        half = len(table) // 2
        table[:half].write_parquet(folder / "part-0.parquet", row_group_size=17)
        table[half:].write_parquet(folder / "part-1.parquet")
        (folder / "_SUCCESS").touch()
        (folder / ".part-0.parquet.crc").write_bytes(b"no table")
    files = {"train": "train/*", "validation": "valid/*", "test": "test/*"}
    without = {name: [row | {"user": row["user"][1:]} for row in rows] for name, rows in made.items()}
    found = loaded(tmp_path, SCHEMA | {"format": "parquet", "files": files})
    ids, _ = content(found.test)
    expected = plain_log.ids(without["train"], without["test"], NUMERIC, CATEGORICAL, 2)
    assert ids == expected
    assert content(found.train)[1] == [int(row["click"]) for row in made["train"]]


def test_windows_line_ends_a_mark_and_blank_lines(tmp_path: Path, small_pieces: None) -> None:
    made = parts(4)
    folder = plain_log.write(tmp_path, made)
    for path in folder.glob("*.csv"):
        lines = path.read_text().split("\n")
        path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines[:9], "", *lines[9:], "", ""]).encode())
    check(loaded(folder, SCHEMA), made)


def test_words_for_missing_values(tmp_path: Path, small_pieces: None) -> None:
    made = parts(5)
    spelled = {
        name: [
            {key: value or ("NA" if key == "age" else "-") if key != "click" else value for key, value in row.items()}
            for row in rows
        ]
        for name, rows in made.items()
    }
    check(loaded(plain_log.write(tmp_path, spelled), SCHEMA | {"missing": ["NA", "-"]}), made)


def test_ratings_become_clicks(tmp_path: Path) -> None:
    made = parts(6)
    rated = {name: [row | {"click": ["3.5", "4"][int(row["click"])]} for row in rows] for name, rows in made.items()}
    label = {"column": "click", "threshold": 4}
    check(loaded(plain_log.write(tmp_path, rated), SCHEMA | {"label": label}), made)


@pytest.mark.parametrize("min_count", [1, 5, 1000])
def test_rare_values_share_an_identifier(min_count: int, tmp_path: Path, small_pieces: None) -> None:
    made = parts(8)
    found = loaded(plain_log.write(tmp_path, made), SCHEMA | {"min_count": min_count})
    check(found, made, min_count)
    assert found.sizes != (2, 2, 2, 2) or min_count == 1000


def test_bins_are_torchfms() -> None:
    values = [*range(-5, 3000), *(10**k + d for k in range(4, 16) for d in (-1, 0, 1))]
    found = encoding.bins(torch.tensor(values, dtype=torch.float64).numpy())
    assert found.astype(int).tolist() == [plain_log.bin_of(str(value)) for value in values]


def test_bins_that_lie_far_apart(tmp_path: Path) -> None:
    rows = [{"click": str(n % 2), "x": str(n)} for n in [-(10**12), 5, -(10**12), 5, -7, 10**18, 10**18, -7, 3]]
    (tmp_path / "train.csv").write_text(plain_log.as_text(rows))
    (tmp_path / "valid.csv").write_text(plain_log.as_text(rows))
    schema = {"label": "click", "numeric": ["x"], "min_count": 1}
    found = loaded(tmp_path, schema | {"files": {"train": "train.csv", "validation": "valid.csv"}})
    assert content(found.train)[0] == plain_log.ids(rows, rows, ["x"], [], 1)


def test_a_vocabulary_does_not_depend_on_how_pieces_lie(tmp_path: Path) -> None:
    values = pl.Series(["b", "a", "c", None, ""])
    whole = Vocabulary.learned([(values, torch.tensor([3, 3, 1, 9, 9]).numpy())], 2)
    halves = [(values[:2], torch.tensor([1, 3]).numpy()), (values[::-1], torch.tensor([0, 0, 1, 0, 2]).numpy())]
    assert whole.values.to_list() == Vocabulary.learned(halves, 2).values.to_list() == ["a", "b"]
    assert whole.ids(pl.Series(["b", "zz", None, "", "a"])).tolist() == [3, 0, 1, 1, 2]
    whole.save(tmp_path / "v")
    assert Vocabulary.load(tmp_path / "v").values.to_list() == ["a", "b"]
