"""Rows that a model never saw get the identifiers that they would have had in training, with or without the cache."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bpfree.lab.data.clicks import load_clicks
from bpfree.lab.data.clicks.encoder import Encoder
from bpfree.lab.errors import DamageError, DataError
from lab.data.clicks.test_named_logs import movielens
from support import plain_log
from support.plain_log import SCHEMA
from support.small_log import content, loaded

IDENTIFIED = SCHEMA | {"identifiers": ["user", "site"]}


@pytest.fixture
def made() -> dict[str, list[plain_log.Row]]:
    return {name: plain_log.made_up(n, n) for name, n in (("train", 150), ("valid", 40), ("test", 30))}


@pytest.fixture
def encoder(made: dict[str, list[plain_log.Row]], tmp_path: Path, cache: Path) -> Encoder:
    """Saved and loaded again, without a cache."""
    folder = plain_log.write(tmp_path / "log", made)
    found = loaded(folder, IDENTIFIED)
    Encoder.of(found).save(tmp_path / "run")
    assert Encoder.load(tmp_path / "run").sizes == found.sizes
    shutil.rmtree(cache)
    return Encoder.load(tmp_path / "run")


@pytest.mark.parametrize("labelled", [True, False])
def test_rows_of_a_file(
    labelled: bool, made: dict[str, list[plain_log.Row]], encoder: Encoder, tmp_path: Path, small_pieces: None
) -> None:
    new = plain_log.made_up(100, 99)
    rows = new if labelled else [{name: row[name] for name in ("site", "user", "price", "age")} for row in new]
    (tmp_path / "new.csv").write_text(plain_log.as_text(rows))
    found = list(encoder.rows(tmp_path / "new.csv"))
    assert len(found) > 2
    assert torch.cat([ids for _, ids in found]).tolist() == plain_log.ids(
        made["train"], new, SCHEMA["numeric"], SCHEMA["categorical"], 2
    )
    for name in ("user", "site"):
        assert [value or "" for columns, _ in found for value in columns[name]] == [row[name] for row in new]


def test_a_file_without_names_may_lack_the_label(tmp_path: Path) -> None:
    rows = plain_log.made_up(80, 0)
    (tmp_path / "a.tsv").write_text(plain_log.as_text(rows, "\t", header=False))
    schema = {name: value for name, value in SCHEMA.items() if name != "files"}
    found = loaded(tmp_path, schema | {"format": "tsv", "columns": list(rows[0])})
    encoder = Encoder.of(found)
    without = [{name: value for name, value in row.items() if name != "click"} for row in rows]
    (tmp_path / "b.tsv").write_text(plain_log.as_text(without, "\t", header=False))
    ids = [torch.cat([ids for _, ids in encoder.rows(tmp_path / name)]).tolist() for name in ("a.tsv", "b.tsv")]
    assert ids[0] == ids[1]
    assert all(row in ids[0] for row in content(found.train)[0])


def test_bad_rows_of_a_file(encoder: Encoder, tmp_path: Path) -> None:
    path = tmp_path / "new.csv"
    path.write_text("user,site,age,price\nu1,a.com,old,1\nu2,b.com,3\nu3,a.com,1,2\n")
    with pytest.raises(DataError, match=r"(?s)2 row\(s\) .*new\.csv, line 2: age: 'old' is no.*line 3: it has 3"):
        list(encoder.rows(path))
    allowed = Encoder(replace(encoder.schema, bad_rows=2), encoder.vocabularies)
    assert [columns["user"] for columns, _ in allowed.rows(path)] == [["u3"]]
    unnamed = Encoder(replace(allowed.schema, identifiers=()), encoder.vocabularies)
    with pytest.raises(DataError, match=r"2 row\(s\)"):
        list(unnamed.rows(path))
    with pytest.raises(DataError, match=r"nothing\.csv is missing"):
        list(encoder.rows(tmp_path / "nothing.csv"))
    path.write_text("user,site,age\nu1,a.com,1\n")
    with pytest.raises(DataError, match=r"column 'price' of the schema is not among"):
        list(encoder.rows(path))


def test_joined_tables_are_kept(tmp_path: Path) -> None:
    folder = movielens(tmp_path / "ml")
    found = load_clicks(folder, name="movielens")
    Encoder.of(found).save(tmp_path / "run")
    shutil.move(folder / "ml-100k.inter", tmp_path / "new.inter")
    shutil.rmtree(folder)
    [(columns, ids)] = Encoder.load(tmp_path / "run").rows(tmp_path / "new.inter")
    assert columns["user_id"][:4] == ["1", "2", "3", "1"]
    assert sorted(ids.tolist()) == sorted(
        row for part in (found.train, found.validation, found.test) for row in content(part)[0]
    )


def test_a_folder_that_is_not_whole(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "run" / "0002.vocabulary").write_bytes(b"nothing")
    with pytest.raises(DamageError, match=r"run is not whole .*Train the model again"):
        Encoder.load(tmp_path / "run")
