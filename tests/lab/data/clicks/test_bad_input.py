"""What is wrong with a log or its schema is said with the place, and what to do."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from bpfree.lab.data.clicks import ClickSettings, load_clicks, read_schema, text_rows
from bpfree.lab.data.clicks.schema_file import own_schemas
from bpfree.lab.errors import DataError, SettingsError
from support import plain_log
from support.plain_log import SCHEMA
from support.small_log import content, loaded, schema_file

ROWS = plain_log.made_up(40, 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return plain_log.write(tmp_path / "log", {"train": ROWS, "valid": ROWS[:9], "test": ROWS[9:15]})


def spoil(folder: Path, change: Callable[[list[bytes]], None]) -> None:
    path = folder / "train.csv"
    lines = path.read_bytes().splitlines(keepends=True)
    change(lines)
    path.write_bytes(b"".join(lines))


def put(number: int, line: bytes) -> Callable[[list[bytes]], None]:
    """Put a line in the place of another one; 1 is the first one, with the names."""

    def change(lines: list[bytes]) -> None:
        lines[number - 1] = line

    return change


def cut(lines: list[bytes]) -> None:
    lines[-1] = b"1,30"


BAD_LINES: dict[str, tuple[Callable[[list[bytes]], None], str]] = {
    "too few fields": (
        put(12, b"1,2,3\n"),
        r"train\.csv, line 12: it has 3 field\(s\) and not 5; is the file cut here",
    ),
    "too many": (put(3, b"1,2,3,4,5,6\n"), r"line 3: it has 6 field\(s\) and not 5"),
    "cut in a row": (cut, r"line 41: it has 2 field\(s\) and not 5; is the file cut here"),
    "label 2": (put(5, b"2,1,1,a,b\n"), r"line 5: click: 2\.0 is no label, which is 0 or 1; ratings .* threshold"),
    "no label": (put(5, b",1,1,a,b\n"), r"line 5: click: None is no label"),
    "a word as label": (put(5, b"yes,1,1,a,b\n"), r"line 5: click: 'yes' is no number"),
    "a word as number": (put(41, b"1,old,1,a,b\n"), r"line 41: age: 'old' is no number"),
    "infinity": (put(7, b"1,1,inf,a,b\n"), r"line 7: price: inf is no finite number"),
    "no text": (put(9, b"1,1,1,caf\xe9,b\n"), r"line 9: it is no UTF-8 text"),
    "an open quote": (put(30, b'1,1,1,"a,b\n'), r"line 30: it has a quote that is not closed"),
    "a quote in a field": (
        put(6, b'1,1,1,5" disk,d\n'),
        r"line 6: it has a quote .* inside of a field; is quotes: false",
    ),
    "two in a field": (put(6, b'1,1,1,a"b"c,d\n'), r"line 6: it has a quote"),
    "a word behind a quote": (put(6, b'1,1,1,"b"c,d\n'), r"line 6: it has a quote"),
}


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_row_is_named_or_left_out(
    kind: str, small: bool, folder: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    if small:
        request.getfixturevalue("small_pieces")
    change, said = BAD_LINES[kind]
    spoil(folder, change)
    with pytest.raises(DataError, match=r"(?s)1 row\(s\) so far .*none.*" + said):
        loaded(folder, SCHEMA)
    found = loaded(folder, SCHEMA | {"bad_rows": 1})
    kept = content(found.train)[1]
    line = int(found.cache.facts["bad_rows_listed"][0][1])
    expected = [int(row["click"]) for row in ROWS]
    assert kept == expected[: line - 2] + expected[line - 1 :]
    assert found.describe()["bad_rows"] == 1
    with pytest.raises(DataError, match=r"1 row\(s\) cannot be read, the first one in train\.csv, line"):
        loaded(folder, SCHEMA)  # fewer are allowed today than when it was cached


def test_many_bad_rows_of_several_kinds(folder: Path, small_pieces: None) -> None:
    def change(lines: list[bytes]) -> None:
        for number, (kind, (spoiled, _)) in enumerate(BAD_LINES.items()):
            if kind != "cut in a row":
                place = [b""] * 60
                spoiled(place)
                lines[3 * number + 1] = next(line for line in place if line)

    spoil(folder, change)
    with pytest.raises(DataError, match=r"lets 11 be left out"):
        loaded(folder, SCHEMA | {"bad_rows": 11})
    found = loaded(folder, SCHEMA | {"bad_rows": 12})
    assert [line for _, line, _ in found.cache.facts["bad_rows_listed"]] == [2 + 3 * k for k in range(13) if k != 2]
    assert len(found.train) == len(ROWS) - 12


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"numeric": ["age", "prise"]}, r"column 'prise' of the schema is not among .*Did you mean 'price'"),
        ({"label": "clik"}, r"column 'clik' .*Did you mean 'click'"),
        ({"files": "nothing.csv"}, r"nothing\.csv is missing. Check --data-dir"),
        ({"files": {"train": "train.csv", "test": "*.csv"}}, r"train\.csv is in two parts"),
        ({"format": "parquet", "files": "train.csv"}, r"cannot be read as Parquet"),
        ({"format": "parquet", "files": None}, r"holds no file of the format parquet \(\.parquet\)"),
        ({"files": {"train": "train.csv", "test": "test.csv"}}, r"--clicks.measured_on validation: the log has no"),
    ],
)  # fmt: skip
def test_a_log_that_is_not_as_the_schema_says(changes: dict[str, Any], said: str, folder: Path) -> None:
    with pytest.raises(DataError, match=said):
        loaded(folder, SCHEMA | changes)


@pytest.mark.parametrize("content_", [b"", b"click,age,price,site,user\n", b"click,age,price,site,user\n1,2\n"])
def test_an_empty_log(content_: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(content_)
    schema = {name: value for name, value in SCHEMA.items() if name != "files"} | {"bad_rows": 1}
    said = r"a\.csv is empty" if not content_ else r"a\.csv: there is no row( but 1 that cannot be read)?\. Is the file"
    with pytest.raises(DataError, match=said):
        loaded(tmp_path, schema)


def test_patterns_that_are_none(folder: Path) -> None:
    for pattern in ("/etc/*.csv", "**x"):
        with pytest.raises(SettingsError, match=r"files in the schema: .* is no name or pattern"):
            loaded(folder, SCHEMA | {"files": pattern})


def test_nothing_to_train_on(folder: Path) -> None:
    (folder / "train.csv").write_text("click,age,price,site,user\n")
    with pytest.raises(DataError, match=r"there is no row to train on: see files and split"):
        loaded(folder, SCHEMA)


def test_damaged_files(folder: Path) -> None:
    packed = gzip.compress((folder / "train.csv").read_bytes())
    (folder / "train.csv").unlink()
    (folder / "train.csv.gz").write_bytes(packed[:-20])
    with pytest.raises(DataError, match=r"train\.csv\.gz cannot be read to its end .*Fetch the file again"):
        loaded(folder, SCHEMA)
    table = pl.DataFrame(ROWS)
    for part in ("train", "valid", "test"):
        table.write_parquet(folder / f"{part}.parquet")
    data = (folder / "train.parquet").read_bytes()
    (folder / "train.parquet").write_bytes(data[:-30])
    files = {"train": "train.parquet", "validation": "valid.parquet", "test": "test.parquet"}
    with pytest.raises(DataError, match=r"train\.parquet cannot be read as Parquet .*cut short"):
        loaded(folder, SCHEMA | {"format": "parquet", "files": files})


def test_columns_twice(folder: Path) -> None:
    spoil(folder, put(1, b"click,age,price,site,age\n"))
    with pytest.raises(DataError, match=r"names column 'age' twice"):
        loaded(folder, SCHEMA)


def test_a_row_without_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_rows, "PIECE", 100)
    monkeypatch.setattr(text_rows, "_LONGEST", 400)
    spoil(folder, put(4, b'1,1,1,"a,b\n'))
    assert len(loaded(folder, SCHEMA | {"bad_rows": 1}).train) == len(ROWS) - 1
    spoil(folder, put(4, b'1,1,1,"' + b"a" * 400 + b'",b\n'))
    with pytest.raises(DataError, match=r"no end of a line in 400 bytes behind byte"):
        loaded(folder, SCHEMA)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(folder: Path) -> None:
    (folder / "train.csv").chmod(0)
    with pytest.raises(DataError, match=r"train\.csv cannot be read"):
        loaded(folder, SCHEMA)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ([], "the schema must be names with values"),
        ({"numeric": ["a"]}, "label is missing"),
        ({"label": "c"}, "numeric and categorical name no column"),
        ({"label": "c", "numerics": ["a"]}, "'numerics' is not known. Did you mean 'numeric'"),
        ({"label": "c", "numeric": ["a", "c"]}, "column 'c' is used twice"),
        ({"label": {"threshold": 4}, "numeric": ["a"]}, "label: column is missing"),
        ({"label": {"column": "c", "threshold": "4"}, "numeric": ["a"]}, "threshold must be a number, not '4'"),
        ({"label": "c", "numeric": [True]}, "numeric must be a name, not True; write it in quotes"),
        ({"label": "c", "numeric": ["a"], "format": "xlsx"}, "format 'xlsx' is none of csv, tsv"),
        ({"label": "c", "numeric": ["a"], "format": "parquet", "columns": ["a", "c"]}, "leave it out"),
        ({"label": "c", "numeric": ["a"], "columns": ["a", "c", "a"]}, "columns: 'a' is there twice"),
        ({"label": "c", "numeric": ["a"], "min_count": 0}, "min_count is a number from 1 on"),
        ({"label": "c", "numeric": ["a"], "bad_rows": 0.1}, "bad_rows must be a whole number"),
        ({"label": "c", "numeric": ["a"], "missing": "NA"}, "missing must be a list of words"),
        ({"label": "c", "numeric": ["a"], "split": {"fractions": [0.8, 0.1]}}, "three numbers"),
        ({"label": "c", "numeric": ["a"], "split": {"fractions": [0.8, 0.1, 0.2]}}, "must sum to 1"),
        ({"label": "c", "numeric": ["a"], "files": {"train": "a"}}, "name those of train, and of validation or test"),
        ({"label": "c", "numeric": ["a"], "files": {"train": "a", "test": "b"}, "split": {"seed": 1}}, "leave one"),
        ({"label": "c", "numeric": ["a"], "join": [{"file": "u"}]}, "each entry needs file and key"),
        ({"label": "c", "numeric": ["a"], "join": [{"file": "u", "key": "a"}]}, "'a' is a name, by which rows"),
        ({"label": "c", "numeric": ["a"], "identifiers": ["a"]}, "identifiers: 'a' is numeric"),
        ({"label": "c", "numeric": ["a"], "quotes": "no"}, "quotes must be true or false"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_schema_is_said_with_its_file(schema: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=rf"(?s)schema\.yaml: .*{said}"):
        read_schema(schema_file(tmp_path, schema))


def test_schemas_by_name(tmp_path: Path) -> None:
    assert own_schemas() == ["avazu", "criteo", "criteo-10k", "movielens"]
    with pytest.raises(SettingsError, match=r"no such file, and Did you mean 'criteo'"):
        read_schema("criteos")
    with pytest.raises(SettingsError, match=r"--data clicks needs --schema FILE"):
        load_clicks(tmp_path)
    with pytest.raises(SettingsError, match=r"--data criteo has a schema of its own"):
        load_clicks(tmp_path, ClickSettings(schema="avazu"), "criteo")
    with pytest.raises(DataError, match=r"criteo needs --data-dir DIR"):
        load_clicks(None, name="criteo")
