"""Short text as numbers: found in a piece as Python finds it, and encoded as longer text is."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from bpfree.lab.data.clicks import reading, short_columns, short_fields, short_text
from support import plain_log
from support.plain_log import SCHEMA
from support.small_log import content, loaded

WORDS = ["a", "ab", "b", "zz", "12345678", "é", "日本", "x y", " ", "abcdefgh", "0", "-1.5", "\x01"]


def as_numbers(words: list[str]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    return np.array([int.from_bytes(word.encode().ljust(8, b"\0"), "big") for word in words], np.uint64)


def test_numbers_are_texts_and_have_their_order() -> None:
    numbers = as_numbers(["", *WORDS])
    assert short_text.as_text(numbers).to_list() == [None, *WORDS]
    assert short_text.as_text(numbers[:0]).to_list() == []
    assert sorted(WORDS, key=str.encode) == [WORDS[k] for k in np.argsort(numbers[1:])]
    assert short_text.of_words([*WORDS, "too long a word"]).tolist() == numbers[1:].tolist()


@pytest.mark.parametrize("together", [19, 3])
@pytest.mark.parametrize("slots", [4, 1])
@pytest.mark.parametrize("count", [0, 1, 2, 50, 5000])
def test_equal_texts_have_one_number(count: int, slots: int, together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With small tables, and in many parts: where texts meet in a slot, they are told apart."""
    monkeypatch.setattr(short_text, "_TOGETHER", together)
    monkeypatch.setattr(short_text, "_SLOTS", slots)
    texts = np.random.default_rng(count).integers(0, 2**63, max(1, count // 3), np.uint64)
    texts = np.random.default_rng(1).choice(texts, count)
    places, values = short_text.numbered(texts)
    assert values[places].tolist() == texts.tolist()
    assert len(set(values.tolist())) == len(values) == len(set(texts.tolist()))


def test_texts_that_all_meet_in_one_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiples of 2^60 do so with the first factor."""
    monkeypatch.setattr(short_text, "_MIXING", 1)
    texts = np.arange(200, dtype=np.uint64) % np.uint64(40)
    places, values = short_text.numbered(texts)
    assert values[places].tolist() == texts.tolist()
    assert len(values) == 40


@pytest.mark.parametrize("block", [2**18, 200, 60])
@pytest.mark.parametrize("seed", range(5))
def test_fields_are_those_of_split(seed: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(short_fields, "_BLOCK", block)
    draw = random.Random(seed)
    rows = [[draw.choice(["", *WORDS]) for _ in range(4)] for _ in range(draw.randrange(1, 90))]
    rows[-1][2] = draw.choice(["short", "longer than eight"])
    text = "".join("\t".join(row) + "\n" for row in rows).encode()
    found = short_fields.short_fields(text, "\t", 4, [3, 0, 2], quoted=False)
    assert found is not None
    assert found[0] == len(rows)
    assert sorted(found[1]) == ([0, 2, 3] if rows[-1][2] == "short" else [0, 3])
    for column, numbers in found[1].items():
        assert numbers.tolist() == as_numbers([row[column] for row in rows]).tolist()


@pytest.mark.parametrize(
    "text",
    [
        b"a,b\nc,d",
        b"a,b\nc\n",
        b"a\nb,c,d\n",
        b"a,b,c\nd\n",
        b"a,b\n\nc,d\n",
        b"a,b\r\nc,d\r\n",
        b'a,"b"\nc,d\n',
        b"a,\0b\nc,d\n",
        b"a,caf\xe9\nc,d\n",
        b"",
        b"a" * 99 + b",b\n",
    ],
)
def test_what_is_not_plain_is_left_to_the_parser(text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(short_fields, "_BLOCK", 64)
    assert short_fields.short_fields(text, ",", 2, [0, 1], quoted=True) is None


def test_no_column_is_short() -> None:
    text = b"a long name,and another\n" * 9
    assert short_fields.short_fields(text, ",", 2, [0, 1], quoted=True) == (9, {})


def test_a_single_column_is_left_to_the_parser() -> None:
    """An empty line is no row there, and looks like one."""
    assert short_fields.short_fields(b"a\n\nb\n", ",", 1, [0], quoted=True) is None


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each piece was read without a parser."""
    found: list[bool] = []
    read = short_columns.short_columns

    def noted(*arguments: Any) -> Any:
        found.append((result := read(*arguments)) is not None)
        return result

    monkeypatch.setattr(reading, "short_columns", noted)
    return found


def everything(folder: Path, schema: dict[str, Any]) -> list[Any]:
    found = loaded(folder, schema)
    vocabularies = [pl.read_ipc(found.cache.vocabulary_file(k))["v"].to_list() for k in range(len(found.names))]
    return [*map(content, (found.train, found.validation, found.test)), vocabularies]


def numbers_of_all_kinds(rows: list[plain_log.Row], seed: int) -> list[plain_log.Row]:
    draw = random.Random(seed)
    kinds = ["7", "007", "-3", "2.50", "1e3", " 4", "5 ", "+6", "NA", "", ".5", "1234567", "12345678901", "nan"]
    return [row | {"age": draw.choice(kinds), "price": draw.choice(kinds[:-3])} for row in rows]


@pytest.mark.parametrize("long", ["", "a site with a long name"])
@pytest.mark.parametrize("seed", range(4))
def test_a_parser_reads_the_same(
    seed: int, long: str, tmp_path: Path, cache: Path, ways: list[bool], small_pieces: None, monkeypatch: Any
) -> None:
    """Some pieces have long fields in a column, others do not."""
    made = {name: plain_log.made_up(200, 3 * seed + k) for k, name in enumerate(("train", "valid", "test"))}
    if long:
        made["train"][150]["site"] = made["test"][3]["site"] = made["test"][9]["user"] = long
    made = {name: numbers_of_all_kinds(rows, seed) for name, rows in made.items()}
    monkeypatch.setattr(short_fields, "_BLOCK", 128)
    folder = plain_log.write(tmp_path / "log", made)
    schema = SCHEMA | {"missing": ["NA", "a.com"]}
    short = everything(folder, schema)
    assert ways.count(True) > 20
    cache.rename(cache.with_name("before"))
    with monkeypatch.context() as patch:
        patch.setattr(reading, "short_columns", lambda *_: None)
        assert everything(folder, schema) == short


def test_a_number_that_is_none_is_named(tmp_path: Path, ways: list[bool]) -> None:
    """Whether a piece has one is known from its different values; the line is then looked for."""
    rows = [{"click": "1", "age": "3", "price": "4", "site": "a", "user": "b"}] * 50
    rows[20] = rows[20] | {"price": "4x"}
    folder = plain_log.write(tmp_path / "log", {"train": rows, "valid": rows[:3], "test": rows[:3]})
    with pytest.raises(reading.DataError, match=r"train\.csv, line 22: price: '4x' is no number"):
        loaded(folder, SCHEMA)
    assert False in ways


@pytest.mark.parametrize("order", ["age", "user"])
def test_rows_split_by_a_short_column(
    order: str, tmp_path: Path, cache: Path, ways: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a column that is a field too, of numbers or of names that are numbers."""
    rows = [row | {"age": str(n % 97), "user": str(n % 89)} for n, row in enumerate(plain_log.made_up(300, 1))]
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "all.csv").write_text(plain_log.as_text(rows), encoding="utf-8")
    schema = SCHEMA | {"files": "all.csv", "split": {"order": order}}
    short = everything(tmp_path / "log", schema)
    assert ways == [True]
    cache.rename(cache.with_name("before"))
    monkeypatch.setattr(reading, "short_columns", lambda *_: None)
    assert everything(tmp_path / "log", schema) == short
